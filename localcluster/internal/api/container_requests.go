package api

import (
	"encoding/json"
	"net/http"
	"slices"

	"crunch-oci/localcluster/internal/store"
)

// The states of a container request.
const (
	uncommitted = "Uncommitted"
	committed   = "Committed"
	final       = "Final"
)

func containerRequestResource() *resource {
	res := &resource{
		name: "container_requests", singular: "container_request", kind: "arvados#containerRequest", model: "ContainerRequest",
		infix: "xvhdp", table: store.ContainerRequests, front: true,
		blank: []string{"name", "owner_uuid", "modified_by_user_uuid"},
		notNull: map[string]any{
			"state": uncommitted, "properties": json.RawMessage("{}"), "container_count": int64(0),
			"container_count_max": int64(maxRetryAttempts), "command": json.RawMessage("[]"), "container_image": "", "cwd": ".", "output_path": "",
			"environment": json.RawMessage("{}"), "mounts": json.RawMessage("{}"), "output_glob": json.RawMessage("[]"), "output_ttl": int64(0),
			"output_storage_classes": json.RawMessage(`["default"]`), "output_properties": json.RawMessage("{}"), "priority": int64(0),
			"runtime_constraints": json.RawMessage("{}"), "scheduling_parameters": json.RawMessage("{}"), "use_existing": true,
			"cumulative_cost": 0.0, "service": false, "published_ports": json.RawMessage("{}"), "secret_mounts": json.RawMessage("{}"),
		},
	}
	res.computed = map[string]computed{
		"mounts":        {[]string{"mounts"}, func(_ *call, r store.Record) (any, error) { return fullMounts(r.JSON("mounts")) }},
		"runtime_token": {nil, func(*call, store.Record) (any, error) { return "", nil }},
	}
	res.endpoints = map[string]endpoint{
		"GET":                         {do: (*call).list},
		"POST":                        {do: func(c *call, _ string) (any, error) { return c.createRequest() }, write: true},
		"GET {uuid}":                  {do: (*call).get},
		"PUT {uuid}":                  {do: (*call).updateRequest, write: true},
		"DELETE {uuid}":               {do: (*call).deleteRequest, write: true},
		"GET {uuid}/container_status": {do: (*call).containerStatus},
	}
	return res
}

// serverSet are attributes of a request that clients do not set.
var serverSet = []string{"container_uuid", "container_count", "requesting_container_uuid", "log_uuid", "output_uuid", "cumulative_cost"}

// openIn lists what may change in a state; Uncommitted is not in it, as all
// but serverSet may.
var openIn = map[string][]string{
	committed: {"priority", "container_count_max", "name", "description", "properties", "owner_uuid", "state"},
	final:     {"name", "description", "properties", "owner_uuid", "state"},
}

func (c *call) createRequest() (any, error) {
	var made store.Record
	out, err := c.create(func(rec, given store.Record) error {
		made = rec
		for _, n := range serverSet {
			if v, ok := given[n]; ok && !same(v, c.res.notNull[n]) {
				return invalid("%s cannot be set by the client", humanize(n))
			}
			rec[n] = c.res.notNull[n]
		}
		parent, err := c.ofToken()
		if err != nil {
			return err
		}
		if parent != nil {
			rec["requesting_container_uuid"] = parent["uuid"]
			top, err := c.tx.Int("SELECT max(priority) FROM container_requests WHERE container_uuid = ? AND state = 'Committed'", parent.Str("uuid"))
			if err != nil {
				return err
			}
			rec["priority"] = top
		}
		if rec.Str("state") == final {
			return invalid("State cannot be Final on creation")
		}
		return c.checkRequest(rec, given)
	})
	if err != nil || c.reused == nil {
		return out, err
	}
	return c.join(made)
}

func (c *call) updateRequest(uuid string) (any, error) {
	var before store.Record
	out, err := c.update(uuid, func(rec, changed store.Record) error {
		before = rec.Clone()
		if err := forgetShownAgain(rec, changed); err != nil {
			return err
		}
		from := rec.Str("state")
		next := rec.Clone()
		for k, v := range changed {
			next[k] = v
		}
		e := invalid("")
		e.texts = nil
		allowed, limited := openIn[from]
		for _, n := range sortedKeys(changed) {
			if limited && !slices.Contains(allowed, n) || slices.Contains(serverSet, n) {
				text := invalid("%s cannot be modified in state '%s' (%s, %s)", humanize(n), from, inspect(rec[n]), inspect(changed[n])).texts
				if n == "secret_mounts" || n == "runtime_token" {
					text = []string{humanize(n) + " cannot be modified in state '" + from + "'"}
				}
				e.texts = append(e.texts, text...)
			}
		}
		if e.texts != nil {
			return e
		}
		to := next.Str("state")
		if from != to && !(from == uncommitted && to == committed || from == committed && to == final) {
			return invalid("State cannot change from %s to %s", from, to)
		}
		if err := c.checkRequest(next, changed); err != nil {
			return err
		}
		if to == final {
			next["secret_mounts"], next["runtime_token"] = json.RawMessage("{}"), nil
		}
		clear(changed)
		for k, v := range changes(rec, next) {
			changed[k] = v
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	// A change of priority, owner or state moves the container's priority.
	rec, err := c.tx.Get(store.ContainerRequests, uuid)
	if err != nil {
		return nil, err
	}
	if c.reused != nil {
		return c.join(rec)
	}
	for _, n := range []string{"priority", "owner_uuid", "state"} {
		if !same(before[n], rec[n]) {
			return out, c.recompute(rec.Str("container_uuid"))
		}
	}
	return out, nil
}

// forgetShownAgain takes out of the changes what was made up for showing and only
// comes back, as clients send whole records: the empty runtime token, and mounts
// with all their keys.
func forgetShownAgain(rec, changed store.Record) error {
	if changed["runtime_token"] == "" {
		delete(changed, "runtime_token")
	}
	sent, ok := changed["mounts"].(json.RawMessage)
	if !ok {
		return nil
	}
	var texts [2]string
	for i, raw := range []json.RawMessage{rec.JSON("mounts"), sent} {
		full, err := fullMounts(raw)
		if err != nil {
			return nil // not even mounts: for checkRequest to say
		}
		text, err := canonical(full)
		if err != nil {
			return err
		}
		texts[i] = string(text)
	}
	if texts[0] == texts[1] {
		delete(changed, "mounts")
	}
	return nil
}

func (c *call) deleteRequest(uuid string) (any, error) {
	rec, err := c.find(c.res, uuid, false)
	if err != nil {
		return nil, err
	}
	out, err := c.destroy(uuid)
	if err != nil {
		return nil, err
	}
	return out, c.recompute(rec.Str("container_uuid"))
}

func (c *call) containerStatus(uuid string) (any, error) {
	rec, err := c.find(c.res, uuid, false)
	if err != nil {
		return nil, err
	}
	out := map[string]any{"kind": "arvados#containerStatus", "uuid": rec.Str("container_uuid"), "container_state": "", "scheduling_status": ""}
	if rec.Str("container_uuid") == "" {
		return out, nil
	}
	container, err := c.tx.Get(store.Containers, rec.Str("container_uuid"))
	if err != nil {
		return nil, backError(http.StatusNotFound, "Path not found")
	}
	out["container_state"] = container["state"]
	switch container.Str("state") {
	case "Queued", "Locked":
		out["scheduling_status"] = "Waiting in queue."
		if container.Int("priority") == 0 {
			out["scheduling_status"] = "Cancelled: priority is 0."
		}
	}
	return out, nil
}

// mountKeys are what a mount can hold, with the zero values that the front end
// shows for those that are missing.
var mountKeys = map[string]any{
	"kind": "", "uuid": "", "portable_data_hash": "", "path": "", "writable": false, "content": nil,
	"capacity": json.Number("0"), "device_type": "", "exclude_from_output": false,
}

// fullMounts shows every mount with all its keys, as the front end does.
func fullMounts(raw json.RawMessage) (any, error) {
	var mounts map[string]map[string]json.RawMessage
	if err := json.Unmarshal(raw, &mounts); err != nil {
		return nil, err
	}
	out := map[string]any{}
	for target, m := range mounts {
		full := map[string]any{}
		for k, zero := range mountKeys {
			full[k] = zero
		}
		for k, v := range m {
			full[k] = v
		}
		out[target] = full
	}
	return out, nil
}
