package rmtree

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestRemove(t *testing.T) {
	top := t.TempDir()
	outside := filepath.Join(top, "outside")
	tree := filepath.Join(top, "tree")
	for _, d := range []string{outside, filepath.Join(tree, "a", "b"), filepath.Join(tree, "bad\xffname")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 3000 {
		if err := os.WriteFile(filepath.Join(tree, "a", fmt.Sprint(i)), nil, 0o400); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(outside, "keep"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(tree, "link")); err != nil {
		t.Fatal(err)
	}
	if err := Remove(tree); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(tree); !os.IsNotExist(err) {
		t.Errorf("tree still there: %v", err)
	}
	if _, err := os.Stat(filepath.Join(outside, "keep")); err != nil {
		t.Errorf("followed a link: %v", err)
	}
	if err := Remove(tree); err != nil {
		t.Errorf("removing nothing: %v", err)
	}
}

func TestRemoveStopsAtMounts(t *testing.T) {
	top := t.TempDir()
	outside := filepath.Join(top, "outside")
	tree := filepath.Join(top, "tree")
	mnt := filepath.Join(tree, "mnt")
	for _, d := range []string{outside, mnt, filepath.Join(tree, "other")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	precious := filepath.Join(outside, "precious")
	if err := os.WriteFile(precious, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(outside, mnt, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(mnt, unix.MNT_DETACH)
	if err := Remove(tree); !errors.Is(err, ErrMounted) {
		t.Errorf("error %v, want ErrMounted", err)
	}
	if _, err := os.Stat(precious); err != nil {
		t.Errorf("emptied a mounted file system: %v", err)
	}
	if _, err := os.Stat(filepath.Join(tree, "other")); !os.IsNotExist(err) {
		t.Error("what was not mounted should be gone")
	}
}
