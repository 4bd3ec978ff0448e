package supervisor

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"crunch-oci/arvados"
)

// fromTrouble are the lines of the saved log from the one given on.
func (w *world) fromTrouble(first string) string {
	_, after, ok := strings.Cut(w.messages(), first+"\n")
	if !ok {
		w.t.Errorf("%q is not in the log:\n%s", first, w.messages())
	}
	return first + "\n" + after
}

// ends checks the last state, the exit code sent with it, and the error.
func (w *world) ends(state string, exitCode any, problem string) {
	w.t.Helper()
	if got := last(w.api.states); got != state {
		w.t.Errorf("the container ends as %q instead of %q", got, state)
	}
	if got := fmt.Sprint(w.api.record["exit_code"]); got != fmt.Sprint(exitCode) {
		w.t.Errorf("exit code %v instead of %v", got, exitCode)
	}
	switch {
	case problem == "" && w.err != nil:
		w.t.Errorf("error %v", w.err)
	case problem != "" && (w.err == nil || !strings.Contains(w.readable(w.err.Error()), problem)):
		w.t.Errorf("error %v, want %s", w.err, problem)
	}
	if w.t.Failed() {
		w.t.Logf("log:\n%s", w.said())
	}
}

// timers replaces time.After; a timer whose duration is in at once is over.
func (w *world) timers(over ...time.Duration) *[]time.Duration {
	asked := new([]time.Duration)
	var mu sync.Mutex
	w.sup.After = func(d time.Duration) <-chan time.Time {
		mu.Lock()
		defer mu.Unlock()
		*asked = append(*asked, d)
		if !slices.Contains(over, d) {
			return nil
		}
		c := make(chan time.Time, 1)
		c <- time.Time{}
		return c
	}
	return asked
}

// onTerm is a program that ends when it gets TERM, having written how.
func onTerm(code int) func(*guest) int {
	return func(g *guest) int {
		select {
		case sig := <-g.signals:
			fmt.Fprintf(g.stdout, "got %v\n", sig)
			return code
		case <-g.killed:
			return 0
		}
	}
}

func TestMaximumRunTime(t *testing.T) {
	const grace = 10 * time.Second
	stopped := "maximum run time exceeded. Stopping container.\nstopping container\n"
	for _, c := range []struct {
		name    string
		program func(*guest) int
		over    []time.Duration
		code    int
		log     string
	}{
		{"ends in time", exits(0), nil, 0, ""},
		{"obeys", onTerm(3), []time.Duration{time.Hour}, 3, stopped + "Container exited with status code 3\n"},
		{"does not obey", untilKilled, []time.Duration{time.Hour, grace}, 137, stopped + "Container exited with status code 137 (signal 9, SIGKILL)\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			w.api.record["scheduling_parameters"] = map[string]any{"max_run_time": 3600}
			w.runtime.program = c.program
			w.timers(c.over...)
			w.run()
			if c.log == "" {
				w.ends(arvados.StateComplete, c.code, "")
				return
			}
			w.ends(arvados.StateCancelled, c.code, "")
			if got := w.fromTrouble("Waiting for container to finish"); !strings.Contains(got, c.log) {
				t.Errorf("log\n%s, want\n%s", got, c.log)
			}
		})
	}
	t.Run("stopped in its grace period", func(t *testing.T) {
		w := newWorld(t)
		w.api.record["scheduling_parameters"] = map[string]any{"max_run_time": 3600}
		w.runtime.program = func(g *guest) int {
			<-g.signals
			w.stop(errStop)
			<-g.killed
			return 0
		}
		w.timers(time.Hour) // the grace period has no end
		w.run()
		w.ends(arvados.StateCancelled, 137, "")
	})
	t.Run("longer than time is", func(t *testing.T) {
		w := newWorld(t)
		w.api.record["scheduling_parameters"] = map[string]any{"max_run_time": int64(math.MaxInt64)}
		asked := w.timers()
		w.run()
		w.ends(arvados.StateComplete, 0, "")
		if n := len(*asked); n == 0 || (*asked)[n-1] < 290*365*24*time.Hour {
			t.Errorf("timers of %v", *asked)
		}
	})
}

func TestStopGrace(t *testing.T) {
	const grace = 5 * time.Second
	for _, c := range []struct {
		name    string
		program func(*guest) int
		grace   time.Duration
		over    []time.Duration
		code    int
		signals bool
	}{
		{"none", untilKilled, 0, nil, 137, false},
		{"obeys", onTerm(3), grace, nil, 3, true},
		{"does not obey", untilKilled, grace, []time.Duration{grace}, 137, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			w.sup.Limits.StopGrace = c.grace
			w.timers(c.over...)
			w.runtime.program = func(g *guest) int {
				<-g.awaited
				w.stop(errStop)
				return c.program(g)
			}
			w.run()
			w.ends(arvados.StateCancelled, c.code, "")
			if got := slices.Contains(w.trace, "signal container: terminated"); got != c.signals {
				t.Errorf("TERM sent: %v", got)
			}
			if log := w.fromTrouble("caught signal: terminated"); !strings.HasPrefix(log, "caught signal: terminated\nstopping container\n") {
				t.Errorf("log\n%s", log)
			}
		})
	}
}

// A program that ends by itself at the moment it is stopped is not an error.
func TestSignalComesTooLate(t *testing.T) {
	w := newWorld(t)
	w.sup.Limits.StopGrace = time.Second
	w.timers()
	w.runtime.program = func(g *guest) int {
		<-g.awaited
		w.stop(errStop)
		return 0
	}
	w.runtime.signalErr = os.ErrProcessDone
	w.run()
	w.ends(arvados.StateCancelled, 0, "")
	if strings.Contains(w.said(), "error stopping container") {
		t.Errorf("log:\n%s", w.said())
	}
}

func TestFUSEServerEnds(t *testing.T) {
	const stopping = "arv-mount exited while container is still running. Stopping container.\nstopping container\n"
	for _, c := range []struct {
		name string
		err  error
		log  string
	}{
		{"with an error", errors.New("exit status 1"), "Arv-mount exit error: exit status 1\n" + stopping},
		{"with status 0", nil, stopping},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			w.input()
			running := make(chan struct{})
			w.mounter.script = func(*fakeMount) error { <-running; return c.err }
			w.runtime.program = func(g *guest) int {
				_, _ = io.WriteString(g.stdout, "hello\n")
				close(running)
				<-g.killed
				return 0
			}
			w.run()
			w.ends(arvados.StateCancelled, 137, "")
			if got := w.fromTrouble("Waiting for container to finish"); !strings.HasPrefix(got, "Waiting for container to finish\n"+c.log+"Container exited with status code 137") {
				t.Errorf("log\n%s", got)
			}
			if out := w.readable(w.savedFiles()["stdout.txt"]); out != "hello\n" {
				t.Errorf("stdout.txt holds %q", out)
			}
		})
	}
	t.Run("while output is captured", func(t *testing.T) {
		w := newWorld(t)
		w.input()
		captured := make(chan struct{})
		w.mounter.script = func(*fakeMount) error { <-captured; return errors.New("exit status 2") }
		w.api.edit = func(c *call, _ any) {
			if c.Token == "container" && c.Method == "POST" {
				close(captured)
				<-w.mounter.started[0].exited
			}
		}
		w.run()
		w.ends(arvados.StateComplete, 0, "")
		if !strings.Contains(w.said(), "Arv-mount exit error: exit status 2\n") {
			t.Errorf("stderr:\n%s", w.said())
		}
	})
}

// The serious errors of the FUSE server reach the record, only the first.
func TestFUSEServerComplains(t *testing.T) {
	w := newWorld(t)
	w.input()
	reported := make(chan struct{})
	w.api.edit = func(c *call, _ any) {
		if attrs, ok := c.Params["container"].(map[string]any); ok && attrs["runtime_status"] != nil {
			close(reported)
		}
	}
	w.runtime.program = func(*guest) int {
		m := w.mounter.started[0]
		_, _ = io.WriteString(m.stdout, "Keep write error on stdout\n")
		_, _ = io.WriteString(m.stderr, "2026 Block not found error: x\n")
		_, _ = io.WriteString(m.stderr, "Keep write error: y\n")
		<-reported
		return 0
	}
	w.run()
	w.ends(arvados.StateComplete, 0, "")
	want := map[string]any{"warning": "arv-mount: Block not found error", "warningDetail": "2026 Block not found error: x"}
	if got := w.api.record["runtime_status"]; fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("runtime_status %v", got)
	}
	if got := w.readable(w.savedFiles()["arv-mount.txt"]); !strings.Contains(got, "on stdout\n2026 Block") {
		t.Errorf("arv-mount.txt holds %q", got)
	}
}

// A process that waits for the FUSE server in the kernel cannot be killed
// before that answers, or ends.
func TestContainerStuckInFUSE(t *testing.T) {
	w := newWorld(t)
	w.input()
	w.runtime.clingy = true
	w.runtime.program = func(g *guest) int { <-g.awaited; w.stop(errStop); <-g.killed; return 0 }
	w.run()
	w.ends(arvados.StateCancelled, 137, "")
	if !strings.Contains(w.said(), "error stopping container: 1 process still alive") {
		t.Errorf("log:\n%s", w.said())
	}
}

// What cannot be killed at all must not hang the run.
func TestContainerCannotBeKilled(t *testing.T) {
	for _, stopped := range []bool{true, false} {
		t.Run(fmt.Sprint("stopped ", stopped), func(t *testing.T) {
			w := newWorld(t)
			w.immortal = true
			w.runtime.program = func(g *guest) int {
				<-g.awaited
				if stopped {
					w.stop(errStop)
					<-w.ctx.Done() // the end of the test
				}
				return 0
			}
			w.run()
			if stopped {
				w.ends(arvados.StateCancelled, nil, "stop container: 1 process still alive")
			} else {
				// The first process has ended, but another is there: with that the
				// output is not final.
				w.ends(arvados.StateCancelled, 0, "stop container: 1 process still alive")
			}
		})
	}
}

func TestWaitFails(t *testing.T) {
	w := newWorld(t)
	w.runtime.waitErr = errors.New("container lost")
	w.run()
	w.ends(arvados.StateCancelled, nil, "wait for container: container lost")
	if out := w.readable(w.savedFiles()["stdout.txt"]); out != "hello\n" {
		t.Errorf("stdout.txt holds %q", out)
	}
	if _, ok := w.api.record["output"].(string); ok {
		t.Error("an output is published")
	}
}

// outOfMemory is what makes the workflow runner try again with more memory.
var outOfMemory = regexp.MustCompile(`(?i)(bad_alloc|out ?of ?memory|memory ?error|container using over 9.% of memory)`)

func TestOutOfMemory(t *testing.T) {
	for _, oom := range []bool{true, false} {
		t.Run(fmt.Sprint(oom), func(t *testing.T) {
			w := newWorld(t)
			w.runtime.oom = oom
			w.runtime.program = exits(137)
			w.run()
			w.ends(arvados.StateComplete, 137, "")
			if got := outOfMemory.MatchString(w.messages()); got != oom {
				t.Errorf("out of memory %v, but the log says\n%s", oom, w.messages())
			}
		})
	}
}
