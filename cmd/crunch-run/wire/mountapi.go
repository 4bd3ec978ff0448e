package wire

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"time"

	"crunch-oci/arvados"
	"crunch-oci/keep"
	"crunch-oci/keep/mount"
)

// mountAPI reads and saves collection records for the mount, and lists projects.
type mountAPI struct{ api *arvados.Client }

// Collection implements mount.API.
func (m mountAPI) Collection(ctx context.Context, id string) (mount.Record, error) {
	if arvados.ValidPDH(id) { // beside the manifest there is little to know
		c, err := m.api.GetCollection(ctx, id)
		return mountRecord(c), absence(err)
	}
	var c wholeCollection
	err := m.api.WithBudget(arvados.AuxiliaryBudget).Call(ctx, http.MethodGet, "collections/"+url.PathEscape(id), nil, &c)
	record := mountRecord(c.Collection)
	record.Fields = c.fields
	return record, absence(err)
}

// SaveCollection implements mount.API.
func (m mountAPI) SaveCollection(ctx context.Context, uuid, manifest string, replace map[string]string) (mount.Record, error) {
	var c arvados.Collection
	var err error
	if replace == nil {
		c, err = m.api.UpdateCollection(ctx, uuid, map[string]any{"manifest_text": manifest})
	} else {
		c, err = m.api.ReplaceFiles(ctx, uuid, manifest, replace)
	}
	switch {
	case arvados.IsStatus(err, http.StatusForbidden):
		return mount.Record{}, fmt.Errorf("%w: %w", fs.ErrPermission, err)
	case replace != nil && arvados.IsStatus(err, http.StatusBadRequest, http.StatusNotFound, http.StatusUnprocessableEntity):
		return mount.Record{}, fmt.Errorf("%w: %w", mount.ErrNoReplace, err)
	case err != nil:
		return mount.Record{}, err
	}
	// The manifest comes with the answer, or is the one that was sent.
	if c.ManifestText == "" && c.PortableDataHash == keep.PortableDataHash(manifest) {
		c.ManifestText = manifest
	}
	if c.ManifestText == "" {
		return m.Collection(ctx, uuid)
	}
	return mountRecord(c), nil
}

// absence marks errors that say that there is nothing for this token.
func absence(err error) error {
	if arvados.IsStatus(err, http.StatusNotFound, http.StatusForbidden, http.StatusUnauthorized) {
		return fmt.Errorf("%w: %w", fs.ErrNotExist, err)
	}
	return err
}

// wholeCollection is a collection with all that its record says, beyond what
// this program knows of.
type wholeCollection struct {
	arvados.Collection
	fields map[string]any
}

// UnmarshalJSON implements json.Unmarshaler.
func (c *wholeCollection) UnmarshalJSON(data []byte) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	if err := dec.Decode(&c.fields); err != nil {
		return err
	}
	delete(c.fields, "manifest_text") // which is large, and held elsewhere
	delete(c.fields, "unsigned_manifest_text")
	return json.Unmarshal(data, &c.Collection)
}

// mountRecord has of the record what this program knows of.
func mountRecord(c arvados.Collection) mount.Record {
	record := mount.Record{PortableDataHash: c.PortableDataHash, ManifestText: c.ManifestText, StorageClasses: c.StorageClassesDesired}
	if c.ReplicationDesired != nil {
		record.Replication = *c.ReplicationDesired
	}
	if c.ModifiedAt != nil {
		record.ModifiedAt = *c.ModifiedAt
	}
	if c.UUID != "" {
		record.Fields = fields(c)
	}
	return record
}

// fields is a collection without its manifest, for JSON.
func fields(c arvados.Collection) (f map[string]any) {
	c.ManifestText = ""
	text, err := json.Marshal(c)
	if err != nil {
		return nil
	}
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.UseNumber()
	if dec.Decode(&f) != nil {
		return nil
	}
	delete(f, "manifest_text")
	delete(f, "unsigned_manifest_text")
	return f
}

// item is what listings of projects are asked for.
type item struct {
	UUID       string     `json:"uuid"`
	Name       string     `json:"name"`
	ModifiedAt *time.Time `json:"modified_at"`
}

var itemFields = []string{"uuid", "name", "modified_at"}

func (i item) forMount() mount.Item {
	it := mount.Item{UUID: i.UUID, Name: i.Name}
	if i.ModifiedAt != nil {
		it.ModifiedAt = *i.ModifiedAt
	}
	return it
}

// Project implements mount.Projects. Roles have no content.
func (m mountAPI) Project(ctx context.Context, uuid string) (mount.Item, error) {
	var g struct {
		item
		Class string `json:"group_class"`
	}
	err := m.api.WithBudget(arvados.AuxiliaryBudget).Call(ctx, http.MethodGet, "groups/"+url.PathEscape(uuid),
		map[string]any{"select": append([]string{"group_class"}, itemFields...)}, &g)
	if err == nil && g.Class != "project" && g.Class != "filter" {
		err = fmt.Errorf("group of class %q: %w", g.Class, fs.ErrNotExist)
	}
	return g.forMount(), absence(err)
}

// Contents implements mount.Projects.
func (m mountAPI) Contents(ctx context.Context, uuid string) ([]mount.Item, error) {
	api := m.api.WithBudget(arvados.AuxiliaryBudget)
	var all []mount.Item
	for _, kind := range []string{"arvados#group", "arvados#collection"} {
		// Page by page, each from the last UUID of the one before: offsets go
		// wrong when others add something meanwhile.
		for last := ""; ; {
			filters := [][]string{{"uuid", "is_a", kind}}
			if last != "" {
				filters = append(filters, []string{"uuid", ">", last})
			}
			var page []item
			err := api.List(ctx, "groups/"+url.PathEscape(uuid)+"/contents", map[string]any{
				"filters": filters, "order": []string{"uuid"}, "select": itemFields, "limit": 1000, "count": "none",
			}, &page)
			if err != nil {
				return nil, absence(err)
			}
			for _, i := range page {
				if i.UUID <= last {
					return nil, fmt.Errorf("list of project %s: %s comes after %s", uuid, i.UUID, last)
				}
				last = i.UUID
				all = append(all, i.forMount())
			}
			if len(page) == 0 {
				break
			}
		}
	}
	return all, nil
}
