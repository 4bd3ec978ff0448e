package archive_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"crunch-oci/imagestore/archive"
	"crunch-oci/imagestore/internal/imagetest"
	. "crunch-oci/imagestore/internal/tartest"
	"crunch-oci/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// sample is an image whose second layer comes again as the last.
func sample(t testing.TB) imagetest.Image {
	low := Tar(t, Dir("etc"), File("etc/motd", "low"))
	high := Tar(t, Dir("etc"), File("etc/motd", strings.Repeat("high ", 2000)))
	return imagetest.Image{
		Layers: [][]byte{low, high, low},
		Tags:   []string{"img:latest"},
		Config: ocispec.ImageConfig{User: "1000", Env: []string{"PATH=/bin", "X=a=b"}, Entrypoint: []string{"/entry"}, Cmd: []string{"-a", "b"}, WorkingDir: "/w",
			Volumes: map[string]struct{}{"/data": {}}, StopSignal: "SIGINT", Labels: map[string]string{"l": "v"}, ExposedPorts: map[string]struct{}{"80/tcp": {}}},
	}
}

func open(t testing.TB, b []byte, o archive.Options) (*archive.Image, error) {
	t.Helper()
	if o.Scratch == "" {
		o.Scratch = t.TempDir()
	}
	return archive.Open(context.Background(), bytes.NewReader(b), int64(len(b)), o)
}

// readAll reads every layer to its verified end.
func readAll(img *archive.Image) ([][]byte, error) {
	var out [][]byte
	for _, l := range img.Layers {
		s, err := l.Open(context.Background(), nil)
		if err != nil {
			return nil, err
		}
		b, err := io.ReadAll(s)
		s.Close()
		if err != nil {
			return nil, err
		}
		out = append(out, b)
	}
	return out, nil
}

func packed(m imagetest.Image, how string) imagetest.Image { m.Compress = how; return m }

// flavours are tarballs of one image as every program writes it.
func flavours(t testing.TB, m imagetest.Image) map[string][]byte {
	out := make(map[string][]byte)
	for name, entries := range map[string][]Entry{
		"docker 1.10 to 24":               imagetest.DockerLegacy(m, false),
		"docker, hard links":              imagetest.DockerLegacy(m, true),
		"docker 25":                       imagetest.Docker25(m),
		"docker 25, containerd store":     imagetest.Docker25(packed(m, "gzip")),
		"docker 25, zstd":                 imagetest.Docker25(packed(m, "zstd")),
		"skopeo and podman":               imagetest.SkopeoDocker(m),
		"kaniko":                          imagetest.Kaniko(m),
		"bazel":                           imagetest.Bazel(m),
		"bazel, gzip":                     imagetest.Bazel(packed(m, "gzip")),
		"OCI layout":                      imagetest.OCI(m),
		"OCI layout, gzip":                imagetest.OCI(packed(m, "gzip")),
		"OCI layout, zstd":                imagetest.OCI(packed(m, "zstd")),
		"docker 25 without layers in OCI": withoutOCILayers(m),
	} {
		out[name] = Tar(t, entries...)
	}
	legacy := out["docker 1.10 to 24"]
	for _, how := range []string{"gzip", "zstd"} {
		out["docker, compressed as a whole with "+how] = imagetest.Pack(how, legacy)
	}
	var gnu []Entry
	for _, e := range imagetest.DockerLegacy(m, false) {
		gnu = append(gnu, e.GNU())
	}
	out["docker in GNU tar format"] = Tar(t, gnu...)
	return out
}

// withoutOCILayers is what a pre-release of engine 25 wrote (moby issue 47065).
func withoutOCILayers(m imagetest.Image) []Entry {
	none := m
	none.Layers = nil
	raw, _ := imagetest.Manifest(none)
	var out []Entry
	for _, e := range imagetest.Docker25(m) {
		if e.Header.Name != "index.json" {
			out = append(out, e)
		}
	}
	return append(out, imagetest.Blob(raw),
		File("index.json", string(imagetest.Index(imagetest.Descriptor(ocispec.MediaTypeImageManifest, raw)))))
}

func TestFlavours(t *testing.T) {
	m := sample(t)
	for name, b := range flavours(t, m) {
		for _, want := range []string{"", m.ID()} {
			t.Run(name+" "+want, func(t *testing.T) {
				img, err := open(t, b, archive.Options{WantID: want})
				if err != nil {
					t.Fatal(err)
				}
				defer img.Close()
				if img.ID.String() != m.ID() || !bytes.Equal(img.RawConfig, m.RawConfig()) {
					t.Errorf("id %s, want %s", img.ID, m.ID())
				}
				if !slices.Equal(img.Names, m.Tags) {
					t.Errorf("names %q", img.Names)
				}
				if a, b := mustJSON(t, img.Config.Config), mustJSON(t, m.Config); a != b {
					t.Errorf("configuration %s, want %s", a, b)
				}
				if img.Config.Architecture != "amd64" || img.Config.Created.Nanosecond() != 123456789 {
					t.Errorf("%+v", img.Config)
				}
				layers, err := readAll(img)
				if err != nil {
					t.Fatal(err)
				}
				if len(layers) != len(m.Layers) {
					t.Fatalf("%d layers", len(layers))
				}
				for i := range layers {
					if !bytes.Equal(layers[i], m.Layers[i]) || img.Layers[i].DiffID != m.DiffIDs()[i] {
						t.Errorf("layer %d differs", i)
					}
				}
			})
		}
	}
}

func mustJSON(t testing.TB, v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// Tarballs of docker before 1.10 have no digests: they are taken by name.
func TestDockerV1(t *testing.T) {
	m := sample(t)
	b := Tar(t, imagetest.DockerV1(m)...)
	for _, entries := range [][]Entry{imagetest.DockerV1(m), slices.DeleteFunc(imagetest.DockerV1(m), func(e Entry) bool { return e.Header.Name == "repositories" })} {
		img, err := open(t, Tar(t, entries...), archive.Options{})
		if err != nil {
			t.Fatal(err)
		}
		layers, err := readAll(img)
		if err != nil || len(layers) != 3 || !bytes.Equal(layers[1], m.Layers[1]) {
			t.Errorf("%d layers, %v", len(layers), err)
		}
		if a, b := mustJSON(t, img.Config.Config), mustJSON(t, m.Config); a != b {
			t.Errorf("configuration %s, want %s", a, b)
		}
		if img.ID != digest.FromBytes(img.RawConfig) {
			t.Errorf("id %s", img.ID)
		}
	}
	if _, err := open(t, b, archive.Options{WantID: m.ID()}); !errors.Is(err, archive.ErrWrongID) {
		t.Errorf("with an id: %v", err)
	}
}

// An id may be that of a manifest or index that leads to the image, as the
// containerd image store of recent engines has it.
func TestIDOfManifestOrIndex(t *testing.T) {
	m, other := sample(t), sample(t)
	other.Layers = other.Layers[:1]
	raw, blobs := imagetest.Manifest(m)
	md := imagetest.Descriptor(ocispec.MediaTypeImageManifest, raw)
	md.Platform = &ocispec.Platform{OS: "linux", Architecture: "amd64"}
	rawOther, otherBlobs := imagetest.Manifest(other)
	od := imagetest.Descriptor(ocispec.MediaTypeImageManifest, rawOther)
	od.Platform = &ocispec.Platform{OS: "linux", Architecture: "arm64"}
	absent := imagetest.Descriptor(ocispec.MediaTypeImageManifest, []byte("not in the tarball"))
	absent.Platform = &ocispec.Platform{OS: "linux", Architecture: "s390x"}
	att := imagetest.Descriptor(ocispec.MediaTypeImageManifest, []byte(`{"schemaVersion":2}`))
	att.Platform = &ocispec.Platform{OS: "unknown", Architecture: "unknown"}
	att.Annotations = map[string]string{"vnd.docker.reference.type": "attestation-manifest"}
	inner := imagetest.Index(att, absent, od, md)
	id := imagetest.Descriptor(ocispec.MediaTypeImageIndex, inner)
	top := imagetest.Index(id)
	entries := append(slices.Concat(blobs, otherBlobs), imagetest.Blob(raw), imagetest.Blob(rawOther), imagetest.Blob(inner),
		imagetest.Blob([]byte(`{"schemaVersion":2}`)), File("oci-layout", "{}"), File("index.json", string(top)))
	for name, tt := range map[string]struct {
		want, arch string
		id         string
		err        error
	}{
		"none":                   {"", "amd64", m.ID(), nil},
		"none, on another":       {"", "arm64", other.ID(), nil},
		"the configuration":      {m.ID(), "amd64", m.ID(), nil},
		"the manifest":           {md.Digest.String(), "amd64", m.ID(), nil},
		"the other's manifest":   {od.Digest.String(), "amd64", other.ID(), nil},
		"the index":              {id.Digest.String(), "amd64", m.ID(), nil},
		"the index, on another":  {id.Digest.String(), "arm64", other.ID(), nil},
		"index.json":             {digest.FromBytes(top).String(), "amd64", m.ID(), nil},
		"something else":         {digest.FromString("x").String(), "amd64", "", archive.ErrWrongID},
		"an attestation":         {att.Digest.String(), "amd64", "", archive.ErrCorrupt},
		"a layer":                {m.DiffIDs()[0].String(), "amd64", "", archive.ErrCorrupt},
		"index, no such machine": {id.Digest.String(), "riscv64", "", archive.ErrAmbiguous},
	} {
		t.Run(name, func(t *testing.T) {
			img, err := open(t, Tar(t, entries...), archive.Options{WantID: tt.want, Architecture: tt.arch})
			if !errors.Is(err, tt.err) {
				t.Fatalf("error %v", err)
			}
			if err == nil && img.ID.String() != tt.id {
				t.Errorf("id %s, want %s", img.ID, tt.id)
			}
		})
	}
	t.Run("in a docker archive", func(t *testing.T) {
		img, err := open(t, Tar(t, imagetest.Docker25(m)...), archive.Options{WantID: md.Digest.String()})
		if err != nil || img.ID.String() != m.ID() {
			t.Errorf("%v, %v", img, err)
		}
	})
	t.Run("schema 2 of docker", func(t *testing.T) {
		doc := strings.NewReplacer(ocispec.MediaTypeImageManifest, "application/vnd.docker.distribution.manifest.v2+json",
			ocispec.MediaTypeImageConfig, "application/vnd.docker.container.image.v1+json",
			ocispec.MediaTypeImageLayer, "application/vnd.docker.image.rootfs.diff.tar").Replace(string(raw))
		d := imagetest.Descriptor("application/vnd.docker.distribution.manifest.v2+json", []byte(doc))
		es := append(slices.Clone(blobs), imagetest.Blob([]byte(doc)), File("index.json", string(imagetest.Index(d))))
		img, err := open(t, Tar(t, es...), archive.Options{WantID: d.Digest.String()})
		if err != nil || img.ID.String() != m.ID() {
			t.Errorf("%v, %v", img, err)
		}
	})
}

func TestSeveralImages(t *testing.T) {
	a, b := sample(t), sample(t)
	b.Layers = b.Layers[:2]
	b.Tags = []string{"other:1"}
	var entries []Entry
	var items []json.RawMessage
	for _, m := range []imagetest.Image{a, b, a} {
		for _, e := range imagetest.SkopeoDocker(m) {
			if e.Header.Name != "manifest.json" {
				entries = append(entries, e)
				continue
			}
			var item []json.RawMessage
			if err := json.Unmarshal(e.Body, &item); err != nil {
				t.Fatal(err)
			}
			items = append(items, item...)
		}
	}
	tarball := Tar(t, append(entries, File("manifest.json", mustJSON(t, items)))...)
	_, err := open(t, tarball, archive.Options{})
	if want := fmt.Sprintf("ambiguous image: the tarball holds 2 images and no id says which: %s (img:latest), %s (other:1)", a.ID(), b.ID()); !errors.Is(err, archive.ErrAmbiguous) || err.Error() != want {
		t.Errorf("error %v\nwant  %s", err, want)
	}
	for _, m := range []imagetest.Image{a, b} {
		img, err := open(t, tarball, archive.Options{WantID: m.ID()})
		if err != nil || img.ID.String() != m.ID() || !slices.Equal(img.Names, m.Tags) {
			t.Errorf("%v", err)
		}
	}
}

// Docker's own documents are taken as lenient as docker takes them.
func TestConfigOddities(t *testing.T) {
	for _, doc := range []string{
		`{"config":{"Entrypoint":"/bin/sh","Cmd":null,"Volumes":null,"Healthcheck":{"Interval":"30s"},"OnBuild":[]},"rootfs":{"type":"layers"}}`,
		`{"created":"yesterday","config":{"Entrypoint":["/bin/sh"]},"history":[{"created":1}]}`,
	} {
		img, err := archive.ParseConfig([]byte(doc))
		if err != nil || !slices.Equal(img.Config.Entrypoint, []string{"/bin/sh"}) {
			t.Errorf("%s: %v %v", doc, img.Config.Entrypoint, err)
		}
	}
	if _, err := archive.ParseConfig([]byte(`{"config":null}`)); err != nil {
		t.Error(err)
	}
}

func FuzzOpen(f *testing.F) {
	m := imagetest.Image{Layers: [][]byte{Tar(f, File("f", "x"))}, Tags: []string{"a:b"}}
	f.Add([]byte{})
	for _, b := range flavours(f, m) {
		f.Add(b)
	}
	f.Add(Tar(f, imagetest.DockerV1(m)...))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, b []byte) {
		img, err := archive.Open(context.Background(), bytes.NewReader(b), int64(len(b)), archive.Options{Scratch: dir, MaxScratch: 1 << 20})
		if err != nil {
			return
		}
		defer img.Close()
		if img.ID != digest.FromBytes(img.RawConfig) || len(img.Layers) != len(img.Config.RootFS.DiffIDs) {
			t.Fatalf("%+v", img)
		}
		for _, l := range img.Layers {
			s, err := l.Open(context.Background(), nil)
			if err != nil {
				return
			}
			got, err := io.ReadAll(io.LimitReader(s, 4<<20))
			s.Close()
			if err == nil && len(got) < 4<<20 && digest.FromBytes(got) != l.DiffID {
				t.Fatal("a layer without its digest")
			}
		}
	})
}
