package capture

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"crunch-oci/keep"
)

// sparse makes a file of size bytes, all of them holes but these texts.
func sparse(t *testing.T, path string, size int64, texts map[int64]string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	for off, text := range texts {
		if _, err := f.WriteAt([]byte(text), off); err != nil {
			t.Fatal(err)
		}
	}
}

// The holes of a sparse file are neither read nor stored, and read as zeros.
func TestSparseFiles(t *testing.T) {
	const gib = 1 << 30
	for _, c := range []struct {
		name  string
		size  int64
		texts map[int64]string
	}{
		{"nothing but a hole", 50 * gib, nil},
		{"data in the middle", 50 * gib, map[int64]string{0: "begin", 25*gib + 12345: "middle"}},
		{"data at the end", 50*gib + 7, map[int64]string{50*gib + 4: "end"}},
		{"short holes", 30 << 20, map[int64]string{3 << 20: "short", 20 << 20: "also"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "f")
			sparse(t, path, c.size, c.texts)
			if f, err := os.Open(path); err != nil {
				t.Fatal(err)
			} else {
				defer f.Close()
				if off, err := f.Seek(0, unix.SEEK_HOLE); err != nil || off >= c.size {
					t.Skipf("%s has no holes: %d, %v", dir, off, err)
				}
			}
			r := capture(t, Config{Mounts: tmpOutput(), OutputPath: "/out", HostDir: dir})
			if r.err != nil {
				t.Fatal(r.err)
			}
			out, err := keep.NewCollection(r.manifest, r.blocks)
			if err != nil {
				t.Fatal(err)
			}
			f, err := out.Open("f")
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if f.Size() != c.size {
				t.Errorf("%d bytes, want %d", f.Size(), c.size)
			}
			// The text is where it was, with zeros around it.
			for off, text := range c.texts {
				from, to := max(0, off-1000), min(c.size, off+int64(len(text))+1000)
				got := make([]byte, to-from)
				if _, err := f.ReadAt(got, from); err != nil && err != io.EOF {
					t.Fatal(err)
				}
				if want := strings.Repeat("\x00", int(off-from)) + text + strings.Repeat("\x00", int(to-off)-len(text)); string(got) != want {
					t.Errorf("around %d: %q", off, bytes.Trim(got, "\x00"))
				}
			}
			// Two kinds of zeros, and what is around the data.
			if n := len(r.blocks.blocks); c.size > gib && n > 2+3*max(1, len(c.texts)) {
				t.Errorf("%d blocks for %d bytes of data", n, len(c.texts))
			}
		})
	}
}

// A file that is cut off while its holes are looked for ends there.
func TestHolesOfFilesThatShrink(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	sparse(t, path, 1<<30, map[int64]string{0: "x"})
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := newHoles(f)
	if err := f.Truncate(5); err != nil {
		t.Fatal(err)
	}
	if off, err := h.skip(1 << 20); off != 1<<20 || err != nil {
		t.Errorf("goes on at %d, %v", off, err)
	}
}

// blind is a file on a file system that does not say where its holes are.
type blind struct{ *os.File }

func (b blind) Seek(off int64, whence int) (int64, error) {
	if whence == unix.SEEK_DATA {
		return 0, &os.PathError{Op: "seek", Path: b.Name(), Err: unix.EIO}
	}
	return b.File.Seek(off, whence)
}

// Where holes cannot be found data is not taken for one.
func TestHolesThatCannotBeFound(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	sparse(t, path, 1<<30, map[int64]string{1<<29 + 5: "data"})
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := holes{f: blind{f}}
	for _, at := range []int64{1 << 29, 1 << 28} {
		if off, err := h.skip(at); off != at || err != nil {
			t.Errorf("goes on at %d instead of %d, %v", off, at, err)
		}
	}
}
