package layer_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"crunch-oci/imagestore/layer"

	. "crunch-oci/imagestore/internal/tartest"

	"golang.org/x/sys/unix"
)

// ext4FS mounts an ext4 file system of the given size, with all of its room free.
func ext4FS(t *testing.T, mib int64) string {
	t.Helper()
	mkfs, err := exec.LookPath("mkfs.ext4")
	if err != nil {
		t.Skip("no mkfs.ext4")
	}
	file := filepath.Join(t.TempDir(), "disk")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(mib<<20), f.Close()); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(mkfs, "-q", "-m", "0", "-b", "4096", "-I", "256", "-O", "^has_journal,^ea_inode", file).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4: %v: %s", err, out)
	}
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-o", "loop", file, dir).CombinedOutput(); err != nil {
		t.Skipf("no loop device to mount: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// What no inode can hold is wrong with the image, not with the disk, and the
// same attribute is named every time.
func TestXattrsThatDoNotFit(t *testing.T) {
	root := ext4FS(t, 16)
	full := func(e Entry) Entry {
		for i := range 300 {
			e = e.Xattr(fmt.Sprintf("trusted.k%03d", i), strings.Repeat("v", 32))
		}
		return e
	}
	for _, tt := range []struct {
		name  string
		entry Entry
		text  string
	}{
		{"many on a file", full(File("a", "1")), "a: layer exceeds the limit of what one file can have in extended attributes: trusted.k0"},
		{"many on a directory", full(Dir("a")), "a: layer exceeds the limit of what one file can have in extended attributes: trusted.k0"},
		{"many on a link", full(Symlink("a", "b")), "a: layer exceeds the limit of what one file can have in extended attributes: trusted.k0"},
		{"many on a pipe", full(Fifo("a")), "a: layer exceeds the limit of what one file can have in extended attributes: trusted.k0"},
		{"a large one", File("a", "").Xattr("user.big", strings.Repeat("v", 8000)), "attributes: user.big (8000 bytes) does not fit"},
		{"larger than the kernel takes", File("a", "").Xattr("user.big", strings.Repeat("v", 65537)), "attributes: user.big (65537 bytes) does not fit"},
		{"a long name", File("a", "").Xattr("user."+strings.Repeat("n", 251), "v"), "nnn... (1 bytes) does not fit"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := Tar(t, tt.entry)
			first := ""
			for range 4 {
				dir, err := os.MkdirTemp(root, "")
				if err != nil {
					t.Fatal(err)
				}
				_, err = layer.Extract(t.Context(), bytes.NewReader(b), dir, layer.Options{})
				var entry *layer.EntryError
				if !errors.Is(err, layer.ErrLimit) || errors.Is(err, unix.ENOSPC) || !errors.As(err, &entry) ||
					!strings.Contains(err.Error(), tt.text) || strings.Contains(err.Error(), "no space") {
					t.Fatalf("error %v, want %s", err, tt.text)
				}
				if first == "" {
					first = err.Error()
				}
				if err.Error() != first {
					t.Fatalf("error %v, before %s", err, first)
				}
			}
		})
	}
	t.Run("on a disk that is full", func(t *testing.T) {
		dir, err := os.MkdirTemp(root, "")
		if err != nil {
			t.Fatal(err)
		}
		f, err := os.Create(filepath.Join(root, "filler"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for block := make([]byte, 4096); err == nil; {
			_, err = f.Write(block)
		}
		if !errors.Is(err, unix.ENOSPC) {
			t.Fatal(err)
		}
		b := Tar(t, File("a", "").Xattr("user.note", strings.Repeat("v", 2000)))
		if _, err := layer.Extract(t.Context(), bytes.NewReader(b), dir, layer.Options{}); !errors.Is(err, unix.ENOSPC) || errors.Is(err, layer.ErrLimit) {
			t.Errorf("error %v", err)
		}
	})
}
