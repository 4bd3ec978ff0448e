package archive_test

import (
	"bytes"
	"compress/gzip"
	"errors"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"crunch-oci/imagestore/archive"
	"crunch-oci/imagestore/internal/imagetest"
	. "crunch-oci/imagestore/internal/tartest"

	"github.com/containers/image/v5/manifest"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Compressed data comes in members and frames, some of which hold nothing; what
// is no such thing is an error, and none asks for more memory than there is.
func TestOddCompression(t *testing.T) {
	m := sample(t)
	layer := m.Layers[1]
	half := len(layer) / 2
	gz := func(b []byte) []byte { return imagetest.Pack("gzip", b) }
	zs := func(b []byte) []byte { return imagetest.Pack("zstd", b) }
	bz := func(b []byte, blocks string) []byte {
		cmd := exec.Command("bzip2", blocks)
		cmd.Stdin = bytes.NewReader(b)
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	named := func(b []byte) []byte {
		var out bytes.Buffer
		w := gzip.NewWriter(&out)
		w.Name, w.Comment, w.Extra = "layer.tar", "a comment", []byte("SG\x00\x00")
		if _, err := w.Write(b); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return out.Bytes()
	}
	skippable := []byte("\x5f\x2a\x4d\x18\x05\x00\x00\x00hello")
	first := []byte("\x50\x2a\x4d\x18\x00\x00\x00\x00")
	// RFC 8878, 3.1.1: magic number, frame header, one empty block.
	frame := func(header ...byte) []byte {
		return append(append([]byte("\x28\xb5\x2f\xfd"), header...), 1, 0, 0)
	}
	for _, tt := range []struct {
		name string
		data [][]byte
		err  error // nil: the layer
		says string
	}{
		{"gzip members", [][]byte{gz(layer[:half]), gz(nil), named(layer[half:]), gz(nil)}, nil, ""},
		{"gzip, zeros behind", [][]byte{gz(layer), make([]byte, 100_000)}, nil, ""},
		{"gzip members, a zero behind", [][]byte{gz(layer[:half]), gz(layer[half:]), {0}}, nil, ""},
		{"gzip, zeros and something behind", [][]byte{gz(layer[:half]), make([]byte, 1024), gz(layer[half:])}, archive.ErrCorrupt, "invalid header"},
		{"gzip, one byte behind", [][]byte{gz(layer), {0x1f}}, archive.ErrCorrupt, "cut off"},
		{"gzip, garbage behind", [][]byte{gz(layer), []byte("garbage of more than a header")}, archive.ErrCorrupt, "invalid header"},
		{"gzip, half a member behind", [][]byte{gz(layer), gz(layer)[:20]}, archive.ErrCorrupt, "cut off"},
		{"gzip of gzip", [][]byte{gz(gz(layer))}, archive.ErrCorrupt, "has the digest"},
		{"zstd frames", [][]byte{zs(layer[:half]), zs(layer[half:])}, nil, ""},
		{"zstd, skippable frames around", [][]byte{first, skippable, zs(layer[:half]), skippable, zs(layer[half:]), skippable}, nil, ""},
		{"zstd, skippable frames of other numbers", [][]byte{[]byte("\x5a\x2a\x4d\x18\x00\x00\x00\x00"), zs(layer)}, nil, ""},
		{"bzip2, smallest blocks", [][]byte{bz(layer, "-1")}, nil, ""},
		{"bzip2, streams", [][]byte{bz(layer[:half], "-5"), bz(layer[half:], "-9")}, nil, ""},
		{"zstd, only a skippable frame", [][]byte{first}, archive.ErrCorrupt, "has the digest"},
		{"zstd, a skippable frame of 4 GiB", [][]byte{zs(layer), []byte("\x50\x2a\x4d\x18\xff\xff\xff\xffhello")}, archive.ErrCorrupt, "cut off"},
		{"zstd, garbage behind", [][]byte{zs(layer), []byte("garbage")}, archive.ErrCorrupt, "zstd data"},
		{"zstd, window of 128 MiB", [][]byte{frame(0, 17<<3), zs(layer)}, nil, ""},
		{"zstd, window of 256 MiB", [][]byte{frame(0, 18<<3), zs(layer)}, archive.ErrUnsupported, "more than 128 MiB of memory"},
		{"zstd, window of 2 TiB", [][]byte{frame(0, 31<<3), zs(layer)}, archive.ErrUnsupported, "more than 128 MiB of memory"},
		{"zstd, with a dictionary", [][]byte{frame(1, 9<<3, 7), zs(layer)}, archive.ErrUnsupported, "dictionary"},
		{"zstd, a promise of exabytes", [][]byte{frame(0xe0, 0, 0, 0, 0, 0, 0, 0, 0x40)}, archive.ErrCorrupt, "zstd data"},
		{"beginnings", [][]byte{{0x1f, 0x8b}}, archive.ErrCorrupt, "cut off"},
	} {
		es := imagetest.Docker25(m)
		for i, e := range es {
			if bytes.Equal(e.Body, layer) {
				es[i].Body = bytes.Join(tt.data, nil)
				es[i].Header.Size = int64(len(es[i].Body))
			}
		}
		img, err := open(t, Tar(t, es...), archive.Options{WantID: m.ID()})
		if err != nil {
			t.Fatal(err)
		}
		layers, err := readAll(img)
		if tt.err == nil {
			if err != nil || !bytes.Equal(layers[1], layer) {
				t.Errorf("%s: %v, or another layer", tt.name, err)
			}
		} else if !errors.Is(err, tt.err) || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.says)
		}
	}
}

// What differs from what most programs write, and is an image to Docker, podman or
// containerd all the same.
func TestOddImages(t *testing.T) {
	m := sample(t)
	raw, blobs := imagetest.Manifest(m)
	layout := func(manifest string, edit func(*ocispec.Descriptor)) []byte {
		d := imagetest.Descriptor(ocispec.MediaTypeImageManifest, []byte(manifest))
		if edit != nil {
			edit(&d)
		}
		other := imagetest.Descriptor(ocispec.MediaTypeImageManifest, []byte(`{"not":"an image"}`))
		other.ArtifactType = "application/vnd.example.signature"
		return Tar(t, append(slices.Clone(blobs), imagetest.Blob([]byte(manifest)), imagetest.Blob([]byte(`{"not":"an image"}`)),
			File("index.json", string(imagetest.Index(other, d))))...)
	}
	docker := strings.NewReplacer(ocispec.MediaTypeImageManifest, manifest.DockerV2Schema2MediaType,
		ocispec.MediaTypeImageConfig, manifest.DockerV2Schema2ConfigMediaType,
		ocispec.MediaTypeImageLayer, manifest.DockerV2SchemaLayerMediaTypeUncompressed).Replace(string(raw))
	capital := strings.Replace(string(m.RawConfig()), `"os":"linux"`, `"os":"Linux"`, 1)
	for name, b := range map[string][]byte{
		"a manifest of Docker's listed as OCI's": layout(docker, nil),
		"beside something about it":              layout(string(raw), nil),
		"OS with a capital":                      Tar(t, File("c", capital), File("l", string(m.Layers[0])), File("m", string(m.Layers[1])), File("n", string(m.Layers[2])), File("manifest.json", `[{"Config":"c","Layers":["l","m","n"]}]`)),
	} {
		img, err := open(t, b, archive.Options{})
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if layers, err := readAll(img); err != nil || len(layers) != len(m.Layers) {
			t.Errorf("%s: %d layers, %v", name, len(layers), err)
		}
	}
	labelled := Tar(t, append(slices.Clone(blobs), imagetest.Blob(raw), File("index.json", string(imagetest.Index(ocispec.Descriptor{
		MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(raw), Size: int64(len(raw)), ArtifactType: "application/vnd.example.label"}))))...)
	if img, err := open(t, labelled, archive.Options{}); err != nil || img.ID.String() != m.ID() {
		t.Errorf("the only image, with an artifact type: %v", err)
	}
}

// FROM scratch and nothing else is an image: what runs in it is mounted into it.
func TestImageWithoutLayers(t *testing.T) {
	b := Tar(t, File("c", `{"os":"linux","rootfs":{"type":"layers","diff_ids":null}}`), File("manifest.json", `[{"Config":"c","Layers":null}]`))
	img, err := open(t, b, archive.Options{})
	if err != nil {
		t.Fatal(err)
	}
	layers, err := readAll(img)
	if err != nil || len(layers) != 1 || !bytes.Equal(layers[0], make([]byte, 1024)) {
		t.Errorf("%d layers, %v", len(layers), err)
	}
}

// Of an image's variants for one platform the one is taken that runs everywhere.
func TestVariants(t *testing.T) {
	m := sample(t)
	var members []Entry
	var ds []ocispec.Descriptor
	want := ""
	for _, variant := range []string{"v3", "", "v2"} {
		m.Config.Labels = map[string]string{"variant": variant}
		raw, blobs := imagetest.Manifest(m)
		members = append(append(members, blobs...), imagetest.Blob(raw))
		d := imagetest.Descriptor(ocispec.MediaTypeImageManifest, raw)
		d.Platform = &ocispec.Platform{OS: "linux", Architecture: "amd64", Variant: variant}
		ds = append(ds, d)
		if variant == "" {
			want = m.ID()
		}
	}
	index := imagetest.Index(ds...)
	nested := imagetest.Index(imagetest.Descriptor(ocispec.MediaTypeImageIndex, index))
	for name, b := range map[string][]byte{
		"in index.json":     Tar(t, append(slices.Clone(members), File("index.json", string(index)))...),
		"in a nested index": Tar(t, append(slices.Clone(members), imagetest.Blob(index), File("index.json", string(nested)))...),
	} {
		img, err := open(t, b, archive.Options{Architecture: "amd64"})
		if err != nil || img.ID.String() != want {
			t.Errorf("%s: %v, or another image than %s", name, err, want)
		}
	}
}
