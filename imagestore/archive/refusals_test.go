package archive_test

import (
	"bytes"
	"errors"
	"fmt"
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
)

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
