package api

import (
	"errors"
	"net/http"
	"slices"

	"crunch-oci/localcluster/internal/store"
)

// Who may read and write what. An admin may do everything. Others have their
// own records and those in projects that belong to them, at any depth, and what
// permission links give them: can_read, can_write or can_manage, from a user or
// a role to a project, a role, or a single record. What a link gives reaches into
// projects; over several links the weakest counts. A container is readable to
// whom one of its requests is.

// level is how much somebody may do with a record.
type level int64

const (
	canNothing level = iota
	canRead
	canWrite
	canManage
)

// levels are the names of permission links.
var levels = map[string]level{"can_read": canRead, "can_write": canWrite, "can_manage": canManage}

// reachSQL selects what the user in its first two parameters has a permission
// for, by links or as an owner, with the level: users, projects, roles, and
// records that are the head of a link. The third parameter is the group of all
// users.
const reachSQL = `WITH RECURSIVE reach(uuid, level) AS (
	VALUES (?, 3), (?, 3)
	UNION SELECT g.uuid, reach.level FROM reach CROSS JOIN groups g ON g.owner_uuid = reach.uuid
		WHERE g.group_class = 'project'
	UNION SELECT l.head_uuid, min(reach.level, CASE l.name WHEN 'can_manage' THEN 3 WHEN 'can_write' THEN 2 ELSE 1 END)
		FROM reach CROSS JOIN links l ON l.tail_uuid = reach.uuid
		WHERE l.link_class = 'permission')
	SELECT uuid FROM reach WHERE level >= ?`

// reachArgs are the parameters of reachSQL for the caller.
func (c *call) reachArgs(at level) []any {
	return []any{c.caller.userUUID(), c.s.allUsers(), int64(at)}
}

// allUsers is the group that every user is in.
func (s *Server) allUsers() string { return s.cfg.ClusterID + "-j7d0g-fffffffffffffff" }

// belowSQL selects projects in the one in its parameter, at any depth, and itself.
const belowSQL = `WITH RECURSIVE below(uuid) AS (VALUES (?) UNION
	SELECT g.uuid FROM below CROSS JOIN groups g ON g.owner_uuid = below.uuid WHERE g.group_class = 'project')
	SELECT uuid FROM below`

// goneSQL selects the groups in the trash at the time in its parameter, and all
// projects in them: what they own is in the trash with them.
const goneSQL = `WITH RECURSIVE gone(uuid) AS (SELECT uuid FROM groups WHERE trash_at <= ?
	UNION SELECT g.uuid FROM gone CROSS JOIN groups g ON g.owner_uuid = gone.uuid)
	SELECT uuid FROM gone`

// notGone holds for records that are in no trashed project.
func (c *call) notGone() store.Cond {
	return store.Cond{SQL: "owner_uuid NOT IN (" + goneSQL + ")", Args: []any{c.now}}
}

// readable returns the conditions on records that the caller may see.
func (c *call) readable(res *resource, trashed bool) []store.Cond {
	var out []store.Cond
	if res.trashable && !trashed {
		out = append(out, store.Cond{SQL: "trash_at IS NULL OR trash_at > ?", Args: []any{c.now}})
	}
	if inProjects := res.trashable || res.table == store.ContainerRequests; inProjects && !trashed {
		out = append(out, c.notGone())
	}
	if c.caller.admin() {
		return out
	}
	me := c.caller.userUUID()
	reach := c.reachArgs(canRead)
	twice := append(slices.Clone(reach), reach...)
	const reached = "owner_uuid IN (" + reachSQL + ") OR uuid IN (" + reachSQL + ")"
	switch res.table {
	case store.Users: // active users see each other
		return append(out, store.Cond{SQL: "is_active OR uuid = ?", Args: []any{me}})
	case store.Tokens:
		return append(out, store.Cond{SQL: "owner_uuid = ?", Args: []any{me}})
	case store.Containers:
		return append(out, store.Cond{
			// With the index of the requests by container: there may be very many.
			SQL:  "EXISTS (SELECT 1 FROM container_requests WHERE container_uuid = containers.uuid AND (" + reached + ") AND " + c.notGone().SQL + ")",
			Args: append(twice, c.notGone().Args...)})
	case store.Links:
		// Permission links are the system's; those see them who have the
		// permission, or give it.
		manage := c.reachArgs(canManage)
		return append(out, store.Cond{
			SQL: "owner_uuid IN (" + reachSQL + ") OR link_class = 'permission' AND (tail_uuid = ? OR head_uuid IN (" + reachSQL +
				") OR EXISTS (SELECT 1 FROM collections WHERE collections.uuid = head_uuid AND collections.owner_uuid IN (" + reachSQL +
				")) OR EXISTS (SELECT 1 FROM container_requests WHERE container_requests.uuid = head_uuid AND container_requests.owner_uuid IN (" + reachSQL + ")))",
			Args: slices.Concat(reach, []any{me}, manage, manage, manage)})
	}
	return append(out, store.Cond{SQL: reached, Args: twice})
}

// may tells whether the caller has a permission for one of these users, groups
// or records.
func (c *call) may(at level, uuids ...string) (bool, error) {
	if c.caller.admin() || slices.Contains(uuids, c.caller.userUUID()) {
		return true, nil
	}
	for _, uuid := range uuids {
		n, err := c.tx.Int("SELECT count(*) FROM ("+reachSQL+") WHERE uuid = ?", append(c.reachArgs(at), uuid)...)
		if err != nil || n > 0 {
			return n > 0, err
		}
	}
	return false, nil
}

// mayWrite refuses the change of a record that the caller can only read.
func (c *call) mayWrite(rec store.Record) error {
	ok, err := c.may(canWrite, rec.Str("owner_uuid"), rec.Str("uuid"))
	if rec.Str("link_class") == permissionClass {
		ok, err = c.mayShare(rec.Str("head_uuid"))
	}
	if err == nil && !ok {
		err = denied("")
	}
	return err
}

// mayShare tells whether the caller may give others a permission for a record:
// whoever manages it or its owner.
func (c *call) mayShare(head string) (bool, error) {
	owner := ""
	for _, t := range []*store.Table{store.Groups, store.Collections, store.ContainerRequests} {
		rec, err := c.tx.Get(t, head)
		if err == nil {
			owner = rec.Str("owner_uuid")
		} else if !errors.Is(err, store.ErrNotFound) {
			return false, err
		}
	}
	return c.may(canManage, head, owner)
}

// checkOwner refuses an owner that does not exist or that the caller must not
// write to.
func (c *call) checkOwner(owner string) error {
	if owner == c.caller.userUUID() {
		return nil
	}
	exists, frozen := false, false
	for _, t := range []*store.Table{store.Users, store.Groups} {
		rec, err := c.tx.Get(t, owner)
		if err == nil && (t == store.Users || rec.Str("group_class") == projectClass) {
			exists, frozen = true, rec.Str("frozen_by_uuid") != ""
		} else if err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
	}
	if gone, err := c.tx.Int("SELECT count(*) FROM ("+goneSQL+") WHERE uuid = ?", c.now, owner); err != nil {
		return err
	} else if gone > 0 {
		exists = false
	}
	if !exists {
		return backError(http.StatusUnprocessableEntity, "Owner uuid must refer to an existing user or project: %s", inspect(owner))
	}
	ok, err := c.may(canWrite, owner)
	if err == nil && (!ok || frozen) {
		err = denied("")
	}
	return err
}
