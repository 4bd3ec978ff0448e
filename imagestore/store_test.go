package imagestore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"crunch-oci/imagestore/archive"
	"crunch-oci/imagestore/internal/imagetest"
	. "crunch-oci/imagestore/internal/tartest"

	"golang.org/x/sys/unix"
)

// opener opens the tarball b as Unpack wants it.
func opener(b []byte, o archive.Options) func(context.Context) (*archive.Image, error) {
	return func(ctx context.Context) (*archive.Image, error) {
		return archive.Open(ctx, bytes.NewReader(b), int64(len(b)), o)
	}
}

func openStore(t testing.TB, root string) *Store {
	t.Helper()
	s, err := Open(root, Options{Warn: func(s string) { t.Error(s) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close(context.Background()) })
	tidyUp(t, s)
	return s
}

func unpack(t testing.TB, s *Store, m imagetest.Image) *Snapshot {
	t.Helper()
	b := Tar(t, imagetest.DockerLegacy(m, false)...)
	snap, err := s.Unpack(t.Context(), Key{ID: m.ID()}, opener(b, archive.Options{WantID: m.ID()}), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { snap.Close() })
	return snap
}

// mount mounts s and gives the root directory.
func mount(t testing.TB, s *Snapshot) string {
	t.Helper()
	d := t.TempDir()
	dir := filepath.Join(d, "rootfs")
	if err := MountRootfs(s, dir, filepath.Join(d, "upper"), filepath.Join(d, "work")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := Unmount(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func TestUnpackMountLookup(t *testing.T) {
	m := imagetest.Image{Layers: [][]byte{
		Tar(t, Dir("etc"), File("etc/motd", "low"), File("etc/gone", "x"), Dir("var"), File("var/old", "x")),
		Tar(t, Dir("etc"), File("etc/motd", "high"), File("etc/.wh.gone", ""), Dir("var"), File("var/.wh..wh..opq", ""), File("var/new", "y")),
	}}
	s := openStore(t, t.TempDir())
	snap := unpack(t, s, m)
	dir := mount(t, snap)
	if b, _ := os.ReadFile(dir + "/etc/motd"); string(b) != "high" {
		t.Errorf("motd is %q", b)
	}
	for _, gone := range []string{"etc/gone", "var/old"} {
		if _, err := os.Lstat(filepath.Join(dir, gone)); err == nil {
			t.Errorf("%s is still there", gone)
		}
	}
	again, err := s.Lookup(Key{ID: m.ID()})
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
}

func TestKeys(t *testing.T) {
	hex := strings.Repeat("0123456789abcdef", 4)
	for _, tt := range []struct {
		file string
		want Key
	}{
		{"sha256:" + hex + ".tar", Key{ID: "sha256:" + hex}},
		{hex + ".tar", Key{Source: "pdh+1/" + hex + ".tar"}},
		{"sha256:" + strings.ToUpper(hex) + ".tar", Key{Source: "pdh+1/sha256:" + strings.ToUpper(hex) + ".tar"}},
		{"sha256:" + hex + "0.tar", Key{Source: "pdh+1/sha256:" + hex + "0.tar"}},
		{"img.tar", Key{Source: "pdh+1/img.tar"}},
	} {
		if got := KeyFor("pdh+1", tt.file); got != tt.want {
			t.Errorf("%s: %+v", tt.file, got)
		}
	}
	s := openStore(t, t.TempDir())
	for _, k := range []Key{{}, {ID: "../x"}, {ID: "sha256:../../../../x"}} {
		if _, err := s.Lookup(k); err == nil || errors.Is(err, ErrNotFound) {
			t.Errorf("%+v: %v", k, err)
		}
	}
}

// Every failure is one line, of the right kind, and leaves nothing.
func TestFailuresLeaveNothing(t *testing.T) {
	layer := Tar(t, File("a/b", strings.Repeat("x", 300_000)))
	m := imagetest.Image{Layers: [][]byte{layer, Tar(t, File("c", "1"))}}
	good := Tar(t, imagetest.DockerLegacy(m, false)...)
	flip := func(at int) []byte {
		b := bytes.Clone(good)
		b[at] ^= 0x40
		return b
	}
	withLayer := func(l []byte) (imagetest.Image, []byte) {
		m := imagetest.Image{Layers: [][]byte{m.Layers[1], l}}
		return m, Tar(t, imagetest.DockerLegacy(m, false)...)
	}
	escape, escapeTar := withLayer(Tar(t, File("../../x", "")))
	broken, brokenTar := withLayer(layer[:100_000])
	inBody := bytes.Index(good, []byte("xxxx")) + 1000
	inHeader := bytes.Index(good, []byte("a/b")) + 1
	for _, tt := range []struct {
		name string
		b    []byte
		id   string
		want error
		text string
	}{
		{"empty", nil, m.ID(), ErrNoImage, "not an image: the tarball is empty"},
		{"random", bytes.Repeat([]byte("random"), 1000), m.ID(), ErrNoImage, "not an image: the file is not a tar archive"},
		{"cut off", good[:200_000], m.ID(), ErrCorrupt, "image tarball is damaged: it ends after 200000 bytes"},
		{"wrong id", good, escape.ID(), ErrWrongID, "wrong image id: the tarball holds " + m.ID() + ", not " + escape.ID()},
		{"flipped in a file", flip(inBody), m.ID(), ErrCorrupt, "): image tarball is damaged: the layer's content has the digest "},
		{"flipped in a header of the layer", flip(inHeader), m.ID(), ErrCorrupt, "layer 1 of 2 (sha256:"},
		{"layer that escapes", escapeTar, escape.ID(), ErrEscape, "../../x: entry leads out of the layer"},
		{"layer that was made cut off", brokenTar, broken.ID(), ErrMalformed, "a/b: malformed layer: it ends in the middle of a file"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root := t.TempDir()
			s := openStore(t, root)
			before := openFiles(t)
			_, err := s.Unpack(t.Context(), Key{ID: tt.id}, opener(tt.b, archive.Options{WantID: tt.id}), nil)
			if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) || strings.Contains(err.Error(), "\n") {
				t.Errorf("error %v\nwant  %v: %s", err, tt.want, tt.text)
			}
			checkTidy(t, root)
			if names, _ := os.ReadDir(filepath.Join(root, "images")); len(names) != 0 {
				t.Errorf("images holds %v", names)
			}
			if after := openFiles(t); after != before {
				t.Errorf("%d files open, %d before", after, before)
			}
		})
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(names)
}

func TestNothingStaysOpen(t *testing.T) {
	m := imagetest.Image{Layers: [][]byte{Tar(t, File("a/b", "1")), Tar(t, File("a/c", "2"), File("d/.wh.e", ""))}, Compress: "gzip"}
	b := imagetest.Pack("zstd", Tar(t, imagetest.Docker25(m)...))
	s := openStore(t, t.TempDir())
	before := openFiles(t)
	for range 2 {
		snap, err := s.Unpack(t.Context(), Key{Source: "x"}, opener(b, archive.Options{Scratch: s.Scratch()}), nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(snap.Sync(), snap.Close(), snap.Close()); err != nil {
			t.Fatal(err)
		}
	}
	if after := openFiles(t); after != before {
		t.Errorf("%d files open, %d before", after, before)
	}
}

// After a reboot only what was synced is believed.
func TestReboot(t *testing.T) {
	m := imagetest.Image{Layers: [][]byte{Tar(t, File("a", "1")), Tar(t, File("b/.wh.c", ""))}}
	root := t.TempDir()
	s := openStore(t, root)
	unpack(t, s, m).Close()
	s.boot = "another boot"
	if _, err := s.Lookup(Key{ID: m.ID()}); !errors.Is(err, ErrNotFound) {
		t.Fatalf("an image that may be incomplete: %v", err)
	}
	// As after a loss of power: a file is empty.
	if err := os.Truncate(filepath.Join(root, "layers", m.DiffIDs()[0].Encoded(), "fs/a"), 0); err != nil {
		t.Fatal(err)
	}
	snap := unpack(t, s, m)
	if b, _ := os.ReadFile(filepath.Join(mount(t, snap), "a")); string(b) != "1" {
		t.Errorf("content %q", b)
	}
	tidyUp(t, s)
	checkTidy(t, root)
	if err := snap.Sync(); err != nil {
		t.Fatal(err)
	}
	snap.Close()
	s.boot = "a third boot"
	snap, err := s.Lookup(Key{ID: m.ID()})
	if err != nil {
		t.Fatalf("an image that was synced: %v", err)
	}
	if err := errors.Join(snap.Sync(), snap.Close()); err != nil {
		t.Error(err)
	}
}

// A layer whose facts are damaged is unpacked again for the next image that
// shares it, unless a container has it.
func TestDamagedFacts(t *testing.T) {
	base := Tar(t, File("a", "1"))
	one, two := imagetest.Image{Layers: [][]byte{base}}, imagetest.Image{Layers: [][]byte{base, Tar(t, File("b", "2"))}}
	for _, content := range []string{"", "[", "\x00"} {
		s := openStore(t, t.TempDir())
		held := unpack(t, s, one)
		if err := os.WriteFile(filepath.Join(s.layerPath(one.DiffIDs()[0].Encoded()), "facts.json"), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		open := opener(Tar(t, imagetest.Docker25(two)...), archive.Options{WantID: two.ID()})
		if _, err := s.Unpack(t.Context(), Key{ID: two.ID()}, open, nil); err == nil || !strings.Contains(err.Error(), "damaged") || !strings.Contains(err.Error(), "in use") {
			t.Errorf("facts %q, in use: %v", content, err)
		}
		held.Close()
		unpack(t, s, two).Close()
	}
}

// A damaged record or state file is as good as none.
func TestDamagedBookkeeping(t *testing.T) {
	m := imagetest.Image{Layers: [][]byte{Tar(t, File("a", "1"))}}
	for _, file := range []string{"images/" + m.ID()[7:] + ".json", "layers/" + m.DiffIDs()[0].Encoded() + "/state.json"} {
		for _, content := range []string{"", "{}", "null", "[", `{"version":1}`} {
			root := t.TempDir()
			s := openStore(t, root)
			unpack(t, s, m).Close()
			if err := os.WriteFile(filepath.Join(root, file), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Lookup(Key{ID: m.ID()}); !errors.Is(err, ErrNotFound) {
				t.Errorf("%s = %q: %v", file, content, err)
			}
			unpack(t, s, m).Close()
			if snap, err := s.Lookup(Key{ID: m.ID()}); err != nil {
				t.Errorf("%s = %q: %v", file, content, err)
			} else {
				snap.Close()
			}
			tidyUp(t, s)
			checkTidy(t, root)
		}
	}
}

// smallFS mounts a tmpfs of the given size.
func smallFS(t *testing.T, options string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func TestDiskFull(t *testing.T) {
	many := func() []Entry {
		var es []Entry
		for i := range 500 {
			es = append(es, File(fmt.Sprintf("f%d", i), ""))
		}
		return es
	}
	big := imagetest.Image{Layers: [][]byte{Tar(t, File("big", strings.Repeat("0123456789abcdef", 1<<19)))}} // 8 MiB
	for _, tt := range []struct {
		name, options string
		m             imagetest.Image
		how           string
		text          string
	}{
		{"known before", "size=4m", big, "", "unpack an image of 8.39MB into "},
		{"a compressed layer", "size=4m", big, "gzip", "big: layer exceeds the limit"},
		{"a bomb", "size=4m", imagetest.Image{Layers: [][]byte{Tar(t, File("zeros", strings.Repeat("\x00", 64<<20)))}}, "zstd", "zeros: layer exceeds the limit"},
		{"no inodes left for a layer", "size=4m,nr_inodes=100", imagetest.Image{Layers: [][]byte{Tar(t, many()...)}}, "", "): f"},
		{"two layers at once", "size=10m", imagetest.Image{Layers: [][]byte{
			Tar(t, File("big", strings.Repeat("0123456789abcdef", 6<<16))), Tar(t, File("other", strings.Repeat("0123456789ABCDEF", 6<<16)))}}, "gzip", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root := smallFS(t, tt.options)
			s, err := Open(filepath.Join(root, "store"), Options{Parallel: 2})
			if err != nil {
				t.Fatal(err)
			}
			before, err := s.space()
			if err != nil {
				t.Fatal(err)
			}
			tt.m.Compress = tt.how
			b := Tar(t, imagetest.Docker25(tt.m)...)
			_, err = s.Unpack(t.Context(), Key{ID: tt.m.ID()}, opener(b, archive.Options{WantID: tt.m.ID()}), nil)
			if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "no space left on device") || !strings.Contains(err.Error(), tt.text) || strings.Contains(err.Error(), "\n") {
				t.Errorf("error %v", err)
			}
			t.Log(err)
			checkTidy(t, filepath.Join(root, "store"))
			// Whole layers may stay.
			os.RemoveAll(filepath.Join(root, "store", "layers"))
			after, err := s.space()
			if err != nil || after.bytes < before.bytes || after.inodes < before.inodes {
				t.Errorf("%v before, %v after, %v", before, after, err)
			}
		})
	}
	t.Run("scratch", func(t *testing.T) {
		root := smallFS(t, "size=4m")
		s := openStore(t, root)
		b := imagetest.Pack("gzip", Tar(t, imagetest.Docker25(big)...))
		_, err := s.Unpack(t.Context(), Key{ID: big.ID()}, opener(b, archive.Options{WantID: big.ID(), Scratch: s.Scratch()}), nil)
		if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "no space left on device") {
			t.Errorf("error %v", err)
		}
		checkTidy(t, root)
	})
}

func TestCancelledUnpack(t *testing.T) {
	m := imagetest.Image{Layers: [][]byte{Tar(t, File("a", strings.Repeat("x", 5<<20))), Tar(t, File("b", strings.Repeat("y", 5<<20)))}}
	root := t.TempDir()
	s := openStore(t, root)
	ctx, cancel := context.WithCancel(t.Context())
	_, err := s.Unpack(ctx, Key{ID: m.ID()}, opener(Tar(t, imagetest.DockerLegacy(m, false)...), archive.Options{WantID: m.ID()}), func(p Progress) {
		if p.Done > 1<<20 {
			cancel()
		}
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	checkTidy(t, root)
}

func TestProgress(t *testing.T) {
	low := Tar(t, File("a", strings.Repeat("x", 3<<20)))
	a := imagetest.Image{Layers: [][]byte{low}}
	b := imagetest.Image{Layers: [][]byte{low, Tar(t, File("b", strings.Repeat("y", 2<<20)))}}
	s := openStore(t, t.TempDir())
	unpack(t, s, a)
	var seen []Progress
	snap, err := s.Unpack(t.Context(), Key{ID: b.ID()}, opener(Tar(t, imagetest.DockerLegacy(b, false)...), archive.Options{WantID: b.ID()}), func(p Progress) { seen = append(seen, p) })
	if err != nil {
		t.Fatal(err)
	}
	defer snap.Close()
	want := int64(len(b.Layers[1])) // the lower one is there
	last := Progress{}
	for _, p := range seen {
		if p.Done < last.Done || p.Total != want || p.Done > p.Total {
			t.Errorf("%+v after %+v", p, last)
		}
		last = p
	}
	if last.Done != want || len(seen) < 3 {
		t.Errorf("%d steps, the last %+v", len(seen), last)
	}
}

// Goroutines of one process share the work as processes do.
func TestManyAtOnce(t *testing.T) {
	s := openStore(t, t.TempDir())
	base := Tar(t, File("base", "1"))
	var wg sync.WaitGroup
	for i := range 8 {
		m := imagetest.Image{Layers: [][]byte{base, Tar(t, File("own", fmt.Sprint(i%3)))}}
		b := Tar(t, imagetest.DockerLegacy(m, false)...)
		wg.Go(func() {
			snap, err := s.Unpack(t.Context(), Key{ID: m.ID()}, opener(b, archive.Options{WantID: m.ID()}), nil)
			if err != nil {
				t.Error(err)
				return
			}
			defer snap.Close()
			for _, d := range snap.Lowerdirs() {
				if _, err := os.ReadDir(d); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	checkTidy(t, s.root)
	if names, _ := os.ReadDir(filepath.Join(s.root, "layers")); len(names) != 4 {
		t.Errorf("%d layers, want 4", len(names))
	}
}

func TestStoreOfOthers(t *testing.T) {
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "layers"), 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(filepath.Join(root, "layers"), 1000, 1000); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(root, Options{}); err == nil || !strings.Contains(err.Error(), "belongs to user 1000 instead of 0") {
		t.Errorf("error %v", err)
	}
	root = t.TempDir()
	if err := os.Symlink("/tmp", filepath.Join(root, "tmp")); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(root, Options{}); err == nil || !strings.Contains(err.Error(), "is no directory") {
		t.Errorf("error %v", err)
	}
	root = t.TempDir()
	openStore(t, root)
	for _, d := range []string{"layers", "images", "tmp"} {
		st, err := os.Stat(filepath.Join(root, d))
		if err != nil || st.Mode().Perm() != 0o700 {
			t.Errorf("%s: %v %v", d, st.Mode(), err)
		}
	}
}

// However claims come and go, two are never held at once: also not on a
// directory that has just been removed or renamed and its successor.
func TestClaimsExclude(t *testing.T) {
	s := openStore(t, t.TempDir())
	var holders, made atomic.Int32
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for range 150 {
				c, err := s.tryClaim("x")
				if errors.Is(err, unix.EWOULDBLOCK) {
					runtime.Gosched()
					continue
				}
				if err != nil {
					t.Error(err)
					return
				}
				if n := holders.Add(1); n != 1 {
					t.Errorf("%d hold the claim", n)
				}
				runtime.Gosched()
				holders.Add(-1)
				if n := made.Add(1); g%2 == 0 {
					dir, err := c.publish(s.layerPath(fmt.Sprint("layer", n)))
					if err != nil {
						t.Error(err)
						return
					}
					dir.Close()
				} else if err := c.abandon(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if made.Load() < 8 {
		t.Errorf("only %d claims", made.Load())
	}
}

// An image is kept only under an id that it was shown to have.
func TestKeyMustBeVerified(t *testing.T) {
	m := imagetest.Image{Layers: [][]byte{Tar(t, File("a", "1"))}}
	b := Tar(t, imagetest.DockerLegacy(m, false)...)
	other := Key{ID: "sha256:" + strings.Repeat("0", 64)}
	s := openStore(t, t.TempDir())
	for _, o := range []archive.Options{{}, {WantID: m.ID()}} {
		if _, err := s.Unpack(t.Context(), other, opener(b, o), nil); !errors.Is(err, ErrWrongID) {
			t.Errorf("error %v", err)
		}
	}
	if _, err := s.Lookup(other); !errors.Is(err, ErrNotFound) {
		t.Errorf("error %v", err)
	}
	snap, err := s.Unpack(t.Context(), Key{Source: "pdh/img.tar"}, opener(b, archive.Options{}), nil)
	if err != nil || snap.ID.String() != m.ID() {
		t.Fatalf("%v", err)
	}
	snap.Close()
}
