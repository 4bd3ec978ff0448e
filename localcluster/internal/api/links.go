package api

import (
	"encoding/json"

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
		case "permission":
			// Sharing between users is not there yet; a link that does
			// nothing would pretend that it is.
			return invalid("Link class permission is not supported by this cluster")
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
