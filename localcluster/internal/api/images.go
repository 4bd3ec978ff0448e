package api

import (
	"encoding/json"
	"regexp"
	"slices"
	"strings"
	"time"

	"crunch-oci/localcluster/internal/manifests"
	"crunch-oci/localcluster/internal/store"
)

var (
	imageFile   = regexp.MustCompile(`^sha256:[0-9a-f]{64}\.tar$`)
	imageFileV1 = regexp.MustCompile(`^[0-9a-f]{64}\.tar$`)
)

const (
	linkHash    = "docker_image_hash"
	linkRepoTag = "docker_image_repo+tag"
	// linkMigration leads from an image in the old format to one in the new.
	linkMigration = "docker_image_migration"
)

// resolveImage finds the PDH of the image collection that a container request
// names: by PDH, by repository and tag, or by the beginning of its id (section
// 13).
func (c *call) resolveImage(term string) (string, error) {
	notFound := raised("ArvadosModel::UnresolvableContainerError", "docker image %s not found", inspect(term))
	if pdhPattern.MatchString(term) {
		rec, err := c.findByPDH(term, false)
		if _, refused := err.(*apiError); refused {
			return "", notFound
		}
		if err != nil {
			return "", err
		}
		switch imageFormat(rec.Str("manifest_text")) {
		case 2:
			return rec.Str("portable_data_hash"), nil
		case 1:
			if pdh, err := c.migratedImage(rec.Str("portable_data_hash")); err != nil || pdh != "" {
				return pdh, err
			}
		}
		return "", notFound
	}
	// What every id begins with is none.
	if strings.HasPrefix("sha256:", term) {
		return "", notFound
	}
	name := term
	if last := term[strings.LastIndex(term, "/")+1:]; !strings.Contains(last, ":") {
		name += ":latest"
	}
	old := false
	for _, where := range []store.Cond{
		{SQL: "link_class = ? AND name = ?", Args: []any{linkRepoTag, name}},
		{SQL: "link_class = ? AND substr(name, 1, length(?)) = ?", Args: []any{linkHash, term, term}},
	} {
		pdh, v1, err := c.newestImage(where)
		if err != nil || pdh != "" {
			return pdh, err
		}
		old = old || v1
	}
	if old {
		return "", raised("ArvadosModel::UnresolvableContainerError", "Matching Docker image is incompatible with 'docker_image_formats' configuration.")
	}
	return "", notFound
}

// newestImage looks at the heads of readable links, newest image first. v1
// tells that one was found whose format is too old.
func (c *call) newestImage(where store.Cond) (pdh string, v1 bool, err error) {
	links, err := c.tx.Select(store.Links, store.Query{Where: append(c.readable(c.s.resources["links"], false), where), Limit: -1})
	if err != nil {
		return "", false, err
	}
	timestamp := func(l store.Record) time.Time {
		var p struct {
			At string `json:"image_timestamp"`
		}
		_ = json.Unmarshal(l.JSON("properties"), &p) // one without is the oldest
		at, _ := time.Parse(time.RFC3339Nano, p.At)
		return at
	}
	slices.SortStableFunc(links, func(a, b store.Record) int {
		if n := timestamp(b).Compare(timestamp(a)); n != 0 {
			return n
		}
		at, _ := a.Time("created_at")
		bt, _ := b.Time("created_at")
		return bt.Compare(at)
	})
	for _, l := range links {
		rec, err := c.find(c.s.resources["collections"], l.Str("head_uuid"), false)
		if _, refused := err.(*apiError); refused {
			continue
		}
		if err != nil {
			return "", false, err
		}
		switch imageFormat(rec.Str("manifest_text")) {
		case 2:
			return rec.Str("portable_data_hash"), v1, nil
		case 1:
			if pdh, err := c.migratedImage(rec.Str("portable_data_hash")); err != nil || pdh != "" {
				return pdh, false, err
			}
			v1 = true
		}
	}
	return "", v1, nil
}

// migratedImage finds the readable image that an administrator has made of one
// in the old format, "" if there is none. The links are the system's, from PDH to
// PDH.
func (c *call) migratedImage(old string) (string, error) {
	heads, err := c.tx.Strings("SELECT head_uuid FROM links WHERE link_class = ? AND tail_uuid = ? AND owner_uuid = ? ORDER BY created_at DESC",
		linkMigration, old, c.s.systemUUID("tpzed"))
	if err != nil {
		return "", err
	}
	for _, pdh := range heads {
		rec, err := c.findByPDH(pdh, false)
		if _, refused := err.(*apiError); refused {
			continue
		}
		if err != nil {
			return "", err
		}
		if imageFormat(rec.Str("manifest_text")) == 2 {
			return rec.Str("portable_data_hash"), nil
		}
	}
	return "", nil
}

// imageFormat tells which kind of image collection a manifest is of: 2 or 1,
// or 0 if it does not hold exactly one image file.
func imageFormat(manifest string) int {
	tree, err := manifests.NewTree(manifest)
	if err != nil {
		return 0
	}
	name, ok := tree.OnlyFile()
	switch {
	case !ok:
		return 0
	case imageFile.MatchString(name):
		return 2
	case imageFileV1.MatchString(name):
		return 1
	}
	return 0
}
