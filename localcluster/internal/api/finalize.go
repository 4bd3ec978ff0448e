package api

import (
	"encoding/json"

	"crunch-oci/localcluster/internal/containerstate"
	"crunch-oci/localcluster/internal/manifests"
	"crunch-oci/localcluster/internal/store"
)

// What becomes of container requests when their container's log grows and when
// it ends (section 11.3).

// committedRequests are the requests that wait for the container.
func (c *call) committedRequests(container string) ([]store.Record, error) {
	return c.requestsWhere("container_uuid = ? AND state = 'Committed'", container)
}

func (c *call) requestsWhere(sql string, args ...any) ([]store.Record, error) {
	return c.tx.Select(store.ContainerRequests, store.Query{
		Columns: store.ContainerRequests.Columns(true), Where: []store.Cond{{SQL: sql, Args: args}}, OrderBy: "created_at, uuid", Limit: -1,
	})
}

// liveLog copies a log that a container published while it runs into the log
// collections of its requests.
func (c *call) liveLog(container store.Record) error {
	requests, err := c.committedRequests(container.Str("uuid"))
	if err != nil {
		return err
	}
	for _, r := range requests {
		ok, err := c.ownerUsable(r)
		if err != nil || !ok {
			if err != nil {
				return err
			}
			continue
		}
		changed := store.Record{}
		if err := c.mergeLog(r, container, true, changed); err != nil {
			return err
		}
		if err := c.saveRequest(r, changed); err != nil {
			return err
		}
	}
	return nil
}

// saveRequest stores changes that the server makes to a request; who modified
// it last stays as it is.
func (c *call) saveRequest(rec, changed store.Record) error {
	if len(changed) > 0 {
		changed["modified_by_user_uuid"] = rec["modified_by_user_uuid"]
	}
	return c.save(store.ContainerRequests, rec, changed)
}

// containerEnded retries or finalises the requests of a container that has
// just reached a final state. old is the record before, with its secrets.
func (c *call) containerEnded(rec, old store.Record) error {
	uuid := rec.Str("uuid")
	requests, err := c.committedRequests(uuid)
	if err != nil {
		return err
	}
	var successor store.Record
	parents := map[string]bool{}
	for _, r := range requests {
		retry, err := c.retries(r, rec)
		if err != nil {
			return err
		}
		if retry {
			if successor == nil {
				spec := old.Clone()
				spec["published_ports"] = r["published_ports"] // without where the old one's were
				if successor, err = c.newContainer(spec, 0); err != nil {
					return err
				}
			}
			if err := c.retry(r, rec, successor); err != nil {
				return err
			}
			continue
		}
		if parent := r.Str("requesting_container_uuid"); parent != "" && !parents[parent] {
			parents[parent] = true
			if err := c.tx.Exec("UPDATE containers SET subrequests_cost = subrequests_cost + ?, modified_at = ? WHERE uuid = ? AND state = 'Running'",
				rec.Float("cost")+rec.Float("subrequests_cost"), c.now, parent); err != nil {
				return err
			}
		}
		if err := c.finish(r, rec); err != nil {
			return err
		}
	}
	if successor != nil {
		if err := c.recompute(successor.Str("uuid")); err != nil {
			return err
		}
	}
	return c.dropChildren(uuid)
}

// retries tells whether a request gets another container for one that was
// cancelled.
func (c *call) retries(r, container store.Record) (bool, error) {
	if container.Str("state") != containerstate.Cancelled || r.Int("priority") <= 0 || r.Int("container_count") >= r.Int("container_count_max") {
		return false, nil
	}
	if parent := r.Str("requesting_container_uuid"); parent != "" {
		n, err := c.tx.Int("SELECT count(*) FROM containers WHERE uuid = ? AND state = 'Running' AND priority > 0", parent)
		if err != nil || n == 0 {
			return false, err
		}
	}
	return c.ownerUsable(r)
}

// ownerUsable tells whether the project of a request takes new collections.
func (c *call) ownerUsable(r store.Record) (bool, error) {
	n, err := c.tx.Int("SELECT count(*) FROM groups WHERE uuid = ? AND (frozen_by_uuid IS NOT NULL OR uuid IN ("+goneSQL+"))", r.Str("owner_uuid"), c.now)
	return n == 0, err
}

// retry ties a request to the container that replaces its old one, whose last
// log is kept below its name.
func (c *call) retry(r, old, successor store.Record) error {
	changed := store.Record{
		"container_uuid": successor["uuid"], "container_count": r.Int("container_count") + 1,
		"cumulative_cost": r.Float("cumulative_cost") + old.Float("cost") + old.Float("subrequests_cost"),
	}
	if err := c.mergeLog(r, old, false, changed); err != nil {
		return err
	}
	return c.saveRequest(r, changed)
}

// finish makes the collections of a request whose container has ended, and
// sets it Final.
func (c *call) finish(r, container store.Record) error {
	changed := store.Record{
		"state": final, "secret_mounts": json.RawMessage("{}"), "runtime_token": nil,
		"cumulative_cost": r.Float("cumulative_cost") + container.Float("cost") + container.Float("subrequests_cost"),
	}
	usable, err := c.ownerUsable(r)
	if err != nil {
		return err
	}
	if usable {
		if err := c.mergeLog(r, container, true, changed); err != nil {
			return err
		}
		if err := c.copyOutput(r, container, changed); err != nil {
			return err
		}
		if container.Str("state") == containerstate.Complete {
			if err := c.copyLog(r, container); err != nil {
				return err
			}
		}
	}
	return c.saveRequest(r, changed)
}

// mergeLog puts the container's log into the log collection of a request: at
// the top if wanted, and below the container's name, over what is there from
// earlier saves and attempts. A log that is no collection's PDH is passed over.
func (c *call) mergeLog(r, container store.Record, top bool, changed store.Record) error {
	text, ok, err := c.manifestByPDH(container.Str("log"))
	if err != nil || !ok {
		return err
	}
	var have store.Record
	tree := &manifests.Tree{}
	if uuid := r.Str("log_uuid"); uuid != "" {
		// A user may have removed it; then a new one is made.
		rs, err := c.tx.Select(store.Collections, store.Query{Columns: store.Collections.Columns(true),
			Where: []store.Cond{{SQL: "uuid = ?", Args: []any{uuid}}, {SQL: "trash_at IS NULL OR trash_at > ?", Args: []any{c.now}}}, Limit: 1})
		if err != nil {
			return err
		}
		if len(rs) == 1 {
			have = rs[0]
			if err := tree.Add("", have.Str("manifest_text")); err != nil {
				tree = &manifests.Tree{} // edited by hand into something unusable
			}
		}
	}
	dirs := []string{"log for container " + container.Str("uuid")}
	if top {
		dirs = append(dirs, "")
	}
	for _, dir := range dirs {
		if err := tree.Add(dir, text); err != nil {
			c.s.log.Warn("log collection cannot be merged", "container", container.Str("uuid"), "error", err)
			return nil
		}
	}
	if have != nil {
		next := have.Clone()
		if err := setManifest(next, tree.Manifest(), nil); err != nil {
			return err
		}
		diff := changes(have, next)
		if len(diff) > 0 {
			diff["modified_by_user_uuid"] = nil
		}
		return c.save(store.Collections, have, diff)
	}
	uuid, err := c.requestCollection(r, "Container log for request "+r.Str("uuid"), tree.Manifest(),
		map[string]any{"type": "log", "container_request": r.Str("uuid")}, 0)
	changed["log_uuid"] = uuid
	return err
}

// copyOutput makes the output collection of a request.
func (c *call) copyOutput(r, container store.Record, changed store.Record) error {
	text, ok, err := c.manifestByPDH(container.Str("output"))
	if err != nil || !ok {
		return err
	}
	name := r.Str("output_name")
	if name == "" {
		name = "Container output for request " + r.Str("uuid")
	}
	properties := map[string]any{"container_request": r.Str("uuid"), "type": "output"}
	if r.Str("requesting_container_uuid") != "" {
		properties["type"] = "intermediate"
	}
	for _, from := range []store.Record{container, r} {
		var more map[string]json.RawMessage
		if err := json.Unmarshal(from.JSON("output_properties"), &more); err != nil {
			return err
		}
		for k, v := range more {
			properties[k] = v
		}
	}
	uuid, err := c.requestCollection(r, name, text, properties, r.Int("output_ttl"))
	changed["output_uuid"] = uuid
	return err
}

// copyLog keeps the container's log as it was, which a later reuse of the
// container needs.
func (c *call) copyLog(r, container store.Record) error {
	text, ok, err := c.manifestByPDH(container.Str("log"))
	if err != nil || !ok {
		return err
	}
	_, err = c.requestCollection(r, "Container log for container "+container.Str("uuid"), text,
		map[string]any{"type": "log", "container_request": r.Str("uuid"), "container_uuid": container.Str("uuid")}, 0)
	return err
}

// requestCollection stores a collection in the project of a request, for ttl
// seconds, or for good if that is 0.
func (c *call) requestCollection(r store.Record, name, text string, properties map[string]any, ttl int64) (string, error) {
	res := c.s.resources["collections"]
	rec := c.fresh(res.infix, r.Str("owner_uuid"))
	for k, v := range res.notNull {
		rec[k] = v
	}
	rec["name"], rec["properties"], rec["modified_by_user_uuid"] = name, mustJSON(properties), nil
	rec["current_version_uuid"] = rec["uuid"]
	if classes := r.JSON("output_storage_classes"); string(classes) != "[]" && classes != nil {
		rec["storage_classes_desired"] = classes
	}
	if err := setManifest(rec, text, nil); err != nil {
		return "", err
	}
	if ttl > 0 {
		at := later(c.now, ttl)
		trash, err := c.trashChanges(rec, store.Record{"trash_at": at, "delete_at": at})
		if err != nil {
			return "", err
		}
		for k, v := range trash {
			rec[k] = v
		}
	}
	return rec.Str("uuid"), c.insertAs(res, rec, true)
}

// dropChildren cancels the requests that a container made and that are still
// waiting: nobody is left to want them.
func (c *call) dropChildren(parent string) error {
	children, err := c.requestsWhere("requesting_container_uuid = ? AND state = 'Committed'", parent)
	if err != nil {
		return err
	}
	for _, r := range children {
		changed := store.Record{"priority": int64(0)}
		n, err := c.tx.Int("SELECT count(*) FROM containers WHERE uuid = ? AND state IN ('Queued', 'Locked')", r.Str("container_uuid"))
		if err != nil {
			return err
		}
		if n > 0 {
			changed["state"], changed["secret_mounts"], changed["runtime_token"] = final, json.RawMessage("{}"), nil
		}
		if err := c.saveRequest(r, changed); err != nil {
			return err
		}
		if err := c.recompute(r.Str("container_uuid")); err != nil {
			return err
		}
	}
	return nil
}
