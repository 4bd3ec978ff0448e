package api

import (
	"crypto/md5"
	"encoding/json"
	"fmt"
	"slices"

	"crunch-oci/localcluster/internal/containerstate"
	"crunch-oci/localcluster/internal/store"
)

// Requests with use_existing take a container that there is already, if it does
// or did just what they want (section 11.2).

// reuseOrder are the kinds of containers that will do, in the order of
// preference, each with its own order.
var reuseOrder = []struct{ where, order string }{
	{"state = 'Complete' AND exit_code = 0", "finished_at, uuid"},
	{"state = 'Running' AND priority > 0", "coalesce(progress, 0) DESC, started_at, uuid"},
	{"state = 'Locked'", "priority DESC, created_at, uuid"},
	{"state = 'Queued'", "priority DESC, created_at, uuid"},
}

// compared are the attributes of a container that must be the same text as the
// request's resolved ones. What is compared by meaning is in sameWork.
var compared = []string{"container_image", "command", "cwd", "environment", "output_path", "output_glob"}

// reusable finds a container for a request, nil if there is none.
func (c *call) reusable(spec store.Record) (store.Record, error) {
	where := []store.Cond{{SQL: "secret_mounts_md5 = ?", Args: []any{secretsDigest(spec.JSON("secret_mounts"))}}}
	for _, n := range compared {
		where = append(where, store.Cond{SQL: n + " = ?", Args: []any{spec[n]}})
	}
	for _, kind := range reuseOrder {
		candidates, err := c.tx.Select(store.Containers, store.Query{
			Columns: []string{"uuid", "state", "mounts", "runtime_constraints", "scheduling_parameters", "runtime_status", "log", "output"},
			Where:   append(slices.Clone(where), store.Cond{SQL: kind.where}), OrderBy: kind.order, Limit: -1,
		})
		if err != nil {
			return nil, err
		}
		for _, rec := range candidates {
			ok, err := c.willDo(spec, rec)
			if err != nil {
				return nil, err
			}
			if ok {
				return c.tx.Get(store.Containers, rec.Str("uuid"))
			}
		}
	}
	return nil, nil
}

// willDo checks of a candidate what SQL cannot.
func (c *call) willDo(spec, rec store.Record) (bool, error) {
	if ok, err := sameWork(spec, rec); err != nil || !ok {
		return false, err
	}
	switch rec.Str("state") {
	case containerstate.Complete:
		for _, n := range []string{"log", "output"} {
			_, err := c.findByPDH(rec.Str(n), false)
			if _, refused := err.(*apiError); refused {
				return false, nil
			}
			if err != nil {
				return false, err
			}
		}
	case containerstate.Running:
		// It is about to fail.
		var status map[string]json.RawMessage
		if err := json.Unmarshal(rec.JSON("runtime_status"), &status); err != nil || status["error"] != nil {
			return false, err
		}
	case containerstate.Locked, containerstate.Queued:
		// One that may be taken away is for those who accept that.
		theirs, err := preemptible(rec)
		if err != nil || !theirs {
			return !theirs, err
		}
		return preemptible(spec)
	}
	return true, nil
}

func preemptible(rec store.Record) (bool, error) {
	var p struct {
		Preemptible bool `json:"preemptible"`
	}
	err := json.Unmarshal(rec.JSON("scheduling_parameters"), &p)
	return p.Preemptible, err
}

// sameWork compares mounts, with the keys that one client sends and another
// leaves out, and constraints but for the sizes of caches, which change nothing
// about the result.
func sameWork(a, b store.Record) (bool, error) {
	var texts [2]string
	for i, rec := range []store.Record{a, b} {
		mounts, err := fullMounts(rec.JSON("mounts"))
		if err != nil {
			return false, err
		}
		var constraints map[string]json.RawMessage
		if err := json.Unmarshal(rec.JSON("runtime_constraints"), &constraints); err != nil {
			return false, err
		}
		delete(constraints, "keep_cache_disk")
		delete(constraints, "keep_cache_ram")
		both, err := canonical([]any{mounts, constraints})
		if err != nil {
			return false, err
		}
		texts[i] = string(both)
	}
	return texts[0] == texts[1], nil
}

// secretsDigest is what is left of secret mounts when they are erased.
func secretsDigest(secrets json.RawMessage) string {
	if len(secrets) == 0 {
		secrets = json.RawMessage("{}")
	}
	return fmt.Sprintf("%x", md5.Sum(secrets))
}

// join ties a stored request to the container it reuses: it is finished at once
// if that is, and counts for its priority otherwise.
func (c *call) join(request store.Record) (any, error) {
	if containerstate.Final(c.reused.Str("state")) {
		free := c.reused.Clone() // it has been paid for
		free["cost"], free["subrequests_cost"] = 0.0, 0.0
		if err := c.finish(request, free); err != nil {
			return nil, err
		}
	} else {
		if err := c.recompute(c.reused.Str("uuid")); err != nil {
			return nil, err
		}
		// What it has logged so far is this request's, too.
		if c.reused.Str("log") != "" {
			if err := c.liveLog(c.reused); err != nil {
				return nil, err
			}
			var err error
			if request, err = c.tx.Get(store.ContainerRequests, request.Str("uuid")); err != nil {
				return nil, err
			}
		}
	}
	sel, err := c.selection()
	if err != nil {
		return nil, err
	}
	return c.render(request, sel)
}
