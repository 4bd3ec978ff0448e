package main_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crunch-oci/internal/forkthread"
)

// patience bounds whatever must happen and is not measured.
const patience = 2 * time.Minute

// node stands for a compute node: every path the program uses lies below dir,
// every cgroup below one of its own, so that tests do not meet, and what is left
// behind is found.
type node struct {
	dir    string
	cgroup string // a name below our own group in each hierarchy
}

var nodeCount atomic.Int64

// newNode makes a node that must be clean again when the test ends.
func newNode(t testing.TB) *node {
	t.Helper()
	n, err := makeNode(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		n.mustBeClean(t)
		n.removeCgroups()
	})
	return n
}

func makeNode(dir string) (*node, error) {
	n := &node{dir: dir, cgroup: fmt.Sprintf("e2e-%d-%d", os.Getpid(), nodeCount.Add(1))}
	for _, d := range []string{n.store(), n.runtime(), n.locks(), n.tmp()} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, err
		}
	}
	return n, nil
}

func (n *node) store() string   { return filepath.Join(n.dir, "store") }
func (n *node) results() string { return filepath.Join(n.dir, "local") }
func (n *node) runtime() string { return filepath.Join(n.dir, "run") }
func (n *node) locks() string   { return filepath.Join(n.dir, "lock") }
func (n *node) tmp() string     { return filepath.Join(n.dir, "tmp") }

// settings are the variables that make this node.
func (n *node) settings() []string {
	return []string{
		"CRUNCH_RUN_STORE_DIR=" + n.store(), "CRUNCH_RUN_LOCAL_DIR=" + n.results(), "CRUNCH_RUN_RUNTIME_DIR=" + n.runtime(),
		"CRUNCH_RUN_LOCK_DIR=" + n.locks(), "CRUNCH_RUN_CGROUP_BASE=" + n.cgroup, "TMPDIR=" + n.tmp(),
	}
}

// mustBeClean fails the test unless everything that the program made on the node
// is gone. It does not wait: when the program has ended, so has its clean-up.
func (n *node) mustBeClean(t testing.TB) {
	t.Helper()
	left, err := n.leftovers()
	if err != nil {
		t.Errorf("look for leftovers: %v", err)
	}
	for _, l := range left {
		t.Errorf("left behind on the node: %s", l)
	}
}

// leftovers lists mounts, processes, cgroups, and files that are neither image
// nor result.
func (n *node) leftovers() (left []string, err error) {
	mounts, err := n.mounts()
	for _, m := range mounts {
		left = append(left, "mount "+m)
	}
	processes := n.processes()
	for _, p := range processes {
		left = append(left, "process "+p.String())
	}
	groups, err2 := n.cgroups()
	for _, g := range groups {
		left = append(left, "cgroup "+g)
	}
	err = errors.Join(err, err2)
	for _, dir := range []string{n.runtime(), n.locks(), n.tmp(), filepath.Join(n.store(), "tmp")} {
		entries, err3 := os.ReadDir(dir)
		if err3 != nil && !errors.Is(err3, os.ErrNotExist) {
			err = errors.Join(err, err3)
		}
		for _, e := range entries {
			left = append(left, "file "+filepath.Join(dir, e.Name()))
		}
	}
	return left, err
}

// mounts are the mounts below the node's directory in the host's mount
// namespace, where none should ever appear.
func (n *node) mounts() ([]string, error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var found []string
	for line := range strings.Lines(string(text)) {
		if strings.Contains(line, n.dir+"/") {
			found = append(found, strings.TrimSpace(line))
		}
	}
	return found, nil
}

// foundProcess is a process of a node.
type foundProcess struct {
	pid     int
	command string
	exe     string
	// contained is true for those in the container's cgroup.
	contained bool
}

func (p foundProcess) String() string { return fmt.Sprintf("%d %q", p.pid, p.command) }

// processes are the living processes of the node: those with its settings in
// their environment, and those in its cgroups.
func (n *node) processes() []foundProcess {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	var found []foundProcess
	for _, dir := range dirs {
		// Whatever cannot be read has just ended.
		environ, _ := os.ReadFile(dir + "/environ")
		groups, _ := os.ReadFile(dir + "/cgroup")
		contained := bytes.Contains(groups, []byte("/"+n.cgroup+"/"))
		if !contained && !bytes.Contains(environ, []byte(n.store()+"\x00")) {
			continue
		}
		status, _ := os.ReadFile(dir + "/stat")
		if i := bytes.LastIndexByte(status, ')'); i < 0 || i+2 >= len(status) || status[i+2] == 'Z' || status[i+2] == 'X' {
			continue
		}
		pid, _ := strconv.Atoi(filepath.Base(dir))
		cmdline, _ := os.ReadFile(dir + "/cmdline")
		command := strings.TrimSpace(strings.ReplaceAll(string(cmdline), "\x00", " "))
		exe, _ := os.Readlink(dir + "/exe")
		found = append(found, foundProcess{pid, command, exe, contained})
	}
	return found
}

// cgroups are the directories of the node's cgroups in all hierarchies.
func (n *node) cgroups() ([]string, error) {
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, err
	}
	mountinfo, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var found []string
	for line := range strings.Lines(string(mountinfo)) {
		before, after, ok := strings.Cut(line, " - ")
		fields, kind := strings.Fields(before), strings.Fields(after)
		if !ok || len(fields) < 5 || len(kind) < 3 || kind[0] != "cgroup" && kind[0] != "cgroup2" {
			continue
		}
		for group := range strings.Lines(string(own)) {
			f := strings.SplitN(strings.TrimSpace(group), ":", 3)
			if len(f) != 3 || f[1] == "" != (kind[0] == "cgroup2") || f[1] != "" && !slices.Contains(strings.Split(kind[2], ","), f[1]) {
				continue
			}
			dir := filepath.Join(fields[4], strings.TrimPrefix(f[2], fields[3]), n.cgroup)
			if _, err := os.Stat(dir); err == nil {
				found = append(found, dir)
			}
		}
	}
	return found, nil
}

// removeCgroups removes what a failed test has left, so that it does not stay for
// ever. Files of a test go with its directory.
func (n *node) removeCgroups() {
	dirs, _ := n.cgroups()
	for _, dir := range dirs {
		_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() && path != dir {
				_ = os.Remove(path)
			}
			return nil
		})
		_ = os.Remove(dir)
	}
}

// waitFor polls what the kernel or another process does in its own time.
func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	for !ok() {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			t.Fatalf("waited in vain for: %s", what)
		}
	}
}

// waitDead waits until no process of the node is alive, which after a kill -9
// of the supervisor is the kernel's work.
func (n *node) waitDead(t testing.TB) {
	t.Helper()
	waitFor(t, "the death of the node's processes", func() bool { return len(n.processes()) == 0 && !n.locked(t) })
}

// locked tells whether a run's lock is held. A dying process has lost its
// environment, by which it is found, some time before it closes its files.
func (n *node) locked(t testing.TB) bool {
	t.Helper()
	locks, err := filepath.Glob(filepath.Join(n.runtime(), "*", "lock"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range locks {
		f, err := os.Open(path)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		// Asking takes no lock, which another test's child would inherit.
		holder := unix.Flock_t{Type: unix.F_WRLCK}
		err = unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &holder)
		_ = f.Close()
		if err != nil {
			t.Fatal(err)
		}
		if holder.Type != unix.F_UNLCK {
			return true
		}
	}
	return false
}

// process is a running crunch-run.
type process struct {
	cmd            *exec.Cmd
	stdout, stderr watched
	done           chan struct{}
	code           int // valid when done is closed
}

// run is what a test says about a start of the program.
type run struct {
	args   []string
	env    []string
	stdin  io.Reader
	stdout io.Writer // instead of memory
	dir    string
}

// start starts the program on the node, without any of this process's settings.
func (n *node) start(t testing.TB, r run) *process {
	t.Helper()
	p := &process{done: make(chan struct{})}
	p.cmd = exec.Command(program, r.args...)
	p.cmd.Env = append(append(cleanEnv(), n.settings()...), r.env...)
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr, p.cmd.Dir = r.stdin, &p.stdout, &p.stderr, r.dir
	if r.stdout != nil {
		p.cmd.Stdout = r.stdout
	}
	p.cmd.WaitDelay = patience
	// An own process group, as a shell with job control gives it; and no process
	// outlives a test that was killed.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	var err error
	forkthread.Do(func() { err = p.cmd.Start() })
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.done)
		_ = p.cmd.Wait() // the state says it better
		p.code = p.cmd.ProcessState.ExitCode()
		if status := p.cmd.ProcessState.Sys().(syscall.WaitStatus); status.Signaled() {
			p.code = 128 + int(status.Signal())
		}
		p.stdout.end()
		p.stderr.end()
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		<-p.done
		if t.Failed() {
			t.Logf("%v: exit code %d, stderr:\n%s", r.args, p.code, tail(p.stderr.String(), 8000))
		}
	})
	return p
}

func cleanEnv() []string {
	return []string{"PATH=" + os.Getenv("PATH"), "HOME=/nonexistent"}
}

func tail(s string, n int) string {
	if len(s) > n {
		return "..." + s[len(s)-n:]
	}
	return s
}

// wait waits for the end of the program and returns its exit code, 128+n if
// signal n killed it.
func (p *process) wait(t testing.TB) int {
	t.Helper()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-p.done:
	case <-timer.C:
		_ = p.cmd.Process.Signal(syscall.SIGABRT) // shows where it hangs
		t.Fatalf("%v has not ended after %v", p.cmd.Args, patience)
	}
	return p.code
}

func (p *process) signal(t testing.TB, sig syscall.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
}

// result is how a program ended.
type result struct {
	code           int
	stdout, stderr string
}

// run runs the program to its end.
func (n *node) run(t testing.TB, args ...string) result {
	t.Helper()
	p := n.start(t, run{args: args})
	code := p.wait(t)
	return result{code, p.stdout.String(), p.stderr.String()}
}

// local runs "crunch-run local" and expects success.
func (n *node) local(t testing.TB, args ...string) result {
	t.Helper()
	res := n.run(t, append([]string{"local"}, args...)...)
	if res.code != 0 {
		t.Fatalf("crunch-run local %q: exit code %d, stderr:\n%s", args, res.code, res.stderr)
	}
	return res
}

// watched keeps what is written to it, and lets others wait for words in it.
type watched struct {
	mu      sync.Mutex
	text    bytes.Buffer
	ended   bool
	changed chan struct{} // closed at the next change, nil if nobody waits
}

func (w *watched) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.notify()
	return w.text.Write(p)
}

func (w *watched) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ended = true
	w.notify()
}

func (w *watched) notify() {
	if w.changed != nil {
		close(w.changed)
		w.changed = nil
	}
}

func (w *watched) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.text.String()
}

// await waits until the text contains words; false: the writer ended before.
func (w *watched) await(t testing.TB, words string) bool {
	t.Helper()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for {
		w.mu.Lock()
		found, ended := bytes.Contains(w.text.Bytes(), []byte(words)), w.ended
		if w.changed == nil {
			w.changed = make(chan struct{})
		}
		changed := w.changed
		w.mu.Unlock()
		if found || ended {
			return found
		}
		select {
		case <-changed:
		case <-timer.C:
			t.Fatalf("waited in vain for %q", words)
		}
	}
}

// mustSay waits until the text contains words.
func (w *watched) mustSay(t testing.TB, words string) {
	t.Helper()
	if !w.await(t, words) {
		t.Fatalf("ended without saying %q:\n%s", words, tail(w.String(), 4000))
	}
}
