package main_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"crunch-oci/arvados"
)

// requestFaults are what can happen around a request to the API or Keep. Those of
// two minutes are met by all requests to the API, or to Keep, from that one on;
// with "all, 2 min" they take turns.
var requestFaults = []string{
	"503", "reset", "garbage", "half an answer", "slow",
	"503, 2 min", "reset, 2 min", "garbage, 2 min", "half an answer, 2 min", "all, 2 min",
	"503 for ever", "kill -9 before", "kill -9 after",
}

// troubles are the faults that are a trouble of the proxy.
var troubles = map[string]trouble{"503": unavailable, "reset": reset, "garbage": garbage, "half an answer": halfAnswer}

var someRequests = []faultCell{
	{"API: dispatcher PUT containers/UUID state=Running", "half an answer"},
	{"API: dispatcher PUT containers/UUID state=Running", "garbage"},
	{"API: dispatcher PUT containers/UUID state=Complete", "half an answer"},
	{"API: container POST collections output is_trashed", "reset"},
	{"Keep: GET /HASH", "garbage"},
	{"API: dispatcher PUT containers/UUID state=Running", "kill -9 after"},
	{"API: dispatcher PUT containers/UUID state=Complete", "kill -9 before"},
}

// awayFor is two minutes in the program with the tag faults.
const awayFor = 1200 * time.Millisecond

// Every request of a run to the API and to Keep meets trouble. What passes costs
// nothing but time, and nothing that has had its answer is sent again.
func TestFaultsOfRequests(t *testing.T) {
	t.Parallel()
	s := newFaultSweep(t)
	usual := s.enumerateRequests(t)
	cells := someRequests
	if allFaults {
		cells = nil
		for _, point := range s.points {
			for _, fault := range requestFaults {
				cells = append(cells, faultCell{point, fault})
			}
		}
	}
	t.Run("cells", func(t *testing.T) {
		for _, cell := range cells {
			s.try(t, cell, func(t *testing.T, n *node) faulted { return s.faultAtRequest(t, n, cell, usual) })
		}
	})
	if allFaults {
		s.report(t, "API calls", requestFaults)
	}
}

// requestCounter makes points of names of requests: each is one.
type requestCounter struct{ count map[string]int }

func (c *requestCounter) point(name string) string {
	if c.count == nil {
		c.count = make(map[string]int)
	}
	c.count[name]++
	if n := c.count[name]; n > 1 {
		return fmt.Sprintf("%s (%d)", name, n)
	}
	return name
}

// enumerateRequests returns how often each request is answered in a run without
// trouble.
func (s *faultSweep) enumerateRequests(t *testing.T) map[string]int {
	n := newNode(t)
	var mu sync.Mutex
	var counter requestCounter
	p := newFaultProxy(t, n, s.cluster, func(name string) trouble {
		mu.Lock()
		defer mu.Unlock()
		s.points = append(s.points, counter.point(name))
		return noTrouble
	})
	uuid := s.submit(t)
	supervisor := n.start(t, run{args: []string{uuid}, env: p.env})
	s.judge(t, n, faulted{uuid: uuid, process: supervisor, reached: true, states: []string{arvados.StateComplete}})
	return p.answered
}

func (s *faultSweep) faultAtRequest(t *testing.T, n *node, cell faultCell, usual map[string]int) faulted {
	f := faulted{uuid: s.submit(t), states: []string{arvados.StateComplete}}
	name, _, _ := strings.Cut(cell.point, " (")
	if strings.HasSuffix(cell.fault, "for ever") {
		f.states = nil
		for _, row := range finalStates {
			if row.name.MatchString(name) {
				f.states = row.states
				break
			}
		}
		if f.states == nil {
			t.Errorf("finalStates says nothing of %s", name)
		}
		if name != cell.point {
			f.states = nil // the first of them has succeeded: see judge
		}
	}
	f.io = strings.HasPrefix(name, "Keep: GET ") && cell.fault == "503 for ever"
	if f.io && f.states != nil {
		f.states = append(f.states[:1:1], arvados.StateComplete)
	}
	var mu sync.Mutex
	var counter requestCounter
	var away time.Time // when it began
	failures := 0
	started := make(chan struct{})
	p := newFaultProxy(t, n, s.cluster, func(got string) trouble {
		mu.Lock()
		defer mu.Unlock()
		first := counter.point(got) == cell.point
		f.reached = f.reached || first
		if f.killed {
			return lostForGood
		}
		what, once := troubles[cell.fault]
		kind, long := strings.CutSuffix(cell.fault, ", 2 min")
		switch {
		case first && once:
			return what
		case f.reached && got == name && cell.fault == "503 for ever":
			return unavailable
		case first && cell.fault == "slow":
			time.Sleep(300 * time.Millisecond) // the fault itself
		case first && cell.fault == "kill -9 before":
			<-started
			f.killed = true
			_ = f.process.cmd.Process.Kill()
			return lostForGood
		case f.reached && long:
			if first {
				away = time.Now()
			}
			if strings.HasPrefix(got, cell.point[:4]) && time.Since(away) < awayFor {
				failures++
				if what, ok := troubles[kind]; ok {
					return what
				}
				return []trouble{unavailable, reset, garbage, halfAnswer}[failures%4]
			}
		}
		return noTrouble
	})
	if cell.fault == "kill -9 after" {
		p.mu.Lock()
		p.obeyed = func(got string) bool {
			mu.Lock()
			defer mu.Unlock()
			if got != name || !f.reached || f.killed {
				return false
			}
			<-started
			f.killed = true
			_ = f.process.cmd.Process.Kill()
			return true
		}
		p.mu.Unlock()
	}
	f.process = n.start(t, run{args: []string{f.uuid}, env: append(p.env, faultsFinalTimeout)})
	close(started)
	if strings.Contains(name, "keep_services") {
		select { // each time it is wanted is a minute that the program does not shorten
		case <-f.process.done:
		case <-time.After(4 * patience):
		}
	}
	f.process.wait(t)
	mu.Lock()
	defer mu.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	for name, n := range p.answered {
		once := strings.Contains(name, " state=") || strings.Contains(name, " POST collections ") || strings.HasSuffix(name, " exit_code")
		if once && n > max(1, usual[name]) {
			t.Errorf("%s: answered %d times", name, n)
		}
	}
	return f
}
