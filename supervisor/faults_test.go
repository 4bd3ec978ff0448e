package supervisor

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"crunch-oci/arvados"
)

// errTest is what goes wrong in these tests.
var errTest = errors.New("no luck")

// outcome is what matters of a run to the user and the dispatcher: what was
// changed in the API since the trouble, the error, and what the log says.
func (w *world) outcome() string {
	var b strings.Builder
	for _, line := range w.trace[w.before:] {
		if strings.Contains(line, " PUT ") || strings.Contains(line, " POST ") || strings.HasPrefix(line, "mark") || line == "HANGS" {
			fmt.Fprintf(&b, "  %s\n", manyFiles.ReplaceAllStringFunc(line, func(list string) string {
				return fmt.Sprintf("files=%d", strings.Count(list, ",")+1)
			}))
		}
	}
	fmt.Fprintf(&b, "  error: %s\n", strings.ReplaceAll(w.readable(fmt.Sprint(w.err)), "\n", "\n  | "))
	inLog, quiet := w.messages(), map[string]bool{}
	for line := range strings.Lines(usual) {
		quiet[line] = true
	}
	for line := range strings.Lines(w.said()) {
		switch {
		case quiet[line], strings.HasPrefix(line, "Running [arv-mount"):
		case strings.Contains(inLog, line):
			fmt.Fprintf(&b, "  log: %s", line)
		default:
			fmt.Fprintf(&b, "  stderr: %s", line)
		}
	}
	return b.String()
}

var manyFiles = regexp.MustCompile(`files=\S+,\S+`)

// usual are messages that say nothing in a test.
const usual = `crunch-run 1.0 (go1.26) started
crunch-run process has uid=0(root) gid=0(root) groups=0(root)
Using FUSE mount: fake 1.0
Using container runtime: fake 2.0
Executing container: UUID
Executing on host 'HOST'
Fetching Docker image from collection 'IMAGE'
Using Docker image id "sha256:IMAGE"
Loading Docker image from keep
Creating OCI container
Starting container
Waiting for container to finish
Container exited with status code 0
copying "result" (1 bytes)
Total CPU usage was 1.000000 user and 0.000000 sys on 2.00 CPUs
Maximum container memory rss usage was 0%, 8192/1000000 bytes
Maximum arv-mount memory rss usage was 4096 bytes
Maximum crunch-run memory rss usage was 4096 bytes
crunch-run finished
`

// allSteps are the steps that a run takes, whatever there will be.
func allSteps() (list []*step) {
	for _, table := range [][]step{beforeRunning, fromRunning} {
		for i := range table {
			list = append(list, &table[i])
		}
	}
	return list
}

// Every step fails in turn: before it has done anything, and after it has done
// everything, which is when there is most to be undone.
func TestEveryStepFails(t *testing.T) {
	var b strings.Builder
	for _, s := range allSteps() {
		whole := *s
		for _, done := range []bool{false, true} {
			name := whole.name + " fails at once"
			if done {
				name = whole.name + " fails when all is done"
			}
			t.Run(name, func(t *testing.T) {
				defer func() { *s = whole }()
				w := newWorld(t)
				w.input()
				s.do = func(r *run, ctx context.Context) error {
					w.before = len(w.trace)
					if done {
						if err := whole.do(r, ctx); err != nil {
							t.Errorf("it fails by itself: %v", err)
						}
					}
					return errTest
				}
				w.run()
				if !errors.Is(w.err, errTest) {
					t.Errorf("error %v", w.err)
				}
				if got := w.api.states[len(w.api.states)-1]; got != whole.onFailure {
					t.Errorf("the container ends as %s instead of %s", got, whole.onFailure)
				}
				fmt.Fprintf(&b, "%s\n%s", name, w.outcome())
			})
		}
	}
	golden(t, "steps.txt", b.String())
}

// succeeding is a run with everything in it, for faults at each operation.
func succeeding(t *testing.T) *world {
	w := newWorld(t)
	w.input()
	w.api.record["runtime_constraints"].(map[string]any)["API"] = true
	return w
}

// eachOperation runs a container again and again, with trouble before its
// first, second, ... operation, until there is none so late, and returns the
// outcomes.
func eachOperation(t *testing.T, trouble func(*world, context.Context, string) error, check func(*testing.T, *world)) string {
	var b strings.Builder
	for at := 1; ; at++ {
		name := ""
		t.Run(fmt.Sprint(at), func(t *testing.T) {
			w := succeeding(t)
			w.runtime.program = untilStopped(w)
			w.at = at
			w.trouble = func(ctx context.Context, op string) error {
				name = op
				return trouble(w, ctx, op)
			}
			w.run()
			if name == "" {
				if w.err != nil || last(w.api.states) != arvados.StateComplete {
					t.Errorf("without trouble it ends as %v with %v", w.api.states, w.err)
				}
				return
			}
			check(t, w)
			fmt.Fprintf(&b, "%d: %s\n%s", at, name, w.outcome())
		})
		if name == "" {
			return b.String()
		}
		if t.Failed() && at > 100 {
			t.Fatal("there is no end to the operations")
		}
	}
}

// Every operation finds the run being stopped. What comes before Running is
// interrupted by that; nothing that comes after may be.
func TestStopDuringEveryOperation(t *testing.T) {
	got := eachOperation(t, func(w *world, ctx context.Context, op string) error {
		w.stop(errStop)
		if w.api.reached(arvados.StateRunning) || strings.Contains(op, `"state":"Running"`) {
			return nil
		}
		return interrupted(ctx, w)
	}, func(t *testing.T, w *world) {
		if w.err != nil {
			t.Errorf("error %v", w.err)
		}
		if !strings.Contains(w.said(), "caught signal: terminated\n") && last(w.api.states) != arvados.StateComplete {
			t.Error("the log does not say why the run ends")
		}
	})
	golden(t, "stop.txt", got)
}

// errStop is the cause that the program gives when it is sent TERM.
var errStop = errors.New("caught signal: terminated")

// interrupted waits for the end of ctx.
func interrupted(ctx context.Context, w *world) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(watchdog):
		w.t.Error("it is not interrupted")
		return errTest
	}
}

// Every operation finds that the run is given up. From then on nothing is sent,
// and still nothing stays on the node.
func TestGivenUpDuringEveryOperation(t *testing.T) {
	eachOperation(t, func(w *world, ctx context.Context, op string) error {
		w.giveUp(errStop)
		if ctx.Done() == nil || op == "wait for container" {
			return nil // what cleans up
		}
		return interrupted(ctx, w)
	}, func(t *testing.T, w *world) {
		for _, line := range w.trace[w.before:] {
			if strings.Contains(line, "containers/UUID") {
				t.Errorf("%s: although the run is given up", line)
			}
		}
		if !errors.Is(w.err, errStop) {
			t.Errorf("error %v; trace\n%s", w.err, strings.Join(w.trace, "\n"))
		}
	})
}

func last(list []string) string {
	if len(list) == 0 {
		return ""
	}
	return list[len(list)-1]
}

// Every operation fails in turn.
func TestEveryOperationFails(t *testing.T) {
	got := eachOperation(t, func(*world, context.Context, string) error { return errTest }, func(t *testing.T, w *world) {
		if got := last(w.api.states); w.err == nil && got != arvados.StateComplete {
			t.Errorf("no error, but the container ends as %q", got)
		}
		if w.err != nil && slices.Contains(w.api.states, arvados.StateComplete) {
			t.Errorf("error %v, but the container is Complete", w.err)
		}
	})
	golden(t, "operations.txt", got)
}
