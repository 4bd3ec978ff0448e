package api

import (
	"encoding/json"
	"errors"
	"net/http"
	"strings"

	"crunch-oci/localcluster/internal/containerstate"
	"crunch-oci/localcluster/internal/store"
)

func containerResource() *resource {
	res := &resource{
		name: "containers", singular: "container", kind: "arvados#container", model: "Container", infix: "dz642",
		table: store.Containers,
		notNull: map[string]any{
			"command": json.RawMessage("[]"), "cwd": ".", "environment": json.RawMessage("{}"), "mounts": json.RawMessage("{}"),
			"output_glob": json.RawMessage("[]"), "priority": int64(0), "runtime_constraints": json.RawMessage("{}"),
			"runtime_status": json.RawMessage("{}"), "scheduling_parameters": json.RawMessage("{}"),
			"runtime_auth_scopes": json.RawMessage(`["all"]`), "lock_count": int64(0), "interactive_session_started": false,
			"output_storage_classes": json.RawMessage(`["default"]`), "output_properties": json.RawMessage("{}"),
			"cost": 0.0, "subrequests_cost": 0.0, "service": false, "published_ports": json.RawMessage("{}"),
			"secret_mounts": json.RawMessage("{}"),
		},
	}
	res.endpoints = map[string]endpoint{
		"GET":                         {do: (*call).list},
		"POST":                        {do: (*call).createContainer, write: true},
		"GET current":                 {do: (*call).currentContainer},
		"GET {uuid}":                  {do: (*call).get},
		"PUT {uuid}":                  {do: (*call).putContainer, write: true},
		"POST {uuid}/lock":            {do: (*call).lock, write: true},
		"POST {uuid}/unlock":          {do: (*call).unlock, write: true},
		"GET {uuid}/auth":             {do: (*call).containerAuth},
		"GET {uuid}/secret_mounts":    {do: (*call).secretMounts},
		"POST {uuid}/update_priority": {do: (*call).updatePriority, write: true},
	}
	return res
}

// lockReply is all that lock and unlock answer.
var lockReply = []string{"uuid", "state", "priority", "auth_uuid", "locked_by_uuid"}

// ofToken finds the container that the presented token belongs to.
func (c *call) ofToken() (store.Record, error) {
	rs, err := c.tx.Select(store.Containers, store.Query{
		Columns: store.Containers.Columns(true), Where: []store.Cond{{SQL: "auth_uuid = ?", Args: []any{c.caller.tokenUUID}}}, Limit: 1,
	})
	if err != nil {
		return nil, err
	}
	if len(rs) == 1 {
		return rs[0], nil
	}
	// A runtime token says which container it means in its fourth part.
	if parts := strings.Split(c.caller.token, "/"); len(parts) == 4 {
		rec, err := c.tx.Get(store.Containers, parts[3])
		if err == nil && ownToken(rec, c.caller.tokenUUID) {
			return rec, nil
		}
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return nil, err
		}
	}
	return nil, nil
}

func (c *call) currentContainer(string) (any, error) {
	sel, err := c.selection()
	if err != nil {
		return nil, err
	}
	rec, err := c.ofToken()
	if err != nil {
		return nil, err
	}
	if rec == nil {
		return nil, backError(http.StatusNotFound, "Token is not associated with a container.")
	}
	return c.render(rec, sel)
}

// containerAuth hands the container's token to the token that holds the lock.
func (c *call) containerAuth(uuid string) (any, error) {
	rec, err := c.find(c.res, uuid, false)
	if err != nil {
		return nil, err
	}
	if !containerstate.Active(rec.Str("state")) || rec.Str("locked_by_uuid") != c.caller.tokenUUID {
		return nil, denied("Not locked by your token")
	}
	var token store.Record
	if rec.Str("runtime_token") != "" {
		token, _, err = c.s.findToken(c.tx, rec.Str("runtime_token"), c.now)
		if errors.Is(err, errNotLoggedIn) {
			return nil, denied("Invalid runtime token")
		}
	} else {
		token, err = c.tx.Get(store.Tokens, rec.Str("auth_uuid"))
	}
	if err != nil {
		return nil, err
	}
	// A record of the back end here: unset strings are null.
	shape := *c.s.resources["api_client_authorizations"]
	shape.front, shape.blank = false, nil
	back := *c
	back.res = &shape
	token["modified_at"] = nil
	out, err := back.render(token, nil)
	if err != nil {
		return nil, err
	}
	out["api_token"] = token.Str("api_token")
	return out, nil
}

// secretMounts shows the secrets to the container's own token, to nobody else.
func (c *call) secretMounts(uuid string) (any, error) {
	rec, err := c.tx.Get(store.Containers, uuid)
	if errors.Is(err, store.ErrNotFound) {
		return nil, errPathNotFound()
	}
	if err != nil {
		return nil, err
	}
	if !ownToken(rec, c.caller.tokenUUID) {
		if _, err := c.find(c.res, uuid, false); err != nil {
			return nil, err
		}
		return nil, backError(http.StatusForbidden, "Token is not associated with this container.")
	}
	return map[string]any{"secret_mounts": rec.JSON("secret_mounts")}, nil
}

func (c *call) lock(uuid string) (any, error) {
	rec, err := c.find(c.res, uuid, false)
	if err != nil {
		return nil, err
	}
	if !c.caller.admin() {
		return nil, denied("")
	}
	if state := rec.Str("state"); state != containerstate.Queued {
		return nil, raised("ArvadosModel::LockFailedError", "cannot lock when %s", state)
	}
	if err := c.changeContainer(rec, store.Record{"state": containerstate.Locked}); err != nil {
		return nil, err
	}
	return c.render(rec, lockReply)
}

func (c *call) unlock(uuid string) (any, error) {
	rec, err := c.find(c.res, uuid, false)
	if err != nil {
		return nil, err
	}
	if !c.caller.admin() {
		return nil, denied("")
	}
	if state := rec.Str("state"); state != containerstate.Locked {
		return nil, raised("ArvadosModel::InvalidStateTransitionError", "cannot unlock when %s", state)
	}
	if err := c.changeContainer(rec, store.Record{"state": containerstate.Queued}); err != nil {
		return nil, err
	}
	return c.render(rec, lockReply)
}

func (c *call) updatePriority(uuid string) (any, error) {
	rec, err := c.find(c.res, uuid, false)
	if err != nil {
		return nil, err
	}
	if !c.caller.admin() {
		return nil, denied("")
	}
	if err := c.recompute(uuid); err != nil {
		return nil, err
	}
	if rec, err = c.tx.Get(store.Containers, rec.Str("uuid")); err != nil {
		return nil, err
	}
	return c.render(rec, nil)
}
