package api

import (
	"bytes"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"time"

	"crunch-oci/localcluster/internal/query"
	"crunch-oci/localcluster/internal/store"
)

// resource is one kind of record as clients see it.
type resource struct {
	name, singular string // "containers", "container"
	kind, model    string // "arvados#container", "Container"
	infix          string // of UUIDs
	table          *store.Table
	front          bool // answered by the front end in the real server
	byPDH          bool // a PDH will do for a UUID
	endpoints      map[string]endpoint

	// blank attributes read "" when they are null.
	blank []string
	// computed attributes are made from the record when it is shown; they may
	// replace one that is stored. needs lists the stored attributes they are
	// made from.
	computed map[string]computed
	// unless null, notNull are the values of attributes that cannot be null.
	notNull map[string]any
	// onlySelected attributes are not in lists unless selected.
	onlySelected []string
	// trashable records have is_trashed, and are hidden when it is true.
	trashable bool
}

type computed struct {
	needs []string
	make  func(c *call, r store.Record) (any, error)
}

// open tells whether some endpoint needs no token.
func (res *resource) open() bool {
	for _, e := range res.endpoints {
		if e.public {
			return true
		}
	}
	return false
}

// ignored attributes are dropped from what clients send.
var ignored = []string{"created_at", "modified_at", "modified_by_user_uuid", "modified_by_client_uuid"}

// ignoredOnUpdate are dropped from updates only.
var ignoredOnUpdate = []string{"kind", "etag", "href"}

// attributes reads the attributes of a create or update as values of their
// types. Unknown ones are refused.
func (c *call) attributes() (store.Record, error) {
	in, err := c.object()
	if err != nil {
		return nil, err
	}
	out := store.Record{}
	for _, name := range slices.Sorted(maps.Keys(in)) {
		if slices.Contains(ignored, name) || c.method != "POST" && slices.Contains(ignoredOnUpdate, name) {
			continue
		}
		a := c.res.table.Attr(name)
		if a == nil {
			if _, ok := c.res.computed[name]; ok {
				continue // what we showed comes back
			}
			return nil, raised("ActiveModel::UnknownAttributeError", "unknown attribute '%s' for %s.", name, c.res.model)
		}
		v, err := cast(a.Type, in[name])
		if err != nil {
			return nil, invalid("%s %v", humanize(name), err)
		}
		if v == nil {
			if def, ok := c.res.notNull[name]; ok {
				v = def
			}
		}
		out[name] = v
	}
	return out, nil
}

// castError says what was expected instead.
type castError string

func (e castError) Error() string { return string(e) }

// cast decodes a JSON value as the type of an attribute; null is nil.
func cast(t store.Type, raw json.RawMessage) (any, error) {
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		return nil, castError("is not JSON")
	}
	if v == nil {
		return nil, nil
	}
	switch t {
	case store.Text:
		if s, ok := v.(string); ok {
			if strings.Contains(s, "\x00") {
				return nil, castError("must not contain a null byte")
			}
			return s, nil
		}
		return nil, castError("must be a string")
	case store.Int:
		if n, ok := v.(json.Number); ok {
			if i, err := n.Int64(); err == nil {
				return i, nil
			}
			if f, err := n.Float64(); err == nil && f == float64(int64(f)) && f > -1e18 && f < 1e18 {
				return int64(f), nil
			}
		}
		return nil, castError("must be an integer")
	case store.Float:
		if n, ok := v.(json.Number); ok {
			if f, err := n.Float64(); err == nil {
				return f, nil
			}
		}
		return nil, castError("must be a number")
	case store.Bool:
		if b, ok := v.(bool); ok {
			return b, nil
		}
		return nil, castError("must be true or false")
	case store.Time:
		if s, ok := v.(string); ok {
			if s == "" {
				return nil, nil
			}
			if t, err := query.ParseTime(s); err == nil {
				return t, nil
			}
		}
		return nil, castError("must be a time like 2026-03-04T05:06:07Z")
	case store.Hash:
		if _, ok := v.(map[string]any); ok {
			return canonical(v)
		}
		return nil, castError("must be an object")
	case store.Array:
		if _, ok := v.([]any); ok {
			return canonical(v)
		}
		return nil, castError("must be an array")
	}
	return nil, castError("has an unknown type")
}

// canonical encodes a decoded value with sorted keys and verbatim numbers.
func canonical(v any) (json.RawMessage, error) {
	b, err := encode(v)
	return json.RawMessage(bytes.TrimSuffix(b, []byte("\n"))), err
}

// encode is json.Marshal without escaping <, > and &, with a final newline.
func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	err := enc.Encode(v)
	return b.Bytes(), err
}

// mustJSON encodes a value of our own making.
func mustJSON(v any) json.RawMessage {
	j, err := canonical(v)
	if err != nil {
		panic(err) // only channels, functions and the like do that
	}
	return j
}

// same tells whether two values of an attribute are equal. null, [] and {}
// are, as the real server has it.
func same(a, b any) bool {
	empty := func(v any) bool {
		j, ok := v.(json.RawMessage)
		return v == nil || ok && (len(j) == 0 || string(j) == "[]" || string(j) == "{}")
	}
	if empty(a) || empty(b) {
		return empty(a) && empty(b)
	}
	switch a := a.(type) {
	case json.RawMessage:
		b, ok := b.(json.RawMessage)
		return ok && bytes.Equal(a, b)
	case time.Time:
		b, ok := b.(time.Time)
		return ok && a.Equal(b)
	}
	return a == b
}

// changes returns the attributes of in that differ from the record's.
func changes(old, in store.Record) store.Record {
	out := store.Record{}
	for k, v := range in {
		if !same(old[k], v) {
			out[k] = v
		}
	}
	return out
}

// save stores the changed attributes of a record, with who and when, and
// enters them into rec. Without changes it does nothing.
func (c *call) save(t *store.Table, rec, changed store.Record) error {
	if len(changed) == 0 {
		return nil
	}
	changed = changed.Clone()
	changed["modified_at"] = c.now
	if _, ok := changed["modified_by_user_uuid"]; !ok {
		changed["modified_by_user_uuid"] = c.caller.userUUID()
	}
	for k, v := range changed {
		rec[k] = v
	}
	return c.tx.Update(t, rec.Str("uuid"), changed)
}

// fresh starts a new record with the attributes that every kind has.
func (c *call) fresh(infix, owner string) store.Record {
	return store.Record{
		"uuid": NewUUID(c.s.cfg.ClusterID, infix), "owner_uuid": owner, "created_at": c.now, "modified_at": c.now,
		"modified_by_user_uuid": c.caller.userUUID(),
	}
}
