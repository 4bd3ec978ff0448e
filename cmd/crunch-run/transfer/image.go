package transfer

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"crunch-oci/arvados"
	"crunch-oci/imagestore/archive"
)

// The classes of links by which images are found (spec: arvados-api section 13).
const (
	linkHash    = "docker_image_hash"
	linkRepoTag = "docker_image_repo+tag"
)

// Image is an image tarball that has been looked into.
type Image struct {
	Path    string
	Size    int64    // bytes
	ID      string   // "sha256:<64 hex>", the digest of the image's config
	Names   []string // as the tarball has them
	Created time.Time
}

// Examine reads enough of an image tarball to know its id, so that a file that
// is no image is refused before anything is stored.
func Examine(ctx context.Context, path, scratch string) (*Image, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	img, err := archive.Open(ctx, f, fi.Size(), archive.Options{Scratch: scratch})
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", path, err)
	}
	defer img.Close()
	out := &Image{Path: path, Size: fi.Size(), ID: img.ID.String(), Names: img.Names}
	if img.Config.Created != nil {
		out.Created = *img.Config.Created
	}
	return out, nil
}

// ImageOptions say how an image is stored.
type ImageOptions struct {
	Names   []string // repository:tag
	Project string   // UUID of the owner; "" means the user
	// Force stores the tarball also if the image is there already.
	Force bool
}

// FullName adds the tag that is meant when none is given.
func FullName(name string) string {
	if last := name[strings.LastIndex(name, "/")+1:]; !strings.Contains(last, ":") {
		return name + ":latest"
	}
	return name
}

// PutImage stores the tarball as arv-keepdocker does: a collection with one file
// named after the image id, and links by which the image is found. If the
// cluster has the image already only what is missing is added.
func (s *Session) PutImage(ctx context.Context, img *Image, o ImageOptions, bar *Bar) (arvados.Collection, error) {
	var stored arvados.Collection
	have := map[string]bool{}
	if !o.Force {
		var err error
		if stored, have, err = s.findImage(ctx, img.ID); err != nil {
			return stored, fmt.Errorf("look for the image on the cluster: %w", err)
		}
	}
	if stored.UUID == "" {
		f, err := os.Open(img.Path)
		if err != nil {
			return stored, err
		}
		defer f.Close()
		if stored, err = s.putFile(ctx, f, img.ID+".tar", o.attrs(img), bar); err != nil {
			return stored, err
		}
	}
	properties := map[string]any{}
	if !img.Created.IsZero() {
		properties["image_timestamp"] = img.Created.UTC().Format(time.RFC3339Nano)
	}
	link := func(class, name string) error {
		if have[class+" "+name] {
			return nil
		}
		attrs := map[string]any{"link_class": class, "name": name, "head_uuid": stored.UUID, "properties": properties}
		if o.Project != "" {
			attrs["owner_uuid"] = o.Project
		}
		if _, err := s.API.CreateLink(ctx, attrs); err != nil {
			return fmt.Errorf("link the image: %w", err)
		}
		return nil
	}
	if err := link(linkHash, img.ID); err != nil {
		return stored, err
	}
	for _, name := range o.Names {
		if err := link(linkRepoTag, FullName(name)); err != nil {
			return stored, err
		}
	}
	return stored, nil
}

// attrs are those of the image's collection.
func (o ImageOptions) attrs(img *Image) map[string]any {
	short := img.ID[:min(len(img.ID), 12)]
	attrs := map[string]any{"name": "Docker image " + short, "properties": map[string]any{"docker-image-repo-tag": nil}}
	if len(o.Names) > 0 {
		full := FullName(o.Names[0])
		attrs["name"] = "Docker image " + strings.ReplaceAll(full, "/", " ") + " " + short
		attrs["properties"] = map[string]any{"docker-image-repo-tag": full}
	}
	if o.Project != "" {
		attrs["owner_uuid"] = o.Project
	}
	return attrs
}

// findImage looks for a readable collection with the image, and which links it
// has, as "class name".
func (s *Session) findImage(ctx context.Context, id string) (arvados.Collection, map[string]bool, error) {
	var links []arvados.Link
	if err := s.API.List(ctx, "links", map[string]any{
		"filters": []any{[]any{"link_class", "=", linkHash}, []any{"name", "=", id}}, "order": "created_at desc",
	}, &links); err != nil {
		return arvados.Collection{}, nil, err
	}
	for _, l := range links {
		c, err := s.API.GetCollection(ctx, l.HeadUUID, "uuid", "portable_data_hash", "name")
		if arvados.IsStatus(err, http.StatusNotFound) {
			continue
		}
		if err != nil {
			return arvados.Collection{}, nil, err
		}
		var all []arvados.Link
		if err := s.API.List(ctx, "links", map[string]any{
			"filters": []any{[]any{"link_class", "in", []string{linkHash, linkRepoTag}}, []any{"head_uuid", "=", c.UUID}}, "limit": 1000,
		}, &all); err != nil {
			return arvados.Collection{}, nil, err
		}
		have := map[string]bool{}
		for _, l := range all {
			have[l.LinkClass+" "+l.Name] = true
		}
		return c, have, nil
	}
	return arvados.Collection{}, nil, nil
}

// imageIDPattern are image ids as people write them: whole, or the first digits
// that "image list" and other programs show, at least as many as those.
var imageIDPattern = regexp.MustCompile(`^(?:sha256:)?([0-9a-f]{12,64})$`)

// ImageByID returns the portable data hash of the readable image with that id, or
// the only one whose id begins so. It is "" if the text is no id or there is no
// such image: then it may be a name. An id is looked up here because clusters
// take only some spellings of it, and some take any image for one with "sha256:".
func (s *Session) ImageByID(ctx context.Context, id string) (string, error) {
	m := imageIDPattern.FindStringSubmatch(id)
	if m == nil {
		return "", nil
	}
	links, err := listAll[arvados.Link](ctx, s.API, "links", map[string]any{
		"filters": []any{[]any{"link_class", "=", linkHash}, []any{"name", "like", "sha256:" + m[1] + "%"}}, "order": "created_at desc, uuid",
	})
	if err != nil {
		return "", err
	}
	pdh, found := "", ""
	for _, l := range links {
		if l.Name == found {
			continue // another copy of it
		}
		c, err := s.API.GetCollection(ctx, l.HeadUUID, "portable_data_hash")
		if arvados.IsStatus(err, http.StatusNotFound) {
			continue
		}
		if err != nil {
			return "", err
		}
		if found != "" {
			return "", fmt.Errorf("image id %s is ambiguous: %s, %s", id, found, l.Name)
		}
		pdh, found = c.PortableDataHash, l.Name
	}
	return pdh, nil
}

// StoredImage is an image on the cluster.
type StoredImage struct {
	Name       string    `json:"name"` // repository:tag, "" if it has none
	ID         string    `json:"id"`   // "" if it is not known
	Created    time.Time `json:"created"`
	UUID       string    `json:"collection_uuid"`
	PDH        string    `json:"portable_data_hash"`
	SizeOnKeep int64     `json:"size"` // bytes
}

// Images lists the images whose links and collections can be read, the newest
// first.
func (s *Session) Images(ctx context.Context) ([]StoredImage, error) {
	links, err := listAll[arvados.Link](ctx, s.API, "links", map[string]any{
		"filters": []any{[]any{"link_class", "in", []string{linkHash, linkRepoTag}}}, "order": "created_at desc, uuid",
	})
	if err != nil {
		return nil, err
	}
	var heads []string
	for _, l := range links {
		if !slices.Contains(heads, l.HeadUUID) {
			heads = append(heads, l.HeadUUID)
		}
	}
	collections := map[string]arvados.Collection{}
	for part := range slices.Chunk(heads, 100) {
		found, err := listAll[arvados.Collection](ctx, s.API, "collections", map[string]any{
			"filters": []any{[]any{"uuid", "in", part}}, "select": []string{"uuid", "portable_data_hash", "file_size_total"}, "order": "uuid",
		})
		if err != nil {
			return nil, err
		}
		for _, c := range found {
			collections[c.UUID] = c
		}
	}
	var out []StoredImage
	for _, head := range heads {
		c, ok := collections[head]
		if !ok {
			continue // in the trash, or not ours to read
		}
		img := StoredImage{UUID: c.UUID, PDH: c.PortableDataHash, SizeOnKeep: c.FileSizeTotal}
		var names []string
		for _, l := range links {
			if l.HeadUUID != head {
				continue
			}
			if at, _ := l.Properties["image_timestamp"].(string); at != "" {
				img.Created, _ = time.Parse(time.RFC3339Nano, at) // one that is no time is unknown
			}
			if l.LinkClass == linkHash {
				img.ID = l.Name
			} else if !slices.Contains(names, l.Name) {
				names = append(names, l.Name)
			}
		}
		if names == nil {
			names = []string{""}
		}
		slices.Sort(names)
		for _, n := range names {
			img.Name = n
			out = append(out, img)
		}
	}
	slices.SortStableFunc(out, func(a, b StoredImage) int { return b.Created.Compare(a.Created) })
	return out, nil
}

// listAll reads all pages of a list.
func listAll[T any](ctx context.Context, api *arvados.Client, resource string, params map[string]any) ([]T, error) {
	return listPages[T](ctx, api, resource, params, 1000)
}

func listPages[T any](ctx context.Context, api *arvados.Client, resource string, params map[string]any, limit int) ([]T, error) {
	var all []T
	params["limit"], params["count"] = limit, "none"
	for {
		var page []T
		params["offset"] = len(all)
		if err := api.List(ctx, resource, params, &page); err != nil {
			return nil, err
		}
		if len(page) == 0 {
			return all, nil
		}
		all = append(all, page...)
	}
}
