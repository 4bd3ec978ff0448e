package supervisor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"crunch-oci/arvados"
	"crunch-oci/supervisor/prices"
)

// Whoever ends the container without a signal, or whose signal got lost, is
// obeyed within minutes.
func TestRecordIsWatched(t *testing.T) {
	for name, c := range map[string]struct {
		change func(record map[string]any)
		state  string
		said   string
	}{
		"cancelled by an administrator": {
			func(r map[string]any) { r["state"] = arvados.StateCancelled },
			arvados.StateRunning, "the container's record has been made Cancelled. Stopping container.\nstopping container\n",
		},
		"priority 0": {
			func(r map[string]any) { r["priority"] = 0 },
			arvados.StateCancelled, "the container's priority is 0: it is not wanted any more. Stopping container.\nstopping container\n",
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			running := make(chan time.Time)
			w.sup.After = func(d time.Duration) <-chan time.Time {
				if d == watchInterval {
					return running
				}
				return nil
			}
			w.runtime.program = func(g *guest) int {
				w.api.mu.Lock()
				c.change(w.api.record)
				w.api.mu.Unlock()
				running <- time.Time{}
				<-g.killed
				return 0
			}
			w.run()
			if w.err != nil {
				t.Errorf("error %v", w.err)
			}
			if got := last(w.api.states); got != c.state {
				t.Errorf("last state that was sent and taken: %s", got)
			}
			if !strings.Contains(w.said(), c.said) {
				t.Errorf("log:\n%s", w.said())
			}
		})
	}
}

// A container that was made with priority 0, by an administrator, runs.
func TestPriorityZeroFromTheBeginning(t *testing.T) {
	w := newWorld(t)
	w.api.record["priority"] = 0
	looks := make(chan time.Time)
	w.sup.After = func(d time.Duration) <-chan time.Time {
		if d == watchInterval {
			return looks
		}
		return nil
	}
	w.runtime.program = func(*guest) int {
		looks <- time.Time{}
		looks <- time.Time{} // the first look is over
		return 0
	}
	w.run()
	w.ends(arvados.StateComplete, 0, "")
}

// What programs in the container, and others, have written stays; warnings do
// not push each other out.
func TestStatusIsMerged(t *testing.T) {
	w := newWorld(t)
	w.input()
	notices := make(chan Interruption, 2)
	w.sup.NextInterruption = func(ctx context.Context) (Interruption, error) {
		select {
		case n := <-notices:
			return n, nil
		case <-ctx.Done():
			return Interruption{}, ctx.Err()
		}
	}
	updated := make(chan struct{}, 10)
	w.api.edit = func(c *call, _ any) {
		if attrs, ok := c.Params["container"].(map[string]any); ok && attrs["runtime_status"] != nil {
			updated <- struct{}{}
		}
	}
	at := time.Date(2017, 9, 18, 10, 22, 0, 0, time.FixedZone("", 7200))
	w.runtime.oom = true
	w.runtime.program = func(*guest) int {
		w.api.mu.Lock()
		w.api.record["runtime_status"] = map[string]any{"activity": "working", "warning": "slow", "warningDetail": "very"}
		w.api.mu.Unlock()
		notices <- Interruption{"stop", at}
		<-updated
		notices <- Interruption{"stop", at} // the same is not said again
		notices <- Interruption{"terminate", at}
		<-updated
		_, _ = io.WriteString(w.mounter.started[0].stderr, "2026 Keep write error: token "+containerToken+"\n")
		<-updated
		return 137
	}
	w.run()
	w.ends(arvados.StateComplete, 137, "")
	const notice = "Cloud provider scheduled instance terminate at 2017-09-18T08:22:00Z"
	want := map[string]any{
		"activity": "working",
		"warning":  "slow; preemption notice; arv-mount: Keep write error; container ran out of memory",
		"warningDetail": "very\n" + notice + "\n2026 Keep write error: token v2/zzzzz-gj3su-000000000000000/(hidden)/" + testUUID +
			"\nContainer ran out of memory: the kernel killed a process in it (limit 1000000 bytes)",
		"preemptionNotice": notice,
	}
	if got := w.api.record["runtime_status"]; !reflect.DeepEqual(got, want) {
		t.Errorf("runtime_status\n%v\nwant\n%v", got, want)
	}
	if got := w.messages(); strings.Count(got, "Cloud provider scheduled") != 2 {
		t.Errorf("log:\n%s", got)
	}
}

// One notice alone is what the reference sends.
func TestPreemptionNotice(t *testing.T) {
	w := newWorld(t)
	told, sent := make(chan struct{}), make(chan struct{})
	w.sup.NextInterruption = func(context.Context) (Interruption, error) {
		select {
		case <-told:
			return Interruption{}, errors.New("no more")
		default:
			close(told)
			return Interruption{"terminate", time.Date(2017, 9, 18, 8, 22, 0, 0, time.UTC)}, nil
		}
	}
	var status any
	w.api.edit = func(c *call, _ any) {
		if attrs, ok := c.Params["container"].(map[string]any); ok && attrs["runtime_status"] != nil {
			status = attrs["runtime_status"]
			close(sent)
		}
	}
	w.runtime.program = func(*guest) int { <-sent; return 0 }
	w.run()
	w.ends(arvados.StateComplete, 0, "")
	const text = "Cloud provider scheduled instance terminate at 2017-09-18T08:22:00Z"
	if want := map[string]any{"warning": "preemption notice", "warningDetail": text, "preemptionNotice": text}; !reflect.DeepEqual(status, want) {
		t.Errorf("runtime_status %v", status)
	}
}

// Prices are read at the beginning, and again when told to.
func TestPrices(t *testing.T) {
	w := newWorld(t) // two hours at 1.5
	began := w.sup.Now()
	var later atomic.Int64
	w.sup.Now = func() time.Time { return began.Add(time.Duration(later.Load())) }
	var list []prices.Price
	var listErr error
	w.sup.ReadPrices = func() ([]prices.Price, error) { return list, listErr }
	reprice, sent := make(chan struct{}), make(chan any, 1)
	w.sup.Reprice = reprice
	w.api.edit = func(c *call, _ any) {
		if attrs, ok := c.Params["container"].(map[string]any); ok && len(attrs) == 1 && attrs["cost"] != nil {
			sent <- attrs["cost"]
		}
	}
	w.runtime.program = func(*guest) int {
		list = []prices.Price{{StartTime: began.Add(time.Hour), Price: 3}, {StartTime: began.Add(-time.Hour), Price: 1}}
		later.Store(int64(2 * time.Hour))
		reprice <- struct{}{}
		if got := fmt.Sprint(<-sent); got != "4" {
			t.Errorf("cost %v", got)
		}
		listErr = errors.New("decode: nonsense")
		reprice <- struct{}{}
		<-sent
		return 0
	}
	w.run()
	w.ends(arvados.StateComplete, 0, "")
	if got := fmt.Sprint(w.api.record["cost"]); got != "4" {
		t.Errorf("final cost %v", got)
	}
	for _, line := range []string{"Instance price changed to 1.00 at 2026-01-02 10:00:00 +0000 UTC\nInstance price changed to 3.00", "loadPrices: decode: nonsense\n"} {
		if !strings.Contains(w.messages(), line) {
			t.Errorf("%q is missing in the log:\n%s", line, w.messages())
		}
	}
}

// Errors about prices spoil nothing.
func TestCostIsRefused(t *testing.T) {
	w := newWorld(t)
	reprice := make(chan struct{})
	w.sup.Reprice = reprice
	refused := make(chan struct{})
	w.api.refuse = func(c *call) int {
		if attrs, _ := c.Params["container"].(map[string]any); len(attrs) == 1 && attrs["cost"] != nil {
			close(refused)
			return http.StatusUnprocessableEntity
		}
		return 0
	}
	w.runtime.program = func(*guest) int { reprice <- struct{}{}; <-refused; return 0 }
	w.run()
	w.ends(arvados.StateComplete, 0, "")
}

// A second signal does not wait for the grace period.
func TestSecondSignalKills(t *testing.T) {
	w := newWorld(t)
	w.sup.Limits.StopGrace = 20 * time.Second
	w.timers() // which never ends
	signal := make(chan struct{})
	w.sup.NextSignal = func() <-chan struct{} { return signal }
	w.runtime.program = func(g *guest) int {
		<-g.awaited
		w.stop(errStop)
		<-g.signals
		close(signal)
		<-g.killed
		return 0
	}
	w.run()
	w.ends(arvados.StateCancelled, 137, "")
}
