package api

import (
	"encoding/json"
	"slices"
	"strings"

	"crunch-oci/localcluster/internal/store"
)

func userResource() *resource {
	res := &resource{
		name: "users", singular: "user", kind: "arvados#user", model: "User", infix: "tpzed", table: store.Users, front: true,
		blank:   []string{"email", "username", "first_name", "last_name", "identity_url", "modified_by_user_uuid"},
		notNull: map[string]any{"is_active": true, "is_admin": false, "prefs": json.RawMessage("{}")},
	}
	constant := func(v any) computed {
		return computed{nil, func(*call, store.Record) (any, error) { return v, nil }}
	}
	res.computed = map[string]computed{
		"full_name": {[]string{"first_name", "last_name"}, func(_ *call, r store.Record) (any, error) {
			return strings.TrimSpace(r.Str("first_name") + " " + r.Str("last_name")), nil
		}},
		"is_invited": constant(true), "can_write": constant(true), "can_manage": constant(true),
		"writable_by": {[]string{"uuid"}, func(c *call, r store.Record) (any, error) {
			return []string{c.s.systemUUID("tpzed"), r.Str("uuid"), c.s.systemUUID("j7d0g")}, nil
		}},
	}
	res.endpoints = map[string]endpoint{
		"GET current": {do: func(c *call, _ string) (any, error) {
			sel, err := c.selection()
			if err != nil {
				return nil, err
			}
			return c.render(c.caller.user, sel)
		}},
		"GET":        {do: (*call).list},
		"GET {uuid}": {do: (*call).get},
		"POST": {do: func(c *call, _ string) (any, error) {
			return c.create(func(rec, _ store.Record) error {
				if !c.caller.admin() {
					return denied("")
				}
				rec["owner_uuid"] = c.s.systemUUID("tpzed")
				return nil
			})
		}, write: true},
		"GET system": {do: func(c *call, _ string) (any, error) {
			sel, err := c.selection()
			if err != nil {
				return nil, err
			}
			rec, err := c.tx.Get(store.Users, c.s.systemUUID("tpzed"))
			if err != nil {
				return nil, err
			}
			return c.render(rec, sel)
		}},
		"PUT {uuid}": {do: (*call).updateUser, write: true},
	}
	return res
}

// own are the attributes that users may change about themselves. The others are
// for administrators.
var own = []string{"first_name", "last_name", "prefs"}

func (c *call) updateUser(uuid string) (any, error) {
	return c.update(uuid, func(rec, changed store.Record) error {
		for _, n := range sortedKeys(changed) {
			switch {
			case n == "owner_uuid":
				return invalid("Owner uuid of a user cannot be changed")
			case c.caller.admin() && uuid == c.s.systemUUID("tpzed") && (n == "is_admin" || n == "is_active"):
				return denied("")
			case !c.caller.admin() && !slices.Contains(own, n):
				return denied("")
			}
		}
		return nil
	})
}
