package filelock

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func open(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// Two descriptors of one process are in each other's way, as two processes are.
func TestLocksOfOthers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	a, b := open(t, path), open(t, path)
	if err := Flock(a, unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if err := Flock(b, unix.LOCK_SH|unix.LOCK_NB); !errors.Is(err, unix.EWOULDBLOCK) {
		t.Errorf("%v, want EWOULDBLOCK", err)
	}
	for _, step := range []struct {
		f      *os.File
		kind   int16
		start  int64
		length int64
		want   bool
	}{
		{a, unix.F_WRLCK, 0, 1, true},
		{b, unix.F_RDLCK, 0, 1, false},
		{b, unix.F_RDLCK, 1, 1, true},
		{a, unix.F_RDLCK, 1, 1, true},
		{b, unix.F_WRLCK, 1, 1, false},
		{b, unix.F_WRLCK, 0, 0, false},
		{a, unix.F_UNLCK, 0, 0, true},
		{b, unix.F_WRLCK, 0, 0, true},
	} {
		if got, err := TryBytes(step.f, step.kind, step.start, step.length); got != step.want || err != nil {
			t.Errorf("%+v: %v, %v", step, got, err)
		}
	}
	if _, err := TryBytes(a, unix.F_WRLCK, -1, 1); err == nil {
		t.Error("no error where there can be no lock")
	}
}

func TestStillNamed(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "lock")
	f := open(t, path)
	check := func(what string, want bool) {
		t.Helper()
		if got, err := StillNamed(f, path); got != want || err != nil {
			t.Errorf("%s: %v, %v", what, got, err)
		}
	}
	check("as it was opened", true)
	if err := os.Rename(path, path+".old"); err != nil {
		t.Fatal(err)
	}
	check("renamed", false)
	open(t, path)
	check("replaced", false)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(path+".old", path); err != nil {
		t.Fatal(err)
	}
	check("a link to it", false)
	if _, err := StillNamed(f, filepath.Join(path, "x", "y")); err == nil {
		t.Error("no error where nothing can be looked at")
	}
}
