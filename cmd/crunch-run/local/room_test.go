package local

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// smallDisk mounts a tmpfs of size bytes.
func smallDisk(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

func free(t *testing.T, dir string) int64 {
	t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	return int64(st.Bavail) * st.Bsize
}

func TestReserve(t *testing.T) {
	dir := smallDisk(t, "300m")
	before := free(t, dir)
	r, err := newReserve(dir, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	if now := free(t, dir); now > before-reserveSize {
		t.Errorf("%d bytes free of %d: nothing is reserved", now, before)
	}
	for range 2 {
		if err := r.release(); err != nil {
			t.Error(err)
		}
	}
	if now := free(t, dir); now != before {
		t.Errorf("%d bytes free, %d before", now, before)
	}
}

func TestTooLittleRoom(t *testing.T) {
	dir := smallDisk(t, "100m")
	_, err := newReserve(dir, 1<<20)
	if err == nil || !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), "TMPDIR") {
		t.Errorf("error %v names neither the directory nor the remedy", err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestCheckWritable(t *testing.T) {
	dir := smallDisk(t, "1m")
	if err := checkWritable(filepath.Join(dir, "new", "dir")); err != nil {
		t.Error(err)
	}
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	if err := checkWritable(filepath.Join(dir, "other")); err == nil {
		t.Error("a read-only file system is writable")
	}
	if err := checkWritable(filepath.Join(dir, "new", "dir")); err == nil {
		t.Error("a directory in a read-only file system is writable")
	}
}
