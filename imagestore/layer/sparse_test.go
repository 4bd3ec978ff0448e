package layer_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"crunch-oci/imagestore/layer"

	"golang.org/x/sys/unix"
)

// Holes survive in all the formats that GNU tar has for them.
func TestSparseFiles(t *testing.T) {
	src := t.TempDir()
	f, err := os.Create(src + "/sparse")
	if err != nil {
		t.Fatal(err)
	}
	// Data at odd places, a hole at the end.
	for _, off := range []int64{0, 1<<20 - 7, 3<<20 + 4096, 40 << 20} {
		if _, err := f.WriteAt([]byte("some data that is not zero"), off); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Truncate(64<<20 + 123); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if err := os.WriteFile(src+"/empty", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(src+"/empty", 10<<20); err != nil {
		t.Fatal(err)
	}
	for _, format := range []string{"--format=gnu", "--format=posix --sparse-version=0.0", "--format=posix --sparse-version=0.1", "--format=posix --sparse-version=1.0"} {
		t.Run(format, func(t *testing.T) {
			args := append([]string{"-c", "-S", "-C", src}, strings.Fields(format)...)
			b, err := exec.Command("tar", append(args, "sparse", "empty")...).Output()
			if err != nil {
				t.Fatal(err)
			}
			if len(b) > 1<<20 {
				t.Fatalf("tar wrote %d bytes: not sparse", len(b))
			}
			dir := t.TempDir()
			res, err := layer.Extract(t.Context(), bytes.NewReader(b), dir, layer.Options{})
			if err != nil {
				t.Fatal(err)
			}
			if res.Bytes > 1<<20 {
				t.Errorf("%d bytes written", res.Bytes)
			}
			for _, name := range []string{"sparse", "empty"} {
				if a, b := hashFile(t, filepath.Join(src, name)), hashFile(t, filepath.Join(dir, name)); a != b {
					t.Errorf("%s has other content", name)
				}
				var st unix.Stat_t
				if err := unix.Stat(filepath.Join(dir, name), &st); err != nil {
					t.Fatal(err)
				}
				if st.Blocks*512 > 1<<20 {
					t.Errorf("%s takes %d bytes on disk", name, st.Blocks*512)
				}
			}
			_, err = layer.Extract(t.Context(), bytes.NewReader(b), t.TempDir(), layer.Options{MaxSparse: 70 << 20})
			var size *layer.SizeError
			if !errors.Is(err, layer.ErrLimit) || errors.As(err, &size) {
				t.Errorf("74 MB of sparse files where 70 are allowed: %v", err)
			}
			_, err = layer.Extract(t.Context(), bytes.NewReader(b[:1024+100]), t.TempDir(), layer.Options{})
			if !errors.Is(err, layer.ErrMalformed) {
				t.Errorf("cut off: %v", err)
			}
		})
	}
}

func hashFile(t *testing.T, name string) (sum [32]byte) {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return [32]byte(h.Sum(nil))
}
