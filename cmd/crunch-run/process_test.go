package main_test

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"crunch-oci/internal/forkthread"
)

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
	command := slices.Concat(n.prefix, []string{program}, r.args)
	p.cmd = exec.Command(command[0], command[1:]...)
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
