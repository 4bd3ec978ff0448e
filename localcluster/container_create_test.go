package localcluster

import (
	"maps"
	"testing"
)

// container is the smallest container that an administrator can make.
func bareContainer(more obj) obj {
	c := obj{
		"command": []string{"true"}, "container_image": "e4bfcc9080832ded9874af2b735ac9ad+174", "output_path": "/out", "priority": 5,
		"mounts": obj{"/out": obj{"kind": "tmp"}},
	}
	maps.Copy(c, more)
	return obj{"container": c}
}

// An administrator's container needs no request: it is queued, locked and run
// like any other, and ordinary users do not see it.
func TestContainerWithoutRequest(t *testing.T) {
	p := setUp(t)
	made := p.root.must("POST", "containers", bareContainer(obj{
		"runtime_constraints": obj{"vcpus": 1, "ram": 1 << 28}, "output_properties": obj{"a": 1},
		"secret_mounts": obj{"/secret": obj{"kind": "text", "content": "hush"}},
	}))
	uuid := str(made, "uuid")
	if made["state"] != "Queued" || str(made, "owner_uuid") != "zzzzz-tpzed-000000000000000" || made["kind"] != "arvados#container" || made["cwd"] != "." {
		t.Errorf("made %v", made)
	}
	if _, shown := made["secret_mounts"]; shown {
		t.Error("the answer shows secret mounts")
	}
	p.user.want(404, "GET", "containers/"+uuid, nil)
	own := p.lock(uuid)
	secrets := own.must("GET", "containers/"+uuid+"/secret_mounts", nil)["secret_mounts"].(map[string]any)
	if len(secrets) != 1 {
		t.Errorf("secret mounts %v", secrets)
	}
	p.update(uuid, obj{"state": "Running"})
	p.update(uuid, obj{"state": "Complete", "exit_code": 0, "log": p.saveLog("crunch-run.txt", "x")})
	if got := p.container(uuid); got["state"] != "Complete" || got["finished_at"] == nil {
		t.Errorf("ended as %v", got)
	}
	if got := p.root.must("POST", "containers?select=[\"state\"]", bareContainer(nil)); len(got) != 1 || got["state"] != "Queued" {
		t.Errorf("with select: %v", got)
	}
}

func TestContainerWithoutRequestIsChecked(t *testing.T) {
	p := setUp(t)
	p.user.want(403, "POST", "containers", bareContainer(nil))
	for name, attrs := range map[string]obj{
		"no command": {"command": nil}, "command of numbers": {"command": []int{1}}, "no image": {"container_image": ""}, "no output path": {"output_path": nil},
		"no mount for the output": {"mounts": obj{"/other": obj{"kind": "tmp"}}}, "negative priority": {"priority": -1}, "locked": {"state": "Locked"},
		"attribute of a later state": {"exit_code": 0}, "lock": {"locked_by_uuid": "zzzzz-gj3su-000000000000000"}, "uuid": {"uuid": "zzzzz-dz642-012345678901234"},
		"unknown attribute": {"nosuch": 1}, "constraint": {"runtime_constraints": obj{"nosuch": 1}}, "mount": {"mounts": obj{"/out": obj{"kind": "nosuch"}}},
		"environment": {"environment": obj{"A=B": "x"}}, "user": {"runtime_user_uuid": "zzzzz-tpzed-012345678901234"}, "runtime token": {"runtime_token": "v2/x/y"},
		"secret in plain sight": {"secret_mounts": obj{"/out": obj{"kind": "text", "content": "x"}}}, "owner": {"owner_uuid": str(p.user.must("GET", "users/current", nil), "uuid")},
	} {
		if a := p.root.do("POST", "containers", bareContainer(attrs)); a.status != 422 {
			t.Errorf("%s: %d %s", name, a.status, a.body)
		}
	}
	a := p.root.get("containers", map[string]string{"limit": "0"})
	if n := a.obj["items_available"]; n != nil && n.(interface{ String() string }).String() != "0" {
		t.Errorf("%v containers were made", n)
	}
}
