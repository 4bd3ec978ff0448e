package imagestore

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"

	"crunch-oci/imagestore/archive"
	"crunch-oci/imagestore/internal/imagetest"
	. "crunch-oci/imagestore/internal/tartest"
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
