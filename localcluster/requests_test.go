package localcluster

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestRequestValidation(t *testing.T) {
	p := setUp(t)
	tmp := func(more obj) obj {
		m := obj{"kind": "tmp", "capacity": 1}
		for k, v := range more {
			m[k] = v
		}
		return obj{"/out": m}
	}
	with := func(target string, m obj) obj { return obj{"/out": obj{"kind": "tmp"}, target: m} }
	gpu := func(more obj) obj {
		g := obj{"stack": "cuda", "device_count": 1, "driver_version": "11.8", "hardware_target": []string{"9.0"}}
		for k, v := range more {
			g[k] = v
		}
		return obj{"vcpus": 1, "ram": 1, "gpu": g}
	}
	for _, c := range []struct {
		attr   string
		value  any
		status int
	}{
		{"command", []string{}, 422}, {"command", nil, 422}, {"command", "true", 422}, {"command", []any{"x", 5}, 422}, {"command", []string{"", ""}, 200},
		{"container_image", "", 422}, {"container_image", nil, 422}, {"container_image", "nosuch:1", 422}, {"container_image", "../../x", 422},
		{"output_path", "", 422}, {"output_path", "/other", 422}, {"cwd", "", 422}, {"cwd", "/x", 200}, {"cwd", nil, 200},
		{"priority", -1, 422}, {"priority", 1001, 422}, {"priority", 1000, 200}, {"priority", "5", 422}, {"priority", 0, 200}, {"priority", nil, 200},
		{"state", "Final", 422}, {"state", "Nonsense", 422}, {"state", "Uncommitted", 200},
		{"mounts", obj{}, 422}, {"mounts", nil, 422}, {"mounts", obj{"/out": 5}, 422}, {"mounts", []any{}, 422}, {"mounts", obj{"out": obj{"kind": "tmp"}}, 422},
		{"mounts", tmp(obj{"nosuch": 1}), 422}, {"mounts", tmp(obj{"capacity": "1"}), 422}, {"mounts", tmp(obj{"capacity": -1}), 422}, {"mounts", tmp(obj{"writable": nil}), 422},
		{"mounts", tmp(obj{"writable": false, "uuid": "", "content": nil, "path": ""}), 200}, {"mounts", tmp(obj{"writable": true}), 422}, {"mounts", tmp(obj{"path": "x"}), 422},
		{"mounts", tmp(obj{"device_type": "ssd"}), 200}, {"mounts", tmp(obj{"device_type": "tape"}), 422}, {"mounts", tmp(obj{"exclude_from_output": true}), 200},
		{"mounts", with("/in", obj{"kind": "collection", "uuid": "zzzzz-4zz18-000000000000000"}), 422},
		{"mounts", with("/in", obj{"kind": "collection", "portable_data_hash": "00000000000000000000000000000000+99"}), 200},
		{"mounts", with("/in", obj{"kind": "collection", "capacity": 5}), 422}, {"mounts", with("/in", obj{"kind": "collection"}), 200},
		{"mounts", with("/t", obj{"kind": "text", "content": 5}), 422}, {"mounts", with("/t", obj{"kind": "json", "content": obj{"a": []any{1, nil}}}), 200},
		{"mounts", with("stdout", obj{"kind": "file", "path": "/out/x"}), 200}, {"mounts", with("stdfoo", obj{"kind": "file", "path": "/out/x"}), 422},
		{"mounts", with("/k", obj{"kind": "keep"}), 200}, {"mounts", with("/k", obj{}), 422}, {"mounts", with("/k", obj{"kind": nil}), 422},
		{"secret_mounts", obj{"/s": obj{"kind": "tmp"}}, 422}, {"secret_mounts", obj{"stdin": obj{"kind": "text", "content": "x"}}, 200},
		{"secret_mounts", obj{"stdout": obj{"kind": "text", "content": "x"}}, 422}, {"secret_mounts", obj{"/out": obj{"kind": "text", "content": "x"}}, 422},
		{"environment", obj{"A": 5}, 422}, {"environment", obj{"A=B": "x"}, 422}, {"environment", obj{"": "x"}, 422}, {"environment", obj{"A": "x\x00"}, 422}, {"environment", obj{"A": ""}, 200},
		{"runtime_constraints", obj{"ram": 1}, 422}, {"runtime_constraints", obj{"vcpus": 1}, 422}, {"runtime_constraints", obj{"vcpus": 0, "ram": 1}, 422},
		{"runtime_constraints", obj{"vcpus": 1, "ram": 1, "nosuch": 1}, 422}, {"runtime_constraints", obj{"vcpus": "1", "ram": 1}, 422}, {"runtime_constraints", obj{"vcpus": 1.5, "ram": 1}, 422},
		{"runtime_constraints", obj{"vcpus": []int{2, 3}, "ram": 1}, 200}, {"runtime_constraints", obj{"vcpus": 1, "ram": 1, "API": 1}, 422},
		{"runtime_constraints", gpu(nil), 200}, {"runtime_constraints", gpu(obj{"stack": "opencl"}), 422}, {"runtime_constraints", gpu(obj{"driver_version": "11"}), 422},
		{"runtime_constraints", gpu(obj{"hardware_target": []string{}}), 422}, {"runtime_constraints", gpu(obj{"hardware_target": []int{9}}), 422}, {"runtime_constraints", gpu(obj{"nosuch": 1}), 422},
		{"scheduling_parameters", obj{"max_run_time": -1}, 422}, {"scheduling_parameters", obj{"nosuch": 1}, 422}, {"scheduling_parameters", obj{"preemptible": true}, 422},
		{"scheduling_parameters", obj{"partitions": []string{"a"}, "max_run_time": 5}, 200},
		{"output_glob", []int{1}, 422}, {"output_ttl", -1, 422}, {"output_name", "a/b", 422}, {"output_name", "..", 422}, {"output_name", strings.Repeat("é", 256), 422}, {"output_name", strings.Repeat("é", 255), 200}, {"output_properties", []any{}, 422}, {"container_count_max", -1, 422},
		{"use_existing", "yes", 422}, {"service", true, 200}, {"runtime_token", "v2/zzzzz-gj3su-000000000000001/x", 422}, {"runtime_token", p.c.UserToken(), 200},
		{"container_uuid", "zzzzz-dz642-000000000000000", 422}, {"log_uuid", "zzzzz-4zz18-000000000000000", 422}, {"cumulative_cost", 5, 422},
		{"uuid", "zzzzz-xvhdp-000000000000000", 422}, {"nosuch", 1, 422}, {"name", strings.Repeat("x", 255), 200},
	} {
		a := p.user.do("POST", "container_requests", request(obj{c.attr: c.value}))
		if a.status != c.status {
			t.Errorf("%s %s: %d, want %d: %s", c.attr, encode(c.value), a.status, c.status, a.body)
		}
		if strings.Contains(string(a.body), `"content":"x"`) && c.attr == "secret_mounts" {
			t.Errorf("%s: the answer shows a secret: %s", c.attr, a.body)
		}
	}
}

func TestRequestLife(t *testing.T) {
	p := setUp(t)
	in := p.user.collection(nil, "f", "x")
	r := p.user.must("POST", "container_requests", request(obj{"state": "Uncommitted", "container_image": "not yet there", "runtime_constraints": obj{}}))
	path := "container_requests/" + str(r, "uuid")
	put := func(status int, attrs obj) map[string]any {
		t.Helper()
		return p.user.want(status, "PUT", path, obj{"container_request": attrs})
	}
	if r["container_uuid"] != nil || fmt.Sprint(r["container_count"]) != "0" {
		t.Errorf("uncommitted: %v", r)
	}
	put(422, obj{"state": "Committed"})
	put(422, obj{"state": "Final"})
	put(422, obj{"container_uuid": "zzzzz-dz642-000000000000000"})
	put(200, obj{"container_image": "busybox", "runtime_constraints": obj{"vcpus": 1, "ram": 5 << 30}, "priority": 3, "environment": obj{"B": "2", "A": "1"},
		"mounts": obj{"/out": obj{"kind": "tmp"}, "/in": obj{"kind": "collection", "uuid": in["uuid"], "path": "f"},
			"/n": obj{"kind": "json", "content": json.RawMessage(`{"big":9007199254740993,"f":1.50}`)}}})
	r = put(200, obj{"state": "Committed"})
	c := p.container(str(r, "container_uuid"))
	mount := c["mounts"].(map[string]any)["/in"].(map[string]any)
	if mount["portable_data_hash"] != in["portable_data_hash"] || mount["uuid"] != nil || mount["path"] != "f" {
		t.Errorf("mount: %v", mount)
	}
	if n := c["mounts"].(map[string]any)["/n"].(map[string]any)["content"].(map[string]any); fmt.Sprint(n["big"]) != "9007199254740993" || fmt.Sprint(n["f"]) != "1.50" {
		t.Errorf("numbers in content: %v", n)
	}
	if rc := c["runtime_constraints"].(map[string]any); fmt.Sprint(rc["keep_cache_disk"]) != fmt.Sprint(5<<30) || fmt.Sprint(r["runtime_constraints"].(map[string]any)["keep_cache_disk"]) != "0" {
		t.Errorf("constraints: %v", rc)
	}
	created, _ := time.Parse(time.RFC3339Nano, str(r, "created_at"))
	if want := int64(3)<<50 - created.UnixMilli(); fmt.Sprint(c["priority"]) != fmt.Sprint(want) {
		t.Errorf("priority %v, want %d", c["priority"], want)
	}
	// Clients send back whole records, with what was added for showing.
	shown := p.user.must("GET", path, nil)
	shown["priority"], shown["modified_at"] = 2, "2026-01-01T00:00:00Z"
	put(200, shown)
	shown["mounts"].(map[string]any)["/in"].(map[string]any)["path"] = "g"
	put(422, shown)
	// Committed: only some attributes may change.
	for attr, value := range map[string]any{"command": []string{"rm"}, "mounts": obj{}, "environment": obj{}, "secret_mounts": obj{"/s": obj{"kind": "text", "content": "hush"}},
		"output_name": "x", "runtime_constraints": obj{"vcpus": 9, "ram": 9}, "use_existing": true, "state": "Uncommitted", "output_uuid": in["uuid"]} {
		if a := put(422, obj{attr: value}); strings.Contains(string(encode(a)), "hush") {
			t.Errorf("secret in %v", a)
		}
	}
	put(200, obj{"priority": 4, "name": "n", "description": "d", "properties": obj{"k": "v"}, "container_count_max": 5})
	put(422, obj{"priority": 1001})
	// The user ends it; nobody wants the container any more.
	put(200, obj{"state": "Final"})
	if c := p.container(str(r, "container_uuid")); fmt.Sprint(c["priority"]) != "0" || c["state"] != "Queued" {
		t.Errorf("container: %v", c)
	}
	put(422, obj{"priority": 1})
	put(422, obj{"state": "Committed"})
	put(200, obj{"name": "renamed"})
	// Deleting takes a request's priority away, too.
	r2, container := p.submit(nil)
	p.user.must("DELETE", "container_requests/"+str(r2, "uuid"), nil)
	p.user.want(404, "GET", "container_requests/"+str(r2, "uuid"), nil)
	p.user.want(404, "GET", "containers/"+container, nil)
	if c := p.container(container); fmt.Sprint(c["priority"]) != "0" {
		t.Errorf("container of a deleted request: %v", c)
	}
}

// A workflow runner is a supervisor, also if the client says false, as the ones
// do that send all attributes.
func TestSupervisorParameter(t *testing.T) {
	p := setUp(t)
	for _, sent := range []obj{{}, {"supervisor": false}, {"supervisor": nil}} {
		r := p.user.must("POST", "container_requests", request(obj{"command": []string{"arvados-cwl-runner", "x"}, "scheduling_parameters": sent}))
		if got := r["scheduling_parameters"].(map[string]any)["supervisor"]; got != true {
			t.Errorf("%v: %v", sent, got)
		}
	}
}

func TestImageResolution(t *testing.T) {
	c := start(t, Options{NoSync: true})
	user := clientOf(t, c, c.UserToken())
	image := func(file, at string, names ...string) string {
		coll := user.collection(nil, file, "image of "+at)
		for _, n := range names {
			class := "docker_image_repo+tag"
			if strings.HasPrefix(n, "sha256:") || len(n) == 64 {
				class = "docker_image_hash"
			}
			user.must("POST", "links", obj{"link": obj{"link_class": class, "name": n, "head_uuid": coll["uuid"], "properties": obj{"image_timestamp": at}}})
		}
		return str(coll, "portable_data_hash")
	}
	id := func(digit string) string { return "sha256:" + strings.Repeat(digit, 64) }
	old := image(id("1")+".tar", "2025-01-01T00:00:00Z", "repo/app:latest", "repo/app:1.0", id("1"))
	young := image(id("2")+".tar", "2026-01-01T00:00:00.5+01:00", "repo/app:latest", "host:5000/app:latest", id("2"))
	image(strings.Repeat("3", 64)+".tar", "2027-01-01T00:00:00Z", "repo/app:latest", "v1:latest") // too old a format, though the newest
	two := user.collection(nil, id("4")+".tar", "a", "README", "b")
	user.must("POST", "links", obj{"link": obj{"link_class": "docker_image_repo+tag", "name": "two:latest", "head_uuid": two["uuid"]}})
	gone := user.collection(nil, id("5")+".tar", "gone")
	user.must("POST", "links", obj{"link": obj{"link_class": "docker_image_repo+tag", "name": "gone:latest", "head_uuid": gone["uuid"]}})
	user.must("DELETE", "collections/"+str(gone, "uuid"), nil)
	for term, want := range map[string]string{
		"repo/app": young, "repo/app:latest": young, "repo/app:1.0": old, "host:5000/app": young, "host:5000/app:latest": young,
		id("1"): old, "sha256:22": young, old: old, old + "+Kzzzzz": old,
		"repo": "not found", "repo/app:2": "not found", "two": "not found", "gone": "not found", "v1": "incompatible", id("9"): "not found",
		"00000000000000000000000000000000+99": "not found", str(two, "portable_data_hash"): "not found", "%": "not found", "sha256": "not found", "sha256:": "not found",
	} {
		a := user.do("POST", "container_requests", request(obj{"container_image": term}))
		if len(want) < 30 {
			if a.status != 422 || !strings.Contains(string(a.body), want) {
				t.Errorf("%s: %d %s, want %s", term, a.status, a.body, want)
			}
			continue
		}
		if a.status != 200 {
			t.Errorf("%s: %s", term, a.body)
		} else if got := user.must("GET", "containers/"+str(a.obj, "container_uuid"), nil)["container_image"]; got != want {
			t.Errorf("%s: %v, want %s", term, got, want)
		}
	}
}

// An image in the old format stands for the one that an administrator has made of
// it, by whatever name it is asked for. Users cannot redirect images.
func TestMigratedImage(t *testing.T) {
	p := setUp(t)
	hex := strings.Repeat("7", 64)
	old := p.user.collection(nil, hex+".tar", "old")
	young := p.user.collection(nil, "sha256:"+hex+".tar", "new")
	p.user.must("POST", "links", obj{"link": obj{"link_class": "docker_image_repo+tag", "name": "legacy:1", "head_uuid": old["uuid"]}})
	migrate := obj{"link": obj{"link_class": "docker_image_migration", "name": "migrate", "tail_uuid": old["portable_data_hash"], "head_uuid": young["portable_data_hash"]}}
	p.user.must("POST", "links", migrate)
	for _, term := range []string{"legacy:1", str(old, "portable_data_hash")} {
		p.user.want(422, "POST", "container_requests", request(obj{"container_image": term}))
	}
	p.root.must("POST", "links", migrate)
	for _, term := range []string{"legacy:1", str(old, "portable_data_hash")} {
		_, container := p.submit(obj{"container_image": term})
		if c := p.container(container); c["container_image"] != young["portable_data_hash"] {
			t.Errorf("%s: %v", term, c["container_image"])
		}
	}
}

// What Python clients generate their methods from names paths that exist.
func TestDiscoveryDocument(t *testing.T) {
	c := start(t, Options{NoSync: true})
	cl := clientOf(t, c, c.SystemRootToken())
	doc := cl.send("GET", cl.base+"/discovery/v1/apis/arvados/v1/rest", nil, nil).obj
	if doc["rootUrl"] != cl.base+"/" || doc["basePath"] != "/arvados/v1/" || doc["uuidPrefix"] != "zzzzz" {
		t.Errorf("document: %v", doc)
	}
	resources := doc["resources"].(map[string]any)
	schemas := doc["schemas"].(map[string]any)
	for name, r := range resources {
		for m, v := range r.(map[string]any)["methods"].(map[string]any) {
			method := v.(map[string]any)
			path := strings.ReplaceAll(str(method, "path"), "{uuid}", "zzzzz-00000-000000000000000")
			if a := cl.do(str(method, "httpMethod"), path, nil); a.status == 405 || a.status == 404 && !strings.Contains(path, "-00000-") && m != "current" {
				t.Errorf("%s.%s: %s %s is answered %d", name, m, method["httpMethod"], path, a.status)
			}
			if ref := str(method["response"].(map[string]any), "$ref"); ref != "" && schemas[ref] == nil {
				t.Errorf("%s.%s: no schema %s", name, m, ref)
			}
		}
	}
	for _, need := range []string{"users.current", "collections.get", "collections.list", "collections.create", "collections.update", "collections.delete",
		"keep_services.accessible", "configs.get", "links.list", "links.create", "groups.get", "groups.list", "groups.contents", "groups.shared", "containers.lock", "containers.auth"} {
		r, m, _ := strings.Cut(need, ".")
		if res, _ := resources[r].(map[string]any); res == nil || res["methods"].(map[string]any)[m] == nil {
			t.Errorf("%s is missing", need)
		}
	}
	// Clients made from the document refuse parameters that it does not name.
	for method, names := range map[string]string{
		"collections.list": "filters where order select distinct limit offset count cluster_id bypass_federation include_trash include_old_versions",
		"collections.get":  "uuid select include_trash", "collections.create": "select ensure_unique_name cluster_id", "collections.update": "uuid select",
		"groups.contents": "uuid filters order select limit offset count recursive include_trash", "groups.shared": "filters order select limit offset count",
	} {
		r, m, _ := strings.Cut(method, ".")
		parameters, _ := resources[r].(map[string]any)["methods"].(map[string]any)[m].(map[string]any)["parameters"].(map[string]any)
		for _, name := range strings.Fields(names) {
			if parameters[name] == nil {
				t.Errorf("%s has no parameter %s", method, name)
			}
		}
	}
}
