package layer_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"testing"

	. "crunch-oci/imagestore/internal/tartest"
	"crunch-oci/imagestore/layer"
)

// zeros is a stream of n zero bytes that takes no memory.
func zeros(n int64) io.Reader { return io.LimitReader(nothing{}, n) }

type nothing struct{}

func (nothing) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// withoutEnd is an archive without the marker that ends it.
func withoutEnd(t *testing.T, es ...Entry) []byte {
	b := Tar(t, es...)
	return b[:len(b)-1024]
}

// A stream that keeps the processor busy with what is no content is refused
// after a gigabyte or so.
func TestIdleStreams(t *testing.T) {
	const much = 3 << 30
	body := func(name string, kind byte) []byte {
		var buf bytes.Buffer
		w := tar.NewWriter(&buf)
		if err := w.WriteHeader(&tar.Header{Name: name, Typeflag: kind, Size: much, Mode: 0o600}); err != nil {
			t.Fatal(err)
		}
		return buf.Bytes()
	}
	for name, start := range map[string][]byte{
		"after the end":           Tar(t, File("a", "1")),
		"body of a whiteout":      body(".wh.x", tar.TypeReg),
		"body of an ignored file": body(".wh..wh.aufs", tar.TypeReg),
	} {
		t.Run(name, func(t *testing.T) {
			rest := &counter{r: zeros(much)}
			_, err := layer.Extract(t.Context(), io.MultiReader(bytes.NewReader(start), rest), t.TempDir(), layer.Options{})
			if !errors.Is(err, layer.ErrLimit) || rest.n > 3<<29 {
				t.Errorf("after %d bytes: %v", rest.n, err)
			}
		})
	}
	t.Run("a large file that does not fit", func(t *testing.T) { // is no idle stream
		_, err := layer.Extract(t.Context(), io.MultiReader(bytes.NewReader(body("x", tar.TypeReg)), zeros(much)), t.TempDir(), layer.Options{MaxBytes: 2 << 30})
		var size *layer.SizeError
		if !errors.As(err, &size) {
			t.Error(err)
		}
	})
}

type counter struct {
	r io.Reader
	n int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// What is remembered until a layer is complete does not hold on to the headers it
// comes from, which may have a megabyte each.
func TestHeadersAreForgotten(t *testing.T) {
	const headers, size = 300, 900_000
	comment := strings.Repeat("c", size)
	for name, entry := range map[string]func(i int) Entry{
		"directories": func(i int) Entry { return Dir(fmt.Sprintf("dir\xff %d", i)).Xattr("user.x", "y") },
		"implicit":    func(i int) Entry { return Symlink(fmt.Sprintf("implied\xff %d/l", i), "x") },
		"whiteouts":   func(i int) Entry { return File(fmt.Sprintf(".wh.\xff %d", i), "") },
	} {
		t.Run(name, func(t *testing.T) {
			r, w := io.Pipe()
			go func() {
				for i := range headers {
					// Names that are no UTF-8 stand in the record, not in the header.
					if _, err := w.Write(withoutEnd(t, entry(i).Record("comment", comment))); err != nil {
						return
					}
				}
				// Everything is still remembered here.
				runtime.GC()
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				if m.HeapAlloc > headers*size/2 {
					t.Errorf("%d MiB in use after %d MiB of headers", m.HeapAlloc>>20, headers*size>>20)
				}
				w.Close()
			}()
			if _, err := layer.Extract(t.Context(), r, t.TempDir(), layer.Options{}); err != nil {
				t.Error(err)
			}
		})
	}
}

// Extended attributes take room, in memory and on the disk.
func TestXattrBombs(t *testing.T) {
	value := strings.Repeat("v", 60_000)
	var dirs, files []Entry
	for i := range 300 {
		dirs = append(dirs, Dir(fmt.Sprint("d", i)).Xattr("user.large", value))
		files = append(files, File(fmt.Sprint("f", i), "").Xattr("trusted.x", strings.Repeat("v", 2000)))
	}
	_, err := layer.Extract(t.Context(), bytes.NewReader(Tar(t, dirs...)), t.TempDir(), layer.Options{})
	if !errors.Is(err, layer.ErrLimit) || !strings.Contains(err.Error(), "in the extended attributes of directories") {
		t.Errorf("directories: %v", err)
	}
	_, err = layer.Extract(t.Context(), bytes.NewReader(Tar(t, files...)), t.TempDir(), layer.Options{MaxBytes: 500_000})
	var size *layer.SizeError
	if !errors.As(err, &size) {
		t.Errorf("files: %v", err)
	}
}
