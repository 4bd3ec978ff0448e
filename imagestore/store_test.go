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
