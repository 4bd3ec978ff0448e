package keep_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"testing"

	"crunch-oci/keep"
	"crunch-oci/keep/keeptest"
)

func TestPackingVectors(t *testing.T) {
	for _, v := range vectors[struct {
		Note, Manifest, PDH string
		BlockSizeLimit      int `json:"block_size_limit"`
		Files               []struct {
			Name string
			Size int
		}
	}](t, "packing") {
		t.Run(v.Note, func(t *testing.T) {
			c := newCollection(t, "", newMemStore(), v.BlockSizeLimit)
			for _, f := range v.Files {
				writeFile(t, c, f.Name, pattern(f.Name, f.Size))
			}
			if got := marshal(t, c); got != v.Manifest || keep.PortableDataHash(got) != v.PDH {
				t.Errorf("manifest %q\nwant %q", got, v.Manifest)
			}
			for _, f := range v.Files {
				if got := readFile(t, c, f.Name); got != string(pattern(f.Name, f.Size)) {
					t.Errorf("%s reads as %q", f.Name, got)
				}
			}
		})
	}
}

func TestReadAcrossBlocks(t *testing.T) {
	store := newMemStore()
	c := newCollection(t, "", store, 16)
	want := pattern("f", 100)
	writeFile(t, c, "d/f", want)
	c = newCollection(t, marshal(t, c), store, 0)
	f, err := c.Open("d/f")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, r := range []struct{ off, n int }{{0, 100}, {15, 2}, {16, 16}, {31, 40}, {99, 1}, {0, 0}, {50, 50}} {
		p := make([]byte, r.n)
		if n, err := f.ReadAt(p, int64(r.off)); n != r.n || err != nil || !bytes.Equal(p, want[r.off:r.off+r.n]) {
			t.Errorf("ReadAt(%d, %d) = %d, %v, %q", r.off, r.n, n, err, p)
		}
	}
	if n, err := f.ReadAt(make([]byte, 10), 95); n != 5 || err != io.EOF {
		t.Errorf("ReadAt over the end = %d, %v", n, err)
	}
	if n, err := f.ReadAt(make([]byte, 10), 1000); n != 0 || err != io.EOF {
		t.Errorf("ReadAt beyond the end = %d, %v", n, err)
	}
	if _, err := f.ReadAt(make([]byte, 1), -1); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("ReadAt(-1): %v", err)
	}
	if pos, err := f.Seek(-10, io.SeekEnd); pos != 90 || err != nil {
		t.Errorf("Seek = %d, %v", pos, err)
	}
	if rest, err := io.ReadAll(f); err != nil || !bytes.Equal(rest, want[90:]) {
		t.Errorf("read after Seek: %q, %v", rest, err)
	}
	if _, err := f.Seek(-1, io.SeekStart); err == nil {
		t.Error("seek before the start")
	}
	if _, err := f.Write([]byte("x")); !errors.Is(err, syscall.EBADF) {
		t.Errorf("write to a file opened for reading: %v", err)
	}
}

// A block that is lost makes that part of the file unreadable, not what lies
// before it.
func TestReadMissingBlock(t *testing.T) {
	store := newMemStore()
	c := newCollection(t, "", store, 16)
	writeFile(t, c, "f", pattern("f", 40))
	f, err := c.Open("f")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	marshal(t, c)
	delete(store.blocks, f.Segments()[1].Locator.Hash())
	n, err := f.ReadAt(make([]byte, 40), 8)
	if n != 8 || !errors.Is(err, keep.ErrNotFound) || !strings.Contains(err.Error(), `"f"`) {
		t.Errorf("read %d bytes, %v", n, err)
	}
	if n, err := f.ReadAt(make([]byte, 8), 32); n != 8 || err != nil {
		t.Errorf("read behind the hole: %d, %v", n, err)
	}
}

// A log: it grows, it is read while it grows, and it is saved again and again.
func TestLiveLog(t *testing.T) {
	store := newMemStore()
	c := newCollection(t, "", store, 64)
	log, err := c.Create("stdout.txt")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Create("stderr.txt"); err != nil {
		t.Fatal(err)
	}
	reader, err := c.Open("stdout.txt")
	if err != nil {
		t.Fatal(err)
	}
	var want, seen bytes.Buffer
	for i := range 40 {
		line := fmt.Sprintf("line %d\n", i)
		want.WriteString(line)
		if n, err := log.Append([]byte(line)); n != len(line) || err != nil {
			t.Fatal(n, err)
		}
		if c.Size() != int64(want.Len()) || log.Size() != int64(want.Len()) {
			t.Fatalf("after line %d: collection %d, file %d bytes, want %d", i, c.Size(), log.Size(), want.Len())
		}
		if _, err := io.Copy(&seen, reader); err != nil {
			t.Fatal(err)
		}
		if seen.String() != want.String() {
			t.Fatalf("after line %d a reader has seen %q", i, seen.String())
		}
		if i%7 != 6 {
			continue
		}
		saved := newCollection(t, marshal(t, c), store, 0)
		if got := readFile(t, saved, "stdout.txt"); got != want.String() {
			t.Fatalf("saved after line %d: %q, want %q", i, got, want.String())
		}
		if info, err := saved.Stat("stderr.txt"); err != nil || info.Size() != 0 {
			t.Fatalf("empty file: %+v, %v", info, err)
		}
	}
	// A save with nothing new stores nothing.
	marshal(t, c)
	_, before := store.count()
	text := marshal(t, c)
	if _, after := store.count(); after != before {
		t.Errorf("%d blocks written by a second save", after-before)
	}
	if again := marshal(t, c); again != text {
		t.Errorf("second save differs: %q, %q", text, again)
	}
}

func TestAppendToStoredFile(t *testing.T) {
	store := newMemStore()
	c := newCollection(t, "", store, 64)
	writeFile(t, c, "f", []byte("abc"))
	c = newCollection(t, marshal(t, c), store, 64)
	f, err := c.OpenFile("f", os.O_WRONLY|os.O_APPEND)
	if err != nil {
		t.Fatal(err)
	}
	f.Write([]byte("def"))
	f.Close()
	if got := readFile(t, c, "f"); got != "abcdef" {
		t.Errorf("%q", got)
	}
	if _, err := f.Write([]byte("x")); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("write after close: %v", err)
	}
	want := ". 900150983cd24fb0d6963f7d28e17f72+3 4ed9407630eb1000c0f6b63842defa7d+3 0:6:f\n"
	if got := marshal(t, c); got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestThroughServer(t *testing.T) {
	srv := &keeptest.Server{Signer: keep.Signer{Key: "key", TTL: 1e15}}
	client := keeptest.NewClient(t, nil, srv.Start(t))
	c := newCollection(t, "", client, 1<<20)
	data := make([]byte, 5<<20)
	for i := range data {
		data[i] = byte(i ^ i>>8 ^ i>>16)
	}
	writeFile(t, c, "dir/big", data)
	writeFile(t, c, "small", []byte("small"))
	text := marshal(t, c)
	if strings.Count(text, "+A") != 6 {
		t.Errorf("signatures are lost: %q", text)
	}
	cache := keep.NewCache(client, 8<<20)
	defer cache.Close()
	saved := newCollection(t, text, cache, 0)
	if got := readFile(t, saved, "dir/big"); got != string(data) {
		t.Error("big file differs")
	}
	if got := readFile(t, saved, "small"); got != "small" {
		t.Errorf("%q", got)
	}
}
