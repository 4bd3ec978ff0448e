package archive

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
)

// candidate is an image that the tarball offers: a configuration whose digest
// is known, and the members that hold the layers.
type candidate struct {
	id     digest.Digest
	config []byte
	layers []string // names of members, the lowest layer first
	names  []string // tags
}

// choose finds the one image that is meant.
//
// manifest.json is believed first: writers of the OCI part have had bugs (early
// builds of engine 25 listed no layers), and everything docker load reads is in it.
func (x *index) choose(ctx context.Context, o Options) (candidate, error) {
	var offers []candidate
	var err error
	docker, oci := x.has(dockerManifest), x.has(ociIndex)
	switch {
	case docker:
		offers, err = x.dockerImages()
	case oci:
		offers, err = x.ociImages(o)
	case x.has(legacyRepositories) || x.hasLegacyLayers():
		// Nothing but this tells an old tarball from a newer one that was cut off
		// before its manifest.json, which comes last.
		if !x.ended {
			return candidate{}, fmt.Errorf("%w: it ends after %d bytes, without the mark that ends an archive", ErrCorrupt, x.size)
		}
		offers, err = x.legacyImages(ctx)
	case !x.ended && len(x.members) > 0:
		return candidate{}, fmt.Errorf("%w: it ends after %d bytes, before its manifest.json or index.json", ErrCorrupt, x.size)
	case len(x.members) == 0:
		return candidate{}, fmt.Errorf("%w: the tarball has no members", ErrNoImage)
	default:
		return candidate{}, fmt.Errorf("%w: a tar archive with neither manifest.json nor index.json (a root file system must be imported into an image first)", ErrNoImage)
	}
	if err != nil {
		return candidate{}, err
	}
	offers = merge(offers)
	if o.WantID == "" {
		return single(offers)
	}
	want := digest.Digest(o.WantID)
	for _, c := range offers {
		if c.id == want {
			return c, nil
		}
	}
	if c, ok, err := x.byDescriptor(want, o); err != nil {
		return candidate{}, err
	} else if ok {
		// The same image, and manifest.json knows best where its layers are.
		for _, known := range offers {
			if known.id == c.id {
				return known, nil
			}
		}
		return c, nil
	}
	if len(offers) == 0 {
		return candidate{}, fmt.Errorf("%w: the tarball lists none", ErrNoImage)
	}
	return candidate{}, fmt.Errorf("%w: the tarball holds %s, not %s", ErrWrongID, list(offers), want)
}

func single(offers []candidate) (candidate, error) {
	switch len(offers) {
	case 0:
		return candidate{}, fmt.Errorf("%w: the tarball lists none", ErrNoImage)
	case 1:
		return offers[0], nil
	}
	return candidate{}, fmt.Errorf("%w: the tarball holds %d images and no id says which: %s", ErrAmbiguous, len(offers), list(offers))
}

// merge joins offers of the same image: several tags, or several indexes.
func merge(offers []candidate) []candidate {
	var out []candidate
	at := make(map[digest.Digest]int)
	for _, c := range offers {
		i, ok := at[c.id]
		if !ok {
			at[c.id] = len(out)
			out = append(out, c)
			continue
		}
		for _, n := range c.names {
			if !slices.Contains(out[i].names, n) {
				out[i].names = append(out[i].names, n)
			}
		}
	}
	return out
}

// list names offers for an error line.
func list(offers []candidate) string {
	var b strings.Builder
	for i, c := range offers {
		if i == 4 {
			fmt.Fprintf(&b, " and %d more", len(offers)-i)
			break
		}
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(c.id.String())
		if len(c.names) > 0 {
			b.WriteString(" (" + short(c.names[0]) + ")")
		}
	}
	return b.String()
}

// image turns the chosen candidate into what the caller gets.
func (x *index) image(c candidate) (*Image, error) {
	cfg, err := ParseConfig(c.config)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", c.id, err)
	}
	ids := cfg.RootFS.DiffIDs
	if len(ids) != len(c.layers) {
		return nil, fmt.Errorf("%w: image %s has %d layers by its configuration and %d by the manifest", ErrCorrupt, c.id, len(ids), len(c.layers))
	}
	if len(ids) == 0 {
		if cfg.RootFS.Type == "" {
			return nil, fmt.Errorf("%w: image %s has no layers", ErrNoImage, c.id)
		}
		// FROM scratch, and nothing in it: what runs in it is mounted into it.
		return &Image{ID: c.id, Names: c.names, RawConfig: c.config, Config: cfg, Layers: []Layer{emptyLayer()}}, nil
	}
	if len(ids) > maxLayers {
		return nil, fmt.Errorf("%w: image %s has %d layers, more than the kernel's overlay takes (%d)", ErrUnsupported, c.id, len(ids), maxLayers)
	}
	img := &Image{ID: c.id, Names: c.names, RawConfig: c.config, Config: cfg}
	for i, id := range ids {
		if err := id.Validate(); err != nil || id.Algorithm() != digest.SHA256 {
			return nil, fmt.Errorf("%w: image %s: diff ID %q is not a SHA-256 digest", ErrUnsupported, c.id, short(id.String()))
		}
		m, ok, err := x.find(c.layers[i])
		if err != nil {
			return nil, err
		}
		if !ok {
			return nil, fmt.Errorf("%w: layer %d of %d (%s) is missing", ErrCorrupt, i+1, len(ids), short(c.layers[i]))
		}
		img.Layers = append(img.Layers, Layer{DiffID: id, Size: m.size, r: x.r, off: m.off})
	}
	return img, nil
}
