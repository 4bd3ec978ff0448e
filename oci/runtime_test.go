package oci_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"crunch-oci/cgroups"
	"crunch-oci/oci"
)

func TestStreamsAndExit(t *testing.T) {
	req := newRequest(t, newID(), "cat; echo to-stderr >&2; exit 3")
	b, status := run(t, req, strings.NewReader("from stdin\n"))
	if status.Code != 3 || b.stdout.String() != "from stdin\n" || b.stderr.String() != "to-stderr\n" {
		t.Errorf("exit %v, stdout %q, stderr %q", status, b.stdout, b.stderr)
	}
}

func TestExitStatus(t *testing.T) {
	for _, tc := range []struct {
		script string
		want   oci.ExitStatus
	}{
		{"exit 0", oci.ExitStatus{}},
		{"exit 255", oci.ExitStatus{Code: 255}},
		// The first process of a PID namespace can be killed from outside
		// only; a child's end is the shell's to report.
		{"sh -c 'kill -9 $$'; exit $?", oci.ExitStatus{Code: 137}},
	} {
		t.Run(tc.script, func(t *testing.T) {
			if _, got := run(t, newRequest(t, newID(), tc.script), nil); got != tc.want {
				t.Errorf("exit %v, want %v", got, tc.want)
			}
		})
	}
}

func TestNilStreamsAreNull(t *testing.T) {
	id := newID()
	req := newRequest(t, id, "cat && readlink /proc/$$/fd/0 > /work/fds && readlink /proc/$$/fd/2 >> /work/fds")
	spec, err := oci.NewSpec(req)
	must(t, err)
	bundle := t.TempDir()
	must(t, oci.WriteBundle(bundle, spec))
	r := &oci.Runtime{StateDir: t.TempDir()}
	ctr, err := r.Create(t.Context(), id, bundle, oci.Stdio{})
	must(t, err)
	defer func() { must(t, ctr.Delete(context.Background())) }()
	must(t, ctr.Start(t.Context()))
	if status, err := ctr.Wait(t.Context()); err != nil || status.Code != 0 {
		t.Errorf("exit %v, %v", status, err)
	}
	if got, err := os.ReadFile(filepath.Join(req.RootfsPath, "work/fds")); err != nil || string(got) != "/dev/null\n/dev/null\n" {
		t.Errorf("standard input and error are %q, %v", got, err)
	}
}

func TestSignal(t *testing.T) {
	req := newRequest(t, newID(), "echo ready; trap 'echo got it; exit 9' TERM; while :; do sleep 0.05; done")
	b, err := create(t, req, nil)
	must(t, err)
	must(t, b.ctr.Start(t.Context()))
	// Ignored until the shell has its handler; so it is sent until it works.
	ended := make(chan oci.ExitStatus, 1)
	go func() { ended <- b.wait() }()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case status := <-ended:
			if status.Code != 9 || b.stdout.String() != "ready\ngot it\n" {
				t.Errorf("exit %v, stdout %q", status, b.stdout)
			}
			if err := b.ctr.Signal(syscall.SIGTERM); !errors.Is(err, os.ErrProcessDone) {
				t.Errorf("signal after the end: %v", err)
			}
			return
		case <-tick.C:
			if err := b.ctr.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
				t.Fatal(err)
			}
		}
	}
}

func TestWaitObeysContext(t *testing.T) {
	b, err := create(t, newRequest(t, newID(), "sleep 600"), nil)
	must(t, err)
	must(t, b.ctr.Start(t.Context()))
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errTest)
	if _, err := b.ctr.Wait(ctx); !errors.Is(err, errTest) {
		t.Errorf("Wait: %v", err)
	}
}

// Before Start nothing of the command runs; a container that is never started
// can be deleted.
func TestCreateDoesNotStart(t *testing.T) {
	req := newRequest(t, newID(), "touch /work/ran")
	b, err := create(t, req, nil)
	must(t, err)
	if b.ctr.PID() == 0 {
		t.Error("no init")
	}
	b.delete()
	if _, err := os.Stat(filepath.Join(req.RootfsPath, "work/ran")); err == nil {
		t.Error("the command ran")
	}
	if err := b.ctr.Start(t.Context()); err == nil {
		t.Error("a deleted container was started")
	}
}

func TestStartTwice(t *testing.T) {
	b, err := create(t, newRequest(t, newID(), "true"), nil)
	must(t, err)
	must(t, b.ctr.Start(t.Context()))
	if err := b.ctr.Start(t.Context()); err == nil {
		t.Error("started twice")
	}
}

// Creating containers must not leave a thread of this process in one of their
// mount namespaces, where it would keep every mount alive.
func TestThreadsStayInTheirNamespace(t *testing.T) {
	own, err := os.Readlink("/proc/thread-self/ns/mnt")
	must(t, err)
	req := newRequest(t, newID(), "true")
	for range 10 {
		must(t, liveOnce(t.Context(), req, t.TempDir()))
	}
	waitFor(t, "threads to end", func() bool {
		tasks, err := filepath.Glob("/proc/self/task/*")
		must(t, err)
		for _, task := range tasks {
			if ns, err := os.Readlink(task + "/ns/mnt"); err == nil && ns != own {
				return false
			}
		}
		return true
	})
}

// What cannot be executed is reported by Start, with what a shell would return.
func TestStartErrors(t *testing.T) {
	for _, tc := range []struct {
		name    string
		command string
		content string // if not empty, made at /work/cmd
		mode    os.FileMode
		code    int
		reason  string
		advice  bool
	}{
		{"not in PATH", "no-such-command", "", 0, 127, `exec: "no-such-command": executable file not found in $PATH`, true},
		{"no such file", "/work/missing", "", 0, 127, "no such file or directory", true},
		{"not executable", "/work/cmd", "text", 0o644, 126, "permission denied", false},
		{"directory", "/work", "", 0, 126, "is a directory", false},
		{"bad interpreter", "/work/cmd", "#!/no/such/sh\n", 0o755, 127, "no such file or directory", true},
		{"Windows line ending", "/work/cmd", "#!/bin/sh\r\n", 0o755, 127, "no such file or directory", true},
		{"not a program", "/work/cmd", "\x00\x01\x02\x03", 0o755, 126, "exec format error (neither a program for this machine, " + runtime.GOARCH + ", nor a script that begins with #!)", false},
		{"quotes in the name", `/work/"x"`, "", 0, 127, "no such file or directory", true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			req := newRequest(t, newID(), "")
			req.Command = []string{tc.command, "arg"}
			if tc.content != "" {
				file := filepath.Join(req.RootfsPath, "work/cmd")
				must(t, os.WriteFile(file, []byte(tc.content), 0o600))
				must(t, os.Chmod(file, tc.mode))
			}
			b, err := create(t, req, nil)
			must(t, err)
			err = b.ctr.Start(t.Context())
			var se *oci.StartError
			if !errors.As(err, &se) {
				t.Fatalf("Start: %v, want a StartError", err)
			}
			if se.ExitCode() != tc.code || !strings.HasSuffix(se.Error(), tc.reason) || (se.Advice() != "") != tc.advice {
				t.Errorf("code %d, %q, advice %q", se.ExitCode(), se, se.Advice())
			}
			<-b.drained
			if b.stderr.Len() != 0 || b.stdout.Len() != 0 {
				t.Errorf("the runtime wrote to the container's streams: %q, %q", b.stdout, b.stderr)
			}
			if _, err := b.ctr.Wait(t.Context()); !errors.As(err, &se) {
				t.Errorf("Wait: %v", err)
			}
			must(t, b.ctr.Kill(t.Context()))
		})
	}
}

// Kill ends a container that forks all the time, in which nobody listens to
// signals and the first process is not the one that holds the streams.
func TestKill(t *testing.T) {
	req := newRequest(t, newID(), `trap "" TERM INT HUP; while :; do (trap "" TERM; sleep 600) & sleep 0.001; done`)
	req.Limits.PIDs = 100
	b, err := create(t, req, nil)
	must(t, err)
	must(t, b.ctr.Start(t.Context()))
	waitFor(t, "children", func() bool { pids, err := b.ctr.Cgroup().Procs(); return err == nil && len(pids) > 10 })
	must(t, b.ctr.Kill(t.Context()))
	if pids, err := b.ctr.Cgroup().Procs(); err != nil || len(pids) != 0 {
		t.Errorf("left: %v, %v", pids, err)
	}
	if status := b.wait(); status.Code != 137 || status.Signal != syscall.SIGKILL {
		t.Errorf("exit %v", status)
	}
	must(t, b.ctr.Kill(t.Context())) // once more is no error
}

// The end of the first process is the end of all.
func TestGrandchildrenDie(t *testing.T) {
	b, status := run(t, newRequest(t, newID(), "(sleep 600 &) ; (sleep 600 </dev/null >/dev/null 2>&1 &); exit 4"), nil)
	if status.Code != 4 {
		t.Errorf("exit %v", status)
	}
	if pids, err := b.ctr.Cgroup().Procs(); err != nil || len(pids) != 0 {
		t.Errorf("left: %v, %v", pids, err)
	}
}

func TestCreateCancelled(t *testing.T) {
	id := newID()
	req := newRequest(t, id, "true")
	spec, err := oci.NewSpec(req)
	must(t, err)
	bundle, state := t.TempDir(), t.TempDir()
	must(t, oci.WriteBundle(bundle, spec))
	r := &oci.Runtime{StateDir: state}
	// Cancelled at ever later moments, until creation wins.
	for delay := time.Duration(0); ; delay += max(time.Millisecond, delay/10) {
		ctx, cancel := context.WithTimeoutCause(t.Context(), delay, errTest)
		ctr, err := r.Create(ctx, id, bundle, oci.Stdio{})
		cancel()
		if err == nil {
			must(t, ctr.Delete(t.Context()))
			break
		}
		if !errors.Is(err, errTest) {
			t.Fatalf("after %v: %v", delay, err)
		}
		if left, err := os.ReadDir(state); err != nil || len(left) != 0 {
			t.Fatalf("after %v: left %v, %v", delay, left, err)
		}
	}
	noCgroups(t)
}

// noCgroups checks that no test container's cgroup is left.
func noCgroups(t *testing.T) {
	t.Helper()
	for _, dir := range testCgroupDirs(t) {
		entries, err := os.ReadDir(dir)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		must(t, err)
		for _, e := range entries {
			if e.IsDir() {
				t.Errorf("cgroup left behind: %s/%s", dir, e.Name())
			}
		}
	}
}

func TestSecondContainerOfTheSameID(t *testing.T) {
	id, state := newID(), t.TempDir()
	req := newRequest(t, id, "sleep 600")
	first, err := createIn(t, state, id, req, nil)
	must(t, err)
	_, err = (&oci.Runtime{StateDir: state}).Create(t.Context(), id, first.bundle, oci.Stdio{})
	if !errors.Is(err, oci.ErrExist) {
		t.Errorf("second Create: %v", err)
	}
	// The first is as it was.
	must(t, first.ctr.Start(t.Context()))
	if pids, err := first.ctr.Cgroup().Procs(); err != nil || len(pids) == 0 {
		t.Errorf("%v, %v", pids, err)
	}
}

func TestBadIDs(t *testing.T) {
	r := &oci.Runtime{StateDir: t.TempDir()}
	for _, id := range []string{"", ".", "..", "a/b", "../x", "a b", "a\x00"} {
		if _, err := r.Create(t.Context(), id, t.TempDir(), oci.Stdio{}); err == nil {
			t.Errorf("Create accepted %q", id)
		}
		if err := r.Cleanup(t.Context(), id); err == nil {
			t.Errorf("Cleanup accepted %q", id)
		}
	}
}

func TestParallel(t *testing.T) {
	var wg sync.WaitGroup
	var boxes []*box
	for i := range 8 {
		b, err := create(t, newRequest(t, newID(), fmt.Sprintf("cat; echo %d; exit %d", i, i)), strings.NewReader("in "))
		must(t, err)
		boxes = append(boxes, b)
	}
	for i, b := range boxes {
		wg.Go(func() {
			if err := b.ctr.Start(t.Context()); err != nil {
				t.Error(err)
				return
			}
			if status := b.wait(); status.Code != i || b.stdout.String() != fmt.Sprintf("in %d\n", i) {
				t.Errorf("%d: exit %v, stdout %q", i, status, b.stdout)
			}
		})
	}
	wg.Wait()
}

// All at once, from creation to the end, in one process.
func TestConcurrentLives(t *testing.T) {
	var wg sync.WaitGroup
	reqs := make([]oci.Request, 8)
	for i := range reqs {
		reqs[i] = newRequest(t, newID(), "echo hello")
	}
	for _, req := range reqs {
		wg.Go(func() {
			if err := liveOnce(t.Context(), req, t.TempDir()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	noCgroups(t)
}

// liveOnce runs a container from creation to deletion.
func liveOnce(ctx context.Context, req oci.Request, dir string) error {
	spec, err := oci.NewSpec(req)
	if err != nil {
		return err
	}
	if err := oci.WriteBundle(filepath.Join(dir, "bundle"), spec); err != nil {
		return err
	}
	r := &oci.Runtime{StateDir: filepath.Join(dir, "state")}
	ctr, err := r.Create(ctx, filepath.Base(req.CgroupsPath), filepath.Join(dir, "bundle"), oci.Stdio{})
	if err != nil {
		return err
	}
	if err := ctr.Start(ctx); err != nil {
		return errors.Join(err, ctr.Delete(ctx))
	}
	status, err := ctr.Wait(ctx)
	if err == nil && status.Code != 0 {
		err = fmt.Errorf("exit %v", status)
	}
	return errors.Join(err, ctr.Delete(ctx))
}

// A process that runs container after container does not fill up.
func TestDescriptorsDoNotGrow(t *testing.T) {
	good := newRequest(t, newID(), "true")
	bad := newRequest(t, newID(), "")
	bad.Command = []string{"/work/missing"}
	liveBad := func() {
		var se *oci.StartError
		if err := liveOnce(t.Context(), bad, t.TempDir()); !errors.As(err, &se) {
			t.Fatal(err)
		}
	}
	must(t, liveOnce(t.Context(), good, t.TempDir()))
	liveBad()
	before, threads := openFiles(t), threadCount(t)
	func() {
		// What only the garbage collector closes is a leak.
		defer debug.SetGCPercent(debug.SetGCPercent(-1))
		for range 20 {
			must(t, liveOnce(t.Context(), good, t.TempDir()))
		}
		waitFor(t, fmt.Sprintf("no more files than %v", before), func() bool { return len(openFiles(t)) <= len(before) })
	}()
	// libcontainer leaves one file of a failed start to the garbage collector.
	for range 20 {
		liveBad()
	}
	waitFor(t, "files of failed starts to be closed", func() bool { runtime.GC(); return len(openFiles(t)) <= len(before) })
	if after := threadCount(t); after > threads+10 {
		t.Errorf("%d threads before, %d after", threads, after)
	}
}

func threadCount(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/task")
	must(t, err)
	return len(entries)
}

func openFiles(t *testing.T) []string {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	var open []string
	for _, e := range entries {
		target, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err == nil && !strings.HasPrefix(target, "/proc/") {
			open = append(open, target)
		}
	}
	slices.Sort(open)
	return open
}

func TestOOMIsReported(t *testing.T) {
	req := newRequest(t, newID(), "dd if=/dev/zero of=/dev/null bs=300M count=1; echo survived")
	req.Limits.RAM = 64 << 20
	b, err := create(t, req, nil)
	must(t, err)
	if n, err := b.ctr.Cgroup().OOMKills(); err != nil || n != 0 {
		t.Errorf("before: %d, %v", n, err)
	}
	must(t, b.ctr.Start(t.Context()))
	status := b.wait()
	if n, err := b.ctr.Cgroup().OOMKills(); err != nil || n == 0 {
		t.Errorf("%d OOM kills, %v; exit %v, stdout %q, stderr %q", n, err, status, b.stdout, b.stderr)
	}
	if b.stdout.String() != "survived\n" {
		t.Errorf("the shell, which is not the one to be killed, printed %q", b.stdout)
	}
}

func TestForkBombIsContained(t *testing.T) {
	req := newRequest(t, newID(), "i=0; while [ $i -lt 200 ]; do sleep 600 & i=$((i+1)); done")
	req.Limits.PIDs = 50
	b, err := create(t, req, nil)
	must(t, err)
	must(t, b.ctr.Start(t.Context()))
	status := b.wait()
	if !strings.Contains(b.stderr.String(), "fork") {
		t.Errorf("nothing refused to fork: exit %v, stderr %q", status, b.stderr)
	}
	pids := cgroups.Reader{FS: os.DirFS("/")}.Cgroup(b.ctr.Cgroup()).PIDs()
	if pids.Peak.Known && pids.Peak.N > 50 {
		t.Errorf("%d processes", pids.Peak.N)
	}
}

// The smallest memory limit Docker knows is enough to start in, and whoever asks
// for less is told.
func TestSmallestMemory(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector alone needs more memory than that in the container's init")
	}
	req := newRequest(t, newID(), "echo fits")
	req.Limits.RAM = 1
	b, status := run(t, req, nil)
	if status.Code != 0 || b.stdout.String() != "fits\n" {
		t.Errorf("exit %v, %q, %q", status, b.stdout, b.stderr)
	}
	if w := strings.Join(b.ctr.Warnings(), "\n"); !strings.Contains(w, "memory limit of 1 bytes is raised to 16777216 bytes") {
		t.Errorf("warnings %q", w)
	}
}

func TestLargeEnvironmentAndArguments(t *testing.T) {
	req := newRequest(t, newID(), "")
	req.Env = map[string]string{}
	for i := range 100 {
		req.Env["V"+strconv.Itoa(i)] = strings.Repeat("x", 10_000)
	}
	req.Command = []string{"sh", "-c", `echo ${#V0} ${#V99} ${#1}`, "sh", strings.Repeat("y", 100_000)}
	b, status := run(t, req, nil)
	if status.Code != 0 || b.stdout.String() != "10000 10000 100000\n" {
		t.Errorf("exit %v, %q", status, b.stdout)
	}
}

// Output that fills the pipes many times over arrives complete.
func TestMuchOutput(t *testing.T) {
	b, status := run(t, newRequest(t, newID(), "head -c 20000000 /dev/zero & head -c 3000000 /dev/zero >&2; wait"), nil)
	if status.Code != 0 || b.stdout.Len() != 20_000_000 || b.stderr.Len() != 3_000_000 {
		t.Errorf("exit %v, %d and %d bytes", status, b.stdout.Len(), b.stderr.Len())
	}
}
