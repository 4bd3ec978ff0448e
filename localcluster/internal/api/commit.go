package api

import (
	"encoding/json"

	"crunch-oci/localcluster/internal/containerstate"
	"crunch-oci/localcluster/internal/store"
)

// specification are the attributes that a container takes over from its
// request as they are, and from the container that it replaces.
var specification = []string{"command", "cwd", "environment", "output_path", "output_glob", "output_storage_classes",
	"scheduling_parameters", "service", "published_ports", "secret_mounts", "runtime_token"}

// resolved are those that are resolved when the request is committed.
var resolved = []string{"container_image", "mounts", "runtime_constraints", "runtime_user_uuid", "runtime_auth_scopes"}

// commit makes the container of a request that becomes Committed, or finds one
// that will do: image and mounts are resolved with the rights of the submitting
// user.
func (c *call) commit(request store.Record) error {
	image, err := c.resolveImage(request.Str("container_image"))
	if err != nil {
		return err
	}
	mounts, err := c.resolveMounts(request.JSON("mounts"))
	if err != nil {
		return err
	}
	constraints, err := resolveConstraints(request.JSON("runtime_constraints"))
	if err != nil {
		return err
	}
	spec := request.Clone()
	spec["container_image"], spec["mounts"], spec["runtime_constraints"] = image, mounts, constraints
	spec["runtime_user_uuid"], spec["runtime_auth_scopes"] = c.caller.userUUID(), json.RawMessage(`["all"]`)
	if t := request.Str("runtime_token"); t != "" {
		token, _, err := c.s.findToken(c.tx, t, c.now)
		if err != nil {
			return invalid("Runtime token failed validation when trying to save")
		}
		spec["runtime_user_uuid"], spec["runtime_auth_scopes"] = token["owner_uuid"], token["scopes"]
	}
	if request.Bool("use_existing") {
		if c.reused, err = c.reusable(spec); err != nil {
			return err
		}
		if c.reused != nil {
			request["container_uuid"], request["container_count"] = c.reused["uuid"], int64(1)
			return nil
		}
	}
	// The request is stored after this, so that its share of the priority is
	// worked out here.
	priority := priorityOf(request)
	if parent := request.Str("requesting_container_uuid"); parent != "" && priority > 0 {
		if priority, err = c.tx.Int("SELECT priority FROM containers WHERE uuid = ?", parent); err != nil {
			return err
		}
	}
	container, err := c.newContainer(spec, priority)
	if err != nil {
		return err
	}
	request["container_uuid"], request["container_count"] = container["uuid"], int64(1)
	return nil
}

// newContainer stores a Queued container with the specification of a request
// or of the container that it replaces.
func (c *call) newContainer(spec store.Record, priority int64) (store.Record, error) {
	system := c.s.systemUUID("tpzed")
	rec := c.fresh("dz642", system)
	rec["modified_by_user_uuid"] = system
	for k, v := range c.s.resources["containers"].notNull {
		rec[k] = v
	}
	for _, list := range [][]string{specification, resolved} {
		for _, n := range list {
			rec[n] = spec[n]
		}
	}
	rec["state"], rec["priority"] = containerstate.Queued, priority
	rec["secret_mounts_md5"] = secretsDigest(rec.JSON("secret_mounts"))
	return rec, c.tx.Insert(store.Containers, rec)
}

// resolveMounts replaces the UUIDs of collections by their present PDHs.
func (c *call) resolveMounts(raw json.RawMessage) (json.RawMessage, error) {
	var mounts map[string]map[string]json.RawMessage
	if err := json.Unmarshal(raw, &mounts); err != nil {
		return nil, err
	}
	for _, target := range sortedKeys(mounts) {
		m := mounts[target]
		var kind, uuid, pdh string
		// checkMounts has seen to the types.
		_ = json.Unmarshal(m["kind"], &kind)
		_ = json.Unmarshal(m["uuid"], &uuid)
		_ = json.Unmarshal(m["portable_data_hash"], &pdh)
		if kind != "collection" || uuid == "" {
			continue
		}
		if pdh == "" {
			rec, err := c.find(c.s.resources["collections"], uuid, false)
			if err != nil {
				if _, refused := err.(*apiError); !refused {
					return nil, err
				}
				return nil, raised("ArvadosModel::UnresolvableContainerError", "cannot mount collection %s: not found", inspect(uuid))
			}
			m["portable_data_hash"] = mustJSON(rec.Str("portable_data_hash"))
		}
		delete(m, "uuid")
	}
	return mustJSON(mounts), nil
}

// resolveConstraints decides the size of the Keep cache (section 10.2).
func resolveConstraints(raw json.RawMessage) (json.RawMessage, error) {
	rc, err := runtimeConstraints(raw)
	if err != nil {
		return nil, err
	}
	if rc["keep_cache_ram"] == int64(0) && rc["keep_cache_disk"] == int64(0) {
		rc["keep_cache_disk"] = KeepCacheDisk(rc["ram"].(int64))
	}
	return canonical(rc)
}

// KeepCacheDisk is the disk cache of a container that asks for no particular
// one: as large as its memory, within 2 and 32 GiB.
func KeepCacheDisk(ram int64) int64 { return min(max(ram, 2<<30), 32<<30) }
