package main_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"crunch-oci/arvados"
)

// forgetImages empties the node's image store, so that the next run unpacks.
func forgetImages(t testing.TB, n *node) {
	t.Helper()
	for _, d := range []string{"images", "layers"} {
		if err := os.RemoveAll(filepath.Join(n.store(), d)); err != nil {
			t.Fatal(err)
		}
	}
}

// withInput are the attributes of a container that has a FUSE mount.
func withInput(pdh string) attrs {
	return attrs{"mounts": attrs{
		"/out": attrs{"kind": "tmp", "capacity": 1 << 20},
		"/in":  attrs{"kind": "collection", "portable_data_hash": pdh},
	}}
}

// killed kills the supervisor at once and waits until everything that belonged
// to it is dead, of itself.
func killed(t testing.TB, n *node, p *process) {
	t.Helper()
	_ = p.cmd.Process.Kill() // it may have ended by itself
	p.wait(t)
	n.waitDead(t)
	mounts, err := n.mounts()
	if err != nil || len(mounts) > 0 {
		t.Errorf("mounts outlive the supervisor: %q %v", mounts, err)
	}
	// A result that was on its way is there for an operator, on purpose.
	if res := n.run(t, "unfinished", "drop", "--all"); res.code != 0 {
		t.Errorf("drop what is unfinished: %+v", res)
	}
}

// TestSupervisorKilled kills the supervisor at every stage. The container and
// the FUSE server die with it; whatever it leaves is cleaned up by the next run,
// of the same container where that is possible, or of another.
func TestSupervisorKilled(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	c := startCluster(t, n)
	image := c.storeTools(t)
	in := withInput(c.store(t, map[string][]byte{"a.txt": []byte("A")}))
	script := sh("cat /in/a.txt; echo data > data.txt; sleep 0.2; echo done")
	for _, stage := range []string{
		" started\n", "Executing container", "Running [arv-mount", "Fetching Docker image", "Loading Docker image", "Creating OCI container",
		"Starting container", "Waiting for container", "Container exited", "copying \"data.txt\"", "Complete\n",
	} {
		forgetImages(t, n)
		uuid := c.submit(t, image, script, in)
		p := c.supervise(t, n, uuid)
		p.stderr.mustSay(t, stage)
		time.Sleep(time.Duration(rand.IntN(30)) * time.Millisecond) // anywhere in the stage
		killed(t, n, p)

		record := c.container(t, uuid)
		switch record.State {
		case arvados.StateLocked:
			// The dispatcher starts it again.
		case arvados.StateRunning:
			if err := c.dispatch.UpdateContainer(t.Context(), uuid, map[string]any{"state": arvados.StateCancelled}); err != nil {
				t.Fatal(err)
			}
			uuid = c.submit(t, image, script, in)
		case arvados.StateComplete:
			uuid = c.submit(t, image, script, in)
		default:
			t.Fatalf("killed at %q: state %s", stage, record.State)
		}
		record = c.finished(t, n, c.supervise(t, n, uuid), uuid, 0, arvados.StateComplete)
		if out := stamped(t, c.log(t, record, "stdout.txt")); out != "Adone\n" {
			t.Errorf("killed at %q: the next run says %q", stage, out)
		}
		if t.Failed() {
			t.Fatalf("killed at %q", stage)
		}
	}
}

// TestKilledAgainAndAgain kills runs at any moment, one after the other, and
// lets one succeed in the end. Nothing of all the others is left then.
func TestKilledAgainAndAgain(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	c := startCluster(t, n)
	image := c.storeTools(t)
	in := withInput(c.store(t, map[string][]byte{"a.txt": []byte("A")}))
	for range 12 {
		uuid := c.submit(t, image, sh("cat /in/a.txt; sleep 0.1; echo data > data.txt"), in)
		p := c.supervise(t, n, uuid)
		select {
		case <-p.done:
		case <-time.After(time.Duration(rand.IntN(700)) * time.Millisecond):
		}
		killed(t, n, p)
		if rand.IntN(2) == 0 {
			forgetImages(t, n)
		}
	}
	record := c.runOne(t, n, image, sh("cat /in/a.txt"), in)
	if out := stamped(t, c.log(t, record, "stdout.txt")); out != "A" {
		t.Errorf("the last run says %q", out)
	}
}

// TestLocalKilled kills crunch-run local with the cluster in it.
func TestLocalKilled(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	image := filepath.Join(n.dir, "image.tar")
	writeFile(t, image, toolsImage(t).dockerSave())
	p := n.start(t, run{args: []string{"local", "--image", image, "--", "sh", "-c", "echo ready; sleep 1000"}})
	p.stdout.mustSay(t, "ready\n")
	killed(t, n, p)
	if res := n.local(t, "--image", image, "--", "echo", "fine"); res.stdout != "fine\n" {
		t.Errorf("the next run says %q", res.stdout)
	}
}

// TestMountKilled kills the FUSE server under a running container.
func TestMountKilled(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	c := startCluster(t, n)
	in := withInput(c.store(t, map[string][]byte{"a.txt": []byte("A")}))
	uuid := c.submit(t, c.storeTools(t), sh("cat /in/a.txt; echo part > part.txt; sleep 1000"), in)
	p := c.supervise(t, n, uuid)
	p.stderr.mustSay(t, "Waiting for container to finish")
	insideContainer(t, n)
	n.kill(t, func(f foundProcess) bool { return strings.Contains(f.command, "keep-mount") })
	record := c.finished(t, n, p, uuid, 0, arvados.StateCancelled)
	if record.ExitCode == nil || *record.ExitCode != 137 {
		t.Errorf("exit code %v, want 137", record.ExitCode)
	}
	mustSayInOrder(t, c.log(t, record, "crunch-run.txt"),
		"arv-mount exited while container is still running. Stopping container.\n", "stopping container\n", "Container exited with status code 137 (signal 9, SIGKILL)\n", "Cancelled\n")
	if log := c.log(t, record, "crunch-run.txt"); !strings.Contains(log, "Arv-mount exit error: signal: killed") {
		t.Errorf("the log does not say how the FUSE server ended:\n%s", log)
	}
}

// TestMountHangs stops the FUSE server without ending it: a program that reads
// an input hangs in the kernel, where no signal reaches it. The container can be
// stopped nevertheless.
func TestMountHangs(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	c := startCluster(t, n)
	in := withInput(c.store(t, map[string][]byte{"a.txt": bytes.Repeat([]byte("A"), 1<<20), "b.txt": bytes.Repeat([]byte("B"), 1<<20)}))
	uuid := c.submit(t, c.storeTools(t), sh("head -c 1 /in/a.txt; touch begun; "+untilTold+"echo hanging; touch hanging; cat /in/b.txt"), in)
	p := c.supervise(t, n, uuid)
	p.stderr.mustSay(t, "Waiting for container to finish")
	awaitFile(t, n, "out/begun")
	n.signal(t, syscall.SIGSTOP, func(f foundProcess) bool { return strings.Contains(f.command, "keep-mount") })
	release(t, n)
	awaitFile(t, n, "out/hanging") // or about to: some shells run cat without a process of that name
	p.signal(t, syscall.SIGTERM)
	record := c.finished(t, n, p, uuid, 0, arvados.StateCancelled)
	if out := stamped(t, c.log(t, record, "stdout.txt")); out != "Ahanging\n" {
		t.Errorf("stdout %q", out)
	}
}

// kill kills the processes of the node that match.
func (n *node) kill(t testing.TB, match func(foundProcess) bool) {
	t.Helper()
	n.signal(t, syscall.SIGKILL, match)
}

// signal sends a signal to the processes of the node that match.
func (n *node) signal(t testing.TB, sig syscall.Signal, match func(foundProcess) bool) {
	t.Helper()
	found := false
	for _, f := range n.processes() {
		if match(f) {
			found = true
			if err := syscall.Kill(f.pid, sig); err != nil {
				t.Fatal(err)
			}
		}
	}
	if !found {
		t.Fatalf("no such process among %v", n.processes())
	}
}

// TestContainerKilled kills the container's first process from outside, as the
// administrator of a node may. For the supervisor that is an end like any other.
func TestContainerKilled(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	c := startCluster(t, n)
	uuid := c.submit(t, c.storeTools(t), sh("echo part > part.txt; echo ready; sleep 1000; echo never"), nil)
	p := c.supervise(t, n, uuid)
	p.stderr.mustSay(t, "Waiting for container to finish")
	awaitFile(t, n, "out/part.txt")
	n.kill(t, func(f foundProcess) bool { return f.contained && strings.HasPrefix(f.command, "sh -c") })
	record := c.finished(t, n, p, uuid, 0, arvados.StateComplete)
	if record.ExitCode == nil || *record.ExitCode != 137 {
		t.Errorf("exit code %v, want 137", record.ExitCode)
	}
	if got := c.files(t, record.Output); got["part.txt"] != "part\n" {
		t.Errorf("output %q", got)
	}
}

// A container ends with its first process, whatever that leaves behind, also
// when what is left holds the output open.
func TestOrphans(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	c := startCluster(t, n)
	script := "for i in 1 2 3; do setsid sh -c 'trap \"\" TERM INT HUP; sleep 1000' & done; echo leaving; exit 4"
	record := c.runOne(t, n, c.storeTools(t), sh(script), nil)
	if record.ExitCode == nil || *record.ExitCode != 4 {
		t.Errorf("exit code %v, want 4", record.ExitCode)
	}
	if out := stamped(t, c.log(t, record, "stdout.txt")); out != "leaving\n" {
		t.Errorf("stdout %q", out)
	}
}

// TestConcurrentUnpacking lets several supervisors of a node want the same image
// at once: it is unpacked once.
func TestConcurrentUnpacking(t *testing.T) {
	t.Parallel()
	for _, count := range []int{2, 4} {
		t.Run(fmt.Sprint(count), func(t *testing.T) {
			n := newNode(t)
			c := startCluster(t, n)
			m := layeredImage(t)
			tarball := m.dockerSave()
			image := c.storeImage(t, m.id(), tarball)
			k := newKeepProxy(t, c)
			uuids, processes := make([]string, count), make([]*process, count)
			for i := range count {
				uuids[i] = c.submit(t, image, []string{"sh", "-c", inspect}, nil)
			}
			for i := range count {
				processes[i] = n.start(t, run{args: []string{uuids[i]}, env: append(c.supervisorEnv(), "ARVADOS_KEEP_SERVICES="+k.URL)})
			}
			for _, p := range processes {
				if code := p.wait(t); code != 0 {
					t.Errorf("exit code %d", code)
				}
			}
			n.mustBeClean(t)
			for _, uuid := range uuids {
				record := c.container(t, uuid)
				if record.State != arvados.StateComplete {
					t.Fatalf("state %s", record.State)
				}
				if out := stamped(t, c.log(t, record, "stdout.txt")); out != goldenInspection(t) {
					t.Errorf("a container sees\n%s", out)
				}
			}
			if images, _ := os.ReadDir(filepath.Join(n.store(), "images")); len(images) != 1 {
				t.Errorf("images in the store: %v", images)
			}
			if read := k.read.Load(); read > int64(len(tarball))*3/2 {
				t.Errorf("%d bytes were read from Keep to unpack an image of %d", read, len(tarball))
			}
		})
	}
}

// TestUnpackerKilled kills a supervisor in the middle of unpacking while another
// waits for what it makes; the other takes over.
func TestUnpackerKilled(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	c := startCluster(t, n)
	image := c.storeTools(t)
	first, second := c.submit(t, image, sh("echo first"), nil), c.submit(t, image, sh("echo second"), nil)
	slow := newKeepProxy(t, c)
	slow.hold()
	p1 := n.start(t, run{args: []string{first}, env: append(c.supervisorEnv(), "ARVADOS_KEEP_SERVICES="+slow.URL)})
	slow.awaitReader(t)
	p2 := c.supervise(t, n, second)
	p2.stderr.mustSay(t, "Loading Docker image from keep")
	if images, _ := os.ReadDir(filepath.Join(n.store(), "images")); len(images) != 0 {
		t.Fatalf("images in the store before one was unpacked: %v", images)
	}
	_ = p1.cmd.Process.Kill()
	p1.wait(t)
	if code := p2.wait(t); code != 0 {
		t.Fatalf("exit code %d", code)
	}
	record := c.container(t, second)
	if out := stamped(t, c.log(t, record, "stdout.txt")); out != "second\n" {
		t.Errorf("stdout %q", out)
	}
	n.waitDead(t)
	// Whoever starts next cleans up after the dead one.
	c.finished(t, n, c.supervise(t, n, first), first, 0, arvados.StateComplete)
}
