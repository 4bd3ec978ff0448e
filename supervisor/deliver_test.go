package supervisor

import (
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"crunch-oci/arvados"
	"crunch-oci/keep"
	"crunch-oci/supervisor/unfinished"
)

// finalUpdate tells whether q is the one that completes the container.
func finalUpdate(q *call) bool {
	attrs, _ := q.Params["container"].(map[string]any)
	return attrs["state"] == arvados.StateComplete
}

// outage makes the API answer with status, while it lasts, to what matches.
func (w *world) outage(status int, lasts func(n int) bool, match func(*call) bool) {
	n := 0
	w.api.refuse = func(q *call) int {
		if !match(q) || !lasts(n) {
			return 0
		}
		n++
		return status
	}
}

func times(most int) func(int) bool { return func(n int) bool { return n < most } }
func always(int) bool               { return true }
func onceRunning(w *world) func(*call) bool {
	return func(*call) bool {
		return slices.Contains(w.api.states, arvados.StateRunning) && w.runtime.made[0].hasEnded()
	}
}

func (p *fakeProcess) hasEnded() bool { return !p.alive() }

// keptResults are what is in the directory of unfinished results.
func (w *world) keptResults() []unfinished.Entry {
	w.t.Helper()
	list, err := w.sup.Unfinished.List()
	if err != nil {
		w.t.Error(err)
	}
	return list
}

// A result waits for the API to come back, and nothing of it is lost.
func TestResultWaitsForTheAPI(t *testing.T) {
	for name, arrange := range map[string]func(*world){
		"only the final update fails": func(w *world) { w.outage(http.StatusServiceUnavailable, times(200), finalUpdate) },
		"nothing is answered":         func(w *world) { w.outage(http.StatusServiceUnavailable, times(400), onceRunning(w)) },
		"a container with API access": func(w *world) { wantsAPI(w); w.outage(http.StatusBadGateway, times(400), onceRunning(w)) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.timers(finalPause)
			arrange(w)
			w.run()
			w.ends(arvados.StateComplete, 0, "")
			if got := w.outputFiles()["result"]; got != "1" {
				t.Errorf("output %q", got)
			}
			if !strings.HasSuffix(w.messages(), "\nComplete\n") {
				t.Errorf("the saved log ends with %q", w.messages())
			}
			if left := w.keptResults(); len(left) > 0 {
				t.Errorf("still kept, although delivered: %+v", left)
			}
		})
	}
}

// In the end it is left to the operator, without any secret.
func TestResultIsKept(t *testing.T) {
	for name, arrange := range map[string]func(*world){
		"time is over": func(w *world) {
			w.timers(finalPause, DefaultFinalTimeout)
			w.outage(http.StatusServiceUnavailable, always, onceRunning(w))
		},
		"a signal while it waits": func(w *world) {
			w.timers(finalPause)
			signal, once := make(chan struct{}), sync.Once{}
			w.sup.NextSignal = func() <-chan struct{} { return signal }
			w.outage(http.StatusServiceUnavailable, func(n int) bool {
				if n > 100 {
					once.Do(func() { close(signal) })
				}
				return true
			}, onceRunning(w))
		},
		"refused": func(w *world) { w.outage(http.StatusForbidden, always, finalUpdate) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			arrange(w)
			w.run()
			if w.err == nil || last(w.api.states) != arvados.StateRunning {
				t.Errorf("it ends as %v with %v", w.api.states, w.err)
			}
			kept := w.keptResults()
			if len(kept) != 1 {
				t.Fatalf("kept: %+v\n%s", kept, w.said())
			}
			r := kept[0]
			if r.InUse || r.State != arvados.StateComplete || *r.ExitCode != 0 || r.Cost != 3 || r.APIHost != "api.example" || r.Reason == "" {
				t.Errorf("kept: %+v", r)
			}
			if got := w.files(r.Output.Manifest)["result"]; got != "1" {
				t.Errorf("output %q", got)
			}
			if got := w.files(r.Log.Manifest)["stdout.txt"]; !strings.HasSuffix(got, " hello\n") {
				t.Errorf("stdout.txt %q", got)
			}
			if r.Log.Manifest != keep.StripSignatures(r.Log.Manifest) || r.Output.Manifest != keep.StripSignatures(r.Output.Manifest) {
				t.Error("there are signatures in it")
			}
			if !strings.Contains(w.said(), "the results are kept in DIR/unfinished/UUID.json") {
				t.Errorf("nobody is told:\n%s", w.said())
			}
		})
	}
}

// Whoever ends the record meanwhile, or has it ended by an answer that got lost,
// is not argued with.
func TestRecordIsEndedByOthers(t *testing.T) {
	for _, c := range []struct {
		name, state string
		refusals    int
		kept        int
	}{
		{"cancelled", arvados.StateCancelled, 0, 1},
		{"cancelled, token revoked", arvados.StateCancelled, http.StatusUnauthorized, 1},
		{"an answer got lost", arvados.StateComplete, http.StatusUnprocessableEntity, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			w.timers(finalPause)
			w.api.refuse = func(q *call) int {
				if finalUpdate(q) {
					w.api.record["state"] = c.state
					return c.refusals
				}
				return 0
			}
			w.run()
			if w.err != nil {
				t.Errorf("error %v", w.err)
			}
			if !strings.Contains(w.said(), "by somebody else's doing") {
				t.Errorf("log:\n%s", w.said())
			}
			if got := len(w.keptResults()); got != c.kept {
				t.Errorf("%d results are kept", got)
			}
		})
	}
	t.Run("cancelled while the API is away", func(t *testing.T) {
		w := newWorld(t)
		w.timers(finalPause)
		n := 0
		w.api.refuse = func(q *call) int {
			if !onceRunning(w)(q) {
				return 0
			}
			if n++; n < 200 {
				return http.StatusServiceUnavailable
			}
			w.api.record["state"] = arvados.StateCancelled
			return 0
		}
		w.run()
		if w.err != nil && !strings.Contains(w.err.Error(), "503") {
			t.Errorf("error %v", w.err)
		}
		if got := w.keptResults(); len(got) != 1 || got[0].State != arvados.StateComplete {
			t.Errorf("kept: %+v", got)
		}
	})
}

// A directory that cannot be written costs a warning, not the result.
func TestResultsCannotBeKept(t *testing.T) {
	w := newWorld(t)
	w.sup.Unfinished = unfinished.Dir(filepath.Join("/proc/self/nowhere"))
	w.run()
	w.ends(arvados.StateComplete, 0, "")
	if !strings.Contains(w.said(), "warning: keep results: ") {
		t.Errorf("log:\n%s", w.said())
	}
}
