package main_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"crunch-oci/arvados"
	"crunch-oci/internal/forkthread"
)

// message is what the cloud dispatcher writes to stdin for a run on the cluster.
func (c *cluster) message(t testing.TB, more map[string]any) string {
	t.Helper()
	env := map[string]string{}
	for _, kv := range c.supervisorEnv() {
		k, v, _ := strings.Cut(kv, "=")
		env[k] = v
	}
	env["InstanceType"] = "{\n    \"ProviderType\": \"m5.large\",\n    \"Price\": 0.1\n}\n"
	m := map[string]any{"Env": env, "KeepBuffers": 0, "EC2SpotCheck": false, "Cluster": nil}
	for k, v := range more {
		m[k] = v
	}
	text, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// detach starts a supervisor in the background, and returns its process id.
func (n *node) detach(t testing.TB, c *cluster, uuid string, flags ...string) int {
	t.Helper()
	n.killAtEnd(t)
	args := append(append([]string{"--detach", "--stdin-config"}, flags...), uuid)
	got := n.call(t, c.message(t, nil), args...)
	var info struct {
		UUID string
		PID  int
	}
	if err := json.Unmarshal([]byte(got.stdout), &info); err != nil || got.code != 0 || got.stderr != "" || info.UUID != uuid {
		t.Fatalf("%q: %+v %v", args, got, err)
	}
	return info.PID
}

// killAtEnd makes sure that no supervisor in the background outlives a test that
// failed.
func (n *node) killAtEnd(t testing.TB) {
	t.Cleanup(func() {
		if t.Failed() {
			for _, p := range n.processes() {
				_ = syscall.Kill(p.pid, syscall.SIGKILL)
			}
		}
	})
}

// list is what --list prints.
func (n *node) list(t testing.TB) string {
	t.Helper()
	got := n.call(t, "", "--list")
	if got.code != 0 || got.stderr != "" {
		t.Errorf("--list: %+v", got)
	}
	return got.stdout
}

// gone lists until nothing is there any more, as a dispatcher does.
func (n *node) gone(t testing.TB) {
	t.Helper()
	waitFor(t, "an empty list", func() bool { return n.list(t) == "" })
}

// stop kills a supervisor by asking again and again until it is gone, as a
// dispatcher does: each time, the end is waited for a second at most.
func (n *node) stop(t testing.TB, signal, uuid string) {
	t.Helper()
	waitFor(t, "the end of "+uuid, func() bool {
		got := n.call(t, "", "--kill", signal, uuid)
		if got.stdout != "" || got.code != 0 && got.code != 1 {
			t.Errorf("--kill: %+v", got)
		}
		return got.code == 0
	})
}

// cleaned lists until nothing is left on the node: each list cleans up for two
// seconds at most.
func (n *node) cleaned(t testing.TB) {
	t.Helper()
	waitFor(t, "a clean node", func() bool {
		if res := n.run(t, "--list"); res.code != 0 {
			t.Errorf("--list: %+v", res)
		}
		left, err := n.leftovers()
		return err == nil && len(left) == 0
	})
}

// A run in the background is listed from the start to the end, survives
// everything that lists do to it, and leaves nothing.
func TestBackground(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	c := startCluster(t, n)
	image := c.storeTools(t)
	in := withInput(c.store(t, map[string][]byte{"a.txt": []byte("A")}))
	uuid := c.submit(t, image, sh("cat /in/a.txt; ls -l /proc/self/fd/; touch begun; "+untilTold+"echo done; echo data >data.txt"), in)
	pid := n.detach(t, c, uuid)
	for range 5 {
		if out := n.list(t); out != uuid+"\n" {
			t.Fatalf("listed %q", out)
		}
	}
	// A second supervisor of the same container is refused in either way.
	if got := n.call(t, c.message(t, nil), "--detach", "--stdin-config", uuid); got.code != 1 || !strings.Contains(got.stderr, "resource temporarily unavailable") {
		t.Errorf("a second one: %+v", got)
	}
	if got := n.call(t, c.message(t, nil), "--stdin-config", uuid); got.code != 1 || !strings.Contains(got.stderr, "already running on this node") {
		t.Errorf("one in the foreground: %+v", got)
	}
	awaitFile(t, n, "out/begun")
	holders := n.holders(t, uuid)
	if len(holders) != 2 || !strings.Contains(holders[pid], uuid) || !strings.Contains(fmt.Sprint(holders), "keep-mount") {
		t.Errorf("the lock is held by %v, want the supervisor and its FUSE server", holders)
	}
	release(t, n)
	n.gone(t)
	n.mustBeClean(t)
	record := c.container(t, uuid)
	if record.State != arvados.StateComplete {
		t.Fatalf("state %s", record.State)
	}
	if out := stamped(t, c.log(t, record, "stdout.txt")); !strings.HasPrefix(out, "A") || !strings.HasSuffix(out, "done\n") || strings.Contains(out, ".lock") {
		t.Errorf("stdout %q", out)
	}
	if got := c.log(t, record, "node.json"); !strings.Contains(got, "m5.large") {
		t.Errorf("node.json %q", got)
	}
}

// holders are the processes that have a run's lock file open, with their command
// lines.
func (n *node) holders(t testing.TB, uuid string) map[int]string {
	t.Helper()
	found := map[int]string{}
	for _, p := range n.processes() {
		fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", p.pid))
		for _, fd := range fds {
			if target, _ := os.Readlink(fd); filepath.Base(target) == "crunch-run-"+uuid+".lock" {
				found[p.pid] = p.command
			}
		}
	}
	return found
}

// The dispatcher stops a run by asking again and again until it is gone; then
// the same container can be started at once.
func TestBackgroundKill(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	c := startCluster(t, n)
	uuid := c.submit(t, c.storeTools(t), sh("echo part >part.txt; sleep 1000"), nil)
	n.detach(t, c, uuid)
	awaitFile(t, n, "out/part.txt")
	n.stop(t, "15", uuid)
	n.detach(t, c, uuid, "--sleep=1000s")
	if out := n.list(t); out != uuid+"\n" {
		t.Errorf("listed %q", out)
	}
	n.stop(t, "9", uuid)
	n.gone(t)
	if record := c.container(t, uuid); record.State != arvados.StateCancelled {
		t.Errorf("state %s", record.State)
	}
}

// Supervisors in the background are killed at any moment. The list alone cleans
// up: no other run is started.
func TestBackgroundKilled(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	c := startCluster(t, n)
	image := c.storeTools(t)
	in := withInput(c.store(t, map[string][]byte{"a.txt": []byte("A")}))
	script := sh("cat /in/a.txt; mkdir -p d/d; touch d/d/f; sleep 0.2")
	for range 12 {
		uuid := c.submit(t, image, script, in)
		pid := n.detach(t, c, uuid)
		time.Sleep(time.Duration(rand.IntN(600)) * time.Millisecond) // anywhere in the run
		_ = syscall.Kill(pid, syscall.SIGKILL)                       // it may have ended
		n.gone(t)
		n.waitDead(t)
		// A result that was on its way is there for an operator, on purpose.
		if res := n.run(t, "unfinished", "drop", "--all"); res.code != 0 {
			t.Errorf("drop what is unfinished: %+v", res)
		}
		n.cleaned(t)
		if t.Failed() {
			return
		}
		if rand.IntN(2) == 0 {
			forgetImages(t, n)
		}
	}
}

// Lists at the same moment, while runs end and begin, each tell of what runs all
// the time.
func TestListsAtOnce(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.killAtEnd(t)
	const steady, brief = "zzzzz-dz642-000000000000001", "zzzzz-dz642-000000000000002"
	if got := n.call(t, "", "--detach", "--sleep=1000s", steady); got.code != 0 {
		t.Fatalf("%+v", got)
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 10 {
				got := n.call(t, `[{"StartTime":"2024-05-01T12:00:00Z","Price":0.0732}]`, "--list", "--stdin-prices")
				rest, ok := strings.CutPrefix(got.stdout, steady+"\n")
				if !ok || got.code != 0 || got.stderr != "" || rest != "" && rest != brief+"\n" && rest != brief+" stale\n" {
					t.Errorf("%+v", got)
				}
			}
		})
	}
	for range 5 {
		n.call(t, "", "--detach", "--sleep=1000s", brief)
		n.stop(t, "15", brief)
	}
	wg.Wait()
	if err := os.Remove(filepath.Join(n.locks(), "crunch-run-prices.json")); err != nil {
		t.Error(err)
	}
	n.stop(t, "15", steady)
	n.gone(t)
	n.removeEmptyLock(t, brief)
}

// Who starts a supervisor is killed at any moment. Then there is a supervisor,
// which is listed, or none.
func TestDetachKilled(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.killAtEnd(t)
	c := startCluster(t, n)
	uuid := c.submit(t, c.storeTools(t), sh("true"), nil)
	var listed int
	for i := range 15 {
		p := n.start(t, run{args: []string{"--detach", "--stdin-config", "--sleep=1000s", uuid}, stdin: strings.NewReader(c.message(t, map[string]any{"Padding": strings.Repeat("x", i*20_000)}))})
		time.Sleep(time.Duration(rand.IntN(40)) * time.Millisecond)
		_ = p.cmd.Process.Kill()
		p.wait(t)
		waitFor(t, "a supervisor in the list, or none at all", func() bool {
			out := n.list(t)
			if out == uuid+"\n" {
				listed++
				return true
			}
			return out == "" && !n.supervised(uuid)
		})
		for _, p := range n.processes() {
			if strings.HasSuffix(p.command, uuid) {
				_ = syscall.Kill(p.pid, syscall.SIGKILL)
			}
		}
		n.gone(t)
		n.removeEmptyLock(t, uuid)
	}
	t.Logf("%d of 15 were listed", listed)
}

// supervised tells whether the node has a supervisor of the container, or a
// process about to become one.
func (n *node) supervised(uuid string) bool {
	for _, p := range n.processes() {
		if strings.HasSuffix(p.command, uuid) {
			return true
		}
	}
	return false
}

// removeEmptyLock removes a lock file without content, which lists leave alone:
// it may be one that is being made.
func (n *node) removeEmptyLock(t testing.TB, uuid string) {
	t.Helper()
	path := filepath.Join(n.locks(), "crunch-run-"+uuid+".lock")
	if info, err := os.Stat(path); err == nil && info.Size() == 0 {
		if err := os.Remove(path); err != nil {
			t.Error(err)
		}
	}
}

// What a supervisor has to say about its settings reaches the dispatcher's log.
func TestDetachReportsBadSettings(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	const uuid = "zzzzz-dz642-000000000000001"
	for stdin, want := range map[string]string{
		"":                             "decode stdin: EOF\n",
		"{":                            "decode stdin: unexpected EOF\n",
		`{"Env":{"A=B":"secret"}}`:     "setenv(\"A=B\"): setenv: invalid argument\n",
		`{"Env":{"CRUNCH_RUN_X":"1"}}`: "CRUNCH_RUN_X: no such setting\n",
		`{"Env":{"CRUNCH_RUN_PIDS_LIMIT":"many"}}`: "must be a whole number from 0 to 4194304\n",
	} {
		got := n.call(t, stdin, "--detach", "--stdin-config", uuid)
		if got.code != 1 || got.stdout != "" || !strings.Contains(got.stderr, "has ended at once: exit status 1\n") || !strings.HasSuffix(got.stderr, want) || strings.Contains(got.stderr, "secret") {
			t.Errorf("%q: %+v", stdin, got)
		}
	}
	n.gone(t)
}

// inNamespace runs a shell script, and the program by its name, in a mount
// namespace of its own.
func (n *node) inNamespace(t testing.TB, stdin, script string) result {
	t.Helper()
	var stdout, stderr strings.Builder
	cmd := exec.Command("unshare", "--mount", "sh", "-ec", script)
	cmd.Env = append([]string{"PATH=" + filepath.Dir(program) + ":" + os.Getenv("PATH"), "NODE=" + n.dir}, n.settings()...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = patience
	var err error
	forkthread.Do(func() { err = cmd.Start() })
	if err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	return result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// Where there is a journal, the output of a supervisor in the background goes
// there; where only its client is installed, or its socket has nobody behind it,
// the supervisor runs all the same.
func TestJournal(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.killAtEnd(t)
	const uuid = "zzzzz-dz642-000000000000001"
	dir := filepath.Join(n.dir, "journal")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	const start = `mkdir -p /run/systemd; mount -t tmpfs none /run/systemd; mkdir /run/systemd/journal; mount --bind $NODE/journal /run/systemd/journal
		exec crunch-run --detach --sleep=1000s ` + uuid
	end := func() {
		t.Helper()
		n.stop(t, "15", uuid)
		n.gone(t)
	}
	socket := filepath.Join(dir, "stdout")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	received := make(chan string, 10)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				var text []byte
				buf := make([]byte, 4096)
				for {
					n, err := conn.Read(buf)
					text = append(text, buf[:n]...)
					if strings.Contains(string(text), " started\n") {
						received <- string(text)
						return
					}
					if err != nil {
						return
					}
				}
			}()
		}
	}()
	if got := n.inNamespace(t, "", start); got.code != 0 || got.stderr != "" {
		t.Fatalf("%+v", got)
	}
	select {
	case text := <-received:
		if !strings.HasPrefix(text, "crunch-run\n") || !strings.Contains(text, "crunch-run "+testVersion) {
			t.Errorf("the journal got %q", text)
		}
	case <-time.After(patience):
		t.Error("the journal got nothing")
	}
	end()
	// The reader is gone: the supervisor must not mind.
	l.SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if got := n.inNamespace(t, "", start); got.code != 0 || got.stderr != "" {
		t.Errorf("nobody listens: %+v", got)
	}
	end()
	if err := os.Remove(socket); err != nil {
		t.Fatal(err)
	}
	if got := n.inNamespace(t, "", start); got.code != 0 || got.stderr != "" {
		t.Errorf("no socket: %+v", got)
	}
	end()
}

// A directory for locks that is full, or read-only, or not there.
func TestLockDirectoryTrouble(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.killAtEnd(t)
	const uuid = "zzzzz-dz642-000000000000001"
	lock := "crunch-run-" + uuid + ".lock"
	full := n.inNamespace(t, "", `cd /; mount -t tmpfs -o size=4k none $CRUNCH_RUN_LOCK_DIR; head -c 4096 /dev/zero >$CRUNCH_RUN_LOCK_DIR/full
		exec crunch-run --detach --sleep=1000s `+uuid)
	if full.code != 1 || full.stdout != "" || !strings.Contains(full.stderr, "no space left on device") {
		t.Errorf("full: %+v", full)
	}
	if n.supervised(uuid) {
		t.Error("full: there is a supervisor that is not listed")
	}
	readOnly := `mount -t tmpfs none $CRUNCH_RUN_LOCK_DIR; cd $CRUNCH_RUN_LOCK_DIR; touch crunch-run-broken; echo x >crunch-run-prices.json
		echo '{"UUID":"` + uuid + `","PID":1}' >` + lock + `; exec 9<` + lock + `; [ -z "$FREE" ] && flock -x 9; cd /; mount -o remount,ro $CRUNCH_RUN_LOCK_DIR; `
	for script, want := range map[string]result{
		readOnly + "crunch-run --list":                         {0, "broken\n" + uuid + " stale\n", "read-only file system"},
		"FREE=1; " + readOnly + "crunch-run --list":            {0, "broken\n", "read-only file system"},
		readOnly + "echo y | crunch-run --list --stdin-prices": {0, "broken\n" + uuid + " stale\n", "error writing price data"},
		readOnly + "crunch-run --kill 15 " + uuid:              {0, "", "process already finished"},
		readOnly + "crunch-run --detach " + uuid:               {1, "", "read-only file system"},
	} {
		got := n.inNamespace(t, "", script)
		if got.code != want.code || got.stdout != want.stdout || !strings.Contains(got.stderr, want.stderr) {
			t.Errorf("%s:\n%+v\nwant %+v", script, got, want)
		}
	}
}

// Somebody who is not root sees what runs, does no harm, and is not told that
// it is stale.
func TestListByOthers(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	c := startCluster(t, n)
	uuid := c.submit(t, c.storeTools(t), sh("true"), nil)
	n.detach(t, c, uuid, "--sleep=1000s")
	asNobody := func(args ...string) result {
		t.Helper()
		var stdout, stderr strings.Builder
		// From a directory that everybody may look at.
		cmd := exec.Command("/proc/self/fd/3", args...)
		f, err := os.Open(program)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		cmd.ExtraFiles = []*os.File{f}
		cmd.Env = append([]string{"PATH=" + os.Getenv("PATH")}, n.settings()...)
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		forkthread.Do(func() { err = cmd.Start() })
		if err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		return result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
	}
	if err := os.Chmod(n.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for dir := filepath.Dir(n.dir); dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755|os.ModeSticky&fileMode(t, dir)|fileMode(t, dir).Perm()); err != nil {
			t.Fatal(err)
		}
	}
	if got := asNobody("--list"); got.code != 0 || got.stdout != "" {
		t.Errorf("unreadable: %+v", got)
	}
	if err := os.Chmod(filepath.Join(n.locks(), "crunch-run-"+uuid+".lock"), 0o744); err != nil {
		t.Fatal(err)
	}
	if got := asNobody("--list"); got.code != 0 || got.stdout != uuid+"\n" {
		t.Errorf("readable: %+v", got)
	}
	if got := asNobody("--kill", "15", uuid); got.code != 1 || !strings.Contains(got.stderr, "operation not permitted") {
		t.Errorf("--kill: %+v", got)
	}
	if out := n.list(t); out != uuid+"\n" {
		t.Errorf("listed %q", out)
	}
	n.stop(t, "15", uuid)
	n.gone(t)
}

func fileMode(t testing.TB, path string) os.FileMode {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Mode()
}

// A supervisor survives the signals of lists also while it executes itself again
// in its mount namespace.
func TestSignalsWhileStarting(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	for range 5 {
		p := n.exec(t, append([]string{"PATH=" + os.Getenv("PATH")}, n.settings()...), n.dir,
			"/bin/sh", "-c", "trap '' USR1 USR2; echo ready >&2; exec "+program+" --sleep=1000s zzzzz-dz642-000000000000001")
		p.stderr.mustSay(t, "ready\n")
		stop, stopped := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(stopped)
			for {
				select {
				case <-stop:
					return
				default:
					_ = p.cmd.Process.Signal(syscall.SIGUSR2)
					_ = p.cmd.Process.Signal(syscall.SIGUSR1)
				}
			}
		}()
		survived := p.stderr.await(t, " started\n")
		close(stop)
		<-stopped
		if !survived {
			t.Fatalf("it has ended with %d:\n%s", p.wait(t), p.stderr.String())
		}
		p.signal(t, syscall.SIGTERM)
		p.wait(t)
	}
}
