package localcluster

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

// The output of a request has the properties of the server, of the container and
// of the request, in this order; a child's is intermediate unless they say
// otherwise.
func TestOutputProperties(t *testing.T) {
	p := setUp(t)
	parent, container := p.submit(nil)
	own := p.lock(container)
	p.update(container, obj{"state": "Running"})
	for name, c := range map[string]struct {
		who               *client
		request, reported obj
		want              string
	}{
		"of a user":      {p.user, nil, nil, `{"type":"output"}`},
		"of a container": {own, nil, nil, `{"type":"intermediate"}`},
		"reported":       {p.user, nil, obj{"a": 1, "type": "log"}, `{"a":1,"type":"log"}`},
		"asked for":      {own, obj{"a": "x", "type": "mine"}, obj{"a": 1, "b": 2, "type": "log"}, `{"a":"x","b":2,"type":"mine"}`},
	} {
		attrs := obj{"name": name}
		if c.request != nil {
			attrs["output_properties"] = c.request
		}
		r := c.who.must("POST", "container_requests", request(attrs))
		child := str(r, "container_uuid")
		p.lock(child)
		p.update(child, obj{"state": "Running"})
		end := obj{"state": "Complete", "exit_code": 1, "output": str(p.user.collection(nil, "f", name), "portable_data_hash")}
		if c.reported != nil {
			end["output_properties"] = c.reported
		}
		p.update(child, end)
		out := p.user.must("GET", "collections/"+str(p.request(str(r, "uuid")), "output_uuid"), nil)
		got := out["properties"].(map[string]any)
		if got["container_request"] != r["uuid"] {
			t.Errorf("%s: %v", name, got)
		}
		delete(got, "container_request")
		if text, _ := json.Marshal(got); string(text) != c.want {
			t.Errorf("%s: %s, want %s", name, text, c.want)
		}
		if str(out, "name") != "Container output for request "+str(r, "uuid") || out["modified_by_user_uuid"] != "" || out["owner_uuid"] != r["owner_uuid"] {
			t.Errorf("%s: %v", name, out)
		}
	}
	_ = parent
}

// What children cost is their parents', all the way up, as long as those run.
func TestCosts(t *testing.T) {
	p := setUp(t)
	var requests, containers []string
	who := p.user
	for range 3 { // each is the next one's parent
		r := who.must("POST", "container_requests", request(nil))
		container := str(r, "container_uuid")
		who = p.lock(container)
		p.update(container, obj{"state": "Running"})
		requests, containers = append(requests, str(r, "uuid")), append(containers, container)
	}
	for i := 2; i >= 0; i-- {
		p.update(containers[i], obj{"state": "Complete", "exit_code": 0, "cost": i + 1})
	}
	for i, want := range []string{"6", "5", "3"} {
		c := p.container(containers[i])
		sub := fmt.Sprint(c["subrequests_cost"])
		if got := fmt.Sprint(p.request(requests[i])["cumulative_cost"]); got != want || sub != []string{"5.0", "3.0", "0.0"}[i] {
			t.Errorf("request %d cost %s, want %s; of that its children %s", i, got, want, sub)
		}
	}
}

// With a token handed in by the user the server makes none: the container has the
// rights and scopes of that one, and knows itself by the fourth part.
func TestRuntimeToken(t *testing.T) {
	p := setUp(t)
	bob := p.second()
	token := bob.must("POST", "api_client_authorizations", obj{"scopes": []string{"GET /arvados/v1/", "POST /arvados/v1/container_requests"}})
	v2 := "v2/" + str(token, "uuid") + "/" + str(token, "api_token")
	r, container := p.submit(obj{"runtime_token": v2, "secret_mounts": obj{"/s": obj{"kind": "text", "content": "x"}}})
	if r["runtime_token"] != "" {
		t.Errorf("the request shows %v", r["runtime_token"])
	}
	p.dispatcher.must("POST", "containers/"+container+"/lock", nil)
	c := p.container(container)
	if c["auth_uuid"] != nil || c["runtime_user_uuid"] != p.me(bob) || fmt.Sprint(c["runtime_auth_scopes"]) != "[GET /arvados/v1/ POST /arvados/v1/container_requests]" {
		t.Errorf("container %v %v %v", c["auth_uuid"], c["runtime_user_uuid"], c["runtime_auth_scopes"])
	}
	auth := p.dispatcher.must("GET", "containers/"+container+"/auth", nil)
	own := p.user.as("v2/" + str(auth, "uuid") + "/" + str(auth, "api_token") + "/" + container)
	if own.must("GET", "containers/current", nil)["uuid"] != container || own.must("GET", "users/current", nil)["uuid"] != p.me(bob) {
		t.Error("the token is another container's, or user's")
	}
	p.user.as(v2).want(404, "GET", "containers/current", nil)
	if s := own.must("GET", "containers/"+container+"/secret_mounts", nil)["secret_mounts"].(map[string]any); len(s) != 1 {
		t.Errorf("secret mounts %v", s)
	}
	own.want(403, "POST", "collections", obj{})
	p.update(container, obj{"state": "Running"})
	p.update(container, obj{"state": "Cancelled"})
	own.want(401, "GET", "users/current", nil)
	p.user.as(v2).must("GET", "users/current", nil) // it is the user's to take back
}

// What a user interface asks about a request, and what an administrator does about
// a priority.
func TestContainerStatusAndPriority(t *testing.T) {
	p := setUp(t)
	r, container := p.submit(nil)
	path := "container_requests/" + str(r, "uuid") + "/container_status"
	check := func(state, says string) {
		t.Helper()
		s := p.user.must("GET", path, nil)
		if s["uuid"] != container || s["container_state"] != state || !strings.Contains(str(s, "scheduling_status"), says) || says == "" && s["scheduling_status"] != "" {
			t.Errorf("%v, want %s %q", s, state, says)
		}
	}
	check("Queued", "queue")
	priority := fmt.Sprint(p.container(container)["priority"])
	p.root.must("PUT", "containers/"+container, obj{"container": obj{"priority": 0}})
	check("Queued", "priority is 0")
	p.user.want(403, "POST", "containers/"+container+"/update_priority", nil)
	if got := fmt.Sprint(p.root.must("POST", "containers/"+container+"/update_priority", nil)["priority"]); got != priority {
		t.Errorf("priority %s, want %s", got, priority)
	}
	p.lock(container)
	p.update(container, obj{"state": "Running"})
	check("Running", "")
	uncommitted := p.user.must("POST", "container_requests", request(obj{"state": "Uncommitted"}))
	if s := p.user.must("GET", "container_requests/"+str(uncommitted, "uuid")+"/container_status", nil); s["container_state"] != "" {
		t.Errorf("without a container: %v", s)
	}
}

// What users wish for their collections is kept; what a balancer has found out,
// administrators set and users only reset.
func TestReplicationAttributes(t *testing.T) {
	p := setUp(t)
	wishes := obj{"replication_desired": 3, "storage_classes_desired": []string{"fast", "cheap"}, "preserve_version": true, "description": "<b>"}
	found := obj{"replication_confirmed": 2, "replication_confirmed_at": "2026-01-02T03:04:05Z", "storage_classes_confirmed": []string{"fast"},
		"storage_classes_confirmed_at": "2026-01-02T03:04:05Z"}
	path := "collections/" + str(p.user.collection(wishes, "f", "x"), "uuid")
	for k, v := range found {
		p.user.want(403, "PUT", path, obj{"collection": obj{k: v}})
		p.root.must("PUT", path, obj{"collection": obj{k: v}})
	}
	got := p.user.must("PUT", path, obj{"collection": obj{"name": "again"}})
	want := `{"description":"<b>","preserve_version":true,"replication_confirmed":2,"replication_confirmed_at":"2026-01-02T03:04:05.000000000Z","replication_desired":3,` +
		`"storage_classes_confirmed":["fast"],"storage_classes_confirmed_at":"2026-01-02T03:04:05.000000000Z","storage_classes_desired":["fast","cheap"],"version":1}`
	shown := obj{"version": got["version"]}
	for _, m := range []obj{wishes, found} {
		for k := range m {
			shown[k] = got[k]
		}
	}
	if text := strings.NewReplacer(`\u003c`, "<", `\u003e`, ">").Replace(string(encode(shown))); text != want {
		t.Errorf("%s, want %s", text, want)
	}
	p.user.must("PUT", path, obj{"collection": obj{"replication_confirmed": nil, "replication_confirmed_at": nil, "storage_classes_confirmed": []string{}, "storage_classes_confirmed_at": nil}})
	p.user.must("PUT", path, obj{"collection": obj{"replication_desired": nil, "storage_classes_desired": nil}})
}
