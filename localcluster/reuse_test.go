package localcluster

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// reusing is a request that takes what there is.
func reusing(more obj) obj {
	o := obj{"use_existing": true}
	for k, v := range more {
		o[k] = v
	}
	return o
}

// run takes a container from Queued to its end.
func (p parties) run(container string, end obj, logFiles ...string) {
	p.user.t.Helper()
	own := p.lock(container)
	log := p.saveLog(logFiles...)
	p.update(container, obj{"state": "Running", "log": log})
	update := obj{"state": "Complete", "exit_code": 0, "log": log, "cost": 0.5}
	if end["state"] != "Cancelled" {
		update["output"] = str(own.collection(obj{"name": "output for " + container, "is_trashed": true}, "result", "of "+container), "portable_data_hash")
	}
	for k, v := range end {
		update[k] = v
	}
	p.update(container, update)
}

// A request for what has been done already is Final at once, with collections
// of its own, and costs nothing.
func TestReuseComplete(t *testing.T) {
	p := setUp(t)
	in := p.user.collection(nil, "f", "x")
	mounts := obj{"/out": obj{"kind": "tmp", "capacity": 1000}, "/in": obj{"kind": "collection", "uuid": in["uuid"]}}
	r1, container := p.submit(reusing(obj{"mounts": mounts}))
	p.run(container, nil, "crunch-run.txt", "log\n")
	// The same in other words: by PDH, with keys that mean nothing, another cache.
	mounts["/in"] = obj{"kind": "collection", "portable_data_hash": in["portable_data_hash"], "writable": false, "path": ""}
	r2, c2 := p.submit(reusing(obj{"mounts": mounts, "output_name": "mine", "name": "again", "priority": 7,
		"runtime_constraints": obj{"vcpus": 1, "ram": 268435456, "keep_cache_ram": 1 << 20}}))
	if c2 != container || r2["state"] != "Final" || fmt.Sprint(r2["cumulative_cost"]) != "0" || fmt.Sprint(r2["container_count"]) != "1" {
		t.Fatalf("second request: %v", r2)
	}
	r1 = p.request(str(r1, "uuid"))
	for _, attr := range []string{"output_uuid", "log_uuid"} {
		if r2[attr] == nil || r2[attr] == r1[attr] {
			t.Errorf("%s: %v after %v", attr, r2[attr], r1[attr])
		}
	}
	a, b := p.user.must("GET", "collections/"+str(r1, "output_uuid"), nil), p.user.must("GET", "collections/"+str(r2, "output_uuid"), nil)
	if a["portable_data_hash"] != b["portable_data_hash"] || b["name"] != "mine" {
		t.Errorf("outputs: %v and %v", a, b)
	}
	if c := p.container(container); fmt.Sprint(c["cost"]) != "0.5" || c["state"] != "Complete" {
		t.Errorf("container: %v", c)
	}
	// Committing later does the same.
	r3 := p.user.must("POST", "container_requests", request(reusing(obj{"mounts": mounts, "state": "Uncommitted"})))
	r3 = p.user.must("PUT", "container_requests/"+str(r3, "uuid"), obj{"container_request": obj{"state": "Committed"}})
	if r3["state"] != "Final" || r3["container_uuid"] != container {
		t.Errorf("committed later: %v", r3)
	}
}

// What differs in anything that matters, or did not go well, is run again.
func TestNoReuse(t *testing.T) {
	p := setUp(t)
	secret := func(s string) obj { return obj{"/secret": obj{"kind": "text", "content": s}} }
	base := obj{"secret_mounts": secret("hush"), "environment": obj{"A": "1"}}
	_, container := p.submit(reusing(base))
	p.run(container, nil, "crunch-run.txt", "log\n")
	for what, more := range map[string]obj{
		"command": {"command": []string{"false"}}, "cwd": {"cwd": "/tmp"}, "environment": {"environment": obj{"A": "2"}}, "no environment": {"environment": obj{}},
		"output path":     {"output_path": "/o", "mounts": obj{"/o": obj{"kind": "tmp", "capacity": 1000}}},
		"glob":            {"output_glob": []string{"*"}},
		"capacity":        {"mounts": obj{"/out": obj{"kind": "tmp", "capacity": 1001}}},
		"one more mount":  {"mounts": obj{"/out": obj{"kind": "tmp", "capacity": 1000}, "/n": obj{"kind": "json", "content": 1}}},
		"secret":          {"secret_mounts": secret("other")},
		"no secret":       {"secret_mounts": obj{}},
		"vcpus":           {"runtime_constraints": obj{"vcpus": 2, "ram": 268435456}},
		"API":             {"runtime_constraints": obj{"vcpus": 1, "ram": 268435456, "API": true}},
		"its own request": {"use_existing": false},
	} {
		attrs := reusing(base)
		for k, v := range more {
			attrs[k] = v
		}
		if _, c := p.submit(attrs); c == container {
			t.Errorf("%s: the container was reused", what)
		}
	}
	if _, c := p.submit(reusing(base)); c != container {
		t.Error("the same was not reused")
	}
	// Another user cannot read log and output; neither can this one when the
	// copies are gone.
	bob := p.second()
	bob.image("busybox:latest")
	if r := bob.must("POST", "container_requests", request(reusing(base))); r["container_uuid"] == container {
		t.Error("another user got an output that he cannot read")
	}
	for _, item := range p.user.get("collections", map[string]string{"limit": "1000"}).obj["items"].([]any) {
		if coll := item.(map[string]any); strings.HasPrefix(str(coll, "name"), "Container output") {
			p.user.must("DELETE", "collections/"+str(coll, "uuid"), nil)
		}
	}
	if _, c := p.submit(reusing(base)); c == container {
		t.Error("a container was reused whose output is in the trash")
	}
	for what, end := range map[string]obj{"failed": {"exit_code": 1}, "cancelled": {"state": "Cancelled"}} {
		attrs := reusing(obj{"environment": obj{"X": what}, "container_count_max": 1})
		_, bad := p.submit(attrs)
		p.run(bad, end, "crunch-run.txt", "log\n")
		if _, c := p.submit(attrs); c == bad {
			t.Errorf("%s: the container was reused", what)
		}
	}
}

// Done is better than running, running better than locked, locked better than
// waiting; among equals the one that will be done first.
func TestReuseOrder(t *testing.T) {
	p := setUp(t)
	fresh := func(more obj) string { _, c := p.submit(more); return c }
	pick := func(want, what string) {
		t.Helper()
		r, c := p.submit(reusing(obj{"priority": 0}))
		if c != want {
			t.Errorf("%s: got %v", what, p.container(c))
		}
		p.user.must("PUT", "container_requests/"+str(r, "uuid"), obj{"container_request": obj{"state": "Final"}})
	}
	low, high := fresh(obj{"priority": 1}), fresh(obj{"priority": 9})
	pick(high, "queued, of high priority")
	p.lock(low)
	pick(low, "locked")
	p.update(low, obj{"state": "Running"})
	pick(low, "running")
	p.update(low, obj{"runtime_status": obj{"error": "it will fail"}})
	pick(high, "running, but about to fail")
	p.lock(high)
	p.update(high, obj{"state": "Running", "progress": 0.5, "runtime_status": obj{"warning": "no \"error\": it goes on"}})
	p.update(low, obj{"runtime_status": obj{}})
	pick(high, "running, with progress")
	p.update(low, obj{"progress": 0.9})
	pick(low, "running, with more progress")
	p.update(low, obj{"progress": nil})
	p.update(high, obj{"progress": nil})
	pick(low, "running for longer")
	third := fresh(nil)
	p.run(third, nil, "crunch-run.txt", "log\n")
	r, c := p.submit(reusing(nil))
	if c != third || r["state"] != "Final" {
		t.Errorf("complete: got %v", r)
	}
}

// Requests that share a container: the highest priority counts, one cancelled
// request does not stop the others' work, each gets its own results and as many
// attempts as it wants.
func TestShareContainer(t *testing.T) {
	p := setUp(t)
	r1, container := p.submit(reusing(obj{"priority": 2, "container_count_max": 1}))
	r2, c2 := p.submit(reusing(obj{"priority": 5, "container_count_max": 2, "output_name": "second"}))
	if c2 != container {
		t.Fatal("the queued container was not shared")
	}
	set := func(r map[string]any, priority int) {
		p.user.must("PUT", "container_requests/"+str(r, "uuid"), obj{"container_request": obj{"priority": priority}})
	}
	priority := func() int64 {
		var n int64
		fmt.Sscan(fmt.Sprint(p.container(container)["priority"]), &n)
		return n >> 50
	}
	if priority() != 4 { // 5 times 2^50, less the time
		t.Errorf("priority %d", priority())
	}
	set(r2, 0)
	if priority() != 1 {
		t.Errorf("priority after one cancelled: %d", priority())
	}
	set(r1, 0)
	if fmt.Sprint(p.container(container)["priority"]) != "0" {
		t.Error("both cancelled, priority is not 0")
	}
	set(r1, 2)
	set(r2, 5)
	p.lock(container)
	log := p.saveLog("crunch-run.txt", "first attempt\n")
	p.update(container, obj{"state": "Running", "log": log})
	// One that comes late gets the log so far.
	r3, c3 := p.submit(reusing(obj{"container_count_max": 3}))
	if c3 != container || r3["log_uuid"] == nil {
		t.Errorf("late request: %v", r3)
	}
	p.update(container, obj{"state": "Cancelled", "log": log, "cost": 1})
	r1, r2, r3 = p.request(str(r1, "uuid")), p.request(str(r2, "uuid")), p.request(str(r3, "uuid"))
	next := str(r2, "container_uuid")
	if r1["state"] != "Final" || r2["state"] != "Committed" || next == container || r3["container_uuid"] != next || fmt.Sprint(r2["container_count"]) != "2" {
		t.Fatalf("after the first attempt:\n%v\n%v\n%v", r1, r2, r3)
	}
	p.run(next, nil, "crunch-run.txt", "second attempt\n", "stderr.txt", "oops\n")
	r2, r3 = p.request(str(r2, "uuid")), p.request(str(r3, "uuid"))
	for _, r := range []map[string]any{r2, r3} {
		if r["state"] != "Final" || fmt.Sprint(r["cumulative_cost"]) != "1.5" {
			t.Errorf("in the end: %v", r)
		}
		// Both attempts' logs are there, the last one's at the top, too.
		text := str(p.user.must("GET", "collections/"+str(r, "log_uuid"), nil), "manifest_text")
		var streams []string
		for line := range strings.Lines(text) {
			streams = append(streams, strings.Fields(line)[0])
		}
		want := []string{".", `./log\040for\040container\040` + container, `./log\040for\040container\040` + next}
		slices.Sort(want)
		slices.Sort(streams)
		if !slices.Equal(streams, want) || strings.Count(text, "stderr.txt") != 2 {
			t.Errorf("log collection: %s", text)
		}
	}
	if r2["output_uuid"] == r3["output_uuid"] || p.user.must("GET", "collections/"+str(r2, "output_uuid"), nil)["name"] != "second" {
		t.Errorf("outputs: %v and %v", r2["output_uuid"], r3["output_uuid"])
	}
}
