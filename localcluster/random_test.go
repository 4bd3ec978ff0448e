package localcluster

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"
)

const (
	shortSteps = 700
	longSteps  = 10000
)

// gambler does random things to a cluster and to the model.
type gambler struct {
	*model
	t      *testing.T
	rnd    *rand.Rand
	user   *client
	tokens map[string]string // "A", "B", "user"
	own    map[string]string // tokens of containers, also of those that have lost theirs
	uuids  map[string]string // of the tokens A and B
	log    []string          // what was done last
}

// TestRandomOperations submits, cancels, deletes, locks, unlocks and changes
// states at random, with all kinds of tokens and also where that is forbidden,
// and compares answers and records with the model. In between the cluster is
// killed. LOCALCLUSTER_TEST_STEPS is the number of operations, or "long" for
// 10000; LOCALCLUSTER_TEST_SEED repeats a failure.
func TestRandomOperations(t *testing.T) {
	steps := shortSteps
	switch v := os.Getenv("LOCALCLUSTER_TEST_STEPS"); v {
	case "":
		if raceDetector {
			steps = shortSteps / 3
		}
	case "long":
		steps = longSteps
	default:
		var err error
		if steps, err = strconv.Atoi(v); err != nil {
			t.Fatal(err)
		}
	}
	seed := rand.Uint64()
	if v := os.Getenv("LOCALCLUSTER_TEST_SEED"); v != "" {
		var err error
		if seed, err = strconv.ParseUint(v, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("LOCALCLUSTER_TEST_SEED=%d", seed)
	t.Setenv(noSyncEnv, "1")
	dir := t.TempDir()
	g := &gambler{
		t: t, rnd: rand.New(rand.NewPCG(seed, 1)), own: map[string]string{},
		model: &model{requests: map[string]*modelRequest{}, containers: map[string]*modelContainer{}},
	}
	g.adopt = func(request string) string {
		return str(g.user.must("GET", "container_requests/"+request, nil), "container_uuid")
	}
	kill := g.connect(dir)
	g.user.image("busybox:latest")
	g.user.collection(nil) // the empty one that is log and output
	for g.step = 1; g.step <= steps && !t.Failed(); g.step++ {
		if g.rnd.IntN(150) == 0 {
			g.note("kill -9")
			kill()
			kill = g.connect(dir)
			g.compareAll()
		}
		g.move()
	}
	g.compareAll()
	ends := map[string]int{}
	for _, c := range g.containers {
		ends[c.state]++
	}
	t.Logf("%d requests, containers: %v", len(g.requests), ends)
}

func (g *gambler) connect(dir string) (kill func()) {
	info, kill := startChild(g.t, dir)
	g.user = newClient(g.t, info.Host, info.CA, info.User)
	g.user.keep = info.Keep
	g.tokens = map[string]string{"A": info.Dispatcher, "B": info.Admin, "user": info.User}
	g.uuids = map[string]string{}
	for _, who := range []string{"A", "B"} {
		g.uuids[who] = str(g.user.as(g.tokens[who]).must("GET", "api_client_authorizations/current", nil), "uuid")
	}
	return kill
}

func (g *gambler) note(format string, args ...any) {
	g.log = append(g.log, fmt.Sprintf("%d: ", g.step)+fmt.Sprintf(format, args...))
	g.log = g.log[max(0, len(g.log)-25):]
}

func (g *gambler) fail(format string, args ...any) {
	g.t.Helper()
	g.t.Errorf(format, args...)
	for _, l := range g.log {
		g.t.Log(l)
	}
}

// pick chooses a record; mostly one that is still alive.
func pick[T any](g *gambler, all map[string]*T, alive func(*T) bool) *T {
	keys := slices.Sorted(maps.Keys(all))
	if g.rnd.IntN(10) > 0 {
		keys = slices.DeleteFunc(keys, func(k string) bool { return !alive(all[k]) })
	}
	if len(keys) == 0 {
		return nil
	}
	return all[keys[g.rnd.IntN(len(keys))]]
}

// move does one thing.
func (g *gambler) move() {
	live := func(c *modelContainer) bool { return !ended(c.state) }
	open := func(r *modelRequest) bool { return r.state == "Committed" && !r.deleted }
	waiting := 0
	for _, c := range g.containers {
		if live(c) {
			waiting++
		}
	}
	switch n := g.rnd.IntN(100); {
	case n < 18 && waiting < 40 || waiting == 0:
		g.submitOne(nil)
	case n < 24:
		if c := pick(g, g.containers, func(c *modelContainer) bool { return c.state == "Running" }); c != nil {
			g.submitOne(c)
		}
	case n < 34:
		if r := pick(g, g.requests, open); r != nil {
			g.prioritise(r)
		}
	case n < 38:
		if r := pick(g, g.requests, open); r != nil {
			g.drop(r)
		}
	default:
		c := pick(g, g.containers, live)
		if c == nil {
			return
		}
		who := []string{"A", "A", "A", "B", "own", "user"}[g.rnd.IntN(6)]
		if c.holder != "" && g.rnd.IntN(2) == 0 {
			who = c.holder
		}
		next := map[string]string{"Queued": "Locked", "Locked": "Running", "Running": "Complete"}[c.state]
		states := []string{"Queued", "Locked", "Running", "Complete", "Cancelled"}
		to := states[g.rnd.IntN(len(states))]
		if g.rnd.IntN(3) > 0 && next != "" {
			to = next
		}
		g.changeState(c, who, to)
	}
}

func (g *gambler) submitOne(parent *modelContainer) {
	r := &modelRequest{priority: g.rnd.IntN(4), max: 1 + g.rnd.IntN(3), reuse: g.rnd.IntN(3) > 0}
	depth, as, want := "0", g.user, 200
	if parent != nil {
		token := g.own[parent.uuid]
		if token == "" {
			return
		}
		as = g.user.as(token)
		if parent.state != "Running" && parent.state != "Locked" {
			want = 401
		}
		// Work of one depth is never that of another, so that nothing can come
		// to wait for itself.
		d, _ := strconv.Atoi(parent.spec[:1])
		if d > 7 {
			return
		}
		depth = strconv.Itoa(d + 1)
		r.parent, r.priority = parent.uuid, 0
		for _, pr := range g.committed(parent.uuid) {
			r.priority = max(r.priority, pr.priority)
		}
	}
	r.spec = depth + strconv.Itoa(g.rnd.IntN(4))
	a := as.do("POST", "container_requests", request(obj{"priority": r.priority, "container_count_max": r.max, "use_existing": r.reuse,
		"environment": obj{"SPEC": r.spec}}))
	g.note("submit %s for %q, priority %d, max %d, reuse %v: %d %v in %v", r.spec, r.parent, r.priority, r.max, r.reuse, a.status, a.obj["uuid"], a.obj["container_uuid"])
	if a.status != want {
		g.fail("submit: %d, want %d: %s", a.status, want, a.body)
	}
	if a.status != 200 {
		return
	}
	r.uuid, r.container = str(a.obj, "uuid"), str(a.obj, "container_uuid")
	r.created, _ = time.Parse(time.RFC3339Nano, str(a.obj, "created_at"))
	_, known := g.containers[r.container]
	reused := g.submit(r)
	if known != (reused != "") || known && r.container != reused {
		g.fail("request %s got container %s (an old one: %v), want %q", r.uuid, r.container, known, reused)
	}
	g.compareRequest(r)
	g.compareContainer(g.containers[r.container])
}

func (g *gambler) prioritise(r *modelRequest) {
	p := g.rnd.IntN(4)
	want := 200
	switch {
	case r.deleted:
		want = 404
	case r.state == "Final" && p != r.priority:
		want = 422
	}
	a := g.user.do("PUT", "container_requests/"+r.uuid, obj{"container_request": obj{"priority": p}})
	g.note("priority of %s to %d: %d", r.uuid, p, a.status)
	if a.status != want {
		g.fail("priority of %+v to %d: %d, want %d: %s", r, p, a.status, want, a.body)
	}
	if want == 200 {
		r.priority = p
		g.recompute(r.container)
		g.compareContainer(g.containers[r.container])
	}
}

// drop ends or deletes a request.
func (g *gambler) drop(r *modelRequest) {
	want := 200
	if r.deleted {
		want = 404
	}
	if g.rnd.IntN(2) == 0 {
		a := g.user.do("DELETE", "container_requests/"+r.uuid, nil)
		g.note("delete %s: %d", r.uuid, a.status)
		if a.status != want {
			g.fail("delete %+v: %d, want %d", r, a.status, want)
		}
		r.deleted = true
	} else {
		a := g.user.do("PUT", "container_requests/"+r.uuid, obj{"container_request": obj{"state": "Final"}})
		g.note("finish %s: %d", r.uuid, a.status)
		if a.status != want {
			g.fail("finish %+v: %d, want %d: %s", r, a.status, want, a.body)
		}
		r.state = "Final"
	}
	g.recompute(r.container)
	g.compareContainer(g.containers[r.container])
}

func (g *gambler) changeState(c *modelContainer, who, to string) {
	as := g.user.as(g.tokens[who])
	if who == "own" {
		if g.own[c.uuid] == "" {
			return
		}
		as = g.user.as(g.own[c.uuid])
	}
	from, holder := c.state, c.holder
	path, method := "containers/"+c.uuid, "PUT"
	var body any = obj{"container": obj{"state": to}}
	good := to == "Complete" && g.rnd.IntN(2) == 0
	if good {
		body = obj{"container": obj{"state": to, "exit_code": 0, "log": emptyPDH, "output": emptyPDH}}
	}
	action := map[string]string{"Locked": "lock", "Queued": "unlock"}[to]
	if action != "" && g.rnd.IntN(2) == 0 && who != "own" && from != to {
		path, body, method = path+"/"+action, nil, "POST"
	}
	a := as.do(method, path, body)
	g.note("%s of %s by %s from %s (held by %q) to %s, good %v: %d", method, c.uuid, who, from, holder, to, good, a.status)
	want := g.change(c, who, to, good)
	if method == "POST" && action == "unlock" && from != "Locked" && want == 200 {
		want = 422
	}
	if a.status != want {
		g.fail("%s %s from %s to %s by %s (%+v): %d, want %d: %s", method, path, from, to, who, c, a.status, want, a.body)
		return
	}
	if want == 200 && from != "Locked" && c.state == "Locked" {
		auth := as.must("GET", "containers/"+c.uuid+"/auth", nil)
		g.own[c.uuid] = "v2/" + str(auth, "uuid") + "/" + str(auth, "api_token") + "/" + c.uuid
	}
	g.compareContainer(c)
	for _, r := range g.requests {
		if (r.container == c.uuid || r.parent == c.uuid) && !r.deleted && from != c.state {
			g.compareRequest(r)
			g.compareContainer(g.containers[r.container])
		}
	}
}

func (g *gambler) compareContainer(c *modelContainer) {
	g.t.Helper()
	g.sameContainer(c, g.user.as(g.tokens["A"]).must("GET", "containers/"+c.uuid, nil))
}

func (g *gambler) sameContainer(c *modelContainer, got map[string]any) {
	g.t.Helper()
	holder := g.uuids[c.holder]
	locked := c.state == "Locked" || c.state == "Running"
	if got["state"] != c.state || fmt.Sprint(got["priority"]) != fmt.Sprint(c.priority) || str(got, "locked_by_uuid") != holder ||
		fmt.Sprint(got["lock_count"]) != fmt.Sprint(c.locks) || (got["auth_uuid"] != nil) != locked ||
		(got["started_at"] != nil) != (c.started > 0) || (c.finished > 0) != (got["finished_at"] != nil) {
		g.fail("container is %s, the model's %+v", compact(got, "uuid", "state", "priority", "locked_by_uuid", "lock_count", "auth_uuid", "started_at", "finished_at"), c)
	}
}

func (g *gambler) compareRequest(r *modelRequest) {
	g.t.Helper()
	g.sameRequest(r, g.user.must("GET", "container_requests/"+r.uuid, nil))
}

func (g *gambler) sameRequest(r *modelRequest, got map[string]any) {
	g.t.Helper()
	if got["state"] != r.state || fmt.Sprint(got["priority"]) != fmt.Sprint(r.priority) || got["container_uuid"] != r.container ||
		fmt.Sprint(got["container_count"]) != fmt.Sprint(r.count) || str(got, "requesting_container_uuid") != r.parent {
		g.fail("request is %s, the model's %+v", compact(got, "uuid", "state", "priority", "container_uuid", "container_count", "requesting_container_uuid"), r)
	}
}

func compact(rec map[string]any, names ...string) string {
	out := obj{}
	for _, n := range names {
		out[n] = rec[n]
	}
	b, _ := json.Marshal(out)
	return string(b)
}

// compareAll compares everything: nothing is missing and nothing is too many.
func (g *gambler) compareAll() {
	g.t.Helper()
	all := func(resource string, each func(map[string]any)) (n int) {
		for {
			a := g.user.as(g.tokens["A"]).get(resource, map[string]string{"limit": "1000", "offset": strconv.Itoa(n), "order": "uuid"})
			items := a.obj["items"].([]any)
			if len(items) == 0 {
				return n
			}
			for _, item := range items {
				each(item.(map[string]any))
				n++
			}
		}
	}
	n := all("containers", func(got map[string]any) {
		if c := g.containers[str(got, "uuid")]; c != nil {
			g.sameContainer(c, got)
		} else {
			g.fail("the model does not know container %v", got)
		}
	})
	if n != len(g.containers) {
		g.fail("%d containers, the model has %d", n, len(g.containers))
	}
	n = all("container_requests", func(got map[string]any) {
		if r := g.requests[str(got, "uuid")]; r != nil && !r.deleted {
			g.sameRequest(r, got)
		} else {
			g.fail("the model does not know request %v", got)
		}
	})
	for _, r := range g.requests {
		if r.deleted {
			n++
		}
	}
	if n != len(g.requests) {
		g.fail("%d requests, the model has %d", n, len(g.requests))
	}
}
