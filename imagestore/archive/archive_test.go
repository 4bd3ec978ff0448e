package archive_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"runtime"
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

func TestBadTarballs(t *testing.T) {
	m := sample(t)
	good := Tar(t, imagetest.DockerLegacy(m, false)...)
	replace := func(in []Entry, name string, f func(Entry) []Entry) []byte {
		var out []Entry
		for _, e := range in {
			if strings.HasSuffix(e.Header.Name, name) {
				out = append(out, f(e)...)
			} else {
				out = append(out, e)
			}
		}
		return Tar(t, out...)
	}
	drop := func(Entry) []Entry { return nil }
	body := func(s string) func(Entry) []Entry {
		return func(e Entry) []Entry { return []Entry{File(e.Header.Name, s)} }
	}
	legacy, oci := imagetest.DockerLegacy(m, false), imagetest.OCI(m)
	config := digest.FromBytes(m.RawConfig()).Encoded()
	raw, blobs := imagetest.Manifest(m)
	ambiguous := func(doc string) []byte {
		d := imagetest.Descriptor(ocispec.MediaTypeImageManifest, []byte(doc))
		return Tar(t, append(slices.Clone(blobs), imagetest.Blob([]byte(doc)), File("index.json", string(imagetest.Index(d))))...)
	}
	random := make([]byte, 100_000)
	rnd := rand.New(rand.NewPCG(3, 4))
	for i := range random {
		random[i] = byte(rnd.Uint32())
	}
	random[0] = 'x'
	windows := strings.Replace(string(m.RawConfig()), `"os":"linux"`, `"os":"windows"`, 1)
	for _, tt := range []struct {
		name string
		b    []byte
		o    archive.Options
		want error
		text string // part of the message
	}{
		{"empty", nil, archive.Options{}, archive.ErrNoImage, "not an image: the tarball is empty"},
		{"random bytes", random, archive.Options{}, archive.ErrNoImage, "not an image: the file is not a tar archive"},
		{"a few bytes", []byte("hello"), archive.Options{}, archive.ErrNoImage, "not an image: the file is not a tar archive"},
		{"zeros", make([]byte, 10240), archive.Options{}, archive.ErrNoImage, "the tarball has no members"},
		{"gzip of nothing", imagetest.Pack("gzip", nil), archive.Options{}, archive.ErrNoImage, "no members"},
		{"gzip cut off", imagetest.Pack("gzip", good)[:500], archive.Options{}, archive.ErrCorrupt, "the gzip data of the image tarball is cut off"},
		{"zstd cut off", imagetest.Pack("zstd", good)[:500], archive.Options{}, archive.ErrCorrupt, "the zstd data of the image tarball is cut off"},
		{"xz", []byte("\xfd7zXZ\x00 and more"), archive.Options{}, archive.ErrUnsupported, "xz compression; use gzip or zstd"},
		{"a root file system", Tar(t, Dir("bin"), File("bin/sh", "x")), archive.Options{}, archive.ErrNoImage, "neither manifest.json nor index.json"},
		{"cut off behind a layer, which ends as an archive does",
			bytes.TrimSuffix(Tar(t, File("a/json", `{"id":"a"}`), File("a/layer.tar", string(make([]byte, 1024)))), make([]byte, 1024)),
			archive.Options{}, archive.ErrCorrupt, "without the mark that ends an archive"},
		{"a bomb", imagetest.Pack("zstd", make([]byte, 4<<20)), archive.Options{MaxScratch: 1 << 20}, archive.ErrUnsupported, "larger than the limit of 1048576 bytes"},
		{"wrong id", good, archive.Options{WantID: digest.FromString("x").String()}, archive.ErrWrongID,
			"wrong image id: the tarball holds " + m.ID() + " (img:latest), not " + digest.FromString("x").String()},
		{"malformed id", good, archive.Options{WantID: "sha256:abc"}, digest.ErrDigestInvalidLength, "sha256:abc"},

		{"manifest.json is no JSON", replace(legacy, "manifest.json", body("nonsense")), archive.Options{}, archive.ErrCorrupt, "manifest.json: invalid character"},
		{"manifest.json is an object", replace(legacy, "manifest.json", body("{}")), archive.Options{}, archive.ErrCorrupt, "manifest.json"},
		{"manifest.json is empty", replace(legacy, "manifest.json", body("[]")), archive.Options{}, archive.ErrNoImage, "lists none"},
		{"manifest.json names no configuration", replace(legacy, "manifest.json", body(`[{"Layers":["x"]}]`)), archive.Options{}, archive.ErrCorrupt, "names no configuration for image 1 of 1"},
		{"manifest.json of a million images", replace(legacy, "manifest.json", body("["+strings.Repeat("{},", 1_000_000)+"{}]")), archive.Options{}, archive.ErrUnsupported, "manifest.json has more than 100000 values"},
		{"manifest.json nested deeply", replace(legacy, "manifest.json", body(strings.Repeat("[", 50_000))), archive.Options{}, archive.ErrCorrupt, "exceeded max depth"},
		{"manifest.json is huge", replace(legacy, "manifest.json", body(`["`+strings.Repeat("x", 9<<20)+`"]`)), archive.Options{}, archive.ErrUnsupported, "documents have at most"},
		{"manifest.json twice in one", replace(legacy, "manifest.json", func(e Entry) []Entry { return []Entry{File(e.Header.Name, string(e.Body)+string(e.Body))} }), archive.Options{}, archive.ErrCorrupt, "after top-level value"},
		{"a configuration of a million layers", Tar(t, File("c", `{"rootfs":{"diff_ids":[`+strings.Repeat(`"",`, 1_000_000)+`""]}}`), File("manifest.json", `[{"Config":"c","Layers":["l"]}]`)), archive.Options{}, archive.ErrUnsupported, "c has more than 100000 values"},
		{"names of a megabyte", Tar(t, slices.Repeat([]Entry{File(strings.Repeat("n/", 300_000)+"n", "")}, 60)...), archive.Options{}, archive.ErrUnsupported, "in the names of its members"},
		{"configuration missing", replace(legacy, config+".json", drop), archive.Options{}, archive.ErrCorrupt, config + ".json is missing"},
		{"configuration changed", replace(legacy, config+".json", body(string(m.RawConfig())+" ")), archive.Options{}, archive.ErrCorrupt, "has the digest"},
		{"layer missing", replace(legacy, "/layer.tar", drop), archive.Options{}, archive.ErrCorrupt, "layer 1 of 3"},
		{"a link to itself", replace(legacy, "/layer.tar", func(e Entry) []Entry { return []Entry{Symlink(e.Header.Name, "layer.tar")} }), archive.Options{}, archive.ErrCorrupt, "too many links"},
		{"a link out of the tarball", replace(legacy, "/layer.tar", func(e Entry) []Entry {
			return []Entry{Symlink(e.Header.Name, "../../../../../../etc/passwd")}
		}), archive.Options{}, archive.ErrCorrupt, "is missing"},
		{"fewer layers than diff IDs", Tar(t, File("c", string(m.RawConfig())), File("manifest.json", `[{"Config":"c","Layers":[]}]`)), archive.Options{}, archive.ErrCorrupt, "has 3 layers by its configuration and 0 by the manifest"},
		{"no layers at all", Tar(t, File("c", `{"config":{}}`), File("manifest.json", `[{"Config":"c"}]`)), archive.Options{}, archive.ErrNoImage, "has no layers"},
		{"diff ID is a path", Tar(t, File("c", `{"rootfs":{"diff_ids":["sha256:../../etc"]}}`), File("l", "x"), File("manifest.json", `[{"Config":"c","Layers":["l"]}]`)), archive.Options{}, archive.ErrUnsupported, "is not a SHA-256 digest"},
		{"windows", Tar(t, File("c", windows), File("manifest.json", `[{"Config":"c","Layers":["l"]}]`)), archive.Options{}, archive.ErrUnsupported, "an image for windows"},
		{"configuration is a list", Tar(t, File("c", `[]`), File("manifest.json", `[{"Config":"c"}]`)), archive.Options{}, archive.ErrCorrupt, "configuration"},

		{"index.json is no JSON", replace(oci, "index.json", body("nonsense")), archive.Options{}, archive.ErrCorrupt, "invalid character"},
		{"index.json lists nothing", replace(oci, "index.json", body(`{"schemaVersion":2,"manifests":[]}`)), archive.Options{}, archive.ErrNoImage, "lists none"},
		{"index.json names a path", replace(oci, "index.json", body(`{"schemaVersion":2,"manifests":[{"digest":"sha256:../../x","size":1}]}`)), archive.Options{}, archive.ErrCorrupt, "digest"},
		{"manifest missing", replace(oci, digest.FromBytes(raw).Encoded(), drop), archive.Options{}, archive.ErrCorrupt, "not in the tarball"},
		{"manifest changed", replace(oci, digest.FromBytes(raw).Encoded(), body(strings.Replace(string(raw), "2", "3", 1))), archive.Options{}, archive.ErrCorrupt, "has the digest"},
		{"manifest of another size", replace(oci, digest.FromBytes(raw).Encoded(), body(string(raw)+" ")), archive.Options{}, archive.ErrCorrupt, "bytes, not the"},
		{"manifest changed, by its own id", replace(oci, digest.FromBytes(raw).Encoded(), body("{}")), archive.Options{WantID: digest.FromBytes(raw).String()}, archive.ErrCorrupt, ""},
		{"configuration changed in a layout", replace(oci, "blobs/sha256/"+config, body(string(m.RawConfig()[:len(m.RawConfig())-1])+" ")), archive.Options{}, archive.ErrCorrupt, "has the digest"},
		{"both an index and a manifest", ambiguous(strings.Replace(string(raw), "{", `{"manifests":[],`, 1)), archive.Options{}, archive.ErrAmbiguous, "both an index and a manifest"},
		{"both, with other capitals", ambiguous(strings.Replace(string(raw), "{", `{"MANIFESTS":[],`, 1)), archive.Options{}, archive.ErrAmbiguous, "both an index and a manifest"},
		{"index.json is both", replace(oci, "index.json", func(e Entry) []Entry {
			return []Entry{File("index.json", strings.Replace(string(e.Body), "{", `{"layers":[],`, 1))}
		}), archive.Options{}, archive.ErrAmbiguous, "both"},
		{"an index listed as manifest", ambiguous(`{"schemaVersion":2,"manifests":[]}`), archive.Options{}, archive.ErrAmbiguous, "calls itself a manifest"},
		{"another type than listed", ambiguous(strings.Replace(string(raw), ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageIndex, 1)), archive.Options{}, archive.ErrAmbiguous, "is listed as"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			img, err := open(t, tt.b, tt.o)
			if err == nil {
				t.Fatalf("accepted: %v", img.ID)
			}
			if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) || strings.ContainsAny(err.Error(), "\n") {
				t.Errorf("error %v\nwant  %v: %s", err, tt.want, tt.text)
			}
		})
	}
}

// A million commas in a string are one value.
func TestLongStringsAreOneValue(t *testing.T) {
	m := sample(t)
	m.Config.Labels = map[string]string{"data": strings.Repeat(`,[{"\\`, 200_000)}
	if _, err := open(t, Tar(t, imagetest.OCI(m)...), archive.Options{WantID: m.ID()}); err != nil {
		t.Error(err)
	}
}

// What is remembered of the members does not hold on to their headers, which may
// have a megabyte each.
func TestHeadersAreForgotten(t *testing.T) {
	const headers, size = 300, 900_000
	es := imagetest.OCI(sample(t))
	comment := strings.Repeat("c", size)
	var buf bytes.Buffer
	for i := range headers {
		b := Tar(t, File(fmt.Sprintf("more\xff %d", i), "").Record("comment", comment))
		buf.Write(b[:len(b)-1024])
	}
	buf.Write(Tar(t, es...))
	b := &lateReader{Reader: bytes.NewReader(buf.Bytes()), late: int64(buf.Len() - len(Tar(t, es...)))}
	var before, during runtime.MemStats
	b.then = func() { // all members are known, and remembered
		runtime.GC()
		runtime.ReadMemStats(&during)
	}
	runtime.GC()
	runtime.ReadMemStats(&before)
	img, err := archive.Open(t.Context(), b, int64(buf.Len()), archive.Options{})
	if err != nil {
		t.Fatal(err)
	}
	img.Close()
	if during.HeapAlloc > before.HeapAlloc+headers*size/4 {
		t.Errorf("%d MiB more in use", (during.HeapAlloc-before.HeapAlloc)>>20)
	}
	if during.HeapAlloc == 0 {
		t.Error("not measured")
	}
}

// lateReader calls then once, at the first read from late on.
type lateReader struct {
	*bytes.Reader
	late int64
	then func()
}

func (r *lateReader) ReadAt(p []byte, off int64) (int, error) {
	if off >= r.late && r.then != nil {
		r.then()
		r.then = nil
	}
	return r.Reader.ReadAt(p, off)
}

// GNU tar may have stored a layer with holes, if told to.
func TestSparseMember(t *testing.T) {
	m := imagetest.Image{Layers: [][]byte{Tar(t, File("zeros", strings.Repeat("\x00", 1<<20)))}}
	dir := t.TempDir()
	for _, e := range imagetest.OCI(m) {
		p := dir + "/" + e.Header.Name
		if err := os.MkdirAll(p[:strings.LastIndexByte(p, '/')], 0o755); err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(e.Header.Name, "blobs/sha256/") || e.Body != nil {
			if err := os.WriteFile(p, e.Body, 0o644); err != nil {
				t.Fatal(err)
			}
			if len(e.Body) > 1<<20 { // make the hole
				if out, err := exec.Command("fallocate", "--dig-holes", p).CombinedOutput(); err != nil {
					t.Fatalf("%v: %s", err, out)
				}
			}
		}
	}
	for _, format := range []string{"gnu", "posix"} {
		b, err := exec.Command("tar", "-C", dir, "--sparse", "--format="+format, "-cf", "-", ".").Output()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := open(t, b, archive.Options{}); !errors.Is(err, archive.ErrUnsupported) || !strings.Contains(err.Error(), "without --sparse") {
			t.Errorf("%s: %v", format, err)
		}
	}
}

func TestScratchIsGone(t *testing.T) {
	dir := t.TempDir()
	b := imagetest.Pack("gzip", Tar(t, imagetest.DockerLegacy(sample(t), false)...))
	var last int64
	img, err := open(t, b, archive.Options{Scratch: dir, Progress: func(done, total int64) { last = done * 100 / total }})
	if err != nil {
		t.Fatal(err)
	}
	if last != 100 {
		t.Errorf("progress ended at %d %%", last)
	}
	if names, _ := os.ReadDir(dir); len(names) != 0 {
		t.Errorf("scratch file has a name: %v", names)
	}
	if err := img.Close(); err != nil {
		t.Fatal(err)
	}
	if err := img.Close(); err != nil {
		t.Fatal(err)
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
