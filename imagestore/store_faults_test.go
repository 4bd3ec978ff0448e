package imagestore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"crunch-oci/imagestore/archive"
	"crunch-oci/imagestore/internal/imagetest"
	. "crunch-oci/imagestore/internal/tartest"

	"golang.org/x/sys/unix"
)

// Every failure is one line, of the right kind, and leaves nothing.
func TestFailuresLeaveNothing(t *testing.T) {
	layer := Tar(t, File("a/b", strings.Repeat("x", 300_000)))
	m := imagetest.Image{Layers: [][]byte{layer, Tar(t, File("c", "1"))}}
	good := Tar(t, imagetest.DockerLegacy(m, false)...)
	flip := func(at int) []byte {
		b := bytes.Clone(good)
		b[at] ^= 0x40
		return b
	}
	withLayer := func(l []byte) (imagetest.Image, []byte) {
		m := imagetest.Image{Layers: [][]byte{m.Layers[1], l}}
		return m, Tar(t, imagetest.DockerLegacy(m, false)...)
	}
	escape, escapeTar := withLayer(Tar(t, File("../../x", "")))
	broken, brokenTar := withLayer(layer[:100_000])
	inBody := bytes.Index(good, []byte("xxxx")) + 1000
	inHeader := bytes.Index(good, []byte("a/b")) + 1
	for _, tt := range []struct {
		name string
		b    []byte
		id   string
		want error
		text string
	}{
		{"empty", nil, m.ID(), ErrNoImage, "not an image: the tarball is empty"},
		{"random", bytes.Repeat([]byte("random"), 1000), m.ID(), ErrNoImage, "not an image: the file is not a tar archive"},
		{"cut off", good[:200_000], m.ID(), ErrCorrupt, "image tarball is damaged: it ends after 200000 bytes"},
		{"wrong id", good, escape.ID(), ErrWrongID, "wrong image id: the tarball holds " + m.ID() + ", not " + escape.ID()},
		{"flipped in a file", flip(inBody), m.ID(), ErrCorrupt, "): image tarball is damaged: the layer's content has the digest "},
		{"flipped in a header of the layer", flip(inHeader), m.ID(), ErrCorrupt, "layer 1 of 2 (sha256:"},
		{"layer that escapes", escapeTar, escape.ID(), ErrEscape, "../../x: entry leads out of the layer"},
		{"layer that was made cut off", brokenTar, broken.ID(), ErrMalformed, "a/b: malformed layer: it ends in the middle of a file"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root := t.TempDir()
			s := openStore(t, root)
			before := openFiles(t)
			_, err := s.Unpack(t.Context(), Key{ID: tt.id}, opener(tt.b, archive.Options{WantID: tt.id}), nil)
			if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) || strings.Contains(err.Error(), "\n") {
				t.Errorf("error %v\nwant  %v: %s", err, tt.want, tt.text)
			}
			checkTidy(t, root)
			if names, _ := os.ReadDir(filepath.Join(root, "images")); len(names) != 0 {
				t.Errorf("images holds %v", names)
			}
			if after := openFiles(t); after != before {
				t.Errorf("%d files open, %d before", after, before)
			}
		})
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(names)
}

func TestNothingStaysOpen(t *testing.T) {
	m := imagetest.Image{Layers: [][]byte{Tar(t, File("a/b", "1")), Tar(t, File("a/c", "2"), File("d/.wh.e", ""))}, Compress: "gzip"}
	b := imagetest.Pack("zstd", Tar(t, imagetest.Docker25(m)...))
	s := openStore(t, t.TempDir())
	before := openFiles(t)
	for range 2 {
		snap, err := s.Unpack(t.Context(), Key{Source: "x"}, opener(b, archive.Options{Scratch: s.Scratch()}), nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(snap.Sync(), snap.Close(), snap.Close()); err != nil {
			t.Fatal(err)
		}
	}
	if after := openFiles(t); after != before {
		t.Errorf("%d files open, %d before", after, before)
	}
}

// After a reboot only what was synced is believed.
func TestReboot(t *testing.T) {
	m := imagetest.Image{Layers: [][]byte{Tar(t, File("a", "1")), Tar(t, File("b/.wh.c", ""))}}
	root := t.TempDir()
	s := openStore(t, root)
	unpack(t, s, m).Close()
	s.boot = "another boot"
	if _, err := s.Lookup(Key{ID: m.ID()}); !errors.Is(err, ErrNotFound) {
		t.Fatalf("an image that may be incomplete: %v", err)
	}
	// As after a loss of power: a file is empty.
	if err := os.Truncate(filepath.Join(root, "layers", m.DiffIDs()[0].Encoded(), "fs/a"), 0); err != nil {
		t.Fatal(err)
	}
	snap := unpack(t, s, m)
	if b, _ := os.ReadFile(filepath.Join(mount(t, snap), "a")); string(b) != "1" {
		t.Errorf("content %q", b)
	}
	tidyUp(t, s)
	checkTidy(t, root)
	if err := snap.Sync(); err != nil {
		t.Fatal(err)
	}
	snap.Close()
	s.boot = "a third boot"
	snap, err := s.Lookup(Key{ID: m.ID()})
	if err != nil {
		t.Fatalf("an image that was synced: %v", err)
	}
	if err := errors.Join(snap.Sync(), snap.Close()); err != nil {
		t.Error(err)
	}
}

// A layer whose facts are damaged is unpacked again for the next image that
// shares it, unless a container has it.
func TestDamagedFacts(t *testing.T) {
	base := Tar(t, File("a", "1"))
	one, two := imagetest.Image{Layers: [][]byte{base}}, imagetest.Image{Layers: [][]byte{base, Tar(t, File("b", "2"))}}
	for _, content := range []string{"", "[", "\x00"} {
		s := openStore(t, t.TempDir())
		held := unpack(t, s, one)
		if err := os.WriteFile(filepath.Join(s.layerPath(one.DiffIDs()[0].Encoded()), "facts.json"), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		open := opener(Tar(t, imagetest.Docker25(two)...), archive.Options{WantID: two.ID()})
		if _, err := s.Unpack(t.Context(), Key{ID: two.ID()}, open, nil); err == nil || !strings.Contains(err.Error(), "damaged") || !strings.Contains(err.Error(), "in use") {
			t.Errorf("facts %q, in use: %v", content, err)
		}
		held.Close()
		unpack(t, s, two).Close()
	}
}

// A damaged record or state file is as good as none.
func TestDamagedBookkeeping(t *testing.T) {
	m := imagetest.Image{Layers: [][]byte{Tar(t, File("a", "1"))}}
	for _, file := range []string{"images/" + m.ID()[7:] + ".json", "layers/" + m.DiffIDs()[0].Encoded() + "/state.json"} {
		for _, content := range []string{"", "{}", "null", "[", `{"version":1}`} {
			root := t.TempDir()
			s := openStore(t, root)
			unpack(t, s, m).Close()
			if err := os.WriteFile(filepath.Join(root, file), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Lookup(Key{ID: m.ID()}); !errors.Is(err, ErrNotFound) {
				t.Errorf("%s = %q: %v", file, content, err)
			}
			unpack(t, s, m).Close()
			if snap, err := s.Lookup(Key{ID: m.ID()}); err != nil {
				t.Errorf("%s = %q: %v", file, content, err)
			} else {
				snap.Close()
			}
			tidyUp(t, s)
			checkTidy(t, root)
		}
	}
}

// smallFS mounts a tmpfs of the given size.
func smallFS(t *testing.T, options string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func TestDiskFull(t *testing.T) {
	many := func() []Entry {
		var es []Entry
		for i := range 500 {
			es = append(es, File(fmt.Sprintf("f%d", i), ""))
		}
		return es
	}
	big := imagetest.Image{Layers: [][]byte{Tar(t, File("big", strings.Repeat("0123456789abcdef", 1<<19)))}} // 8 MiB
	for _, tt := range []struct {
		name, options string
		m             imagetest.Image
		how           string
		text          string
	}{
		{"known before", "size=4m", big, "", "unpack an image of 8.39MB into "},
		{"a compressed layer", "size=4m", big, "gzip", "big: layer exceeds the limit"},
		{"a bomb", "size=4m", imagetest.Image{Layers: [][]byte{Tar(t, File("zeros", strings.Repeat("\x00", 64<<20)))}}, "zstd", "zeros: layer exceeds the limit"},
		{"no inodes left for a layer", "size=4m,nr_inodes=100", imagetest.Image{Layers: [][]byte{Tar(t, many()...)}}, "", "): f"},
		{"two layers at once", "size=10m", imagetest.Image{Layers: [][]byte{
			Tar(t, File("big", strings.Repeat("0123456789abcdef", 6<<16))), Tar(t, File("other", strings.Repeat("0123456789ABCDEF", 6<<16)))}}, "gzip", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root := smallFS(t, tt.options)
			s, err := Open(filepath.Join(root, "store"), Options{Parallel: 2})
			if err != nil {
				t.Fatal(err)
			}
			before, err := s.space()
			if err != nil {
				t.Fatal(err)
			}
			tt.m.Compress = tt.how
			b := Tar(t, imagetest.Docker25(tt.m)...)
			_, err = s.Unpack(t.Context(), Key{ID: tt.m.ID()}, opener(b, archive.Options{WantID: tt.m.ID()}), nil)
			if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "no space left on device") || !strings.Contains(err.Error(), tt.text) || strings.Contains(err.Error(), "\n") {
				t.Errorf("error %v", err)
			}
			t.Log(err)
			checkTidy(t, filepath.Join(root, "store"))
			// Whole layers may stay.
			os.RemoveAll(filepath.Join(root, "store", "layers"))
			after, err := s.space()
			if err != nil || after.bytes < before.bytes || after.inodes < before.inodes {
				t.Errorf("%v before, %v after, %v", before, after, err)
			}
		})
	}
	t.Run("scratch", func(t *testing.T) {
		root := smallFS(t, "size=4m")
		s := openStore(t, root)
		b := imagetest.Pack("gzip", Tar(t, imagetest.Docker25(big)...))
		_, err := s.Unpack(t.Context(), Key{ID: big.ID()}, opener(b, archive.Options{WantID: big.ID(), Scratch: s.Scratch()}), nil)
		if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "no space left on device") {
			t.Errorf("error %v", err)
		}
		checkTidy(t, root)
	})
}

func TestCancelledUnpack(t *testing.T) {
	m := imagetest.Image{Layers: [][]byte{Tar(t, File("a", strings.Repeat("x", 5<<20))), Tar(t, File("b", strings.Repeat("y", 5<<20)))}}
	root := t.TempDir()
	s := openStore(t, root)
	ctx, cancel := context.WithCancel(t.Context())
	_, err := s.Unpack(ctx, Key{ID: m.ID()}, opener(Tar(t, imagetest.DockerLegacy(m, false)...), archive.Options{WantID: m.ID()}), func(p Progress) {
		if p.Done > 1<<20 {
			cancel()
		}
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	checkTidy(t, root)
}
