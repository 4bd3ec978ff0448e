package localcluster

import (
	"fmt"
	"testing"
)

func (p parties) me(c *client) string {
	p.user.t.Helper()
	return str(c.must("GET", "users/current", nil), "uuid")
}

// share makes a permission link and returns its UUID.
func (c *client) share(tail, name, head string) string {
	c.t.Helper()
	return str(c.must("POST", "links", obj{"link": obj{"link_class": "permission", "name": name, "tail_uuid": tail, "head_uuid": head}}), "uuid")
}

// What another user may do with things in a project, below it, and with a single
// record, at each level, directly and through a role.
func TestSharing(t *testing.T) {
	p := setUp(t)
	bob := p.second()
	bobUUID := p.me(bob)
	type try struct {
		what, method, path string
		body               any
	}
	for _, via := range []string{"user", "role", "everybody"} {
		if raceDetector && via != "role" {
			continue // without it all are tried
		}
		for _, level := range []string{"", "can_read", "can_write", "can_manage"} {
			t.Run(via+" "+level, func(t *testing.T) {
				project := str(p.user.must("POST", "groups?ensure_unique_name=true", obj{"group": obj{"name": "shared", "group_class": "project"}}), "uuid")
				inner := str(p.user.must("POST", "groups", obj{"group": obj{"name": "inner", "group_class": "project", "owner_uuid": project}}), "uuid")
				coll := p.user.collection(obj{"owner_uuid": inner}, "f", "x")
				r, container := p.submit(obj{"owner_uuid": project})
				tail := bobUUID
				switch via {
				case "role":
					tail = str(p.user.must("POST", "groups?ensure_unique_name=true", obj{"group": obj{"name": "team", "group_class": "role"}}), "uuid")
					p.user.share(bobUUID, "can_manage", tail)
				case "everybody":
					tail = "zzzzz-j7d0g-fffffffffffffff"
				}
				link := ""
				if level != "" {
					link = p.user.share(tail, level, project)
				}
				read, write, manage := 200, 200, 200
				switch level {
				case "":
					read, write, manage = 404, 404, 404
				case "can_read":
					write, manage = 403, 403
				case "can_write":
					manage = 403
				}
				into := write // creating does not need to find anything first
				if level == "" {
					into = 403
				}
				share := manage
				if level == "" {
					share = 403
				}
				for _, c := range []struct {
					try
					want int
				}{
					{try{"project", "GET", "groups/" + project, nil}, read},
					{try{"inner project", "GET", "groups/" + inner, nil}, read},
					{try{"collection", "GET", "collections/" + str(coll, "uuid"), nil}, read},
					{try{"request", "GET", "container_requests/" + str(r, "uuid"), nil}, read},
					{try{"container", "GET", "containers/" + container, nil}, read},
					{try{"lock", "POST", "containers/" + container + "/lock", nil}, map[bool]int{true: 403, false: 404}[read == 200]},
					{try{"rename collection", "PUT", "collections/" + str(coll, "uuid"), obj{"collection": obj{"name": "bob was here"}}}, write},
					{try{"cancel request", "PUT", "container_requests/" + str(r, "uuid"), obj{"container_request": obj{"priority": 0}}}, write},
					{try{"new collection", "POST", "collections", obj{"collection": obj{"owner_uuid": inner}}}, into},
					{try{"share it on", "POST", "links", obj{"link": obj{"link_class": "permission", "name": "can_read", "tail_uuid": bobUUID, "head_uuid": project}}}, share},
					{try{"trash collection", "DELETE", "collections/" + str(coll, "uuid"), nil}, write},
				} {
					if a := bob.do(c.method, c.path, c.body); a.status != c.want {
						t.Errorf("%s: %d, want %d: %s", c.what, a.status, c.want, a.body)
					}
				}
				if level == "" {
					return
				}
				g := bob.must("GET", "groups/"+project, nil)
				if g["can_write"] != (write == 200) || g["can_manage"] != (manage == 200) {
					t.Errorf("project for bob: can_write %v, can_manage %v", g["can_write"], g["can_manage"])
				}
				// Taken back, it is gone; what bob shared with himself as well.
				if level == "can_manage" {
					for _, item := range p.root.get("links", map[string]string{"filters": `[["head_uuid","=","` + project + `"]]`}).obj["items"].([]any) {
						p.user.must("DELETE", "links/"+str(item.(map[string]any), "uuid"), nil)
					}
				} else {
					if via != "everybody" && level == "can_read" {
						bob.want(map[string]int{"user": 403, "role": 404}[via], "DELETE", "links/"+link, nil)
					}
					p.user.must("DELETE", "links/"+link, nil)
				}
				bob.want(404, "GET", "groups/"+project, nil)
				bob.want(404, "GET", "collections/"+str(coll, "uuid"), nil)
			})
		}
	}
}

// A single record can be shared, over a chain of roles the weakest link counts,
// and a project in the trash gives nothing.
func TestSharingChains(t *testing.T) {
	p := setUp(t)
	bob := p.second()
	bobUUID := p.me(bob)
	coll, other := p.user.collection(nil, "f", "shared"), p.user.collection(nil, "f", "not shared")
	p.user.share(bobUUID, "can_write", str(coll, "uuid"))
	bob.must("GET", "collections/"+str(coll, "portable_data_hash"), nil)
	bob.must("PUT", "collections/"+str(coll, "uuid"), obj{"collection": obj{"name": "new name"}})
	bob.want(404, "GET", "collections/"+str(other, "uuid"), nil)
	bob.want(403, "POST", "links", obj{"link": obj{"link_class": "permission", "name": "can_read", "tail_uuid": bobUUID, "head_uuid": str(other, "uuid")}})

	role := func(name string) string {
		return str(p.user.must("POST", "groups", obj{"group": obj{"name": name, "group_class": "role"}}), "uuid")
	}
	a, b := role("a"), role("b")
	project := str(p.user.must("POST", "groups", obj{"group": obj{"name": "p", "group_class": "project"}}), "uuid")
	p.user.share(bobUUID, "can_manage", a)
	p.user.share(a, "can_read", b)
	p.user.share(b, "can_manage", project)
	p.user.share(b, "can_read", a) // a circle
	bob.must("GET", "groups/"+project, nil)
	bob.want(403, "POST", "collections", obj{"collection": obj{"owner_uuid": project}})
	bob.want(403, "PUT", "groups/"+project, obj{"group": obj{"name": "mine"}})
	p.user.must("DELETE", "groups/"+project, nil)
	bob.want(404, "GET", "groups/"+project, nil)

	// With an image shared, bob can run it, as himself.
	images := str(p.user.must("POST", "groups", obj{"group": obj{"name": "images", "group_class": "project"}}), "uuid")
	for _, item := range p.user.get("links", map[string]string{"filters": `[["link_class","like","docker_image%"]]`}).obj["items"].([]any) {
		link := item.(map[string]any)
		p.user.must("PUT", "links/"+str(link, "uuid"), obj{"link": obj{"owner_uuid": images}})
		p.user.must("PUT", "collections/"+str(link, "head_uuid"), obj{"collection": obj{"owner_uuid": images}})
	}
	bob.want(422, "POST", "container_requests", request(nil))
	p.user.share(bobUUID, "can_read", images)
	r := bob.must("POST", "container_requests", request(nil))
	if c := p.container(str(r, "container_uuid")); c["runtime_user_uuid"] != bobUUID {
		t.Errorf("container runs for %v", c["runtime_user_uuid"])
	}
	p.user.want(404, "GET", "containers/"+str(r, "container_uuid"), nil)

	// Links that mean nothing are refused.
	for _, bad := range []obj{
		{"name": "can_fly", "tail_uuid": bobUUID, "head_uuid": project}, {"name": "can_read", "tail_uuid": project, "head_uuid": project},
		{"name": "can_read", "tail_uuid": bobUUID, "head_uuid": "zzzzz-j7d0g-000000000000001"}, {"name": "can_read", "tail_uuid": "", "head_uuid": project},
		{"tail_uuid": bobUUID, "head_uuid": project},
	} {
		bad["link_class"] = "permission"
		p.user.want(422, "POST", "links", obj{"link": bad})
	}
	link := p.user.share(bobUUID, "can_read", images)
	p.user.want(403, "PUT", "links/"+link, obj{"link": obj{"head_uuid": str(other, "uuid")}})
	if l := p.user.must("PUT", "links/"+link, obj{"link": obj{"name": "can_write"}}); fmt.Sprint(l["owner_uuid"]) != "zzzzz-tpzed-000000000000000" {
		t.Errorf("permission link: %v", l)
	}
	bob.want(403, "PUT", "links/"+link, obj{"link": obj{"name": "can_manage"}})
}

// What is in projects, listed as arv-mount does.
func TestContents(t *testing.T) {
	p := setUp(t)
	bob := p.second()
	project := str(p.user.must("POST", "groups", obj{"group": obj{"name": "p", "group_class": "project"}}), "uuid")
	inner := str(p.user.must("POST", "groups", obj{"group": obj{"name": "inner", "group_class": "project", "owner_uuid": project}}), "uuid")
	coll := str(p.user.collection(obj{"owner_uuid": project, "name": "c"}), "uuid")
	deep := str(p.user.collection(obj{"owner_uuid": inner, "name": "d"}), "uuid")
	r, _ := p.submit(obj{"owner_uuid": project})
	list := func(c *client, path string, params map[string]string) string {
		t.Helper()
		a := c.get("groups/"+path, params)
		if a.status != 200 {
			return fmt.Sprint(a.status)
		}
		out := ""
		for _, item := range a.obj["items"].([]any) {
			rec := item.(map[string]any)
			out += " " + str(rec, "uuid")
			if rec["kind"] == nil {
				t.Errorf("no kind: %v", rec)
			}
		}
		return fmt.Sprint(a.obj["items_available"], out)
	}
	all := "3 " + inner + " " + str(r, "uuid") + " " + coll
	for _, c := range []struct {
		what   string
		who    *client
		path   string
		params map[string]string
		want   string
	}{
		{"all", p.user, project + "/contents", nil, all},
		{"recursive", p.user, project + "/contents", map[string]string{"recursive": "true"}, "4 " + inner + " " + str(r, "uuid") + " " + deep + " " + coll},
		{"second page", p.user, project + "/contents", map[string]string{"limit": "1", "offset": "1"}, "3 " + str(r, "uuid")},
		{"none", p.user, project + "/contents", map[string]string{"limit": "0"}, "3"},
		{"one kind", p.user, project + "/contents", map[string]string{"filters": `[["uuid","is_a","arvados#collection"]]`}, "1 " + coll},
		{"filter of one kind", p.user, project + "/contents", map[string]string{"filters": `[["collections.name","=","nosuch"]]`}, "2 " + inner + " " + str(r, "uuid")},
		{"uuid as a parameter", p.user, "contents", map[string]string{"uuid": project}, all},
		{"no uuid as a parameter", p.user, "contents", map[string]string{"uuid": "x"}, "404"},
		{"everything", p.user, "contents", map[string]string{"limit": "0"}, "6"},
		{"order by name", p.user, project + "/contents", map[string]string{"order": "name desc", "recursive": "true"}, "4 " + inner + " " + str(r, "uuid") + " " + deep + " " + coll},
		{"order of one kind", p.user, project + "/contents", map[string]string{"order": `["collections.name asc"]`, "recursive": "true"}, "4 " + inner + " " + str(r, "uuid") + " " + coll + " " + deep},
		{"bad order", p.user, project + "/contents", map[string]string{"order": "name sideways"}, "422"},
		{"selected", p.user, project + "/contents", map[string]string{"select": `["uuid","portable_data_hash"]`}, all},
		{"selected badly", p.user, project + "/contents", map[string]string{"select": `["nosuch"]`}, "422"},
		{"not counted", p.user, project + "/contents", map[string]string{"count": "none"}, "<nil>" + all[1:]},
		{"counted badly", p.user, project + "/contents", map[string]string{"count": "some"}, "422"},
		{"bad filter", p.user, project + "/contents", map[string]string{"filters": `[["nosuch","=",1]]`}, "422"},
		{"home", p.user, p.me(p.user) + "/contents", map[string]string{"filters": `[["uuid","is_a","arvados#group"]]`}, "1 " + project},
		{"no project", p.user, "zzzzz-j7d0g-000000000000001/contents", nil, "404"},
		{"not his", bob, project + "/contents", nil, "404"},
		{"nothing shared", bob, "shared", nil, "0"},
	} {
		if got := list(c.who, c.path, c.params); got != c.want {
			t.Errorf("%s: %s, want %s", c.what, got, c.want)
		}
	}
	for _, item := range p.user.get("groups/"+project+"/contents", map[string]string{"select": `["uuid","portable_data_hash"]`}).obj["items"].([]any) {
		rec := item.(map[string]any)
		if _, has := rec["portable_data_hash"]; len(rec) != 3 && !has || rec["name"] != nil {
			t.Errorf("selected %v", rec)
		}
	}
	p.user.share(p.me(bob), "can_read", project)
	if got := list(bob, project+"/contents", nil); got != all {
		t.Errorf("shared with bob: %s", got)
	}
	if got := list(bob, "shared", nil); got != "1 "+project {
		t.Errorf("list of what is shared with bob: %s", got)
	}
	if got := list(p.user, "shared", nil); got != "0" {
		t.Errorf("list of what is shared with the owner: %s", got)
	}
}
