package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"crunch-oci/localcluster/internal/containerstate"
	"crunch-oci/localcluster/internal/store"
)

// role is what the presented token is to the container.
func (c *call) role(rec store.Record) containerstate.Role {
	holder := rec.Str("locked_by_uuid")
	switch {
	case c.caller.admin() && (holder == "" || holder == c.caller.tokenUUID):
		return containerstate.Holder
	case rec.Str("state") == containerstate.Running && ownToken(rec, c.caller.tokenUUID):
		return containerstate.Own
	case c.caller.admin():
		return containerstate.OtherAdmin
	default:
		return containerstate.User
	}
}

func (c *call) putContainer(uuid string) (any, error) {
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
	if err := c.changeContainer(rec, given); err != nil {
		return nil, err
	}
	return c.render(rec, sel)
}

// changeContainer checks and stores an update, with everything that follows
// from it. rec becomes the new record.
func (c *call) changeContainer(rec, given store.Record) error {
	from, to := rec.Str("state"), rec.Str("state")
	if s, ok := given["state"]; ok {
		to, _ = s.(string)
	}
	if !containerstate.Valid(to) {
		return invalid("State is not a container state: %s", inspect(given["state"]))
	}
	role := c.role(rec)
	if _, ok := containerstate.Permitted(role, from, from); !ok {
		return denied("")
	}
	if !containerstate.CanChange(from, to) {
		return invalid("State cannot change from %s to %s", from, to)
	}
	permitted, ok := containerstate.Permitted(role, from, to)
	if !ok {
		return denied("locked by a different token")
	}
	changed := changes(rec, given)
	if err := c.checkContainer(rec, changed, permitted, to); err != nil {
		return err
	}
	old := rec.Clone()
	if from != to {
		if err := c.enter(rec, changed, from, to); err != nil {
			return err
		}
	}
	if len(changed) == 0 {
		return nil
	}
	if err := c.save(store.Containers, rec, changed); err != nil {
		return err
	}
	// The state may be another than was asked for, see enter.
	if containerstate.Final(rec.Str("state")) && !containerstate.Final(from) {
		return c.containerEnded(rec, old)
	}
	if changed["log"] != nil {
		if err := c.liveLog(rec); err != nil {
			return err
		}
	}
	if _, ok := changed["priority"]; ok {
		return c.childPriorities(rec.Str("uuid"), map[string]bool{})
	}
	return nil
}

// checkContainer collects what is wrong with the changes.
func (c *call) checkContainer(rec, changed store.Record, permitted []string, to string) error {
	e := invalid("")
	e.texts = nil
	for _, name := range sortedKeys(changed) {
		if !slices.Contains(permitted, name) || name == "interactive_session_started" && changed[name] != true {
			e.texts = append(e.texts, fmt.Sprintf("%s cannot be modified in state '%s' (%s, %s)", humanize(name), to, inspect(rec[name]), inspect(changed[name])))
		}
	}
	if p, ok := changed["priority"]; ok {
		if n, _ := p.(int64); n < 0 {
			e.texts = append(e.texts, "Priority must be an integer greater than or equal to 0")
		}
	}
	if status, ok := changed["runtime_status"]; ok {
		var m map[string]any
		if j, _ := status.(json.RawMessage); json.Unmarshal(j, &m) == nil {
			for _, k := range []string{"error", "errorDetail", "warning", "warningDetail", "activity", "preemptionNotice"} {
				if v, has := m[k]; has {
					if _, text := v.(string); !text {
						e.texts = append(e.texts, fmt.Sprintf("Runtime status '%s' value must be a string", k))
					}
				}
			}
		}
	}
	if e.texts == nil {
		if out, ok := changed["output"].(string); ok {
			_, err := c.findByPDH(out, true)
			var missing *apiError
			if errors.As(err, &missing) {
				e.texts = append(e.texts, "Output collection must exist and be readable by current user.")
			} else if err != nil {
				return err
			}
		}
	}
	if e.texts != nil {
		return e
	}
	return nil
}

// enter adds to the changes what the server does on a transition (section
// 9.2).
func (c *call) enter(rec, changed store.Record, from, to string) error {
	switch to {
	case containerstate.Locked:
		if rec.Int("priority") <= 0 {
			return raised("ArvadosModel::LockFailedError", "cannot lock when priority<=0")
		}
		changed["locked_by_uuid"] = c.caller.tokenUUID
		changed["lock_count"] = rec.Int("lock_count") + 1
		if rec.Str("runtime_token") == "" {
			var scopes []string
			if err := json.Unmarshal(rec.JSON("runtime_auth_scopes"), &scopes); err != nil {
				return err
			}
			token, err := NewToken(c.tx, c.s.cfg.ClusterID, rec.Str("runtime_user_uuid"), scopes, nil, c.now)
			if err != nil {
				return err
			}
			changed["auth_uuid"] = token["uuid"]
		}
	case containerstate.Queued:
		changed["runtime_status"] = json.RawMessage("{}")
		if n := rec.Int("lock_count"); n >= maxDispatchAttempts {
			changed["state"] = containerstate.Cancelled
			changed["runtime_status"] = mustJSON(map[string]string{"error": fmt.Sprintf(
				"Failed to start container.  Cancelled after exceeding 'Containers.MaxDispatchAttempts' (lock_count=%d)", n)})
			c.dropSecrets(changed)
		}
		return c.dropLock(rec, changed)
	case containerstate.Running:
		changed["started_at"] = c.now
		return c.publishPorts(rec, changed)
	case containerstate.Complete, containerstate.Cancelled:
		if containerstate.Final(from) {
			return nil
		}
		if changed["finished_at"] == nil {
			changed["finished_at"] = c.now
		}
		c.dropSecrets(changed)
		return c.dropLock(rec, changed)
	}
	return nil
}

// dropLock gives up the lock; the container's token is worthless from now on.
func (c *call) dropLock(rec, changed store.Record) error {
	if rec.Str("locked_by_uuid") != "" {
		changed["locked_by_uuid"] = nil
	}
	if auth := rec.Str("auth_uuid"); auth != "" {
		changed["auth_uuid"] = nil
		return c.tx.Delete(store.Tokens, auth)
	}
	return nil
}

func (c *call) dropSecrets(changed store.Record) {
	changed["secret_mounts"], changed["runtime_token"] = json.RawMessage("{}"), nil
}

// priorityOf is what one request demands of its container: its priority, then
// its age (section 9.8).
func priorityOf(request store.Record) int64 {
	p := request.Int("priority")
	if p <= 0 {
		return 0
	}
	created, _ := request.Time("created_at")
	return p<<50 - created.UnixMilli()
}

// recompute sets a container's priority from its requests, and those of the
// containers that it submitted in turn.
func (c *call) recompute(uuid string) error { return c.recomputeFrom(uuid, map[string]bool{}) }

func (c *call) recomputeFrom(uuid string, seen map[string]bool) error {
	if uuid == "" || seen[uuid] {
		return nil
	}
	seen[uuid] = true
	rec, err := c.tx.Get(store.Containers, uuid)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil || containerstate.Final(rec.Str("state")) {
		return err
	}
	requests, err := c.tx.Select(store.ContainerRequests, store.Query{
		Columns: []string{"priority", "created_at", "requesting_container_uuid"},
		Where: []store.Cond{
			{SQL: "container_uuid = ? AND state = 'Committed' AND priority > 0", Args: []any{uuid}},
			c.notGone(),
		}, Limit: -1,
	})
	if err != nil {
		return err
	}
	var top int64
	for _, r := range requests {
		p := priorityOf(r)
		if parent := r.Str("requesting_container_uuid"); parent != "" {
			p, err = c.tx.Int("SELECT priority FROM containers WHERE uuid = ?", parent)
			if err != nil {
				return err
			}
		}
		top = max(top, p)
	}
	if top != rec.Int("priority") {
		system := store.Record{"priority": top, "modified_by_user_uuid": c.s.systemUUID("tpzed")}
		if err := c.save(store.Containers, rec, system); err != nil {
			return err
		}
	}
	return c.childPriorities(uuid, seen)
}

// childPriorities recomputes the containers that a container submitted.
func (c *call) childPriorities(uuid string, seen map[string]bool) error {
	children, err := c.tx.Strings(`SELECT DISTINCT container_uuid FROM container_requests
		WHERE requesting_container_uuid = ? AND state = 'Committed' AND container_uuid IS NOT NULL`, uuid)
	if err != nil {
		return err
	}
	for _, child := range children {
		if err := c.recomputeFrom(child, seen); err != nil {
			return err
		}
	}
	return nil
}
