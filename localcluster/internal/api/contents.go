package api

import (
	"encoding/json"
	"slices"
	"strings"

	"crunch-oci/localcluster/internal/query"
	"crunch-oci/localcluster/internal/store"
)

// What is in projects, as one list of records of several kinds (section 7 lists
// the methods, for arv-mount).

// contentKinds are the kinds of records in a project, in the order in which
// they are listed.
var contentKinds = []string{"groups", "container_requests", "collections"}

// contents lists what is in a project, or in a user's home. Without a UUID, it
// is everything that the caller can read. Order and selection are those of each
// kind.
func (c *call) contents(uuid string) (any, error) {
	if given := c.params.values["uuid"]; uuid == "" && !given.unset() {
		uuid = given.word()
		if err := c.checkUUID(uuid); err != nil {
			return nil, err
		}
	}
	recursive, err := c.params.boolean("recursive")
	if err != nil {
		return nil, err
	}
	trashed, err := c.params.boolean("include_trash")
	if err != nil {
		return nil, err
	}
	where, virtual, err := c.contentOwner(uuid, recursive, trashed)
	if err != nil {
		return nil, err
	}
	limit, offset, exact, err := c.page()
	if err != nil {
		return nil, err
	}
	names, err := c.contentSelection()
	if err != nil {
		return nil, err
	}
	items := []map[string]any{}
	skip, available, cut := offset, int64(0), false
	for _, kind := range contentKinds {
		part := *c
		part.res = c.s.resources[kind]
		conds, _, err := part.contentFilters(c.filters())
		if err != nil {
			return nil, err
		}
		if virtual != nil {
			more, n, err := part.contentFilters(virtual)
			if err != nil {
				return nil, err
			}
			if n == 0 {
				continue // it is about other kinds
			}
			conds = append(conds, more...)
		}
		order, err := query.Order(part.res.table, c.rawOrder())
		if err != nil {
			return nil, raised("ArgumentError", "%s", capital(err))
		}
		q := store.Query{
			Columns: slices.DeleteFunc(part.res.table.Columns(false), func(n string) bool { return slices.Contains(part.res.onlySelected, n) }),
			Where:   slices.Concat(c.readable(part.res, trashed), where, conds), OrderBy: order,
			Offset: skip, Limit: limit - int64(len(items)), MaxText: pageText,
		}
		sel := part.res.selectable(names)
		if sel != nil {
			q.Columns = part.columns(sel)
		}
		if kind == "groups" { // roles are in nobody's project
			q.Where = append(q.Where, store.Cond{SQL: "group_class IN ('project', 'filter')"})
		}
		n, err := c.tx.Count(part.res.table, q)
		if err != nil {
			return nil, err
		}
		available += n
		if skip >= n {
			skip -= n
			continue
		}
		skip = 0
		if q.Limit == 0 || cut {
			continue
		}
		found, err := part.items(q, sel)
		if err != nil {
			return nil, err
		}
		items = append(items, found...)
		// The next page goes on where this one ended.
		cut = int64(len(found)) < min(q.Limit, n-q.Offset)
	}
	out := map[string]any{"kind": "arvados#objectList", "offset": offset, "limit": limit, "items": items, "included": []any{}}
	if exact {
		out["items_available"] = available
	}
	return out, nil
}

// contentOwner is what the records below uuid ("": all that the caller can read)
// have in common, and, of a filter group, its filters.
func (c *call) contentOwner(uuid string, recursive, trashed bool) (where []store.Cond, virtual json.RawMessage, err error) {
	if uuid == "" {
		return nil, nil, nil
	}
	owner := store.Record{}
	if uuid != c.caller.userUUID() {
		table := c.s.resources["groups"]
		if strings.HasPrefix(uuid[5:], "-tpzed-") {
			table = c.s.resources["users"]
		}
		if owner, err = c.find(table, uuid, trashed); err != nil {
			return nil, nil, err
		}
	}
	switch {
	case owner.Str("group_class") == filterClass:
		virtual, err = groupFilters(owner)
		return nil, virtual, err
	case recursive:
		return []store.Cond{{SQL: "owner_uuid IN (" + belowSQL + ")", Args: []any{uuid}}}, nil, nil
	default:
		return []store.Cond{{SQL: "owner_uuid = ?", Args: []any{uuid}}}, nil, nil
	}
}

// contentSelection reads the select parameter of contents, nil for everything. A
// name counts that one of the kinds has.
func (c *call) contentSelection() ([]string, error) {
	names, err := c.names("select")
	if err != nil {
		return nil, err
	}
	for _, n := range names {
		known := slices.Contains([]string{"uuid", "kind", "etag"}, n)
		for _, kind := range contentKinds {
			known = known || len(c.s.resources[kind].selectable([]string{n})) > 1
		}
		if !known {
			return nil, raised("ArgumentError", "Invalid attribute '%s' in select", n)
		}
	}
	return names, nil
}

// selectable are the names that records of this kind have, at least uuid; nil for
// nil.
func (res *resource) selectable(names []string) []string {
	if names == nil {
		return nil
	}
	out := []string{"uuid"}
	for _, n := range names {
		a := res.table.Attr(n)
		if _, ok := res.computed[n]; (ok || a != nil && !a.Secret) && !slices.Contains(out, n) {
			out = append(out, n)
		}
	}
	return out
}

// filters is the filters parameter, nil if it was not given.
func (c *call) filters() json.RawMessage {
	v := c.params.values["filters"]
	if v.unset() {
		return nil
	}
	return v.raw()
}

// contentFilters are filters as far as they are about this kind, and how many
// that is: an attribute may be preceded by the kind's name.
func (c *call) contentFilters(raw json.RawMessage) (conds []store.Cond, n int, err error) {
	if raw == nil {
		return nil, 0, nil
	}
	var list []json.RawMessage
	if !json.Valid(raw) {
		return nil, 0, plainError(400, "filters: %v", json.Unmarshal(raw, &list))
	}
	if json.Unmarshal(raw, &list) != nil {
		return nil, 0, raised("ArgumentError", "Filters must be an array of [attribute, operator, operand]")
	}
	mine := []json.RawMessage{}
	for _, raw := range list {
		var f []json.RawMessage
		var attr string
		if json.Unmarshal(raw, &f) == nil && len(f) == 3 && json.Unmarshal(f[0], &attr) == nil {
			if kind, rest, ok := strings.Cut(attr, "."); ok && slices.Contains(contentKinds, kind) {
				if kind != c.res.name {
					continue
				}
				f[0] = mustJSON(rest)
				raw = mustJSON(f)
			}
		}
		mine = append(mine, raw)
	}
	if conds, err = query.Filters(c.res.table, mustJSON(mine)); err != nil {
		return nil, 0, raised("ArgumentError", "%s", capital(err))
	}
	return conds, len(mine), nil
}

// shared lists the projects that others share with the caller: those that do not
// lie in a project, or a home, that the caller sees as well.
func (c *call) shared(string) (any, error) {
	sel, err := c.selection()
	if err != nil {
		return nil, err
	}
	limit, offset, exact, err := c.page()
	if err != nil {
		return nil, err
	}
	conds, _, err := c.contentFilters(c.filters())
	if err != nil {
		return nil, err
	}
	order, err := query.Order(c.res.table, c.rawOrder())
	if err != nil {
		return nil, raised("ArgumentError", "%s", capital(err))
	}
	reach := c.reachArgs(canRead)
	q := store.Query{
		Columns: c.res.table.Columns(false), OrderBy: order, Limit: limit, Offset: offset, MaxText: pageText,
		Where: slices.Concat(c.readable(c.res, false), conds, []store.Cond{
			{SQL: "group_class = 'project' AND owner_uuid <> ?", Args: []any{c.caller.userUUID()}},
			{SQL: "owner_uuid NOT IN (SELECT uuid FROM groups WHERE group_class = 'project' AND uuid IN (" + reachSQL + "))", Args: reach},
		}),
	}
	items := []map[string]any{}
	if limit > 0 {
		rs, err := c.tx.Select(c.res.table, q)
		if err != nil {
			return nil, err
		}
		for _, r := range rs {
			item, err := c.render(r, sel)
			if err != nil {
				return nil, err
			}
			items = append(items, item)
		}
	}
	out := map[string]any{"kind": "arvados#groupList", "offset": offset, "limit": limit, "items": items, "included": []any{}}
	if exact {
		n, err := c.tx.Count(c.res.table, q)
		if err != nil {
			return nil, err
		}
		out["items_available"] = n
	}
	return out, nil
}
