package api

import (
	"errors"
	"net/http"

	"crunch-oci/localcluster/internal/store"
)

// Who may read and write what. An admin may do everything. Others have their
// own records and those in projects that belong to them, at any depth; a
// container is readable to whom one of its requests is.

// mineSQL selects the UUIDs of owners whose records belong to the user in its
// parameter.
const mineSQL = `WITH RECURSIVE mine(uuid) AS (VALUES (?) UNION
	SELECT g.uuid FROM groups g JOIN mine ON g.owner_uuid = mine.uuid WHERE g.group_class = 'project' AND NOT g.is_trashed)
	SELECT uuid FROM mine`

// readable returns the conditions on records that the caller may see.
func (c *call) readable(res *resource, trashed bool) []store.Cond {
	var out []store.Cond
	if res.trashable && !trashed {
		out = append(out, store.Cond{SQL: "trash_at IS NULL OR trash_at > ?", Args: []any{c.now}})
	}
	if c.caller.admin() {
		return out
	}
	me := c.caller.userUUID()
	switch res.table {
	case store.Users: // active users see each other
		return append(out, store.Cond{SQL: "is_active OR uuid = ?", Args: []any{me}})
	case store.Tokens:
		return append(out, store.Cond{SQL: "owner_uuid = ?", Args: []any{me}})
	case store.Containers:
		return append(out, store.Cond{
			SQL: "uuid IN (SELECT container_uuid FROM container_requests WHERE owner_uuid IN (" + mineSQL + "))", Args: []any{me}})
	}
	return append(out, store.Cond{SQL: "owner_uuid IN (" + mineSQL + ")", Args: []any{me}})
}

// owns tells whether records of that owner are the caller's to write.
func (c *call) owns(owner string) (bool, error) {
	if c.caller.admin() || owner == c.caller.userUUID() {
		return true, nil
	}
	n, err := c.tx.Int("SELECT count(*) FROM ("+mineSQL+") WHERE uuid = ?", c.caller.userUUID(), owner)
	return n > 0, err
}

// mayWrite refuses the change of a record that the caller can only read.
func (c *call) mayWrite(rec store.Record) error {
	ok, err := c.owns(rec.Str("owner_uuid"))
	if err == nil && !ok {
		err = denied("")
	}
	return err
}

// checkOwner refuses an owner that does not exist or that the caller must not
// write to.
func (c *call) checkOwner(owner string) error {
	if owner == c.caller.userUUID() {
		return nil
	}
	exists := false
	for _, t := range []*store.Table{store.Users, store.Groups} {
		rec, err := c.tx.Get(t, owner)
		if err == nil && (t == store.Users || rec.Str("group_class") == "project") {
			exists = true
		} else if err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
	}
	if !exists {
		return backError(http.StatusUnprocessableEntity, "Owner uuid must refer to an existing user or project: %s", inspect(owner))
	}
	ok, err := c.owns(owner)
	if err == nil && !ok {
		err = denied("")
	}
	return err
}
