package main_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"crunch-oci/arvados"
)

// startDispatching starts a cluster that runs, on the node, what is submitted.
func startDispatching(t testing.TB, n *node, dir string, slots int) *cluster {
	t.Helper()
	c := connectCluster(t, n.start(t, run{args: []string{"cluster", "--dir", dir, "--dispatch", fmt.Sprint(slots)}}))
	endCluster(t, c.process)
	return c
}

// Submitted requests just run: all are Final in the end, with the right output
// and log, and nothing stays behind on the node. CRUNCH_RUN_TEST_LONG=1 makes it
// 200 requests instead of 20.
func TestDispatch(t *testing.T) {
	t.Parallel()
	count := 20
	if os.Getenv("CRUNCH_RUN_TEST_LONG") != "" {
		count = 200
	}
	n := newNode(t)
	c := startDispatching(t, n, filepath.Join(n.dir, "cluster"), 4)
	image := c.storeTools(t)
	var requests []string
	for i := range count {
		r := c.request(t, image, sh(fmt.Sprintf("echo output %d >f; echo log %d; echo oops >&2; true", i, i)), nil)
		requests = append(requests, r.UUID)
	}
	waitFor(t, "all requests to be Final", func() bool {
		var waiting []struct{ UUID string }
		if err := c.user.List(t.Context(), "container_requests", map[string]any{
			"filters": [][]string{{"state", "!=", "Final"}}, "select": []string{"uuid"}, "limit": 1}, &waiting); err != nil {
			t.Fatal(err)
		}
		return len(waiting) == 0
	})
	for i, uuid := range requests {
		r, err := c.user.GetContainerRequest(t.Context(), uuid)
		if err != nil {
			t.Fatal(err)
		}
		record := c.container(t, r.ContainerUUID)
		if record.State != arvados.StateComplete || record.ExitCode == nil || *record.ExitCode != 0 || r.ContainerCount != 1 {
			t.Errorf("%s: %s after %d containers: %v", uuid, record.State, r.ContainerCount, record.RuntimeStatus)
			continue
		}
		if got := c.file(t, r.OutputUUID, "f"); got != fmt.Sprintf("output %d\n", i) {
			t.Errorf("%s: output %q", uuid, got)
		}
		log := c.files(t, r.LogUUID)
		for name, want := range map[string]string{"stdout.txt": fmt.Sprintf("log %d\n", i), "stderr.txt": "oops\n"} {
			below := "log for container " + r.ContainerUUID + "/" + name
			if !strings.HasSuffix(log[name], want) || log[below] != log[name] {
				t.Errorf("%s: %s is %q, below its own name %q", uuid, name, log[name], log[below])
			}
		}
	}
}

// A cluster that is killed takes its supervisors and containers with it, and the
// next one finishes the work.
func TestDispatchAfterKill(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	dir := filepath.Join(n.dir, "cluster")
	c := startDispatching(t, n, dir, 1)
	image := c.storeTools(t)
	first := c.request(t, image, []string{"sleep", "1000"}, nil)
	second := c.request(t, image, sh("echo done >f"), nil)
	waitFor(t, "the first container to run", func() bool { return c.container(t, first.ContainerUUID).State == arvados.StateRunning })
	c.process.signal(t, syscall.SIGKILL)
	c.process.wait(t)
	n.waitDead(t)
	c = startDispatching(t, n, dir, 1)
	waitFor(t, "the second container to complete", func() bool {
		return c.container(t, second.ContainerUUID).State == arvados.StateComplete
	})
	if record := c.container(t, first.ContainerUUID); record.State != arvados.StateCancelled {
		t.Errorf("the first container is %s", record.State)
	}
	r, err := c.user.GetContainerRequest(t.Context(), first.UUID)
	if err != nil || r.State != arvados.RequestFinal {
		t.Errorf("the first request: %s %v", r.State, err)
	}
}

// A container with API access submits work of its own, with its own token, waits
// for it, and gets its exit status. The client is this program, with the host's
// C library beside it.
func TestDispatchChild(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	c := connectCluster(t, n.start(t, run{
		args: []string{"cluster", "--dir", filepath.Join(n.dir, "cluster"), "--dispatch", "2"}, env: []string{"CRUNCH_RUN_NETWORK=host"},
	}))
	t.Cleanup(func() {
		c.process.signal(t, syscall.SIGTERM)
		c.process.wait(t)
	})
	files := map[string][]byte{}
	libraries, err := exec.Command("ldd", program).Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range append(strings.Fields(string(libraries)), program) {
		if filepath.IsAbs(path) {
			if files[filepath.Base(path)], err = os.ReadFile(path); err != nil {
				t.Fatal(err)
			}
		}
	}
	image := c.storeTools(t)
	parent := c.request(t, image, sh(`/in/ld-linux-x86-64.so.2 --library-path /in /in/crunch-run submit --image `+image+
		` --wait --json -- sh -c 'echo from the child >said; exit 5' >record; echo $? >status`), attrs{
		"mounts":              attrs{"/out": attrs{"kind": "tmp"}, "/in": attrs{"kind": "collection", "portable_data_hash": c.store(t, files)}},
		"runtime_constraints": attrs{"vcpus": 1, "ram": 512 << 20, "API": true},
	})
	waitFor(t, "the parent's request to be Final", func() bool {
		r, err := c.user.GetContainerRequest(t.Context(), parent.UUID)
		if err != nil {
			t.Fatal(err)
		}
		parent = r
		return r.State == arvados.RequestFinal
	})
	if got := c.file(t, parent.OutputUUID, "status"); got != "5\n" {
		t.Fatalf("status of the child for its parent: %q; stderr: %s", got, c.log(t, c.container(t, parent.ContainerUUID), "stderr.txt"))
	}
	var children []arvados.ContainerRequest
	if err := c.user.List(t.Context(), "container_requests", map[string]any{
		"filters": [][]string{{"requesting_container_uuid", "=", parent.ContainerUUID}}}, &children); err != nil {
		t.Fatal(err)
	}
	if len(children) != 1 || children[0].Priority != parent.Priority || c.file(t, children[0].OutputUUID, "said") != "from the child\n" {
		t.Errorf("children: %+v", children)
	}
}
