package keep_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"crunch-oci/keep"
)

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
	writeFile(t, c, "unsaved", []byte("abc"))
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

// Who waits for another's flush can give up, too.
func TestMarshalContextWhileFlushing(t *testing.T) {
	store := newMemStore()
	store.gate = make(chan struct{})
	c := newCollection(t, "", store, 16)
	writeFile(t, c, "f", []byte("abc"))
	writeFile(t, c, "d/g", []byte("def"))
	first := make(chan error)
	go func() {
		_, err := c.MarshalManifest(context.Background())
		first <- err
	}()
	store.gate <- struct{}{} // one of the two uploads
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.MarshalManifest(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("MarshalManifest: %v", err)
	}
	if err := c.Flush(ctx, "", true); !errors.Is(err, context.Canceled) {
		t.Errorf("Flush: %v", err)
	}
	close(store.gate)
	if err := <-first; err != nil {
		t.Error(err)
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

// A write that was interrupted while it waited for its upload to begin is stored
// all the same by a save that waits for that upload, too.
func TestMarshalStoresWhatAnotherGaveUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemStore()
		store.gate = make(chan struct{})
		c := newCollection(t, "", store, 64)
		c.LimitUploads(1)
		f, err := c.Create("f")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		write := func(ctx context.Context, off int64) error {
			_, err := f.WriteAtContext(ctx, pattern("x", 64), off)
			return err
		}
		if err := write(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		ctx, interrupt := context.WithCancel(t.Context())
		written, saved := make(chan error, 1), make(chan error, 1)
		var text string
		go func() { written <- write(ctx, 64) }()
		synctest.Wait() // for the only upload slot
		go func() {
			var err error
			text, err = c.MarshalManifest(t.Context())
			saved <- err
		}()
		synctest.Wait() // for the first upload
		interrupt()
		if err := <-written; err != nil {
			t.Error(err)
		}
		close(store.gate)
		if err := <-saved; err != nil {
			t.Fatal(err)
		}
		if got := readFile(t, newCollection(t, text, store, 0), "f"); len(got) != 128 {
			t.Errorf("%d bytes are stored", len(got))
		}
	})
}
