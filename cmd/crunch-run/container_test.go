package main_test

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"crunch-oci/arvados"
)

// insideContainer waits for the user's program and returns the path by which
// this test reaches the container's root.
func insideContainer(t testing.TB, n *node) string {
	t.Helper()
	var root string
	waitFor(t, "a program in the container", func() bool {
		root = containerRoot(n)
		return root != ""
	})
	return root
}

// containerRoot returns the path to the root of the container's processes by one
// of them, which may end at any moment; "" if there is none.
func containerRoot(n *node) string {
	for _, p := range n.processes() {
		// Before that the process is this program, in a memory file.
		if p.contained && p.exe != "" && !strings.Contains(p.exe, "crunch-run") && !strings.Contains(p.exe, "memfd") {
			return fmt.Sprintf("/proc/%d/root", p.pid)
		}
	}
	return ""
}

// awaitFile waits until the container has written a file.
func awaitFile(t testing.TB, n *node, name string) {
	t.Helper()
	waitFor(t, name, func() bool {
		root := containerRoot(n)
		if root == "" {
			return false
		}
		_, err := os.Stat(filepath.Join(root, name))
		return err == nil
	})
}

// untilTold is a shell command that waits for release.
const untilTold = "until [ -e /out/go ]; do sleep 0.02; done; rm /out/go; "

// release lets a container that waits go on.
func release(t testing.TB, n *node) {
	t.Helper()
	waitFor(t, "a waiting container", func() bool {
		root := containerRoot(n)
		return root != "" && os.WriteFile(filepath.Join(root, "out/go"), nil, 0o666) == nil
	})
}

// TestDispatched follows a container through the states that a dispatcher and a
// user see, and reads what is left of it.
func TestDispatched(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	c := startCluster(t, n)
	request := c.request(t, c.storeTools(t), sh(untilTold+"echo hello; echo oops >&2; echo data > result.txt; exit 3"), attrs{
		"environment": attrs{"FROM_RECORD": "yes"},
	})
	uuid := request.ContainerUUID
	c.lock(t, uuid)
	const instance = `{"Name":"m5.large","Price":3600.5,"RAM":8000000000}`
	p := n.start(t, run{args: []string{uuid}, env: append(c.supervisorEnv(), "InstanceType="+instance)})

	waitFor(t, "state Running", func() bool { return c.container(t, uuid).State == arvados.StateRunning })
	if log := c.log(t, c.container(t, uuid), "crunch-run.txt"); !strings.Contains(log, "Executing container: "+uuid) {
		t.Errorf("the log of a running container lacks its beginning:\n%s", log)
	}
	release(t, n)
	record := c.finished(t, n, p, uuid, 0, arvados.StateComplete)

	if record.ExitCode == nil || *record.ExitCode != 3 {
		t.Errorf("exit code %v, want 3", record.ExitCode)
	}
	if record.Cost <= 0 || record.StartedAt == nil || record.FinishedAt == nil {
		t.Errorf("cost %v, started %v, finished %v", record.Cost, record.StartedAt, record.FinishedAt)
	}
	if got := c.files(t, record.Output); !maps.Equal(got, map[string]string{"result.txt": "data\n"}) {
		t.Errorf("output %q", got)
	}
	logs := c.logs(t, record)
	want := []string{"container.json", "crunch-run.txt", "crunchstat.txt", "hoststat.txt", "node-info.txt", "node.json", "stderr.txt", "stdout.txt"}
	if got := slices.Sorted(maps.Keys(logs)); !slices.Equal(got, want) {
		t.Errorf("log files %q, want %q", got, want)
	}
	if stamped(t, logs["stdout.txt"]) != "hello\n" || stamped(t, logs["stderr.txt"]) != "oops\n" || logs["node.json"] != instance {
		t.Errorf("stdout.txt %q, stderr.txt %q, node.json %q", logs["stdout.txt"], logs["stderr.txt"], logs["node.json"])
	}
	for _, name := range []string{"crunchstat.txt", "hoststat.txt"} {
		if !strings.Contains(stamped(t, logs[name]), "mem ") {
			t.Errorf("%s has no line about memory:\n%s", name, logs[name])
		}
	}
	mustSayInOrder(t, stamped(t, logs["crunch-run.txt"]),
		"crunch-run "+testVersion, "Executing container: "+uuid, "Fetching Docker image from collection '"+record.ContainerImage+"'",
		"Using Docker image id \""+toolsImage(t).id()+"\"", "Loading Docker image from keep", "Starting container\n",
		"Waiting for container to finish\n", "Container exited with status code 3\n", "copying \"result.txt\" (5 bytes)", "\nComplete\n")
	if !strings.HasSuffix(logs["crunch-run.txt"], "Z Complete\n") {
		t.Errorf("crunch-run.txt does not end with the final state:\n%s", logs["crunch-run.txt"])
	}

	final, err := c.user.GetContainerRequest(t.Context(), request.UUID)
	if err != nil {
		t.Fatal(err)
	}
	if final.State != arvados.RequestFinal || final.OutputUUID == "" || final.LogUUID == "" {
		t.Errorf("request is %s, output %q, log %q", final.State, final.OutputUUID, final.LogUUID)
	}
}

// mustSayInOrder fails the test unless text contains all phrases in their order.
func mustSayInOrder(t testing.TB, text string, phrases ...string) {
	t.Helper()
	rest := text
	for _, p := range phrases {
		_, after, found := strings.Cut(rest, p)
		if !found {
			t.Errorf("%q is missing, or out of order, in:\n%s", p, text)
			return
		}
		rest = after
	}
}

// The dispatcher in the cloud gives everything on standard input.
func TestStdinConfig(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	c := startCluster(t, n)
	uuid := c.submit(t, c.storeTools(t), sh("env; cat"), attrs{"environment": attrs{"FROM_RECORD": "yes"}})
	env := map[string]string{"SECRET_OF_THE_NODE": "hidden"}
	for _, kv := range c.supervisorEnv() {
		k, v, _ := strings.Cut(kv, "=")
		env[k] = v
	}
	message := mustJSON(map[string]any{"Env": env, "KeepBuffers": 0, "Cluster": map[string]any{"ClusterID": "zzzzz", "Unknown": 1}})
	p := n.start(t, run{args: []string{"-stdin-config", "-runtime-engine=singularity", uuid}, stdin: strings.NewReader(string(message) + "\ntrailing")})
	record := c.finished(t, n, p, uuid, 0, arvados.StateComplete)
	out := stamped(t, c.log(t, record, "stdout.txt"))
	for _, want := range []string{"FROM_RECORD=yes\n", "FROM_IMAGE=yes\n", "PATH=/bin\n", "HOME=/root\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("environment lacks %q:\n%s", want, out)
		}
	}
	for _, bad := range []string{"SECRET_OF_THE_NODE", "ARVADOS", "CRUNCH", "TMPDIR"} {
		if strings.Contains(out, bad) {
			t.Errorf("environment has %s:\n%s", bad, out)
		}
	}
}

// A supervisor whose container is not Locked must not touch the record.
func TestWrongState(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	c := startCluster(t, n)
	image := c.storeTools(t)
	running := c.submit(t, image, sh("true"), nil)
	if err := c.dispatch.UpdateContainer(t.Context(), running, map[string]any{"state": arvados.StateRunning}); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct{ uuid, want string }{
		"Queued":   {c.request(t, image, sh("true"), nil).ContainerUUID, "Not locked by your token"},
		"Running":  {running, fmt.Sprintf("dispatch error detected: container %q has state \"Running\"", running)},
		"Complete": {c.runOne(t, n, image, sh("true"), nil).UUID, "Not locked by your token"},
	} {
		t.Run(name, func(t *testing.T) {
			before := string(c.container(t, tt.uuid).Raw)
			p := c.supervise(t, n, tt.uuid)
			if code := p.wait(t); code != 1 || !strings.Contains(p.stderr.String(), tt.want) {
				t.Errorf("exit code %d, want 1 and %q on stderr:\n%s", code, tt.want, p.stderr.String())
			}
			n.mustBeClean(t)
			if after := string(c.container(t, tt.uuid).Raw); after != before {
				t.Errorf("the record was changed from\n%s\nto\n%s", before, after)
			}
		})
	}
}

// A command that does not exist fails on every node.
func TestCannotStart(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	c := startCluster(t, n)
	uuid := c.submit(t, c.storeTools(t), []string{"no-such-program"}, nil)
	record := c.finished(t, n, c.supervise(t, n, uuid), uuid, 1, arvados.StateCancelled)
	if record.ExitCode != nil {
		t.Errorf("exit code %d of a program that never ran", *record.ExitCode)
	}
	mustSayInOrder(t, c.log(t, record, "crunch-run.txt"), "could not start container: ",
		`Possible causes: command "no-such-program" is missing, the interpreter given in #! is missing, or script has Windows line endings.`)
}

// A container with API access finds its cluster and is its user.
func TestAPIAccess(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	c := startCluster(t, n)
	image := c.storeTools(t)
	constraints := attrs{"runtime_constraints": attrs{"vcpus": 1, "ram": 256 << 20, "API": true}}
	uuid := c.submit(t, image, sh("probe whoami; echo kept > kept.txt"), constraints)
	record := c.finished(t, n, c.supervise(t, n, uuid, "-container-network-mode=host"), uuid, 0, arvados.StateComplete)
	me, err := c.user.CurrentUser(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if out := stamped(t, c.log(t, record, "stdout.txt")); out != "200 "+me.UUID+"\n" {
		t.Errorf("the API answered %q, want 200 and %s; stderr: %s", out, me.UUID, c.log(t, record, "stderr.txt"))
	}
	// The CA bundle is bound into the container, so there is only one file.
	if got := c.files(t, record.Output); !maps.Equal(got, map[string]string{"kept.txt": "kept\n"}) {
		t.Errorf("output %q", got)
	}
}

// Who holds the container's output open from outside of it, a debugger on the node
// for example, does not keep it from its end, nor what has been written out of the
// log.
func TestOutputHeldOpenFromOutside(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	c := startCluster(t, n)
	uuid := c.submit(t, c.storeTools(t), sh(untilTold+"(sleep 1000 &) ; probe flood 5000; echo last"), nil)
	p := c.supervise(t, n, uuid)
	root := insideContainer(t, n)
	var held *os.File
	waitFor(t, "a process whose output can be opened", func() (ok bool) {
		var err error
		held, err = os.OpenFile(filepath.Dir(root)+"/fd/1", os.O_WRONLY, 0)
		if err != nil {
			root = insideContainer(t, n) // that was a short-lived one
		}
		return err == nil
	})
	defer held.Close()
	if _, err := held.WriteString("from outside\n"); err != nil {
		t.Fatal(err)
	}
	release(t, n)
	record := c.finished(t, n, p, uuid, 0, arvados.StateComplete)
	lines := strings.SplitAfter(stamped(t, c.log(t, record, "stdout.txt")), "\n")
	if len(lines) != 5003 || lines[0] != "from outside\n" || lines[5001] != "last\n" {
		t.Errorf("%d lines, the first %q", len(lines), lines[0])
	}
	if log := c.log(t, record, "crunch-run.txt"); !strings.Contains(log, "stdout is still open, in a process outside of the container") {
		t.Errorf("the log does not say why it took long:\n%s", log)
	}
}

// As many lines as a chatty program writes (CRUNCH_RUN_TEST_LONG=1: a gigabyte),
// and one as long as it likes: all of
// it is in the log, each line with one time stamp.
func TestFlood(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	c := startCluster(t, n)
	const long = 10 << 20
	lines := 2_000_000
	if os.Getenv("CRUNCH_RUN_TEST_LONG") != "" {
		lines *= 5
	}
	uuid := c.submit(t, c.storeTools(t), sh(fmt.Sprintf("probe flood %d; probe line %d >&2", lines, long)), nil)
	p := c.supervise(t, n, uuid)
	select {
	case <-p.done:
	case <-time.After(3 * patience): // a gigabyte, onto a disk that may be busy
	}
	record := c.finishedQuietly(t, n, p, uuid)
	f, err := c.collection(t, record.Log).Open("stdout.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const stamp = len("2006-01-02T15:04:05.000000000Z ")
	if want := int64(lines) * int64(100+stamp); f.Size() != want {
		t.Errorf("stdout.txt has %d bytes, want %d", f.Size(), want)
	}
	checkLines(t, f, lines, stamp)
	stderr := c.log(t, record, "stderr.txt")
	if len(stderr) != stamp+long+1 || strings.Count(stderr, "x") != long {
		t.Errorf("the long line has %d bytes in the log, want %d", len(stderr), stamp+long+1)
	}
	// What is not yet in Keep is two blocks; the rest is what Go's collector needs.
	var memory int64
	for line := range strings.Lines(c.log(t, record, "crunch-run.txt")) {
		_, after, _ := strings.Cut(line, " ")
		if n, _ := fmt.Sscanf(after, "Maximum crunch-run memory rss usage was %d bytes", &memory); n == 1 {
			break
		}
	}
	if memory == 0 || memory > 600<<20 {
		t.Errorf("the supervisor used %d bytes of memory", memory)
	}
}

// A stop before the container is Running gives it back to the queue, whatever
// slow thing is being waited for.
func TestStoppedBeforeRunning(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	c := startCluster(t, n)
	uuid := c.submit(t, c.storeTools(t), sh("echo never"), nil)
	slow := newKeepProxy(t, c)
	slow.hold()
	p := n.start(t, run{args: []string{uuid}, env: append(c.supervisorEnv(), "ARVADOS_KEEP_SERVICES="+slow.URL)})
	slow.awaitReader(t)
	p.signal(t, syscall.SIGTERM)
	c.finished(t, n, p, uuid, 0, arvados.StateQueued)
	if !strings.Contains(p.stderr.String(), "caught signal: terminated") {
		t.Errorf("stderr does not name the signal:\n%s", p.stderr.String())
	}
	if images, _ := os.ReadDir(filepath.Join(n.store(), "images")); len(images) != 0 {
		t.Errorf("an image that was not unpacked is in the store: %v", images)
	}
	// The next dispatcher takes it from there.
	c.lock(t, uuid)
	record := c.finished(t, n, c.supervise(t, n, uuid), uuid, 0, arvados.StateComplete)
	if out := stamped(t, c.log(t, record, "stdout.txt")); out != "never\n" {
		t.Errorf("stdout %q", out)
	}
}

// A dispatcher that starts a second supervisor for a container does no harm.
func TestOneSupervisorPerContainer(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	c := startCluster(t, n)
	uuid := c.submit(t, c.storeTools(t), sh(untilTold+"echo once"), nil)
	first := c.supervise(t, n, uuid)
	waitFor(t, "state Running", func() bool { return c.container(t, uuid).State == arvados.StateRunning })
	insideContainer(t, n)
	second := c.supervise(t, n, uuid)
	if code := second.wait(t); code != 1 {
		t.Errorf("the second supervisor ended with %d, want 1", code)
	}
	release(t, n)
	record := c.finished(t, n, first, uuid, 0, arvados.StateComplete)
	if out := stamped(t, c.log(t, record, "stdout.txt")); out != "once\n" {
		t.Errorf("stdout %q", out)
	}
}
