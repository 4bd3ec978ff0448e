package api

import (
	"encoding/json"

	"crunch-oci/localcluster/internal/store"
)

// The classes of groups: what holds records, what holds users, and what shows
// the records that match its filters, wherever they are.
const (
	projectClass = "project"
	roleClass    = "role"
	filterClass  = "filter"
)

func groupResource() *resource {
	res := &resource{
		name: "groups", singular: "group", kind: "arvados#group", model: "Group", infix: "j7d0g", table: store.Groups, front: true, trashable: true,
		blank:   []string{"name", "owner_uuid", "modified_by_user_uuid"},
		notNull: map[string]any{"properties": json.RawMessage("{}"), "is_trashed": false},
	}
	may := func(at level) computed {
		return computed{[]string{"owner_uuid", "uuid"}, func(c *call, r store.Record) (any, error) {
			return c.may(at, r.Str("owner_uuid"), r.Str("uuid"))
		}}
	}
	res.computed = map[string]computed{
		"can_write":  may(canWrite),
		"can_manage": may(canManage),
		"writable_by": {[]string{"owner_uuid"}, func(c *call, r store.Record) (any, error) {
			return []string{r.Str("owner_uuid"), c.caller.userUUID()}, nil
		}},
		"is_trashed": {[]string{"trash_at"}, func(c *call, r store.Record) (any, error) { return trashed(r, c), nil }},
	}
	check := func(c *call, rec store.Record) error {
		switch {
		case rec.Str("name") == "":
			return invalid("Name can't be blank")
		case rec.Str("group_class") == "":
			return invalid("Group class can't be blank")
		case rec.Str("group_class") == roleClass: // roles belong to nobody
			rec["owner_uuid"] = c.s.systemUUID("tpzed")
		case rec.Str("group_class") == filterClass:
			return c.checkGroupFilters(rec)
		case rec.Str("group_class") != projectClass:
			return invalid("Group class must be 'project', 'role' or 'filter': %s", inspect(rec["group_class"]))
		}
		return nil
	}
	res.endpoints = map[string]endpoint{
		"GET":                 {do: (*call).list},
		"GET {uuid}":          {do: (*call).get},
		"GET contents":        {do: func(c *call, _ string) (any, error) { return c.contents("") }},
		"GET {uuid}/contents": {do: (*call).contents},
		"GET shared":          {do: (*call).shared},
		"POST": {do: func(c *call, _ string) (any, error) {
			var made store.Record
			out, err := c.create(func(rec, given store.Record) error {
				made = rec
				rec["trash_at"], rec["delete_at"], rec["is_trashed"] = nil, nil, false
				trash, err := c.trashChanges(rec, given)
				for k, v := range trash {
					rec[k] = v
				}
				if err != nil {
					return err
				}
				return check(c, rec)
			})
			if err != nil || made.Str("group_class") != roleClass {
				return out, err
			}
			// Who makes a role manages it.
			if err := c.permit(c.caller.userUUID(), "can_manage", made.Str("uuid")); err != nil {
				return nil, err
			}
			sel, err := c.selection()
			if err != nil {
				return nil, err
			}
			return c.render(made, sel)
		}, write: true},
		"PUT {uuid}": {do: func(c *call, uuid string) (any, error) {
			out, err := c.update(uuid, func(rec, changed store.Record) error {
				next := rec.Clone()
				for k, v := range changed {
					next[k] = v
				}
				trash, err := c.trashChanges(rec, changed)
				if err != nil {
					return err
				}
				for _, n := range []string{"trash_at", "delete_at", "is_trashed"} {
					delete(changed, n)
					if v, ok := trash[n]; ok {
						changed[n] = v
					}
				}
				if owner, ok := changed["owner_uuid"]; ok && owner != nil {
					if err := c.notBelow(rec.Str("uuid"), owner.(string)); err != nil {
						return err
					}
				}
				if rec.Str("group_class") != next.Str("group_class") {
					return invalid("Group class cannot be changed")
				}
				return check(c, next)
			})
			if err != nil {
				return nil, err
			}
			return out, c.recomputeBelow(uuid)
		}, write: true},
	}
	for endpointName, trash := range map[string]bool{"DELETE {uuid}": true, "POST {uuid}/trash": true, "POST {uuid}/untrash": false} {
		res.endpoints[endpointName] = endpoint{do: func(c *call, uuid string) (any, error) {
			out, err := c.setTrashed(uuid, trash)
			if err != nil {
				return nil, err
			}
			return out, c.recomputeBelow(uuid)
		}, write: true}
	}
	return res
}

// recomputeBelow recomputes the priorities of the containers that are wanted by
// requests in a project, at any depth: they do not count while it is in the trash.
func (c *call) recomputeBelow(project string) error {
	containers, err := c.tx.Strings(`SELECT DISTINCT container_uuid FROM container_requests
		WHERE state = 'Committed' AND container_uuid IS NOT NULL AND owner_uuid IN (`+belowSQL+")", project)
	if err != nil {
		return err
	}
	for _, uuid := range containers {
		if err := c.recompute(uuid); err != nil {
			return err
		}
	}
	return nil
}

// groupFilters are the filters of a filter group, [] if it has none.
func groupFilters(rec store.Record) (json.RawMessage, error) {
	var p struct {
		Filters json.RawMessage `json:"filters"`
	}
	if err := json.Unmarshal(rec.JSON("properties"), &p); err != nil {
		return nil, err
	}
	if p.Filters == nil || string(p.Filters) == "null" {
		p.Filters = json.RawMessage("[]")
	}
	return p.Filters, nil
}

// checkGroupFilters refuses filters that could never be carried out.
func (c *call) checkGroupFilters(rec store.Record) error {
	filters, err := groupFilters(rec)
	if err != nil {
		return err
	}
	for _, kind := range contentKinds {
		part := *c
		part.res = c.s.resources[kind]
		if _, _, err := part.contentFilters(filters); err != nil {
			return invalid("Properties filters: %v", err)
		}
	}
	return nil
}

// notBelow refuses a project that would come to lie in itself.
func (c *call) notBelow(uuid, owner string) error {
	n, err := c.tx.Int("SELECT count(*) FROM ("+belowSQL+") WHERE uuid = ?", uuid, owner)
	if err == nil && n > 0 {
		err = invalid("Owner uuid would create an ownership cycle")
	}
	return err
}
