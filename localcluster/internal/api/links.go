package api

import (
	"encoding/json"
	"strings"

	"crunch-oci/localcluster/internal/store"
)

// kinds maps the infix of a UUID to the kind of record.
var kinds = map[string]string{
	"4zz18": "arvados#collection", "dz642": "arvados#container", "xvhdp": "arvados#containerRequest", "tpzed": "arvados#user",
	"j7d0g": "arvados#group", "o0j2j": "arvados#link", "57u5n": "arvados#log", "gj3su": "arvados#apiClientAuthorization",
}

// kindOf is the kind of record that a UUID is of, nil if that is unknown.
func kindOf(uuid string) any {
	if len(uuid) == 27 {
		if k, ok := kinds[uuid[6:11]]; ok {
			return k
		}
	}
	return nil
}

func linkResource() *resource {
	res := &resource{
		name: "links", singular: "link", kind: "arvados#link", model: "Link", infix: "o0j2j", table: store.Links, front: true,
		blank:   []string{"name", "owner_uuid", "modified_by_user_uuid", "head_uuid", "tail_uuid"},
		notNull: map[string]any{"properties": json.RawMessage("{}")},
	}
	end := func(attr string) computed {
		return computed{[]string{attr}, func(_ *call, r store.Record) (any, error) {
			if k := kindOf(r.Str(attr)); k != nil {
				return k, nil
			}
			return "", nil
		}}
	}
	res.computed = map[string]computed{"head_kind": end("head_uuid"), "tail_kind": end("tail_uuid")}
	check := func(c *call, rec store.Record) error {
		switch rec.Str("link_class") {
		case "":
			return invalid("Link class can't be blank")
		case permissionClass:
			return c.checkPermission(rec)
		}
		return nil
	}
	res.endpoints = map[string]endpoint{
		"GET":        {do: (*call).list},
		"GET {uuid}": {do: (*call).get},
		"POST": {do: func(c *call, _ string) (any, error) {
			return c.create(func(rec, _ store.Record) error { return check(c, rec) })
		}, write: true},
		"PUT {uuid}": {do: func(c *call, uuid string) (any, error) {
			return c.update(uuid, func(rec, changed store.Record) error {
				for _, n := range []string{"link_class", "head_uuid", "tail_uuid", "owner_uuid"} {
					if _, ok := changed[n]; ok && (rec.Str("link_class") == permissionClass || changed["link_class"] == permissionClass) {
						return denied("only the name of a permission link can be changed")
					}
				}
				next := rec.Clone()
				for k, v := range changed {
					next[k] = v
				}
				return check(c, next)
			})
		}, write: true},
		"DELETE {uuid}": {do: (*call).destroy, write: true},
	}
	return res
}

// permissionClass is the class of links that share things.
const permissionClass = "permission"

// checkPermission refuses permission links that mean nothing here, or that the
// caller has no right to make. They belong to the system.
func (c *call) checkPermission(rec store.Record) error {
	rec["owner_uuid"] = c.s.systemUUID("tpzed")
	if levels[rec.Str("name")] == canNothing {
		return invalid("Name is invalid, must be one of can_read, can_write, can_manage")
	}
	head, tail := rec.Str("head_uuid"), rec.Str("tail_uuid")
	ok, err := c.isAny(tail, "users", "groups WHERE group_class = 'role' AND")
	if err != nil {
		return err
	}
	if !ok && tail != c.s.allUsers() {
		return invalid("Tail uuid must be a user or role: %s", inspect(tail))
	}
	if ok, err = c.isAny(head, "groups", "collections", "container_requests", "users"); err != nil {
		return err
	}
	if !ok {
		return invalid("Head uuid %s does not exist", inspect(head))
	}
	if ok, err = c.mayShare(head); err == nil && !ok {
		err = denied("")
	}
	return err
}

// isAny tells whether a record of one of these tables, or of what a table and a
// condition select, exists.
func (c *call) isAny(uuid string, from ...string) (bool, error) {
	for _, t := range from {
		if !strings.Contains(t, "WHERE") {
			t += " WHERE"
		}
		n, err := c.tx.Int("SELECT count(*) FROM "+t+" uuid = ?", uuid)
		if err != nil || n > 0 {
			return n > 0, err
		}
	}
	return false, nil
}

// permit makes a permission link on behalf of the server.
func (c *call) permit(tail, name, head string) error {
	rec := c.fresh("o0j2j", c.s.systemUUID("tpzed"))
	for k, v := range map[string]any{"link_class": permissionClass, "name": name, "head_uuid": head, "tail_uuid": tail, "properties": json.RawMessage("{}")} {
		rec[k] = v
	}
	return c.tx.Insert(store.Links, rec)
}
