package api

import (
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"unicode/utf8"

	"crunch-oci/keep"
	"crunch-oci/localcluster/internal/manifests"
	"crunch-oci/localcluster/internal/store"
)

func collectionResource() *resource {
	res := &resource{
		name: "collections", singular: "collection", kind: "arvados#collection", model: "Collection",
		infix: "4zz18", table: store.Collections, front: true, byPDH: true, trashable: true,
		blank: []string{"name", "owner_uuid", "modified_by_user_uuid"},
		notNull: map[string]any{
			"properties": json.RawMessage("{}"), "manifest_text": "", "portable_data_hash": "",
			"storage_classes_desired": json.RawMessage(`["default"]`), "storage_classes_confirmed": json.RawMessage("[]"),
			"is_trashed": false, "version": int64(1), "preserve_version": false, "file_count": int64(0), "file_size_total": int64(0),
		},
		onlySelected: []string{"manifest_text"},
	}
	manifest := []string{"manifest_text", "trash_at"}
	res.computed = map[string]computed{
		"manifest_text": {manifest, func(c *call, r store.Record) (any, error) { return c.signed(r), nil }},
		"unsigned_manifest_text": {manifest, func(c *call, r store.Record) (any, error) {
			// "" unless selected, also in the answer to a get.
			if sel, err := c.selection(); err != nil || sel == nil {
				return "", err
			}
			return r.Str("manifest_text"), nil
		}},
		"is_trashed": {manifest[1:], func(c *call, r store.Record) (any, error) { return trashed(r, c), nil }},
	}
	res.endpoints = map[string]endpoint{
		"GET":                 {do: (*call).list},
		"POST":                {do: func(c *call, _ string) (any, error) { return c.create(c.checkNewCollection) }, write: true},
		"GET {uuid}":          {do: (*call).getCollection},
		"PUT {uuid}":          {do: func(c *call, uuid string) (any, error) { return c.update(uuid, c.checkCollectionUpdate) }, write: true},
		"DELETE {uuid}":       {do: func(c *call, uuid string) (any, error) { return c.setTrashed(uuid, true) }, write: true},
		"POST {uuid}/trash":   {do: func(c *call, uuid string) (any, error) { return c.setTrashed(uuid, true) }, write: true},
		"POST {uuid}/untrash": {do: func(c *call, uuid string) (any, error) { return c.setTrashed(uuid, false) }, write: true},
	}
	return res
}

// trashed tells whether a record is in the trash now, whether or not the
// sweep has marked it.
func trashed(r store.Record, c *call) bool {
	at, ok := r.Time("trash_at")
	return ok && !at.After(c.now)
}

// signed is the manifest with signatures for the caller's token, valid as long
// as the collection at most. The manifest of a trashed one is not signed.
func (c *call) signed(r store.Record) string {
	text := r.Str("manifest_text")
	if text == "" || trashed(r, c) {
		return text
	}
	expiry := c.now.Add(c.s.cfg.Signer.TTL)
	if at, ok := r.Time("trash_at"); ok && at.Before(expiry) {
		expiry = at
	}
	return c.s.cfg.Signer.SignManifest(text, c.caller.token, expiry)
}

// getCollection finds a collection by UUID, or any readable one by PDH. The
// latter shows no more than what all collections with that PDH have in common.
func (c *call) getCollection(id string) (any, error) {
	if !pdhPattern.MatchString(id) {
		return c.get(id)
	}
	sel, err := c.selection()
	if err != nil {
		return nil, err
	}
	include, err := c.params.boolean("include_trash")
	if err != nil {
		return nil, err
	}
	rec, err := c.findByPDH(id, include)
	if err != nil {
		return nil, err
	}
	out, err := c.render(store.Record{
		"uuid": rec["portable_data_hash"], "portable_data_hash": rec["portable_data_hash"], "manifest_text": rec["manifest_text"], "trash_at": rec["trash_at"],
		"version": int64(0), "file_count": int64(0), "file_size_total": int64(0), "preserve_version": false, "current_version_uuid": "",
	}, sel)
	if err == nil {
		out["etag"] = ""
	}
	return out, err
}

// findByPDH returns the readable collection that stays longest. Hints in the
// PDH do not matter.
func (c *call) findByPDH(pdh string, include bool) (store.Record, error) {
	if parts := strings.SplitN(pdh, "+", 3); len(parts) == 3 {
		pdh = parts[0] + "+" + parts[1]
	}
	rs, err := c.tx.Select(store.Collections, store.Query{
		Where:   append(c.readable(c.s.resources["collections"], include), store.Cond{SQL: "portable_data_hash = ?", Args: []any{pdh}}),
		OrderBy: "trash_at DESC NULLS FIRST, modified_at DESC", Limit: 1,
	})
	if err != nil {
		return nil, err
	}
	if len(rs) == 0 {
		return nil, plainError(http.StatusNotFound, "not found")
	}
	return rs[0], nil
}

// manifestByPDH returns the manifest with that PDH, whoever's collection it
// is and whether or not it is in the trash; ok is false if there is none.
func (c *call) manifestByPDH(pdh string) (text string, ok bool, err error) {
	rs, err := c.tx.Select(store.Collections, store.Query{
		Columns: []string{"manifest_text"}, Where: []store.Cond{{SQL: "portable_data_hash = ?", Args: []any{pdh}}}, Limit: 1,
	})
	if err != nil || len(rs) == 0 {
		return "", false, err
	}
	return rs[0].Str("manifest_text"), true, nil
}

func (c *call) checkNewCollection(rec, given store.Record) error {
	replaced, err := c.replaceFiles("", given)
	switch {
	case err != nil:
	case replaced != nil:
		err = setManifest(rec, *replaced, nil)
	default:
		err = setManifest(rec, rec.Str("manifest_text"), c.checkSignature)
	}
	if err != nil {
		return err
	}
	if err := checkPDH(rec, given); err != nil {
		return err
	}
	for _, n := range []string{"trash_at", "delete_at"} {
		rec[n] = nil
	}
	rec["is_trashed"], rec["version"], rec["current_version_uuid"] = false, int64(1), rec["uuid"]
	trash, err := c.trashChanges(rec, given)
	if err != nil {
		return err
	}
	for k, v := range trash {
		rec[k] = v
	}
	return c.checkCollection(rec, nil)
}

// settable are the attributes that clients may change as they like.
var settable = []string{"owner_uuid", "name", "description", "properties", "replication_desired", "replication_confirmed",
	"replication_confirmed_at", "storage_classes_desired", "storage_classes_confirmed", "storage_classes_confirmed_at", "preserve_version"}

func (c *call) checkCollectionUpdate(rec, changed store.Record) error {
	given, err := c.attributes() // also what is not changed: times that are repeated count
	if err != nil {
		return err
	}
	replaced, err := c.replaceFiles(rec.Str("manifest_text"), given)
	if err != nil {
		return err
	}
	next := rec.Clone()
	for _, n := range settable {
		if v, ok := changed[n]; ok {
			next[n] = v
		}
	}
	if replaced != nil {
		err = setManifest(next, *replaced, nil)
	} else if text, ok := changed["manifest_text"].(string); ok {
		err = setManifest(next, text, c.checkSignature)
	}
	if err != nil {
		return err
	}
	if err := checkPDH(next, given); err != nil {
		return err
	}
	trash, err := c.trashChanges(rec, given)
	if err != nil {
		return err
	}
	for k, v := range trash {
		next[k] = v
	}
	if err := c.checkCollection(next, rec); err != nil {
		return err
	}
	// What is stored is the difference that is left.
	clear(changed)
	for k, v := range changes(rec, next) {
		changed[k] = v
	}
	return nil
}

// checkCollection checks a record that replaces old, which is nil for a new one.
func (c *call) checkCollection(rec, old store.Record) error {
	if rec.Str("name") == "" {
		rec["name"] = nil
	}
	if err := checkCollectionName("Name", rec.Str("name")); err != nil {
		return err
	}
	var classes []string
	if err := json.Unmarshal(rec.JSON("storage_classes_desired"), &classes); err != nil || len(classes) == 0 {
		return invalid("Storage classes desired must be a non-empty array of strings")
	}
	// What has been confirmed users can only take back.
	for _, n := range []string{"replication_confirmed", "replication_confirmed_at", "storage_classes_confirmed", "storage_classes_confirmed_at"} {
		if !c.caller.admin() && !same(rec[n], nil) && !same(rec[n], old[n]) {
			return denied("")
		}
	}
	return nil
}

// checkCollectionName checks what an attribute says a collection shall be called.
func checkCollectionName(attr, name string) error {
	switch {
	case utf8.RuneCountInString(name) > 255:
		return invalid("%s is too long (maximum is 255 characters)", attr)
	case name == "." || name == ".." || strings.Contains(name, "/"):
		return invalid("%s must not be '.' or '..' or contain '/'", attr)
	}
	return nil
}

// setManifest enters a manifest, its PDH and its counts.
func setManifest(rec store.Record, text string, block func(string) error) error {
	info, err := manifests.Check(text, block)
	var refused *apiError
	if errors.As(err, &refused) {
		return err
	}
	if err != nil {
		return invalid("Manifest text %v", err)
	}
	rec["manifest_text"], rec["portable_data_hash"] = keep.StripSignatures(text), info.PDH
	rec["file_count"], rec["file_size_total"] = info.FileCount, info.FileSize
	return nil
}

// checkPDH compares a PDH that the client sent with the computed one; only the
// hashes count.
func checkPDH(rec, given store.Record) error {
	sent := given.Str("portable_data_hash")
	if sent == "" {
		return nil
	}
	have, _, _ := strings.Cut(rec.Str("portable_data_hash"), "+")
	if want, _, _ := strings.Cut(sent, "+"); want != have {
		return invalid("Portable data hash '%s' does not match computed hash '%s'", sent, rec.Str("portable_data_hash"))
	}
	return nil
}

const emptyHash = "d41d8cd98f00b204e9800998ecf8427e"

// checkSignature refuses a block that the caller has not shown to be theirs to
// read. Admins are not asked.
func (c *call) checkSignature(locator string) error {
	if c.caller.admin() {
		return nil
	}
	err := c.s.cfg.Signer.VerifySignature(locator, c.caller.token, c.now)
	empty := strings.HasPrefix(locator, emptyHash)
	if err == nil || empty && errors.Is(err, keep.ErrSignatureMissing) && !strings.Contains(locator, "+A") {
		return nil
	}
	return denied("")
}
