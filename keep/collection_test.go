package keep_test

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"crunch-oci/keep"
	"crunch-oci/keep/keeptest"
)

// memStore is a BlockStore in memory whose writes can be made to fail or wait.
type memStore struct {
	mu      sync.Mutex
	blocks  map[string][]byte
	reads   []string
	writes  int
	opts    keep.WriteOptions
	fail    error
	onWrite func([]byte)  // called under mu
	gate    chan struct{} // if not nil, each write takes one token
}

func newMemStore() *memStore { return &memStore{blocks: map[string][]byte{}} }

func (m *memStore) ReadBlock(_ context.Context, loc keep.Locator) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.reads = append(m.reads, loc.Hash())
	if data, ok := m.blocks[loc.Hash()]; ok {
		return data, nil
	}
	return nil, keep.ErrNotFound
}

func (m *memStore) WriteBlock(ctx context.Context, data []byte, opts keep.WriteOptions) (keep.Locator, error) {
	m.mu.Lock()
	gate := m.gate
	m.mu.Unlock()
	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
			return keep.Locator{}, ctx.Err()
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.opts = opts
	if m.onWrite != nil {
		m.onWrite(data)
	}
	if m.fail != nil {
		return keep.Locator{}, m.fail
	}
	m.writes++
	sum := md5.Sum(data)
	hash := hex.EncodeToString(sum[:])
	m.blocks[hash] = bytes.Clone(data)
	return keep.ParseLocator(fmt.Sprintf("%s+%d", hash, len(data)))
}

func (m *memStore) setFail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fail = err
}

func (m *memStore) count() (reads, writes int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.reads), m.writes
}

func newCollection(t testing.TB, manifest string, store keep.BlockReader, blockSize int) *keep.Collection {
	t.Helper()
	c, err := keep.NewCollection(manifest, store)
	if err != nil {
		t.Fatal(err)
	}
	if blockSize > 0 {
		c.SetBlockSize(blockSize)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func writeFile(t testing.TB, c *keep.Collection, name string, data []byte) {
	t.Helper()
	if err := c.MkdirAll(path.Dir(name)); err != nil {
		t.Fatal(err)
	}
	f, err := c.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func readFile(t testing.TB, c *keep.Collection, name string) string {
	t.Helper()
	f, err := c.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	data, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func marshal(t testing.TB, c *keep.Collection) string {
	t.Helper()
	text, err := c.MarshalManifest(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// pattern is the content of a file in the packing vectors.
func pattern(name string, size int) []byte {
	data := make([]byte, size)
	for i := range data {
		data[i] = path.Base(name)[0] + byte(i)
	}
	return data
}

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

func TestUploadErrorEarlyAndRetried(t *testing.T) {
	store := newMemStore()
	broken := errors.New("store is broken")
	store.setFail(broken)
	c := newCollection(t, "", store, 16)
	f, err := c.Create("f")
	if err != nil {
		t.Fatal(err)
	}
	var want bytes.Buffer
	for err = nil; err == nil; {
		if want.Len() > 1<<20 {
			t.Fatal("a megabyte written without hearing of the error")
		}
		var n int
		n, err = f.Write([]byte("0123456789"))
		want.WriteString("0123456789"[:n])
	}
	if !errors.Is(err, broken) || !errors.Is(c.Err(), broken) {
		t.Fatalf("Write: %v, Err: %v", err, c.Err())
	}
	// Append accepts more, up to a bound.
	for err = nil; err == nil; {
		if want.Len() > 1<<20 {
			t.Fatal("no bound on what is kept in memory")
		}
		var n int
		n, err = f.Append([]byte("abcdefghij"))
		want.WriteString("abcdefghij"[:n])
	}
	if !errors.Is(err, broken) {
		t.Errorf("Append: %v", err)
	}
	if _, err := c.MarshalManifest(t.Context()); !errors.Is(err, broken) {
		t.Errorf("MarshalManifest: %v", err)
	}
	if got := readFile(t, c, "f"); got != want.String() {
		t.Error("data is gone from memory after a failed upload")
	}
	store.setFail(nil)
	saved := newCollection(t, marshal(t, c), store, 0)
	if got := readFile(t, saved, "f"); got != want.String() {
		t.Errorf("saved %d bytes, want %d", len(got), want.Len())
	}
	if _, err := f.Write([]byte("x")); err != nil {
		t.Errorf("write after recovery: %v", err)
	}
}

// Small files are packed and uploaded before they fill the memory, and a writer
// waits when four uploads are under way.
func TestMemoryBound(t *testing.T) {
	const files, size, block = 60, 20, 64
	store := newMemStore()
	store.gate = make(chan struct{})
	var produced atomic.Int64
	var stored, held int64
	store.onWrite = func(data []byte) {
		held = max(held, produced.Load()-stored)
		stored += int64(len(data))
	}
	c := newCollection(t, "", store, block)
	written := make(chan struct{})
	go func() {
		defer close(written)
		for i := range files {
			f, err := c.Create(fmt.Sprintf("%03d", i))
			if err != nil {
				t.Error(err)
				return
			}
			f.Write(pattern("x", size))
			f.Close()
			produced.Add(size)
			written <- struct{}{}
		}
	}()
	for open := true; open; {
		select {
		case _, open = <-written:
		case store.gate <- struct{}{}:
		}
	}
	close(store.gate)
	saved := newCollection(t, marshal(t, c), store, 0)
	// Four in flight, one block's worth in tails or packed and waiting, which
	// one file may exceed, and one being filled while those wait.
	if most := int64((4+2)*block + size); held > most || held < block-size {
		t.Errorf("up to %d bytes in memory, want at most %d", held, most)
	}
	for i := range files {
		if got := readFile(t, saved, fmt.Sprintf("%03d", i)); got != string(pattern("x", size)) {
			t.Fatalf("file %d: %q", i, got)
		}
	}
}

// A flush that asks for good blocks only leaves the rest in memory.
func TestFlushLeavesShortBlocks(t *testing.T) {
	store := newMemStore()
	c := newCollection(t, "", store, 64)
	written := func(dir string, short bool) int {
		t.Helper()
		if err := c.Flush(t.Context(), dir, short); err != nil {
			t.Fatal(err)
		}
		c.WaitUploads()
		_, n := store.count()
		return n
	}
	writeFile(t, c, "e/small", pattern("s", 28))
	open, err := c.Create("open")
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	open.Write(pattern("o", 36))
	if n := written("", false); n != 0 {
		t.Errorf("%d blocks for less than half a block and an open file", n)
	}
	if n := written("e", true); n != 1 {
		t.Errorf("%d blocks after a flush of one directory", n)
	}
	if n := written("", true); n != 2 {
		t.Errorf("%d blocks after a flush of everything", n)
	}
	writeFile(t, c, "big", pattern("b", 33))
	if n := written("", false); n != 3 {
		t.Errorf("%d blocks after a flush of more than half a block", n)
	}
	c.Flush(t.Context(), "", true)
	writeFile(t, c, "d/1", pattern("1", 20))
	writeFile(t, c, "d/2", pattern("2", 20))
	if n := written("", false); n != 4 {
		t.Errorf("%d blocks after a flush of two files", n)
	}
	if err := c.Flush(t.Context(), "nowhere", true); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

// Files that cannot share blocks, being in directories of their own, do not stay
// in memory for that reason.
func TestMemoryBoundManyDirectories(t *testing.T) {
	store := newMemStore()
	c := newCollection(t, "", store, 64)
	for i := range 100 {
		writeFile(t, c, fmt.Sprintf("%d/f", i), pattern("f", 10))
	}
	c.WaitUploads()
	if _, n := store.count(); n < 100-64/10-1 {
		t.Errorf("only %d of 100 files are stored", n)
	}
}

// Everything at once, for the race detector; and nothing is lost.
func TestConcurrentUse(t *testing.T) {
	store := newMemStore()
	c := newCollection(t, "", store, 64)
	var writers, others sync.WaitGroup
	stop := make(chan struct{})
	want := make([]bytes.Buffer, 4)
	for i := range want {
		writers.Go(func() {
			f, err := c.Create(fmt.Sprint(i))
			if err != nil {
				t.Error(err)
				return
			}
			defer f.Close()
			for j := range 200 {
				line := fmt.Sprintf("%d line %d\n", i, j)
				want[i].WriteString(line)
				if _, err := f.Append([]byte(line)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	until := func(op func()) {
		others.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					op()
				}
			}
		})
	}
	until(func() {
		text, err := c.MarshalManifest(t.Context())
		if err != nil {
			t.Error(err)
			return
		}
		c.RefreshSignatures(signer.SignManifest(text, "token", time.Now()))
	})
	until(func() { c.Flush(t.Context(), "", false) })
	until(func() {
		c.Walk("", func(name string, _ keep.FileInfo) error {
			f, err := c.Open(name)
			if err != nil {
				return nil // a directory, or just removed
			}
			defer f.Close()
			_, err = io.Copy(io.Discard, f)
			return err
		})
	})
	until(func() {
		c.Splice("copy", c, "0")
		c.Rename("copy", "moved")
		c.Remove("moved")
	})
	writers.Wait()
	close(stop)
	others.Wait()
	saved := newCollection(t, marshal(t, c), store, 0)
	for i := range want {
		if got := readFile(t, saved, fmt.Sprint(i)); got != want[i].String() {
			t.Errorf("file %d has %d bytes, want %d", i, len(got), want[i].Len())
		}
	}
}

func TestCloseEndsWaiting(t *testing.T) {
	store := newMemStore()
	store.gate = make(chan struct{})
	c := newCollection(t, "", store, 16)
	f, err := c.Create("f")
	if err != nil {
		t.Fatal(err)
	}
	writing := make(chan struct{})
	go func() {
		defer close(writing)
		for {
			if _, err := f.Write(pattern("f", 16)); err != nil {
				return
			}
		}
	}()
	store.gate <- struct{}{}
	c.Close()
	<-writing
	if _, err := c.MarshalManifest(t.Context()); err == nil {
		t.Error("manifest of a closed collection with unsaved data")
	}
}

func TestMarshalContext(t *testing.T) {
	store := newMemStore()
	store.gate = make(chan struct{})
	c := newCollection(t, "", store, 16)
	writeFile(t, c, "f", []byte("abc"))
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		store.gate <- struct{}{} // the upload has begun
		cancel()
	}()
	writeFile(t, c, "g/h", []byte("def"))
	if _, err := c.MarshalManifest(ctx); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if err := c.Err(); err != nil {
		t.Errorf("giving up waiting counts as a failed upload: %v", err)
	}
	close(store.gate)
	saved := newCollection(t, marshal(t, c), store, 0)
	if got := readFile(t, saved, "f") + readFile(t, saved, "g/h"); got != "abcdef" {
		t.Errorf("%q", got)
	}
}

func TestWriteOptions(t *testing.T) {
	store := newMemStore()
	c := newCollection(t, "", store, 0)
	c.SetWriteOptions(keep.WriteOptions{Replication: 3, StorageClasses: []string{"archive"}})
	writeFile(t, c, "f", []byte("x"))
	marshal(t, c)
	if store.opts.Replication != 3 || len(store.opts.StorageClasses) != 1 || store.opts.StorageClasses[0] != "archive" {
		t.Errorf("%+v", store.opts)
	}
}

func TestReadOnlyStore(t *testing.T) {
	c := newCollection(t, "", nil, 0)
	if _, err := c.Create("f"); !errors.Is(err, keep.ErrNoWriter) {
		t.Errorf("Create: %v", err)
	}
	c = newCollection(t, ". acbd18db4cc2f85cedef654fccc4a4d8+3 0:3:foo\n", nil, 0)
	f, err := c.Open("foo")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Read(make([]byte, 1)); err == nil {
		t.Error("read without a store")
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
