package localcluster

import (
	"cmp"
	"maps"
	"slices"
	"time"
)

// A model of container requests and containers: what the specification says
// about states, priorities, retries and reuse (arvados-api.md sections 9.2, 9.4,
// 9.8 and 11), without attributes and in memory. TestRandomOperations compares
// the cluster with it.

type modelRequest struct {
	uuid, state    string
	priority       int
	created        time.Time
	container      string
	count, max     int
	parent         string // the container that made it
	spec           string // equal for equal work
	reuse, deleted bool
}

type modelContainer struct {
	uuid, state string
	priority    int64
	holder      string // "", "A" or "B"
	locks       int
	spec        string
	good        bool // Complete with exit code 0, log and output
	// When things happened, as step numbers.
	created, started, finished int
}

type model struct {
	step       int
	requests   map[string]*modelRequest
	containers map[string]*modelContainer
	// adopt gives containers that the server has made their UUIDs: it reads the
	// request's present container.
	adopt func(request string) string
}

func (m *model) committed(container string) []*modelRequest {
	var out []*modelRequest
	for _, uuid := range slices.Sorted(maps.Keys(m.requests)) {
		if r := m.requests[uuid]; r.container == container && r.state == "Committed" && !r.deleted {
			out = append(out, r)
		}
	}
	return out
}

// readable tells whether the user sees the container: a request of his has it.
func (m *model) readable(container string) bool {
	for _, r := range m.requests {
		if r.container == container && !r.deleted {
			return true
		}
	}
	return false
}

// recompute follows a change of requests to the priority of their container,
// and of those that it submitted.
func (m *model) recompute(uuid string) {
	c := m.containers[uuid]
	if c == nil || ended(c.state) {
		return
	}
	c.priority = 0
	for _, r := range m.committed(uuid) {
		p := int64(r.priority)<<50 - r.created.UnixMilli()
		if r.parent != "" {
			p = m.containers[r.parent].priority
		}
		if r.priority > 0 {
			c.priority = max(c.priority, p)
		}
	}
	for _, r := range m.requests {
		if r.parent == uuid && r.state == "Committed" && !r.deleted {
			m.recompute(r.container)
		}
	}
}

func ended(state string) bool { return state == "Complete" || state == "Cancelled" }

// match finds the container that a new request reuses, "" if it gets its own.
func (m *model) match(spec string) string {
	var best *modelContainer
	rank := func(c *modelContainer) int {
		switch {
		case c.state == "Complete" && c.good:
			return 0
		case c.state == "Running" && c.priority > 0:
			return 1
		case c.state == "Locked":
			return 2
		case c.state == "Queued":
			return 3
		}
		return 9
	}
	better := func(a, b *modelContainer) int {
		if n := cmp.Compare(rank(a), rank(b)); n != 0 {
			return n
		}
		switch rank(a) {
		case 0:
			return cmp.Compare(a.finished, b.finished)
		case 1:
			return cmp.Compare(a.started, b.started)
		}
		return cmp.Or(cmp.Compare(b.priority, a.priority), cmp.Compare(a.created, b.created))
	}
	for _, c := range m.containers {
		if c.spec == spec && rank(c) < 9 && (best == nil || better(c, best) < 0) {
			best = c
		}
	}
	if best == nil {
		return ""
	}
	return best.uuid
}

// submit enters a committed request whose container the server has chosen, and
// returns which one it should have been, "" for a new one.
func (m *model) submit(r *modelRequest) (want string) {
	if r.reuse {
		want = m.match(r.spec)
	}
	m.requests[r.uuid] = r
	r.state, r.count = "Committed", 1
	if m.containers[r.container] == nil {
		m.containers[r.container] = &modelContainer{uuid: r.container, state: "Queued", spec: r.spec, created: m.step}
	}
	if ended(m.containers[r.container].state) {
		r.state = "Final"
		return want
	}
	m.recompute(r.container)
	return want
}

// change is a change of state by a token ("A", "B", "own" or "user"): the status
// that it has to be answered with, and its effect if that is 200.
func (m *model) change(c *modelContainer, who, to string, good bool) int {
	from := c.state
	switch who {
	case "own":
		if from != "Locked" && from != "Running" {
			return 401 // it has died with the container, or with the lock
		}
		if !m.readable(c.uuid) {
			return 404
		}
		if from == "Locked" {
			return 403
		}
	case "user":
		if !m.readable(c.uuid) {
			return 404
		}
		return 403
	}
	allowed := map[string][]string{
		"Queued": {"Queued", "Locked", "Cancelled"}, "Locked": {"Locked", "Queued", "Running", "Cancelled"},
		"Running": {"Running", "Complete", "Cancelled"}, "Complete": {"Complete", "Cancelled"}, "Cancelled": {"Cancelled"},
	}
	holder := who == c.holder || c.holder == ""
	switch {
	case !slices.Contains(allowed[from], to):
		return 422
	case from == "Locked" && (to == "Queued" || to == "Running") && !holder:
		return 403
	case from == to && (!good || c.good):
		return 200
	case good && (who != "own" && !holder || from != "Running"):
		return 422 // exit code and output are not his to set, or not now
	case good && who == "own":
		return 422 // nor is the log
	case to == "Locked" && c.priority <= 0:
		return 422
	}
	m.enter(c, who, to)
	c.good = c.good || good
	return 200
}

func (m *model) enter(c *modelContainer, who, to string) {
	from := c.state
	c.state = to
	switch to {
	case "Locked":
		c.holder = who
		c.locks++
	case "Queued":
		c.holder = ""
		if c.locks >= 10 {
			c.state = "Cancelled"
			m.end(c)
		}
	case "Running":
		c.started = m.step
	default:
		c.holder = ""
		if !ended(from) {
			c.finished = m.step
			m.end(c)
		}
	}
}

// end is what becomes of the requests of a container that has ended, and of
// those that it made.
func (m *model) end(c *modelContainer) {
	successor := ""
	for _, r := range m.committed(c.uuid) {
		parent := m.containers[r.parent]
		if c.state != "Cancelled" || r.priority == 0 || r.count >= r.max || parent != nil && (parent.state != "Running" || parent.priority == 0) {
			r.state = "Final"
			continue
		}
		r.count++
		r.container = m.adopt(r.uuid)
		if successor == "" && m.containers[r.container] == nil {
			successor = r.container
			m.containers[successor] = &modelContainer{uuid: successor, state: "Queued", spec: c.spec, created: m.step}
		}
	}
	m.recompute(successor)
	for _, r := range m.requests {
		if r.parent != c.uuid || r.state != "Committed" || r.deleted {
			continue
		}
		r.priority = 0
		if s := m.containers[r.container].state; s == "Queued" || s == "Locked" {
			r.state = "Final"
		}
		m.recompute(r.container)
	}
}
