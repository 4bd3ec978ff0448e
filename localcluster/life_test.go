package localcluster

import (
	"strings"
	"testing"
)

// parties are the clients of one container's life.
type parties struct {
	c                      *Cluster
	user, dispatcher, root *client
}

func setUp(t testing.TB) parties {
	t.Helper()
	c := start(t, Options{NoSync: true})
	user := clientOf(t, c, c.UserToken())
	p := parties{c, user, user.as(c.DispatcherToken()), user.as(c.SystemRootToken())}
	user.image("busybox:latest")
	return p
}

// submit makes a request and returns it with its container's UUID.
func (p parties) submit(more obj) (map[string]any, string) {
	p.user.t.Helper()
	r := p.user.must("POST", "container_requests", request(more))
	return r, str(r, "container_uuid")
}

// lock locks a container and returns a client with its token.
func (p parties) lock(container string) *client {
	p.user.t.Helper()
	p.dispatcher.must("POST", "containers/"+container+"/lock", nil)
	auth := p.dispatcher.must("GET", "containers/"+container+"/auth", nil)
	return p.user.as("v2/" + str(auth, "uuid") + "/" + str(auth, "api_token") + "/" + container)
}

func (p parties) update(container string, attrs obj) map[string]any {
	p.user.t.Helper()
	return p.dispatcher.must("PUT", "containers/"+container, obj{"container": attrs})
}

// saveLog stores a log collection as the supervisor does and returns its PDH.
func (p parties) saveLog(files ...string) string {
	p.user.t.Helper()
	return str(p.dispatcher.collection(obj{"name": "logs", "is_trashed": true}, files...), "portable_data_hash")
}

func (p parties) request(uuid string) map[string]any {
	p.user.t.Helper()
	return p.user.must("GET", "container_requests/"+uuid, nil)
}

func (p parties) container(uuid string) map[string]any {
	p.user.t.Helper()
	return p.root.must("GET", "containers/"+uuid, nil)
}

func TestLifeToComplete(t *testing.T) {
	p := setUp(t)
	project := p.user.must("POST", "groups", obj{"group": obj{"name": "results", "group_class": "project"}})
	r, container := p.submit(obj{"owner_uuid": project["uuid"], "output_name": "the output", "output_properties": obj{"sample": "S1", "type": "special"},
		"secret_mounts": obj{"/secret": obj{"kind": "text", "content": "hush"}}})
	if r["state"] != "Committed" || container == "" {
		t.Fatalf("request: %v", r)
	}
	own := p.lock(container)
	if me := own.must("GET", "users/current", nil); me["uuid"] != p.user.must("GET", "users/current", nil)["uuid"] {
		t.Errorf("container token is of %v", me["uuid"])
	}
	if s := own.must("GET", "containers/"+container+"/secret_mounts", nil)["secret_mounts"].(map[string]any)["/secret"]; s == nil {
		t.Error("no secret mounts")
	}
	live := p.saveLog("crunch-run.txt", "starting\n")
	p.update(container, obj{"state": "Running", "log": live, "gateway_address": ""})
	if p.request(str(r, "uuid"))["log_uuid"] == nil {
		t.Error("no log collection while the container runs")
	}
	p.update(container, obj{"exit_code": 3})
	out := own.collection(obj{"name": "output for " + container, "is_trashed": true}, "result.txt", "42\n")
	last := p.saveLog("crunch-run.txt", "starting\nfinished\n", "stderr.txt", "oh\n")
	p.update(container, obj{"state": "Complete", "log": last, "exit_code": 3, "output": out["portable_data_hash"], "cost": 0.25})

	ended := p.container(container)
	for _, n := range []string{"locked_by_uuid", "auth_uuid"} {
		if ended[n] != nil {
			t.Errorf("%s is %v", n, ended[n])
		}
	}
	// The token is dead in each of its spellings.
	parts := strings.Split(own.token, "/")
	for _, token := range []string{own.token, strings.Join(parts[:3], "/"), parts[2]} {
		if a := own.as(token).do("GET", "users/current", nil); a.status != 401 {
			t.Errorf("container token after the end, in %d parts: %d", strings.Count(token, "/")+1, a.status)
		}
	}
	r = p.request(str(r, "uuid"))
	if r["state"] != "Final" || r["cumulative_cost"].(interface{ String() string }).String() != "0.25" {
		t.Errorf("request: %v", r)
	}
	output := p.user.must("GET", "collections/"+str(r, "output_uuid"), nil)
	props := output["properties"].(map[string]any)
	if output["name"] != "the output" || output["owner_uuid"] != project["uuid"] || output["portable_data_hash"] != out["portable_data_hash"] ||
		props["type"] != "special" || props["sample"] != "S1" || props["container_request"] != r["uuid"] || output["is_trashed"] != false {
		t.Errorf("output: %v", output)
	}
	log := p.user.must("GET", "collections/"+str(r, "log_uuid"), nil)
	text := str(log, "manifest_text")
	if log["name"] != "Container log for request "+str(r, "uuid") || !strings.Contains(text, "./log\\040for\\040container\\040"+container+" ") ||
		strings.Count(text, "stderr.txt") != 2 || strings.Count(text, "crunch-run.txt") != 2 || !strings.Contains(text, "+A") || log["owner_uuid"] != project["uuid"] {
		t.Errorf("log: %v", log)
	}
	copies := p.user.get("collections", map[string]string{"filters": `[["name","=","Container log for container ` + container + `"],["portable_data_hash","=","` + last + `"]]`})
	if n := len(copies.obj["items"].([]any)); n != 1 {
		t.Errorf("%d verbatim copies of the log", n)
	}
	// The user can read what the container wrote, with signatures of their own.
	locator := strings.Fields(str(output, "manifest_text"))[1]
	if a := p.user.send("GET", p.user.keep+"/"+locator, nil, nil); a.status != 200 || string(a.body) != "42\n" {
		t.Errorf("output block: %d %s", a.status, a.body)
	}
}

func TestCancelledIsRetriedUpToTheLimit(t *testing.T) {
	p := setUp(t)
	r, first := p.submit(obj{"container_count_max": 2, "secret_mounts": obj{"/s": obj{"kind": "text", "content": "x"}}, "output_storage_classes": []string{"fast"},
		"published_ports": obj{"80": obj{"access": "private", "label": "web", "initial_path": ""}}})
	p.lock(first)
	p.update(first, obj{"state": "Running", "log": p.saveLog("a.txt", "live\n")})
	p.update(first, obj{"state": "Cancelled", "log": p.saveLog("a.txt", "live\n", "b.txt", "last\n"), "cost": 1})
	r = p.request(str(r, "uuid"))
	second := str(r, "container_uuid")
	if r["state"] != "Committed" || second == first || r["output_uuid"] != nil || r["container_count"].(interface{ String() string }).String() != "2" {
		t.Fatalf("after the first: %v", r)
	}
	text := str(p.user.must("GET", "collections/"+str(r, "log_uuid"), nil), "manifest_text")
	if strings.Count(text, "b.txt") != 1 || strings.Count(text, "a.txt") != 2 {
		t.Errorf("log of the retried request: %s", text)
	}
	c := p.container(second)
	if c["state"] != "Queued" || c["container_image"] != p.container(first)["container_image"] {
		t.Errorf("second container: %v", c)
	}
	if classes := c["output_storage_classes"].([]any); classes[0] != "fast" {
		t.Errorf("storage classes: %v", classes)
	}
	if port := c["published_ports"].(map[string]any)["80"].(map[string]any); port["label"] != "web" || port["base_url"] != nil {
		t.Errorf("published port of a container that has not begun: %v", port)
	}
	own := p.lock(second)
	if s := own.must("GET", "containers/"+second+"/secret_mounts", nil)["secret_mounts"].(map[string]any); len(s) != 1 {
		t.Errorf("secrets of the second: %v", s)
	}
	p.update(second, obj{"state": "Cancelled"})
	r = p.request(str(r, "uuid"))
	if r["state"] != "Final" || r["container_uuid"] != second || r["cumulative_cost"].(interface{ String() string }).String() != "1" {
		t.Errorf("after the second: %v", r)
	}
}

func TestCancelByPriority(t *testing.T) {
	p := setUp(t)
	r, container := p.submit(nil)
	p.lock(container)
	p.update(container, obj{"state": "Running"})
	p.user.must("PUT", "container_requests/"+str(r, "uuid"), obj{"container_request": obj{"priority": 0}})
	c := p.container(container)
	if c["state"] != "Running" || c["priority"].(interface{ String() string }).String() != "0" {
		t.Fatalf("container: %v", c)
	}
	p.update(container, obj{"state": "Cancelled"})
	if r = p.request(str(r, "uuid")); r["state"] != "Final" || r["container_uuid"] != container {
		t.Errorf("request: %v", r)
	}
}

// Whoever a container submitted work to stops with it.
func TestChildrenFollowTheirParent(t *testing.T) {
	p := setUp(t)
	r, parent := p.submit(obj{"priority": 7})
	own := p.lock(parent)
	p.update(parent, obj{"state": "Running"})
	waiting := own.must("POST", "container_requests", request(nil))
	running := own.must("POST", "container_requests", request(nil))
	if waiting["requesting_container_uuid"] != parent || waiting["priority"].(interface{ String() string }).String() != "7" {
		t.Fatalf("child: %v", waiting)
	}
	if p.container(str(waiting, "container_uuid"))["priority"] != p.container(parent)["priority"] {
		t.Error("the child's container has another priority than its parent")
	}
	// Priority goes down the tree and comes back.
	for _, want := range []string{"0", "7"} {
		p.user.must("PUT", "container_requests/"+str(r, "uuid"), obj{"container_request": obj{"priority": map[string]int{"0": 0, "7": 7}[want]}})
		if p.container(str(waiting, "container_uuid"))["priority"] != p.container(parent)["priority"] {
			t.Errorf("priority %s did not reach the child", want)
		}
	}
	child := str(running, "container_uuid")
	p.lock(child)
	p.update(child, obj{"state": "Running"})
	p.update(parent, obj{"state": "Complete", "exit_code": 0})
	if w := p.request(str(waiting, "uuid")); w["state"] != "Final" || w["priority"].(interface{ String() string }).String() != "0" {
		t.Errorf("waiting child: %v", w)
	}
	if w := p.request(str(running, "uuid")); w["state"] != "Committed" || p.container(child)["priority"].(interface{ String() string }).String() != "0" {
		t.Errorf("running child: %v", w)
	}
}

func TestTooManyDispatchAttempts(t *testing.T) {
	p := setUp(t)
	r, container := p.submit(obj{"container_count_max": 1})
	for range 10 {
		p.lock(container)
		p.dispatcher.must("POST", "containers/"+container+"/unlock", nil)
	}
	c := p.container(container)
	status := c["runtime_status"].(map[string]any)
	if c["state"] != "Cancelled" || c["finished_at"] != nil ||
		status["error"] != "Failed to start container.  Cancelled after exceeding 'Containers.MaxDispatchAttempts' (lock_count=10)" {
		t.Errorf("container: %v", c)
	}
	if r = p.request(str(r, "uuid")); r["state"] != "Final" {
		t.Errorf("request: %v", r)
	}
}
