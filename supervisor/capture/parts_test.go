package capture

import (
	"bytes"
	"context"
	"crypto/md5"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"crunch-oci/keep"
	"crunch-oci/keep/keeptest"
)

// noise makes a file of random bytes.
func noise(t *testing.T, path string, size int) []byte {
	t.Helper()
	data := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{byte(size)}).Read(data)
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
	return data
}

// captureInto captures dir into blocks.
func captureInto(t *testing.T, ctx context.Context, dir string, blocks keep.BlockReader) (manifest string, err error) {
	t.Helper()
	out, err := keep.NewCollection("", blocks)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	return Run(ctx, Config{Mounts: tmpOutput(), OutputPath: "/out", HostDir: dir, Log: new(lines)}, out)
}

// sameContent compares a file with what the manifest has under its name.
func sameContent(t *testing.T, blocks keep.BlockReader, manifest, file string) {
	t.Helper()
	out, err := keep.NewCollection(manifest, blocks)
	if err != nil {
		t.Fatal(err)
	}
	f, err := out.Open(filepath.Base(file))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(file)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s: %d bytes, MD5 %x; want %d, %x (%v)", file, len(got), md5.Sum(got), len(want), md5.Sum(want), err)
	}
}

// Files that are sent from where they lie arrive whole, and become the same
// blocks each time.
func TestParts(t *testing.T) {
	dir := t.TempDir()
	files := map[string]int{"small": 1000, "more than half a block": keep.MaxBlockSize/2 + 1, "two blocks": keep.MaxBlockSize + 12345}
	for name, size := range files {
		noise(t, filepath.Join(dir, name), size)
	}
	server := new(keeptest.Server)
	client := keeptest.NewClient(t, nil, server.Start(t))
	manifest, err := captureInto(t, t.Context(), dir, client)
	if err != nil {
		t.Fatal(err)
	}
	for name := range files {
		sameContent(t, client, manifest, filepath.Join(dir, name))
	}
	if again, err := captureInto(t, t.Context(), dir, client); err != nil || again != manifest {
		t.Errorf("%v\n%s\nagain:\n%s", err, manifest, again)
	}
	if n := server.Len(); n != 3 {
		t.Errorf("%d blocks", n)
	}
}

// A file that changes after its blocks were hashed, while they are sent, is
// captured as it is then.
func TestPartsThatChange(t *testing.T) {
	for name, change := range map[string]func(name string) error{
		"other bytes": func(name string) error {
			f, err := os.OpenFile(name, os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			_, err = f.WriteAt([]byte("changed"), 60<<20)
			return errors.Join(err, f.Close())
		},
		"shorter": func(name string) error { return os.Truncate(name, 1000) },
		"empty":   func(name string) error { return os.Truncate(name, 0) },
		"longer": func(name string) error {
			f, err := os.OpenFile(name, os.O_WRONLY|os.O_APPEND, 0)
			if err != nil {
				return err
			}
			_, err = f.Write(make([]byte, 3<<20))
			return errors.Join(err, f.Close())
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			file := filepath.Join(dir, "f")
			size := keep.MaxBlockSize + 5
			if name == "other bytes" {
				size += keep.MaxBlockSize / 2 // a block that has not changed
			}
			noise(t, file, size)
			server := new(keeptest.Server)
			changed := false
			server.Inject(-1, func(_ *keeptest.Server, _ http.ResponseWriter, r *http.Request) bool {
				if r.ContentLength == keep.MaxBlockSize && !changed { // the first block, while the second may be on its way
					changed = true
					if err := change(file); err != nil {
						t.Error(err)
					}
				}
				return false
			})
			client := keeptest.NewClient(t, nil, server.Start(t))
			manifest, err := captureInto(t, t.Context(), dir, client)
			if err != nil {
				t.Fatal(err)
			}
			server.Recover()
			sameContent(t, client, manifest, file)
		})
	}
}

// A block that cannot be stored ends the capture at once, whatever else is under
// way, and the error names block and file.
func TestUnstorableParts(t *testing.T) {
	dir := t.TempDir()
	noise(t, filepath.Join(dir, "first"), keep.MaxBlockSize/2+1)
	bad := md5.Sum(noise(t, filepath.Join(dir, "second \n"), keep.MaxBlockSize/2+2))
	server := new(keeptest.Server)
	server.Inject(-1, func(s *keeptest.Server, w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == fmt.Sprintf("/%x", bad) {
			http.Error(w, "not here", http.StatusForbidden)
			return true
		}
		return keeptest.Hang(s, w, r)
	})
	_, err := captureInto(t, t.Context(), dir, keeptest.NewClient(t, nil, server.Start(t)))
	if err == nil || !strings.HasPrefix(err.Error(), `error copying file "second \n" into output collection: `) ||
		!strings.Contains(err.Error(), fmt.Sprintf("%x", bad)) || !strings.Contains(err.Error(), "not here") {
		t.Errorf("error %v", err)
	}
}

// Files that share a block are named when it cannot be stored.
func TestUnstorableFilesAreNamed(t *testing.T) {
	dir := t.TempDir()
	for i := range 5 {
		noise(t, filepath.Join(dir, fmt.Sprint("f", i)), 100+i)
	}
	server := new(keeptest.Server)
	server.Inject(-1, keeptest.Status(http.StatusForbidden, "not here"))
	_, err := captureInto(t, t.Context(), dir, keeptest.NewClient(t, nil, server.Start(t)))
	if err == nil || !strings.HasPrefix(err.Error(), `error flushing output collection file data: store block of "f0", "f1", "f2", 2 more: Could not write sufficient replicas: block `) {
		t.Errorf("error %v", err)
	}
}

// The end of the context ends the sending.
func TestStoppingParts(t *testing.T) {
	dir := t.TempDir()
	noise(t, filepath.Join(dir, "f"), keep.MaxBlockSize)
	ctx, cancel := context.WithCancel(t.Context())
	returned := make(chan struct{})
	defer close(returned)
	server := new(keeptest.Server)
	server.Inject(-1, func(*keeptest.Server, http.ResponseWriter, *http.Request) bool {
		cancel()
		<-returned // without reading
		return true
	})
	if _, err := captureInto(t, ctx, dir, keeptest.NewClient(t, nil, server.Start(t))); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}
