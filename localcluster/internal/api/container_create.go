package api

import (
	"encoding/json"
	"fmt"
	"slices"

	"crunch-oci/localcluster/internal/containerstate"
	"crunch-oci/localcluster/internal/store"
)

// Containers are made for container requests, but an administrator may make one
// without: nobody's request waits for it, so that its output and log become
// nobody's collections.

// settableOnCreate are the attributes of a container that come with it. All
// others are those of a container that has just been queued.
var settableOnCreate = append([]string{"priority", "state", "owner_uuid", "output_properties"}, append(specification, resolved...)...)

// createContainer makes a Queued container.
func (c *call) createContainer(string) (any, error) {
	sel, err := c.selection()
	if err != nil {
		return nil, err
	}
	given, err := c.attributes()
	if err != nil {
		return nil, err
	}
	e := invalid("")
	if !c.caller.admin() {
		e = denied("")
	}
	var blank []string
	for _, n := range []string{"command", "container_image", "output_path"} {
		if same(given[n], nil) || given[n] == "" {
			blank = append(blank, humanize(n)+" can't be blank")
		}
	}
	if blank != nil {
		e.texts = blank
	}
	if blank != nil || !c.caller.admin() {
		return nil, e
	}
	spec := store.Record{}
	for k, v := range c.res.notNull {
		spec[k] = v
	}
	for k, v := range given {
		if v != nil {
			spec[k] = v
		}
	}
	if spec.Str("runtime_user_uuid") == "" {
		spec["runtime_user_uuid"] = c.caller.userUUID()
	}
	if err := c.checkNewContainer(spec, given); err != nil {
		return nil, err
	}
	rec, err := c.newContainer(spec, spec.Int("priority"))
	if err != nil {
		return nil, err
	}
	if props := spec.JSON("output_properties"); !same(props, nil) {
		if err := c.save(store.Containers, rec, store.Record{"output_properties": props}); err != nil {
			return nil, err
		}
	}
	return c.render(rec, sel)
}

// checkNewContainer collects what is wrong with the attributes, and completes
// the constraints.
func (c *call) checkNewContainer(spec, given store.Record) error {
	e := invalid("")
	e.texts = nil
	add := func(format string, a ...any) { e.texts = append(e.texts, fmt.Sprintf(format, a...)) }
	initial := c.res.notNull
	for _, n := range sortedKeys(given) {
		if !slices.Contains(settableOnCreate, n) && !same(given[n], initial[n]) {
			add("%s cannot be modified in state '%s' (%s, %s)", humanize(n), containerstate.Queued, inspect(initial[n]), inspect(given[n]))
		}
	}
	if s, ok := spec["state"]; ok && s != containerstate.Queued {
		add("State cannot be %s on creation", inspect(s))
	}
	if owner := spec.Str("owner_uuid"); owner != "" && owner != c.s.systemUUID("tpzed") {
		add("Owner uuid of a container is the system user: %s", inspect(owner))
	}
	if spec.Int("priority") < 0 {
		add("Priority must be an integer greater than or equal to 0")
	}
	var command []string
	if json.Unmarshal(spec.JSON("command"), &command) != nil {
		add("Command must be an array of strings")
	}
	checkEnvironment(spec.JSON("environment"), add)
	c.checkMounts(spec, add)
	if constraints, err := runtimeConstraints(spec.JSON("runtime_constraints")); err != nil {
		add("Runtime constraints %v", err)
	} else {
		spec["runtime_constraints"] = mustJSON(constraints)
	}
	if scheduling, err := schedulingParameters(spec.JSON("scheduling_parameters"), command); err != nil {
		add("Scheduling parameters %v", err)
	} else {
		spec["scheduling_parameters"] = scheduling
	}
	if _, err := c.tx.Get(store.Users, spec.Str("runtime_user_uuid")); err != nil {
		add("Runtime user uuid must be a user: %s", inspect(spec["runtime_user_uuid"]))
	}
	if token := spec.Str("runtime_token"); token != "" {
		if _, _, err := c.s.findToken(c.tx, token, c.now); err != nil {
			add("Runtime token failed validation when trying to save")
		}
	}
	if e.texts != nil {
		return e
	}
	return nil
}
