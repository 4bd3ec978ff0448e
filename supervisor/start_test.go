package supervisor

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"crunch-oci/arvados"
)

// A program on a mount whose server does not answer never begins. What ends a
// program that runs ends the wait for it as well.
func TestStartHangs(t *testing.T) {
	lost := errors.New("exit status 1")
	for _, c := range []struct {
		name string
		// happens is what happens while the start hangs; gone ends the FUSE
		// server.
		happens func(w *world, gone chan struct{})
		log     string
	}{
		{"and is stopped", func(w *world, _ chan struct{}) { w.stop(errStop) }, "caught signal: terminated\nstopping container\n"},
		{"and the time is over", func(w *world, _ chan struct{}) { w.timers(time.Hour) }, "maximum run time exceeded. Stopping container.\nstopping container\n"},
		{"and the FUSE server ends", func(_ *world, gone chan struct{}) { close(gone) },
			"Arv-mount exit error: exit status 1\narv-mount exited while container is still running. Stopping container.\nstopping container\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			w.input()
			w.sup.Limits.StopGrace = time.Hour // of no use to what has not begun
			w.api.record["scheduling_parameters"] = map[string]any{"max_run_time": 3600}
			w.timers()
			gone := make(chan struct{})
			w.mounter.script = func(m *fakeMount) error {
				select {
				case <-gone:
					return lost
				case <-m.stopped:
					return nil
				}
			}
			if strings.Contains(c.name, "time") {
				c.happens(w, gone)
				w.runtime.starting = func() {}
			} else {
				w.runtime.starting = func() { c.happens(w, gone) }
			}
			w.run()
			w.ends(arvados.StateCancelled, nil, "")
			if got := w.fromTrouble("Starting container"); !strings.HasPrefix(got, "Starting container\n"+c.log) {
				t.Errorf("log\n%s", got)
			}
			if slices.Contains(w.trace, "wait for container") || slices.Contains(w.trace, "signal container: terminated") {
				t.Errorf("trace %v", w.trace)
			}
		})
	}
	t.Run("and all is given up", func(t *testing.T) {
		w := newWorld(t)
		w.runtime.starting = func() { w.giveUp(errStop) }
		w.run()
		if got := w.said(); !strings.Contains(got, "Starting container\ncaught signal: terminated\nstopping container\n") {
			t.Errorf("log\n%s", got)
		}
	})
}
