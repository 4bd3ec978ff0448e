package localcluster

import (
	"path/filepath"
	"strings"
	"testing"

	"crunch-oci/localcluster/internal/store"
)

// What one ordinary user does not see of another one's, and may not do.
func TestOtherUsers(t *testing.T) {
	p := setUp(t)
	bob := p.second()
	project := str(p.user.must("POST", "groups", obj{"group": obj{"name": "p", "group_class": "project"}}), "uuid")
	inner := str(p.user.must("POST", "groups", obj{"group": obj{"name": "q", "group_class": "project", "owner_uuid": project}}), "uuid")
	coll := p.user.collection(obj{"owner_uuid": inner}, "f", "x")
	r, container := p.submit(obj{"owner_uuid": inner})
	links := p.user.get("links", nil).obj["items"].([]any)
	for _, path := range []string{"collections/" + str(coll, "uuid"), "collections/" + str(coll, "portable_data_hash"), "containers/" + container,
		"container_requests/" + str(r, "uuid"), "groups/" + project, "groups/" + inner, "links/" + str(links[0].(map[string]any), "uuid"),
		"containers/" + container + "/secret_mounts", "containers/" + container + "/auth"} {
		if a := bob.do("GET", path, nil); a.status != 404 {
			t.Errorf("GET %s: %d %s", path, a.status, a.body)
		}
		if !strings.HasSuffix(path, "_mounts") && !strings.HasSuffix(path, "auth") {
			p.user.must("GET", path, nil)
		}
	}
	for path, body := range map[string]obj{
		"collections/" + str(coll, "uuid"):     {"collection": obj{"name": "mine"}},
		"containers/" + container:              {"container": obj{"priority": 5}},
		"container_requests/" + str(r, "uuid"): {"container_request": obj{"priority": 0}},
		"groups/" + project:                    {"group": obj{"name": "mine"}},
	} {
		bob.want(404, "PUT", path, body)
	}
	for _, name := range []string{"collections", "containers", "container_requests", "links", "groups"} {
		a := bob.get(name, nil)
		if n := len(a.obj["items"].([]any)); n != 0 {
			t.Errorf("%s: bob sees %d of them", name, n)
		}
	}
	// Nor can he put things into the other one's project.
	for _, owner := range []string{project, inner} {
		bob.want(403, "POST", "collections", obj{"collection": obj{"owner_uuid": owner}})
		bob.want(403, "POST", "container_requests", request(obj{"owner_uuid": owner, "state": "Uncommitted"}))
	}
	bob.want(422, "POST", "container_requests", request(nil)) // the image is not his
	for _, path := range []string{"users", "users/" + str(bob.must("GET", "users/current", nil), "uuid")} {
		bob.must("GET", path, nil)
	}
	bob.want(403, "POST", "users", obj{"user": obj{"username": "eve"}})
	bob.want(403, "POST", "api_client_authorizations", obj{"owner_uuid": "zzzzz-tpzed-000000000000000"})
	bob.want(404, "POST", "containers/"+container+"/lock", nil)
	p.user.want(403, "POST", "containers/"+container+"/lock", nil)
}

// A project cannot be put into itself, and what is in a trashed one is gone.
func TestProjects(t *testing.T) {
	p := setUp(t)
	make := func(owner any) string {
		g := obj{"name": "g", "group_class": "project"}
		if owner != nil {
			g["owner_uuid"] = owner
		}
		return str(p.user.must("POST", "groups", obj{"group": g}), "uuid")
	}
	a := make(nil)
	b := make(a)
	p.user.want(422, "PUT", "groups/"+a, obj{"group": obj{"owner_uuid": b}})
	p.user.want(422, "PUT", "groups/"+a, obj{"group": obj{"owner_uuid": a}})
	for _, bad := range []obj{{"name": "x"}, {"group_class": "project"}, {"name": "x", "group_class": "team"},
		{"name": "x", "group_class": "filter", "properties": obj{"filters": []any{[]any{"nosuch", "=", 1}}}},
		{"name": "x", "group_class": "filter", "properties": obj{"filters": "all"}}} {
		p.user.want(422, "POST", "groups", obj{"group": bad})
	}
	_, container := p.submit(obj{"owner_uuid": a})
	p.user.must("POST", "groups/"+a+"/trash", nil)
	p.user.want(404, "GET", "groups/"+a, nil)
	p.user.must("POST", "groups/"+a+"/untrash", nil)
	p.user.must("GET", "groups/"+b, nil)
	// With its project in the trash, a request makes no collections.
	p.lock(container)
	p.user.must("DELETE", "groups/"+a, nil)
	p.update(container, obj{"state": "Running"})
	p.update(container, obj{"state": "Complete", "exit_code": 0, "log": p.saveLog("l", "x")})
	requests := p.root.get("container_requests", map[string]string{"include_trash": "true", "filters": `[["container_uuid","=","` + container + `"]]`})
	r := requests.obj["items"].([]any)[0].(map[string]any)
	if r["state"] != "Final" || r["log_uuid"] != nil {
		t.Errorf("request: %v", r)
	}
}

func TestTokenScopes(t *testing.T) {
	p := setUp(t)
	tok := p.user.must("POST", "api_client_authorizations", obj{"scopes": []string{"GET /arvados/v1/collections/", "GET /arvados/v1/users/current"}})
	scoped := p.user.as("v2/" + str(tok, "uuid") + "/" + str(tok, "api_token"))
	scoped.must("GET", "users/current", nil)
	scoped.must("GET", "api_client_authorizations/current", nil)
	scoped.want(404, "GET", "collections/zzzzz-4zz18-000000000000000", nil)
	scoped.want(403, "GET", "collections", nil)
	scoped.want(403, "POST", "collections", obj{})
	scoped.want(403, "GET", "containers", nil)
	expired := p.user.must("POST", "api_client_authorizations", obj{"expires_at": "2001-01-01T00:00:00Z"})
	p.user.as("v2/"+str(expired, "uuid")+"/"+str(expired, "api_token")).want(401, "GET", "users/current", nil)
}

// A token can be looked at, restricted and taken back by its user, and by nobody
// else but administrators.
func TestTokens(t *testing.T) {
	p := setUp(t)
	bob := p.second()
	made := p.user.must("POST", "api_client_authorizations", obj{})
	path := "api_client_authorizations/" + str(made, "uuid")
	mine := p.user.as("v2/" + str(made, "uuid") + "/" + str(made, "api_token"))
	mine.must("GET", "users/current", nil)
	if _, shown := p.user.must("GET", path, nil)["api_token"]; shown {
		t.Error("the secret is shown again")
	}
	for method, body := range map[string]any{"GET": nil, "PUT": obj{"scopes": []string{}}, "DELETE": nil} {
		bob.want(404, method, path, body)
	}
	p.user.want(403, "PUT", path, obj{"owner_uuid": p.me(bob)})
	p.user.want(422, "PUT", path, obj{"api_token": "x"})
	p.user.want(422, "PUT", path, obj{"scopes": []int{1}})
	p.user.must("PUT", path, obj{"scopes": []string{"GET /arvados/v1/users/current"}})
	mine.must("GET", "users/current", nil)
	mine.want(403, "GET", "collections", nil)
	p.user.must("PUT", path, obj{"expires_at": "2001-01-01T00:00:00Z"})
	mine.want(401, "GET", "users/current", nil)
	p.user.must("PUT", path, obj{"expires_at": nil, "scopes": nil})
	mine.must("GET", "collections", nil)
	p.root.must("DELETE", path, nil)
	mine.want(401, "GET", "users/current", nil)
	p.root.want(403, "DELETE", "api_client_authorizations/zzzzz-gj3su-000000000000000", nil)
}

// Users change their own names; who is an administrator, and who may log in,
// administrators say.
func TestUsers(t *testing.T) {
	p := setUp(t)
	bob := p.second()
	path := "users/" + p.me(bob)
	if u := bob.must("PUT", path, obj{"user": obj{"first_name": "Bob", "prefs": obj{"a": 1}}}); str(u, "full_name") != "Bob" {
		t.Errorf("user %v", u)
	}
	bob.want(403, "PUT", path, obj{"user": obj{"is_admin": true}})
	bob.want(403, "PUT", "users/"+p.me(p.user), obj{"user": obj{"first_name": "Bob"}})
	bob.want(403, "POST", "users", obj{"user": obj{"username": "eve"}})
	if taken := p.root.want(422, "POST", "users", obj{"user": obj{"username": "user"}}); !strings.Contains(string(encode(taken)), "Key (username)=(user) already exists") {
		t.Errorf("%v", taken)
	}
	p.root.want(403, "PUT", "users/zzzzz-tpzed-000000000000000", obj{"user": obj{"is_admin": false}})
	p.root.must("PUT", path, obj{"user": obj{"is_admin": true}})
	bob.must("GET", "users", nil)
	p.root.must("PUT", path, obj{"user": obj{"is_active": false}})
	bob.want(401, "GET", "users/current", nil)
	if u := p.user.must("GET", "users/system", nil); str(u, "uuid") != "zzzzz-tpzed-000000000000000" {
		t.Errorf("system user %v", u)
	}
}

// Secrets come out through secret_mounts and nowhere else.
func TestSecretsStaySecret(t *testing.T) {
	p := setUp(t)
	const secret = "s3cr3t-value"
	r, container := p.submit(obj{"secret_mounts": obj{"/s": obj{"kind": "text", "content": secret}}, "runtime_token": p.c.UserToken(), "container_count_max": 1})
	own := p.user
	p.dispatcher.must("POST", "containers/"+container+"/lock", nil)
	if auth := p.dispatcher.must("GET", "containers/"+container+"/auth", nil); str(auth, "api_token") != strings.Split(p.c.UserToken(), "/")[2] {
		t.Errorf("auth with a runtime token: %v", auth)
	}
	check := func() {
		t.Helper()
		for _, cl := range []*client{p.user, p.root, p.dispatcher} {
			for _, path := range []string{"containers/" + container, "containers", "container_requests/" + str(r, "uuid"), "container_requests"} {
				if a := cl.do("GET", path, nil); strings.Contains(string(a.body), secret) || strings.Contains(string(a.body), strings.Split(p.c.UserToken(), "/")[2]) {
					t.Errorf("GET %s shows a secret: %s", path, a.body)
				}
			}
		}
	}
	check()
	if m := own.must("GET", "containers/"+container+"/secret_mounts", nil); !strings.Contains(string(encode(m)), secret) {
		t.Errorf("secret mounts: %v", m)
	}
	if a := p.user.as(p.c.UserToken()+"/"+container).do("GET", "containers/current", nil); a.obj["uuid"] != container {
		t.Errorf("current container of a runtime token: %s", a.body)
	}
	p.dispatcher.want(403, "GET", "containers/"+container+"/secret_mounts", nil)
	p.update(container, obj{"state": "Cancelled"})
	check()
	own.want(403, "GET", "containers/"+container+"/secret_mounts", nil)
	own.must("GET", "users/current", nil) // the runtime token lives on
	// Nor are they kept where nobody looks.
	if err := p.c.Close(); err != nil {
		t.Fatal(err)
	}
	db, err := store.Open(filepath.Join(p.c.dir, "api.sqlite"), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.View(t.Context(), func(tx *store.Tx) error {
		for table, uuid := range map[*store.Table]string{store.Containers: container, store.ContainerRequests: str(r, "uuid")} {
			rec, err := tx.Get(table, uuid)
			if err != nil || string(rec.JSON("secret_mounts")) != "{}" || rec["runtime_token"] != nil {
				t.Errorf("%s keeps secrets: %v, %v", table.Name, rec, err)
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}
