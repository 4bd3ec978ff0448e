package api

import (
	"encoding/json"
	"strings"

	"crunch-oci/localcluster/internal/store"
)

// logResource are events that dispatchers report. Any user may add one about
// anything.
func logResource() *resource {
	res := &resource{
		name: "logs", singular: "log", kind: "arvados#log", model: "Log", infix: "57u5n", table: store.Logs,
		notNull: map[string]any{"properties": json.RawMessage("{}")},
	}
	res.computed = map[string]computed{
		"object_kind": {[]string{"object_uuid"}, func(_ *call, r store.Record) (any, error) { return kindOf(r.Str("object_uuid")), nil }},
	}
	res.endpoints = map[string]endpoint{
		"GET":        {do: (*call).list},
		"GET {uuid}": {do: (*call).get},
		"POST": {do: func(c *call, _ string) (any, error) {
			return c.create(func(rec, _ store.Record) error {
				id, err := c.tx.Int("SELECT coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'logs'), 0) + 1")
				if err != nil {
					return err
				}
				rec["id"] = id
				if rec["event_at"] == nil {
					rec["event_at"] = c.now
				}
				if strings.TrimSpace(rec.Str("object_uuid")) == "" {
					rec["object_uuid"] = nil
				}
				return nil
			})
		}, write: true},
	}
	return res
}
