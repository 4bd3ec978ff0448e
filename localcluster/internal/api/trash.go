package api

import (
	"context"
	"errors"
	"time"

	"crunch-oci/localcluster/internal/store"
)

// endOfTime is the last time that a record can hold.
var endOfTime = time.Date(9999, 12, 31, 23, 59, 59, 999999000, time.UTC)

// later is a time so many seconds later, at most endOfTime.
func later(t time.Time, seconds int64) time.Time {
	if left := endOfTime.Unix() - t.Unix(); seconds >= left {
		return endOfTime
	}
	return time.Unix(t.Unix()+seconds, int64(t.Nanosecond())).UTC()
}

// trashChanges works out trash_at, delete_at and is_trashed from what was and
// what a client gave (arvados-api.md section 12).
func (c *call) trashChanges(rec, given store.Record) (store.Record, error) {
	oldTrash, _ := rec.Time("trash_at")
	oldDelete, _ := rec.Time("delete_at")
	trash, del := oldTrash, oldDelete // zero time: none
	givenTrash, _ := given.Time("trash_at")
	givenDelete, _ := given.Time("delete_at")
	_, hasTrash := given["trash_at"]
	_, hasDelete := given["delete_at"]
	isTrashed, hasIs := given["is_trashed"].(bool)
	switch {
	case hasTrash && !givenTrash.Equal(oldTrash):
		trash = givenTrash
	case hasIs && isTrashed && !trashed(rec, c):
		trash = c.now
	case hasIs && !isTrashed:
		trash, del = time.Time{}, time.Time{}
		hasDelete = hasDelete && !givenDelete.IsZero() && !givenDelete.Equal(oldDelete)
	}
	if hasDelete && !givenDelete.IsZero() {
		// Compared as they were sent, before they are moved.
		if trash.IsZero() || givenDelete.Before(trash) {
			return nil, invalid("Delete at must be set together with trash_at, and not be earlier")
		}
		del = givenDelete
	}
	switch {
	case trash.IsZero():
		del = time.Time{}
	default:
		if trash.Before(c.now) && !trash.Equal(oldTrash) {
			trash = c.now
		}
		if del.IsZero() || !trash.Equal(oldTrash) && (!hasDelete || givenDelete.IsZero()) || hasDelete && givenDelete.IsZero() {
			del = later(trash, int64(defaultTrashLifetime/time.Second))
		}
		if !trash.Equal(oldTrash) || !del.Equal(oldDelete) {
			for _, least := range []time.Time{trash, c.now.Add(c.s.cfg.Signer.TTL).Truncate(time.Microsecond)} {
				if del.Before(least) {
					del = least
				}
			}
		}
	}
	out := store.Record{}
	set := func(name string, t, old time.Time) {
		if !t.Equal(old) {
			if out[name] = any(t); t.IsZero() {
				out[name] = nil
			}
		}
	}
	set("trash_at", trash, oldTrash)
	set("delete_at", del, oldDelete)
	if is := !trash.IsZero() && !trash.After(c.now); is != rec.Bool("is_trashed") {
		out["is_trashed"] = is
	}
	return out, nil
}

// setTrashed carries out DELETE, trash and untrash. Their answers have
// unsigned manifests.
func (c *call) setTrashed(uuid string, trash bool) (any, error) {
	sel, err := c.selection()
	if err != nil {
		return nil, err
	}
	rec, err := c.find(c.res, uuid, true)
	if err != nil {
		return nil, err
	}
	if err := c.mayWrite(rec); err != nil {
		return nil, err
	}
	changed, err := c.trashChanges(rec, store.Record{"is_trashed": trash})
	if err != nil {
		return nil, err
	}
	err = c.save(c.res.table, rec, changed)
	if errors.Is(err, store.ErrDuplicate) {
		unique, perr := c.params.boolean("ensure_unique_name")
		if perr != nil {
			return nil, perr
		}
		if !unique || rec.Str("name") == "" {
			return nil, nameTaken(c.res, rec)
		}
		changed["name"] = uniqueName(rec.Str("name"), uuid)
		err = c.save(c.res.table, rec, changed)
	}
	if err != nil {
		return nil, err
	}
	out, err := c.render(rec, sel)
	if _, ok := out["manifest_text"]; ok && err == nil {
		out["manifest_text"] = rec.Str("manifest_text")
	}
	return out, err
}

// Sweep marks collections and groups whose time in the trash has begun, and
// removes those whose time is over.
func (s *Server) Sweep(ctx context.Context) error {
	at := now()
	due := int64(0)
	err := s.cfg.Store.View(ctx, func(tx *store.Tx) (err error) {
		due, err = tx.Int(`SELECT (SELECT count(*) FROM collections WHERE trash_at IS NOT NULL AND (trash_at <= ?1 AND NOT is_trashed OR delete_at <= ?1)) +
			(SELECT count(*) FROM groups WHERE trash_at IS NOT NULL AND (trash_at <= ?1 AND NOT is_trashed OR delete_at <= ?1))`, at)
		return err
	})
	if err != nil || due == 0 {
		return err
	}
	return s.cfg.Store.Update(ctx, func(tx *store.Tx) error {
		c := &call{s: s, tx: tx, now: at, res: s.resources["groups"]}
		begun, err := tx.Strings("SELECT uuid FROM groups WHERE trash_at <= ? AND NOT is_trashed", at)
		if err != nil {
			return err
		}
		for _, table := range []string{"collections", "groups"} {
			if err := tx.Exec("UPDATE "+table+" SET is_trashed = 1 WHERE trash_at <= ? AND NOT is_trashed", at); err != nil {
				return err
			}
		}
		for _, project := range begun {
			if err := c.recomputeBelow(project); err != nil {
				return err
			}
		}
		return c.removeExpired()
	})
}

// expiredSQL selects the groups whose time in the trash is over, and all
// projects in them.
const expiredSQL = `WITH RECURSIVE expired(uuid) AS (SELECT uuid FROM groups WHERE delete_at <= ?
	UNION SELECT g.uuid FROM expired CROSS JOIN groups g ON g.owner_uuid = expired.uuid)
	SELECT uuid FROM expired`

// removeExpired deletes collections, and projects with all that is in them. Who
// waits for a container that is still wanted elsewhere is not disturbed.
func (c *call) removeExpired() error {
	containers, err := c.tx.Strings("SELECT DISTINCT container_uuid FROM container_requests WHERE container_uuid IS NOT NULL AND owner_uuid IN ("+expiredSQL+")", c.now)
	if err != nil {
		return err
	}
	for _, sql := range []string{
		"DELETE FROM collections WHERE delete_at <= ?",
		"DELETE FROM collections WHERE owner_uuid IN (" + expiredSQL + ")",
		"DELETE FROM container_requests WHERE owner_uuid IN (" + expiredSQL + ")",
		"DELETE FROM links WHERE head_uuid IN (" + expiredSQL + ")",
		"DELETE FROM links WHERE tail_uuid IN (" + expiredSQL + ")",
		"DELETE FROM links WHERE owner_uuid IN (" + expiredSQL + ")",
		"DELETE FROM groups WHERE uuid IN (" + expiredSQL + ")", // last: the others look at it
	} {
		if err := c.tx.Exec(sql, c.now); err != nil {
			return err
		}
	}
	for _, uuid := range containers {
		if err := c.recompute(uuid); err != nil {
			return err
		}
	}
	return nil
}
