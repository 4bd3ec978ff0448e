package archive

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
)

// legacyRepositories lists the tags of what docker save wrote before 1.10
// (image-spec v1 of moby): a directory per layer with json, VERSION and
// layer.tar, each json naming its parent, and no digest anywhere.
const legacyRepositories = "repositories"

// v1Layer is one of those json documents; what is not used stays as it is.
type v1Layer struct {
	Parent       string          `json:"parent"`
	Created      json.RawMessage `json:"created,omitempty"`
	Author       string          `json:"author,omitempty"`
	Architecture string          `json:"architecture,omitempty"`
	OS           string          `json:"os,omitempty"`
	Config       json.RawMessage `json:"config,omitempty"`
}

func (x *index) hasLegacyLayers() bool {
	for name := range x.members {
		if id, ok := strings.CutSuffix(name, "/layer.tar"); ok && x.has(id+"/json") {
			return true
		}
	}
	return false
}

// legacyImages gives the image of a tarball without manifest.json, with a
// configuration made the way later versions of docker do. Its diff IDs have to
// be computed, so the layers are read once more than usual.
func (x *index) legacyImages(ctx context.Context) ([]candidate, error) {
	heads, err := x.legacyHeads()
	if err != nil {
		return nil, err
	}
	if len(heads) == 0 {
		return nil, nil
	}
	if len(heads) > 1 {
		var ids []string
		for id := range heads {
			ids = append(ids, short(id))
		}
		slices.Sort(ids)
		return nil, fmt.Errorf("%w: the tarball holds %d images and no id says which: %s", ErrAmbiguous, len(ids), strings.Join(ids, ", "))
	}
	for head, tags := range heads {
		c, err := x.legacyImage(ctx, head)
		if err != nil {
			return nil, err
		}
		c.names = tags
		return []candidate{c}, nil
	}
	return nil, nil
}

// legacyHeads gives the tagged layers, or else those that are nobody's parent.
func (x *index) legacyHeads() (map[string][]string, error) {
	heads := make(map[string][]string)
	if x.has(legacyRepositories) {
		raw, err := x.document(legacyRepositories)
		if err != nil {
			return nil, err
		}
		var repos map[string]map[string]string
		if err := json.Unmarshal(raw, &repos); err != nil {
			return nil, fmt.Errorf("%w: repositories: %w", ErrCorrupt, err)
		}
		for repo, tags := range repos {
			for tag, id := range tags {
				heads[id] = append(heads[id], repo+":"+tag)
			}
		}
	}
	if len(heads) > 0 {
		return heads, nil
	}
	parents := make(map[string]bool)
	for name := range x.members {
		id, ok := strings.CutSuffix(name, "/json")
		if !ok || !x.has(id+"/layer.tar") {
			continue
		}
		l, err := x.v1Layer(id)
		if err != nil {
			return nil, err
		}
		heads[id] = nil
		parents[l.Parent] = true
	}
	for id := range parents {
		delete(heads, id)
	}
	return heads, nil
}

func (x *index) v1Layer(id string) (v1Layer, error) {
	raw, err := x.document(id + "/json")
	if err != nil {
		return v1Layer{}, err
	}
	var l v1Layer
	if err := json.Unmarshal(raw, &l); err != nil {
		return v1Layer{}, fmt.Errorf("%w: %s/json: %w", ErrCorrupt, short(id), err)
	}
	return l, nil
}

func (x *index) legacyImage(ctx context.Context, head string) (candidate, error) {
	var c candidate
	var top v1Layer
	for id := head; id != ""; {
		l, err := x.v1Layer(id)
		if err != nil {
			return c, err
		}
		if id == head {
			top = l
		}
		if len(c.layers) >= maxLayers {
			return c, fmt.Errorf("%w: more than %d layers", ErrUnsupported, maxLayers)
		}
		c.layers = append(c.layers, id+"/layer.tar")
		id = l.Parent
	}
	slices.Reverse(c.layers)
	type rootFS struct {
		Type    string          `json:"type"`
		DiffIDs []digest.Digest `json:"diff_ids"`
	}
	doc := struct {
		v1Layer
		Parent string `json:"parent,omitempty"` // hides the embedded one
		RootFS rootFS `json:"rootfs"`
	}{v1Layer: top, RootFS: rootFS{Type: "layers"}}
	for _, name := range c.layers {
		id, err := x.diffID(ctx, name)
		if err != nil {
			return c, err
		}
		doc.RootFS.DiffIDs = append(doc.RootFS.DiffIDs, id)
	}
	var err error
	if c.config, err = json.Marshal(doc); err != nil {
		return c, err
	}
	c.id = digest.FromBytes(c.config)
	return c, nil
}

// diffID reads a layer to learn the digest of its tar stream.
func (x *index) diffID(ctx context.Context, name string) (digest.Digest, error) {
	m, ok, err := x.find(name)
	if err != nil {
		return "", err
	}
	if !ok {
		return "", fmt.Errorf("%w: layer %s is missing", ErrCorrupt, short(name))
	}
	s, err := Layer{r: x.r, off: m.off, Size: m.size}.Open(ctx, nil)
	if err != nil {
		return "", err
	}
	defer s.Close()
	if _, err := io.Copy(io.Discard, s); err != nil {
		return "", err
	}
	return s.sum, nil
}
