package oci_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"crunch-oci/oci"
)

func TestExecSignalsTheGroup(t *testing.T) {
	b := newBox(t)
	s, err := b.ctr.Exec(t.Context(), sh("echo ready; sleep 600; true"))
	must(t, err)
	expect(t, s.Stdout(), "ready")
	must(t, s.Signal(syscall.SIGTERM))
	if r := finish(t, s, ""); r.code != 143 {
		t.Errorf("%+v", r)
	}
}

// living returns the container's processes without those that are dead but not
// reaped: its first process does not do that.
func living(t testing.TB, b *box) []int {
	t.Helper()
	p, err := b.ctr.Cgroup().Procs()
	must(t, err)
	return slices.DeleteFunc(p, func(pid int) bool {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		return err != nil || strings.Contains(string(stat), ") Z ")
	})
}

// Kill leaves no process of the session, however it is disguised, except for
// daemons, and touches no other.
func TestExecKill(t *testing.T) {
	b := newBox(t)
	other, err := b.ctr.Exec(t.Context(), sh("echo ready; cat"))
	must(t, err)
	expect(t, other.Stdout(), "ready")
	for name, script := range map[string]string{
		"children":            "sleep 601 & sleep 602 & echo ready; wait",
		"grandchildren":       "(sleep 601 & sleep 602) & echo ready; wait",
		"orphans":             "(sleep 601 &); echo ready; sleep 602",
		"own session":         "busybox setsid sleep 601 & sleep 602 & busybox usleep 20000; echo ready; wait",
		"deaf":                "trap '' TERM HUP INT; echo ready; while :; do sleep 600; done",
		"breeding":            "f() { while :; do sleep 0.01 & wait; done; }; f & f & f & echo ready; f",
		"leader has gone":     "sleep 601 & sleep 602 & echo ready",
		"own groups, stopped": "sleep 601 & busybox kill -STOP $!; echo ready; sleep 602",
	} {
		t.Run(name, func(t *testing.T) {
			s, err := b.ctr.Exec(t.Context(), sh(script))
			must(t, err)
			expect(t, s.Stdout(), "ready")
			if name == "leader has gone" {
				_, err := s.Wait(t.Context())
				must(t, err)
			}
			must(t, s.Kill())
			_, err = io.Copy(io.Discard, s.Stdout()) // until the last has gone
			must(t, err)
			_, err = s.Wait(t.Context())
			must(t, err)
			must(t, s.Close())
			waitFor(t, "the others to end", func() bool { return len(living(t, b)) == 2 }) // init and the other session's cat
			must(t, s.Kill())                                                              // nobody left is no error
		})
	}
	if r := finish(t, other, "still here"); r.stdout != "still here" || r.code != 0 {
		t.Errorf("the other session: %+v", r)
	}
}

// Sessions end with the container, keep it from nothing, and refuse to begin
// before and after its life.
func TestExecDuringTheContainersLife(t *testing.T) {
	req := newRequest(t, newID(), "read x; exit 5")
	in, feed := io.Pipe()
	b, err := create(t, req, in)
	must(t, err)
	refused := func(when, text string) {
		t.Helper()
		_, err := b.ctr.Exec(t.Context(), sh("true"))
		var e *oci.ExecError
		if !errors.As(err, &e) || e.Code != 1 || e.Text != text {
			t.Errorf("%s: %v, want %q", when, err, text)
		}
	}
	refused("before the start", "the container has not been started yet")
	must(t, b.ctr.Start(t.Context()))
	plain, err := b.ctr.Exec(t.Context(), sh("trap '' TERM HUP; echo ready; while :; do sleep 600; done"))
	must(t, err)
	expect(t, plain.Stdout(), "ready")
	tty, err := b.ctr.Exec(t.Context(), oci.ExecRequest{Args: []string{"sleep", "600"}, Terminal: &oci.TerminalSize{}})
	must(t, err)
	must(t, feed.Close())
	if status := b.wait(); status.Code != 5 {
		t.Errorf("the container's exit status: %v", status)
	}
	for _, s := range []*oci.Session{plain, tty} {
		if r := finish(t, s, ""); r.code != 137 {
			t.Errorf("session: %+v", r)
		}
	}
	refused("after the end", "the container has ended")
	must(t, b.ctr.Delete(t.Context()))
	refused("after the removal", "the container has ended")
}

// What began while the container was ending either ran or says so.
func TestExecRacesWithTheEnd(t *testing.T) {
	for i := range 12 {
		req := newRequest(t, newID(), "read x; exit 5")
		in, feed := io.Pipe()
		b, err := create(t, req, in)
		must(t, err)
		must(t, b.ctr.Start(t.Context()))
		var wg sync.WaitGroup
		for n := range 4 {
			wg.Go(func() {
				for {
					q := sh("true")
					if n%2 == 0 {
						q.Terminal = &oci.TerminalSize{Columns: 80, Rows: 25}
					}
					s, err := b.ctr.Exec(t.Context(), q)
					var refused *oci.ExecError
					if errors.As(err, &refused) {
						if refused.Text != "the container has ended" {
							t.Errorf("round %d: %q", i, refused.Text)
						}
						return
					}
					if err != nil {
						t.Errorf("round %d: %v", i, err)
						return
					}
					if r := finish(t, s, ""); r.code != 0 && r.code != 137 {
						t.Errorf("round %d: %+v", i, r)
					}
				}
			})
		}
		time.AfterFunc(time.Duration(i*4)*time.Millisecond, func() { feed.Close() })
		if status := b.wait(); status.Code != 5 {
			t.Errorf("round %d: the container's exit status: %v", i, status)
		}
		wg.Wait()
	}
}

func TestExecIsBoundedByItsContext(t *testing.T) {
	b := newBox(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errTest)
	if _, err := b.ctr.Exec(ctx, sh("true")); !errors.Is(err, errTest) {
		t.Errorf("%v", err)
	}
	// At any moment: it runs, or nothing of it is left.
	for i := range 20 {
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Duration(i)*4*time.Millisecond, errTest)
		s, err := b.ctr.Exec(ctx, sh("echo x"))
		cancel()
		if err == nil {
			if r := finish(t, s, ""); r.stdout != "x\n" {
				t.Errorf("%+v", r)
			}
		} else if !errors.Is(err, errTest) {
			t.Errorf("%v", err)
		}
	}
	waitFor(t, "the rest to be gone", func() bool { return len(living(t, b)) == 1 })
}

// Where the container has all the processes it may have, the user is told so, in
// one line, and can come in when there is room again.
func TestExecInCrowdedContainer(t *testing.T) {
	b := newBox(t, func(q *oci.Request) { q.Limits.PIDs = 40 })
	dirs := b.ctr.Cgroup().Dirs
	dir, ok := dirs["pids"]
	if !ok {
		dir = dirs[""]
	}
	for limit := 1; limit <= 12; limit++ {
		must(t, os.WriteFile(filepath.Join(dir, "pids.max"), []byte(strconv.Itoa(limit)), 0))
		s, err := b.ctr.Exec(t.Context(), oci.ExecRequest{Args: []string{"echo", "in"}})
		if err == nil {
			if got := finish(t, s, ""); got != (execResult{stdout: "in\n"}) {
				t.Errorf("of %d: %+v", limit, got)
			}
			continue
		}
		var refused *oci.ExecError
		if !errors.As(err, &refused) || limit > 10 || refused.Code != 1 || !strings.Contains(refused.Text, "no room") || strings.Contains(refused.Text, "\n") {
			t.Errorf("of %d: %v", limit, err)
		}
	}
	// Whose room others take meanwhile.
	must(t, os.WriteFile(filepath.Join(dir, "pids.max"), []byte("10"), 0))
	var all sync.WaitGroup
	for range 6 {
		all.Go(func() {
			s, err := b.ctr.Exec(t.Context(), oci.ExecRequest{Args: []string{"echo", "in"}})
			if err == nil {
				if got := finish(t, s, ""); got != (execResult{stdout: "in\n"}) {
					t.Errorf("%+v", got)
				}
				return
			}
			var refused *oci.ExecError
			if !errors.As(err, &refused) || strings.Contains(refused.Text, "\n") {
				t.Errorf("%v", err)
			}
		})
	}
	all.Wait()
}
