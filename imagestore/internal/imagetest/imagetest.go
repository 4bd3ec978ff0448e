// Package imagetest writes image tarballs in the layouts of the programs that
// make them, from layers given as tar streams. The facts about the layouts are
// those of the OCI image-layout specification, of moby's image specification
// (v1.2, "docker save") and of tarballs written by the programs named.
package imagetest

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"

	"crunch-oci/imagestore/internal/tartest"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Image is what a tarball is to hold.
type Image struct {
	Layers [][]byte // tar streams, the lowest first
	Config ocispec.ImageConfig
	Tags   []string
	// Compress says how layers are packed where the layout allows it: "", "gzip"
	// or "zstd".
	Compress string
}

// DiffIDs are the digests of the layers.
func (m Image) DiffIDs() []digest.Digest {
	var ids []digest.Digest
	for _, l := range m.Layers {
		ids = append(ids, digest.FromBytes(l))
	}
	return ids
}

// RawConfig is the configuration document.
func (m Image) RawConfig() []byte {
	var history []any // one without layer, then as many with
	for i := range len(m.Layers) + 1 {
		step := map[string]any{"created": "2024-05-06T07:08:09Z", "created_by": "/bin/sh -c #(nop)"}
		if i == 0 {
			step["empty_layer"] = true
		}
		history = append(history, step)
	}
	doc := map[string]any{
		"architecture": "amd64", "os": "linux", "created": "2024-05-06T07:08:09.123456789Z",
		"config":         m.Config,
		"docker_version": "26.1.5", "container_config": map[string]any{"Hostname": "x"}, // docker's extensions
		"rootfs":  map[string]any{"type": "layers", "diff_ids": m.DiffIDs()},
		"history": history,
	}
	return mustJSON(doc)
}

// ID is the digest of the configuration.
func (m Image) ID() string { return digest.FromBytes(m.RawConfig()).String() }

func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

// Pack compresses b.
func Pack(how string, b []byte) []byte {
	var buf bytes.Buffer
	switch how {
	case "":
		return b
	case "gzip":
		z := gzip.NewWriter(&buf)
		_, _ = z.Write(b)
		_ = z.Close()
	case "zstd":
		z, err := zstd.NewWriter(&buf, zstd.WithEncoderConcurrency(1))
		if err != nil {
			panic(err)
		}
		_, _ = z.Write(b)
		_ = z.Close()
	default:
		panic("compression " + how)
	}
	return buf.Bytes()
}

func hexOf(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// DockerLegacy is docker save from 1.10 to 24: a directory per layer with
// VERSION, json and layer.tar. A layer that comes again is a link to the first
// (a symbolic one up to 1.12 or so and from 17.x on, hard where asked for).
func DockerLegacy(m Image, hardLinks bool) []tartest.Entry {
	var out []tartest.Entry
	var paths []string
	first := make(map[digest.Digest]string)
	parent := ""
	for i, l := range m.Layers {
		id := hexOf([]byte(fmt.Sprintf("v1 %s %d %s", parent, i, m.DiffIDs()[i])))
		v1 := map[string]any{"id": id, "created": "1970-01-01T00:00:00Z"}
		if parent != "" {
			v1["parent"] = parent
		}
		out = append(out, tartest.Dir(id+"/"), tartest.File(id+"/VERSION", "1.0"), tartest.File(id+"/json", string(mustJSON(v1))))
		name := id + "/layer.tar"
		if at, ok := first[m.DiffIDs()[i]]; ok {
			if hardLinks {
				out = append(out, tartest.Link(name, at))
			} else {
				out = append(out, tartest.Symlink(name, "../"+at))
			}
		} else {
			first[m.DiffIDs()[i]] = name
			out = append(out, tartest.File(name, string(l)))
		}
		paths = append(paths, name)
		parent = id
	}
	config := hexOf(m.RawConfig()) + ".json"
	out = append(out, tartest.File(config, string(m.RawConfig())),
		tartest.File("manifest.json", string(mustJSON([]any{dockerItem(config, m.Tags, paths)}))))
	if len(m.Tags) > 0 {
		out = append(out, tartest.File("repositories", string(mustJSON(map[string]any{"img": map[string]any{"latest": parent}}))))
	}
	return out
}

func dockerItem(config string, tags, layers []string) map[string]any {
	return map[string]any{"Config": config, "RepoTags": tags, "Layers": layers}
}

// DockerV1 is docker save before 1.10: no manifest.json, no digests.
func DockerV1(m Image) []tartest.Entry {
	var out []tartest.Entry
	parent := ""
	for i, l := range m.Layers {
		id := hexOf([]byte(fmt.Sprintf("v1 %s %d", parent, i)))
		v1 := map[string]any{"id": id, "created": "2015-01-01T00:00:00Z", "architecture": "amd64", "os": "linux"}
		if parent != "" {
			v1["parent"] = parent
		}
		if i == len(m.Layers)-1 {
			v1["config"] = m.Config
		}
		out = append(out, tartest.Dir(id), tartest.File(id+"/VERSION", "1.0"),
			tartest.File(id+"/json", string(mustJSON(v1))), tartest.File(id+"/layer.tar", string(l)))
		parent = id
	}
	return append(out, tartest.File("repositories", string(mustJSON(map[string]any{"img": map[string]any{"latest": parent}}))))
}

// SkopeoDocker is what skopeo and podman write as docker-archive: layers named
// by digest, and the legacy directories as symbolic links to them.
func SkopeoDocker(m Image) []tartest.Entry {
	var out []tartest.Entry
	var paths []string
	for i, l := range m.Layers {
		name := m.DiffIDs()[i].Encoded() + ".tar"
		legacy := hexOf([]byte(fmt.Sprint("legacy", i)))
		out = append(out, tartest.File(name, string(l)),
			tartest.Symlink(legacy+"/layer.tar", "../"+name), tartest.File(legacy+"/VERSION", "1.0"),
			tartest.File(legacy+"/json", `{"id":"`+legacy+`"}`))
		paths = append(paths, name)
	}
	config := hexOf(m.RawConfig()) + ".json"
	return append(out, tartest.File(config, string(m.RawConfig())),
		tartest.File("repositories", "{}"),
		tartest.File("manifest.json", string(mustJSON([]any{dockerItem(config, m.Tags, paths)}))))
}

// Kaniko is kaniko's --tarPath: configuration named by digest with its prefix,
// gzip layers.
func Kaniko(m Image) []tartest.Entry {
	var out []tartest.Entry
	var paths []string
	for i, l := range m.Layers {
		name := m.DiffIDs()[i].Encoded() + ".tar.gz"
		out = append(out, tartest.File(name, string(Pack("gzip", l))))
		paths = append(paths, name)
	}
	config := m.ID()
	return append(out, tartest.File(config, string(m.RawConfig())),
		tartest.File("manifest.json", string(mustJSON([]any{dockerItem(config, m.Tags, paths)}))))
}

// Bazel is rules_docker's and rules_oci's tarball: names that mean nothing,
// leading "./".
func Bazel(m Image) []tartest.Entry {
	out := []tartest.Entry{tartest.Dir("./")}
	var paths []string
	for i, l := range m.Layers {
		name := fmt.Sprintf("layers/%03d/layer.tar", i)
		out = append(out, tartest.File("./"+name, string(Pack(m.Compress, l))))
		paths = append(paths, name)
	}
	return append(out, tartest.File("./config.json", string(m.RawConfig())),
		tartest.File("./manifest.json", string(mustJSON([]any{dockerItem("config.json", m.Tags, paths)}))))
}

// Blob is a member of an OCI layout.
func Blob(b []byte) tartest.Entry { return tartest.File("blobs/sha256/"+hexOf(b), string(b)) }

// Descriptor describes b.
func Descriptor(mediaType string, b []byte) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
}

// Manifest is the OCI manifest of m, and the blobs it names.
func Manifest(m Image) (raw []byte, blobs []tartest.Entry) {
	doc := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: Descriptor(ocispec.MediaTypeImageConfig, m.RawConfig()),
	}
	mediaType := map[string]string{"": ocispec.MediaTypeImageLayer, "gzip": ocispec.MediaTypeImageLayerGzip, "zstd": ocispec.MediaTypeImageLayerZstd}[m.Compress]
	blobs = append(blobs, tartest.Dir("blobs"), tartest.Dir("blobs/sha256"), Blob(m.RawConfig()))
	for _, l := range m.Layers {
		packed := Pack(m.Compress, l)
		doc.Layers = append(doc.Layers, Descriptor(mediaType, packed))
		blobs = append(blobs, Blob(packed))
	}
	return mustJSON(doc), blobs
}

// Index is an OCI index of descriptors.
func Index(ds ...ocispec.Descriptor) []byte {
	return mustJSON(ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: ds})
}

// OCI is an OCI image layout in a tar, as skopeo, podman (oci-archive) and umoci
// with tar give it.
func OCI(m Image) []tartest.Entry {
	raw, out := Manifest(m)
	d := Descriptor(ocispec.MediaTypeImageManifest, raw)
	if len(m.Tags) > 0 {
		d.Annotations = map[string]string{ocispec.AnnotationRefName: m.Tags[0]}
	}
	return append(out, Blob(raw), tartest.File("oci-layout", `{"imageLayoutVersion":"1.0.0"}`), tartest.File("index.json", string(Index(d))))
}

// Docker25 is docker save since engine 25: an OCI layout and a manifest.json
// that names its blobs.
func Docker25(m Image) []tartest.Entry {
	var paths []string
	for _, l := range m.Layers {
		paths = append(paths, "blobs/sha256/"+hexOf(Pack(m.Compress, l)))
	}
	item := dockerItem("blobs/sha256/"+hexOf(m.RawConfig()), m.Tags, paths)
	sources := make(map[string]ocispec.Descriptor)
	for i, l := range m.Layers {
		sources[m.DiffIDs()[i].String()] = Descriptor(ocispec.MediaTypeImageLayer, l)
	}
	item["LayerSources"] = sources
	return append(OCI(m), tartest.File("manifest.json", string(mustJSON([]any{item}))))
}
