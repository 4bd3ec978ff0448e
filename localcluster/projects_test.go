package localcluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"crunch-oci/localcluster/internal/store"
)

// uuids are the UUIDs in the answer to a list, in its order.
func (a answer) uuids() string {
	var out []string
	items, _ := a.obj["items"].([]any)
	for _, item := range items {
		out = append(out, str(item.(map[string]any), "uuid"))
	}
	return strings.Join(out, " ")
}

func (c *client) group(attrs obj) string {
	c.t.Helper()
	return str(c.must("POST", "groups", obj{"group": attrs}), "uuid")
}

// A filter group shows what matches its filters, of what the caller can read, and
// owns nothing.
func TestFilterGroups(t *testing.T) {
	p := setUp(t)
	bob := p.second()
	project := p.user.group(obj{"name": "p", "group_class": "project", "properties": obj{"study": "S1"}})
	coll := str(p.user.collection(obj{"name": "c", "properties": obj{"study": "S1"}}), "uuid")
	p.user.collection(obj{"name": "d", "properties": obj{"study": "S2"}})
	r, _ := p.submit(obj{"name": "r", "properties": obj{"study": "S1"}, "owner_uuid": project})
	for _, c := range []struct {
		name    string
		filters []any
		want    string
	}{
		{"all kinds", []any{[]any{"properties.study", "=", "S1"}}, project + " " + str(r, "uuid") + " " + coll},
		{"one kind by is_a", []any{[]any{"properties.study", "=", "S1"}, []any{"uuid", "is_a", "arvados#collection"}}, coll},
		{"one kind by name", []any{[]any{"collections.properties.study", "=", "S1"}}, coll},
		{"none", nil, ""},
	} {
		group := p.user.group(obj{"name": c.name, "group_class": "filter", "properties": obj{"filters": c.filters}})
		if got := p.user.get("groups/"+group+"/contents", nil); got.status != 200 || got.uuids() != c.want {
			t.Errorf("%s: %d %s, want %s", c.name, got.status, got.uuids(), c.want)
		}
		p.user.want(422, "POST", "collections", obj{"collection": obj{"owner_uuid": group}})
		p.user.want(422, "PUT", "groups/"+group, obj{"group": obj{"group_class": "project"}})
		p.user.want(422, "PUT", "groups/"+group, obj{"group": obj{"properties": obj{"filters": []any{"x"}}}})
		// Whoever may see the group sees in it what he may see anyway.
		p.user.share(p.me(bob), "can_read", group)
		if got := bob.get("groups/"+group+"/contents", nil); got.status != 200 || got.uuids() != "" {
			t.Errorf("%s, for bob: %d %s", c.name, got.status, got.uuids())
		}
	}
}

// What is in a trashed project, at any depth, is in the trash with it, and its
// requests do not count for the priority of containers.
func TestTrashedProject(t *testing.T) {
	p := setUp(t)
	outer := p.user.group(obj{"name": "outer", "group_class": "project"})
	inner := p.user.group(obj{"name": "inner", "group_class": "project", "owner_uuid": outer})
	coll := str(p.user.collection(obj{"name": "c", "owner_uuid": inner}, "f", "x"), "uuid")
	r, container := p.submit(obj{"owner_uuid": inner})
	priority := fmt.Sprint(p.container(container)["priority"])
	paths := []string{"groups/" + outer, "groups/" + inner, "collections/" + coll, "container_requests/" + str(r, "uuid")}
	check := func(status int) {
		t.Helper()
		for _, who := range []*client{p.user, p.root} {
			for _, path := range paths {
				who.want(status, "GET", path, nil)
				who.must("GET", path+"?include_trash=true", nil)
			}
		}
		want := map[int]string{200: priority, 404: "0"}[status]
		if got := fmt.Sprint(p.container(container)["priority"]); got != want {
			t.Errorf("priority %s, want %s", got, want)
		}
	}
	check(200)
	p.user.must("POST", "groups/"+outer+"/trash", nil)
	check(404)
	p.user.want(404, "GET", "containers/"+container, nil)
	p.user.want(422, "POST", "collections", obj{"collection": obj{"owner_uuid": inner}})
	p.dispatcher.want(422, "POST", "containers/"+container+"/lock", nil)
	p.user.must("POST", "groups/"+outer+"/untrash", nil)
	check(200)
	p.user.must("PUT", "groups/"+outer, obj{"group": obj{"is_trashed": true}})
	check(404)
	p.user.must("POST", "groups/"+outer+"/untrash", nil)
	check(200)
	// A frozen project takes nothing new.
	p.user.must("PUT", "groups/"+inner, obj{"group": obj{"frozen_by_uuid": p.me(p.user)}})
	p.user.want(403, "POST", "collections", obj{"collection": obj{"owner_uuid": inner}})
}

// After its time in the trash a project is deleted with all that is in it, by the
// sweep, which also begins the time of what is due.
func TestSweep(t *testing.T) {
	dir := t.TempDir()
	c := start(t, Options{Dir: dir, NoSync: true})
	user := clientOf(t, c, c.UserToken())
	user.image("busybox:latest")
	outer := user.group(obj{"name": "outer", "group_class": "project"})
	inner := user.group(obj{"name": "inner", "group_class": "project", "owner_uuid": outer})
	due := user.group(obj{"name": "due", "group_class": "project"})
	in := str(user.collection(obj{"name": "c", "owner_uuid": inner}), "uuid")
	r := user.must("POST", "container_requests", request(obj{"owner_uuid": inner}))
	dueRequest := user.must("POST", "container_requests", request(obj{"owner_uuid": due}))
	old := str(user.collection(obj{"name": "old"}), "uuid")
	kept := str(user.collection(obj{"name": "kept"}), "uuid")
	user.must("POST", "groups/"+outer+"/trash", nil)
	user.must("DELETE", "collections/"+old, nil)
	user.must("DELETE", "collections/"+kept, nil)
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	// Two weeks later.
	db, err := store.Open(filepath.Join(dir, "api.sqlite"), store.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	past := time.Now().Add(-time.Minute)
	err = db.Update(t.Context(), func(tx *store.Tx) error {
		for _, uuid := range []string{outer, old} {
			for _, table := range []string{"groups", "collections"} {
				if err := tx.Exec("UPDATE "+table+" SET delete_at = ? WHERE uuid = ?", past, uuid); err != nil {
					return err
				}
			}
		}
		return tx.Exec("UPDATE groups SET trash_at = ?, delete_at = ? WHERE uuid = ?", past, past.Add(time.Hour), due)
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	c = start(t, Options{Dir: dir, NoSync: true})
	user = clientOf(t, c, c.UserToken())
	root := user.as(c.SystemRootToken())
	for _, path := range []string{"groups/" + outer, "groups/" + inner, "collections/" + in, "collections/" + old, "container_requests/" + str(r, "uuid")} {
		eventually(t, path+" to be gone", func() bool { return root.do("GET", path+"?include_trash=true", nil).status == 404 })
	}
	root.must("GET", "collections/"+kept+"?include_trash=true", nil)
	for _, container := range []string{str(r, "container_uuid"), str(dueRequest, "container_uuid")} {
		if got := root.must("GET", "containers/"+container, nil)["priority"].(json.Number); got != "0" {
			t.Errorf("priority of %s is %v", container, got)
		}
	}
}

// eventually waits until cond is true.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	watchdog := time.NewTimer(2 * time.Minute)
	defer watchdog.Stop()
	for !cond() {
		select {
		case <-ticker.C:
		case <-watchdog.C:
			t.Fatalf("waited in vain for %s", what)
		}
	}
}
