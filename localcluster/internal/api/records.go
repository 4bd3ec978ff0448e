package api

import (
	"bytes"
	"errors"
	"net/http"
	"slices"
	"strings"

	"crunch-oci/localcluster/internal/query"
	"crunch-oci/localcluster/internal/store"
)

// What every kind of record has in common: get, list, create, update, delete.

// find reads a record that the caller may see. Trashed ones are not there
// unless asked for.
func (c *call) find(res *resource, uuid string, trashed bool) (store.Record, error) {
	where := append(c.readable(res, trashed), store.Cond{SQL: "uuid = ?", Args: []any{uuid}})
	rs, err := c.tx.Select(res.table, store.Query{Columns: res.table.Columns(true), Where: where, Limit: 1})
	if err != nil {
		return nil, err
	}
	if len(rs) == 0 {
		return nil, errPathNotFound()
	}
	return rs[0], nil
}

func (c *call) get(uuid string) (any, error) {
	sel, err := c.selection()
	if err != nil {
		return nil, err
	}
	trashed, err := c.params.boolean("include_trash")
	if err != nil {
		return nil, err
	}
	rec, err := c.find(c.res, uuid, trashed)
	if err != nil {
		return nil, err
	}
	return c.render(rec, sel)
}

// pageText is about how much text one page of a list holds; clients ask on
// until a page is empty.
const pageText = 32 << 20

// page reads which part of a list is asked for, and whether the number of all
// items is.
func (c *call) page() (limit, offset int64, exact bool, err error) {
	if limit, err = c.number("limit", 100); err != nil {
		return 0, 0, false, err
	}
	if offset, err = c.number("offset", 0); err != nil {
		return 0, 0, false, err
	}
	count := c.params.values["count"].word()
	if c.params.values["count"].unset() {
		count = "exact"
	}
	if count != "exact" && count != "none" {
		return 0, 0, false, raised("ArgumentError", "count parameter must be 'exact' or 'none', not %q", count)
	}
	return min(limit, maxItemsPerResponse), offset, count == "exact", nil
}

// rawOrder is the order parameter, nil if it was not given.
func (c *call) rawOrder() []byte {
	if v := c.params.values["order"]; !v.unset() {
		return v.raw()
	}
	return nil
}

func (c *call) list(string) (any, error) {
	sel, err := c.selection()
	if err != nil {
		return nil, err
	}
	limit, offset, exact, err := c.page()
	if err != nil {
		return nil, err
	}
	q, err := c.listQuery(sel)
	if err != nil {
		return nil, err
	}
	q.Limit, q.Offset, q.MaxText = limit, offset, pageText
	items := []map[string]any{}
	if limit > 0 {
		if items, err = c.items(q, sel); err != nil {
			return nil, err
		}
	}
	out := map[string]any{"kind": c.res.kind + "List", "offset": offset, "limit": limit, "items": items}
	if !c.res.front {
		out["etag"], out["self_link"] = "", ""
	}
	if c.res.name == "groups" {
		out["included"] = []any{}
	}
	if exact {
		n, err := c.tx.Count(c.res.table, q)
		if err != nil {
			return nil, err
		}
		out["items_available"] = n
	}
	return out, nil
}

// items are the records that q finds, as a list shows them.
func (c *call) items(q store.Query, sel []string) ([]map[string]any, error) {
	rs, err := c.tx.Select(c.res.table, q)
	if err != nil {
		return nil, err
	}
	items := make([]map[string]any, len(rs))
	for i, r := range rs {
		if items[i], err = c.render(r, sel); err != nil {
			return nil, err
		}
		items[i]["kind"] = c.res.kind
	}
	return items, nil
}

// listQuery reads filters, order, distinct and include_trash.
func (c *call) listQuery(sel []string) (store.Query, error) {
	trashed, err := c.params.boolean("include_trash")
	if err != nil {
		return store.Query{}, err
	}
	distinct, err := c.params.boolean("distinct")
	if err != nil {
		return store.Query{}, err
	}
	filters := c.params.values["filters"]
	var conds []store.Cond
	if !filters.unset() {
		if conds, err = query.Filters(c.res.table, filters.raw()); errors.Is(err, query.ErrSyntax) {
			// The text after the first ": " is the decoder's own.
			_, text, _ := bytes.Cut([]byte(err.Error()), []byte(": "))
			return store.Query{}, plainError(http.StatusBadRequest, "%s", text)
		} else if err != nil {
			return store.Query{}, raised("ArgumentError", "%s", capital(err))
		}
	}
	if where := c.params.values["where"]; !where.unset() {
		more, err := query.Where(c.res.table, where.raw())
		if err != nil {
			return store.Query{}, raised("ArgumentError", "%s", capital(err))
		}
		conds = append(conds, more...)
	}
	order, err := query.Order(c.res.table, c.rawOrder())
	if err != nil {
		return store.Query{}, raised("ArgumentError", "%s", capital(err))
	}
	q := store.Query{Where: append(c.readable(c.res, trashed), conds...), OrderBy: order, Distinct: distinct}
	if sel != nil {
		if q.Columns = c.columns(sel); len(q.Columns) == 0 {
			q.Columns = []string{"uuid"}
		}
	} else {
		q.Columns = slices.DeleteFunc(c.res.table.Columns(false), func(n string) bool { return slices.Contains(c.res.onlySelected, n) })
	}
	if distinct && sel != nil {
		// Only what is selected can be sorted by, and it has to be, for pages to
		// follow each other.
		if q.OrderBy, err = query.DistinctOrder(c.res.table, c.rawOrder(), q.Columns); err != nil {
			return store.Query{}, raised("ArgumentError", "%s", capital(err))
		}
	}
	return q, nil
}

// capital is an error's text in the way the real server begins them.
func capital(err error) string {
	s := err.Error()
	return strings.ToUpper(s[:1]) + s[1:]
}

// create stores a record after check, which completes it.
func (c *call) create(check func(rec, given store.Record) error) (any, error) {
	sel, err := c.selection()
	if err != nil {
		return nil, err
	}
	given, err := c.attributes()
	if err != nil {
		return nil, err
	}
	if u, ok := given["uuid"]; ok && u != nil && u != "" {
		return nil, invalid("Uuid cannot be chosen by the client")
	}
	rec, err := c.newRecord(given)
	if err != nil {
		return nil, err
	}
	if err := check(rec, given); err != nil {
		return nil, err
	}
	if err := c.insert(rec); err != nil {
		return nil, err
	}
	return c.render(rec, sel)
}

// newRecord is a record with the given attributes, owned by whom they say.
func (c *call) newRecord(given store.Record) (store.Record, error) {
	owner := given.Str("owner_uuid")
	if owner == "" {
		owner = c.caller.userUUID()
	}
	if err := c.checkOwner(owner); err != nil {
		return nil, err
	}
	rec := c.fresh(c.res.infix, owner)
	for _, a := range c.res.table.Attrs {
		if _, ok := rec[a.Name]; ok {
			continue
		}
		rec[a.Name] = c.res.notNull[a.Name]
		if v := given[a.Name]; v != nil {
			rec[a.Name] = v
		}
	}
	return rec, nil
}

// insert stores a new record. A name that is taken is refused, or made unique
// when the client asked for that.
func (c *call) insert(rec store.Record) error {
	unique, err := c.params.boolean("ensure_unique_name")
	if err != nil {
		return err
	}
	return c.insertAs(c.res, rec, unique)
}

func (c *call) insertAs(res *resource, rec store.Record, unique bool) error {
	err := c.tx.Insert(res.table, rec)
	if !errors.Is(err, store.ErrDuplicate) {
		return err
	}
	if unique && rec.Str("name") != "" {
		rec["name"] = uniqueName(rec.Str("name"), rec.Str("uuid"))
		err = c.tx.Insert(res.table, rec)
	}
	if errors.Is(err, store.ErrDuplicate) {
		return nameTaken(res, rec)
	}
	return err
}

// uniqueName is the name with the last part of the UUID.
func uniqueName(name, uuid string) string {
	if r := []rune(name); len(r) > 237 {
		name = string(r[:237])
	}
	return name + " (" + uuid[len(uuid)-15:] + ")"
}

func nameTaken(res *resource, rec store.Record) error {
	if res.table == store.Users {
		return raised("ActiveRecord::RecordNotUnique", "duplicate key value violates unique constraint \"index_users_on_username\"; Key (username)=(%s) already exists.",
			rec.Str("username"))
	}
	return raised("ActiveRecord::RecordNotUnique", "duplicate key value violates unique constraint \"index_%s_on_owner_uuid_and_name\"; Key (owner_uuid, name)=(%s, %s) already exists.",
		res.name, rec.Str("owner_uuid"), rec.Str("name"))
}

// update changes a record that the caller may write. check may add to the
// changes.
func (c *call) update(uuid string, check func(rec, changed store.Record) error) (any, error) {
	sel, err := c.selection()
	if err != nil {
		return nil, err
	}
	rec, err := c.find(c.res, uuid, false)
	if err != nil {
		return nil, err
	}
	given, err := c.attributes()
	if err != nil {
		return nil, err
	}
	changed := changes(rec, given)
	if _, ok := changed["uuid"]; ok {
		return nil, invalid("Uuid cannot be changed")
	}
	if err := c.mayWrite(rec); err != nil {
		return nil, err
	}
	if owner, ok := changed["owner_uuid"]; ok {
		o, _ := owner.(string)
		if err := c.checkOwner(o); err != nil {
			return nil, err
		}
	}
	if err := check(rec, changed); err != nil {
		return nil, err
	}
	if err := c.save(c.res.table, rec, changed); errors.Is(err, store.ErrDuplicate) {
		return nil, nameTaken(c.res, rec)
	} else if err != nil {
		return nil, err
	}
	return c.render(rec, sel)
}

// destroy removes a record that the caller may write.
func (c *call) destroy(uuid string) (any, error) {
	rec, err := c.find(c.res, uuid, true)
	if err != nil {
		return nil, err
	}
	if err := c.mayWrite(rec); err != nil {
		return nil, err
	}
	if err := c.tx.Delete(c.res.table, uuid); err != nil {
		return nil, err
	}
	return c.render(rec, nil)
}
