package arvados

import (
	"context"
	"net/http"
	"net/url"
	"slices"
	"time"
)

// Collection is a collection record (spec: arvados-api section 12). Only
// selected attributes are set; one read by portable data hash has little more
// than that hash, the manifest and TrashAt.
type Collection struct {
	UUID                  string         `json:"uuid"`
	OwnerUUID             string         `json:"owner_uuid"`
	Name                  string         `json:"name"`
	Description           string         `json:"description"`
	CreatedAt             *time.Time     `json:"created_at"`
	ModifiedAt            *time.Time     `json:"modified_at"`
	ManifestText          string         `json:"manifest_text"`
	UnsignedManifestText  string         `json:"unsigned_manifest_text"`
	PortableDataHash      string         `json:"portable_data_hash"`
	Properties            map[string]any `json:"properties"`
	ReplicationDesired    *int           `json:"replication_desired"`
	StorageClassesDesired []string       `json:"storage_classes_desired"`
	TrashAt               *time.Time     `json:"trash_at"`
	DeleteAt              *time.Time     `json:"delete_at"`
	IsTrashed             bool           `json:"is_trashed"`
	Version               int            `json:"version"`
	FileCount             int64          `json:"file_count"`
	FileSizeTotal         int64          `json:"file_size_total"` // bytes
}

func selecting(params map[string]any, attrs []string) map[string]any {
	if len(attrs) > 0 {
		params["select"] = attrs
	}
	return params
}

func collectionPath(id string) string { return "collections/" + url.PathEscape(id) }

// CreateCollection makes a collection and returns the selected attributes, or
// all of them. With ensureUnique the server changes a name that is taken;
// without, it refuses it (422). A repeated attempt may leave a second
// collection behind.
func (c *Client) CreateCollection(ctx context.Context, attrs map[string]any, ensureUnique bool, selected ...string) (Collection, error) {
	params := map[string]any{"collection": attrs}
	if ensureUnique {
		params["ensure_unique_name"] = true
	}
	var coll Collection
	err := c.Call(ctx, http.MethodPost, "collections", selecting(params, selected), &coll)
	if err == nil {
		err = coll.check(http.MethodPost, "collections", selected)
	}
	return coll, err
}

// UpdateCollection changes attributes and returns the selected ones, or all.
func (c *Client) UpdateCollection(ctx context.Context, uuid string, attrs map[string]any, selected ...string) (Collection, error) {
	return c.changeCollection(ctx, uuid, map[string]any{"collection": attrs}, selected)
}

// ReplaceFiles changes some paths of a collection in one step, and none that
// others change at the same time: replace says by path where what shall be there
// comes from: manifest_text/PATH, or "" for nothing (doc.arvados.org, API methods
// of collections, replace_files). It returns the whole record. A server that does
// not know the parameter makes manifest all there is, or does nothing if all is
// to be removed.
func (c *Client) ReplaceFiles(ctx context.Context, uuid, manifest string, replace map[string]string) (Collection, error) {
	attrs := map[string]any{}
	for _, source := range replace {
		if source != "" { // an unused manifest_text would be refused
			attrs["manifest_text"] = manifest
		}
	}
	return c.changeCollection(ctx, uuid, map[string]any{"collection": attrs, "replace_files": replace}, nil)
}

func (c *Client) changeCollection(ctx context.Context, uuid string, params map[string]any, selected []string) (Collection, error) {
	var coll Collection
	err := c.Call(ctx, http.MethodPut, collectionPath(uuid), selecting(params, selected), &coll)
	if err == nil {
		err = coll.check(http.MethodPut, collectionPath(uuid), selected)
	}
	return coll, err
}

// check refuses an answer that lacks what was selected: what a container record
// would then be told to refer to does not exist.
func (coll Collection) check(method, path string, selected []string) error {
	if (len(selected) == 0 || slices.Contains(selected, "portable_data_hash")) && !ValidPDH(coll.PortableDataHash) {
		return unexpected(method, path, "no portable data hash but %q", coll.PortableDataHash)
	}
	if (len(selected) == 0 || slices.Contains(selected, "uuid")) && coll.UUID == "" {
		return unexpected(method, path, "no uuid")
	}
	return nil
}

// GetCollection reads a collection by UUID or portable data hash. The manifest
// is signed for this client's token: blocks must be read with the same one. It
// gives up after AuxiliaryBudget.
func (c *Client) GetCollection(ctx context.Context, uuidOrPDH string, selected ...string) (Collection, error) {
	var coll Collection
	err := c.auxiliary().Call(ctx, http.MethodGet, collectionPath(uuidOrPDH), selecting(map[string]any{}, selected), &coll)
	return coll, err
}
