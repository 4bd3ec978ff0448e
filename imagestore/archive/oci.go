package archive

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/containers/image/v5/manifest"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// ociIndex is the entry point of an OCI image layout (image-spec image-layout.md).
const ociIndex = ocispec.ImageIndexFile

// maxIndexDepth bounds indexes within indexes.
const maxIndexDepth = 4

func blobName(d digest.Digest) string {
	return "blobs/" + d.Algorithm().String() + "/" + d.Encoded()
}

// ociImages gives the images that index.json leads to.
func (x *index) ociImages(o Options) ([]candidate, error) {
	raw, err := x.document(ociIndex)
	if err != nil {
		return nil, err
	}
	return x.fromIndex(raw, manifest.NormalizedMIMEType(ocispec.MediaTypeImageIndex), nil, o, 0)
}

// byDescriptor gives the image of the manifest or index whose digest is want,
// if the tarball holds such a document.
func (x *index) byDescriptor(want digest.Digest, o Options) (candidate, bool, error) {
	name := blobName(want)
	if !x.has(name) {
		if !x.has(ociIndex) {
			return candidate{}, false, nil
		}
		name = ociIndex
	}
	raw, err := x.document(name)
	if err != nil {
		return candidate{}, false, err
	}
	if got := want.Algorithm().FromBytes(raw); got != want {
		if name == ociIndex {
			return candidate{}, false, nil
		}
		return candidate{}, false, fmt.Errorf("%w: %s has the digest %s", ErrCorrupt, name, got)
	}
	offers, err := x.fromDocument(raw, "", nil, o, 0)
	if err != nil {
		return candidate{}, false, err
	}
	c, err := single(merge(offers))
	return c, err == nil, err
}

// fromDescriptor reads the document d names, verifying digest and size.
func (x *index) fromDescriptor(d ocispec.Descriptor, names []string, o Options, depth int) ([]candidate, error) {
	raw, err := x.verified(d)
	if err != nil {
		return nil, err
	}
	return x.fromDocument(raw, d.MediaType, names, o, depth)
}

// verified reads the blob that d describes.
func (x *index) verified(d ocispec.Descriptor) ([]byte, error) {
	if err := d.Digest.Validate(); err != nil {
		return nil, fmt.Errorf("%w: digest %q: %w", ErrCorrupt, short(d.Digest.String()), err)
	}
	raw, err := x.document(blobName(d.Digest))
	if err != nil {
		return nil, err
	}
	if int64(len(raw)) != d.Size {
		return nil, fmt.Errorf("%w: %s has %d bytes, not the %d it is listed with", ErrCorrupt, d.Digest, len(raw), d.Size)
	}
	if got := d.Digest.Algorithm().FromBytes(raw); got != d.Digest {
		return nil, fmt.Errorf("%w: the content of %s has the digest %s", ErrCorrupt, d.Digest, got)
	}
	return raw, nil
}

// fromDocument reads an index or a manifest, whichever it is.
func (x *index) fromDocument(raw []byte, mediaType string, names []string, o Options, depth int) ([]candidate, error) {
	kind, err := kindOf(raw, mediaType)
	if err != nil {
		return nil, err
	}
	if manifest.MIMETypeIsMultiImage(kind) {
		return x.fromIndex(raw, kind, names, o, depth)
	}
	c, err := x.fromManifest(raw, kind, names)
	if err != nil {
		return nil, err
	}
	return []candidate{c}, nil
}

// kindOf decides what a document is. One that can be read both as an index and
// as a manifest is refused: two programs would run different images by the same
// digest (CVE-2021-41190). Keys are compared as Go's decoder does, without case.
func kindOf(raw []byte, mediaType string) (string, error) {
	var keys map[string]json.RawMessage
	if err := json.Unmarshal(raw, &keys); err != nil {
		return "", fmt.Errorf("%w: manifest: %w", ErrCorrupt, err)
	}
	var index, image bool
	var own string
	for k, v := range keys {
		switch strings.ToLower(k) {
		case "manifests":
			index = true
		case "config", "layers", "fslayers", "history":
			image = true
		case "mediatype":
			if err := json.Unmarshal(v, &own); err != nil {
				return "", fmt.Errorf("%w: manifest: mediaType: %w", ErrCorrupt, err)
			}
		}
	}
	if index && image {
		return "", fmt.Errorf("%w: a document is both an index and a manifest", ErrAmbiguous)
	}
	if own == "" {
		own = mediaType
	}
	// OCI's and Docker's kinds of the same say the same by the same words.
	if mediaType != "" && own != mediaType && (manifest.MIMETypeIsMultiImage(own) != manifest.MIMETypeIsMultiImage(mediaType)) {
		return "", fmt.Errorf("%w: a document calls itself %s and is listed as %s", ErrAmbiguous, short(own), short(mediaType))
	}
	if own == "" {
		own = manifest.GuessMIMEType(raw)
	}
	switch own {
	case ocispec.MediaTypeImageManifest, manifest.DockerV2Schema2MediaType:
		if index {
			return "", fmt.Errorf("%w: an index calls itself a manifest", ErrAmbiguous)
		}
	case ocispec.MediaTypeImageIndex, manifest.DockerV2ListMediaType:
		if image {
			return "", fmt.Errorf("%w: a manifest calls itself an index", ErrAmbiguous)
		}
	default:
		return "", fmt.Errorf("%w: a manifest of type %q", ErrUnsupported, short(own))
	}
	return own, nil
}

// fromIndex gives the images of an index that are for this machine and here:
// what docker save writes for a multi-platform image also lists platforms that
// it does not hold, and attestations, which are no images.
func (x *index) fromIndex(raw []byte, kind string, names []string, o Options, depth int) ([]candidate, error) {
	if depth >= maxIndexDepth {
		return nil, fmt.Errorf("%w: indexes nested more than %d deep", ErrUnsupported, maxIndexDepth)
	}
	if _, err := kindOf(raw, kind); err != nil {
		return nil, err
	}
	// The library checks the document's form; its List type hides annotations.
	if _, err := manifest.ListFromBlob(raw, kind); err != nil {
		return nil, fmt.Errorf("%w: index: %w", ErrCorrupt, err)
	}
	var doc ocispec.Index
	if err := json.Unmarshal(raw, &doc); err != nil {
		return nil, fmt.Errorf("%w: index: %w", ErrCorrupt, err)
	}
	var fitting, others, artifacts []ocispec.Descriptor
	missing := 0
	for _, d := range doc.Manifests {
		switch {
		case d.Annotations["vnd.docker.reference.type"] == "attestation-manifest",
			d.Platform != nil && d.Platform.OS == "unknown":
		case d.Digest.Validate() != nil:
			return nil, fmt.Errorf("%w: index: digest %q", ErrCorrupt, short(d.Digest.String()))
		case !x.has(blobName(d.Digest)):
			missing++
		case d.ArtifactType != "": // something about an image, mostly
			artifacts = append(artifacts, d)
		case d.Platform == nil || d.Platform.OS == "linux" && d.Platform.Architecture == o.Architecture:
			fitting = append(fitting, d)
		default:
			others = append(others, d)
		}
	}
	fitting = leastVariant(fitting)
	if len(fitting) == 0 {
		fitting = others
	}
	if len(fitting) == 0 {
		fitting = artifacts
	}
	if len(fitting) == 0 && missing > 0 {
		return nil, fmt.Errorf("%w: the index lists %d images whose manifests are not in the tarball", ErrCorrupt, missing)
	}
	var out []candidate
	for _, d := range fitting {
		tags := slices.Clone(names)
		for _, key := range []string{"io.containerd.image.name", ocispec.AnnotationRefName} {
			if tag := d.Annotations[key]; tag != "" {
				tags = append(tags, tag)
				break
			}
		}
		c, err := x.fromDescriptor(d, tags, o, depth+1)
		if err != nil {
			return nil, err
		}
		out = append(out, c...)
	}
	return out, nil
}

// leastVariant picks, of the variants of one platform that an image comes in (such
// as amd64 and amd64/v3), the one that asks least of the machine, as Docker does.
func leastVariant(ds []ocispec.Descriptor) []ocispec.Descriptor {
	seen := make(map[string]bool)
	for _, d := range ds {
		if d.Platform == nil || seen[d.Platform.Variant] {
			return ds // several images
		}
		seen[d.Platform.Variant] = true
	}
	if len(ds) < 2 {
		return ds
	}
	return []ocispec.Descriptor{slices.MinFunc(ds, func(a, b ocispec.Descriptor) int {
		return strings.Compare(a.Platform.Variant, b.Platform.Variant)
	})}
}

// fromManifest gives the image that a manifest describes. The layers' own
// digests are not looked at: their diff IDs, which the configuration vouches
// for, say more.
func (x *index) fromManifest(raw []byte, kind string, names []string) (candidate, error) {
	m, err := manifest.FromBlob(raw, kind)
	if err != nil {
		return candidate{}, fmt.Errorf("%w: manifest: %w", ErrCorrupt, err)
	}
	info := m.ConfigInfo()
	config, err := x.verified(ocispec.Descriptor{Digest: info.Digest, Size: info.Size})
	if err != nil {
		return candidate{}, err
	}
	c := candidate{id: digest.FromBytes(config), config: config, names: names}
	for _, l := range m.LayerInfos() {
		if err := l.Digest.Validate(); err != nil {
			return candidate{}, fmt.Errorf("%w: manifest: layer digest %q", ErrCorrupt, short(l.Digest.String()))
		}
		c.layers = append(c.layers, blobName(l.Digest))
	}
	return c, nil
}
