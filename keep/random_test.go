package keep_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"os"
	"slices"
	"sync"
	"testing"

	"crunch-oci/keep"
)

// flakyStore fails every fifth write, and holds it against nobody.
type flakyStore struct {
	*memStore
	mu  sync.Mutex
	rnd *rand.Rand
	on  bool
}

var errFlaky = errors.New("no luck")

func (s *flakyStore) WriteBlock(ctx context.Context, data []byte, opts keep.WriteOptions) (keep.Locator, error) {
	s.mu.Lock()
	fail := s.on && s.rnd.Intn(5) == 0
	s.mu.Unlock()
	if fail {
		return keep.Locator{}, errFlaky
	}
	return s.memStore.WriteBlock(ctx, data, opts)
}

// openFile is a handle and what can be read through it: names come and go.
type openFile struct {
	*keep.File
	data *[]byte
}

// randomWrites does what programs do to files, through handles that outlive the
// files' names, and compares with byte slices.
func randomWrites(t *testing.T, seed int64, blockSize, maxSize, ops int, flaky bool) {
	rnd := rand.New(rand.NewSource(seed))
	store := &flakyStore{memStore: newMemStore(), rnd: rand.New(rand.NewSource(seed)), on: flaky}
	c := newCollection(t, "", store, blockSize)
	if err := c.Mkdir("d"); err != nil {
		t.Fatal(err)
	}
	names := []string{"a", "b", "d/c", "d/e"}
	model := map[string]*[]byte{}
	var open []openFile
	failed := func(err error) bool {
		if err == nil {
			return false
		}
		if !flaky || !errors.Is(err, errFlaky) {
			t.Fatal(err)
		}
		return true
	}
	resize := func(data *[]byte, size int) {
		if size <= len(*data) {
			*data = (*data)[:size]
		} else {
			*data = append(slices.Clip(*data), make([]byte, size-len(*data))...)
		}
	}
	check := func(f openFile) {
		t.Helper()
		got := make([]byte, len(*f.data)+1)
		n, err := f.ReadAt(got, 0)
		if err != io.EOF || !bytes.Equal(got[:n], *f.data) {
			t.Fatalf("%s: read %d bytes, %v\n%x\nwant\n%x", f.Name(), n, err, got[:n], *f.data)
		}
	}
	checkAll := func(c *keep.Collection) {
		t.Helper()
		size := int64(0)
		for name, data := range model {
			f, err := c.Open(name)
			if err != nil {
				t.Fatal(err)
			}
			check(openFile{f, data})
			f.Close()
			size += int64(len(*data))
		}
		if c.Size() != size {
			t.Fatalf("size %d, want %d", c.Size(), size)
		}
	}
	for i := range ops {
		name := names[rnd.Intn(len(names))]
		if len(open) == 0 || rnd.Intn(20) == 0 {
			f, err := c.OpenFile(name, os.O_RDWR|os.O_CREATE)
			if err != nil {
				t.Fatal(err)
			}
			if model[name] == nil {
				model[name] = new([]byte)
			}
			open = append(open, openFile{f, model[name]})
		}
		if len(open) > 5 {
			open[0].Close()
			open = open[1:]
		}
		k := rnd.Intn(len(open))
		f := open[k]
		off, length := rnd.Intn(maxSize), rnd.Intn(maxSize/4)
		switch op := rnd.Intn(40); {
		case op < 18:
			if rnd.Intn(3) == 0 {
				off = len(*f.data)
			}
			p := make([]byte, length)
			rnd.Read(p)
			_, err := f.WriteAt(p, int64(off))
			if !failed(err) && length > 0 {
				resize(f.data, max(len(*f.data), off+length))
				copy((*f.data)[off:], p)
			}
		case op < 24:
			if err := f.Truncate(int64(off)); err != nil {
				t.Fatal(err)
			}
			resize(f.data, off)
		case op < 26:
			if err := f.Zero(int64(off), int64(length+1)); err != nil {
				t.Fatal(err)
			}
			clear((*f.data)[min(off, len(*f.data)):min(off+length+1, len(*f.data))])
		case op < 28:
			to := names[rnd.Intn(len(names))]
			if model[name] != nil && to != name {
				if err := c.Rename(name, to); err != nil {
					t.Fatal(err)
				}
				model[to] = model[name]
				delete(model, name)
			}
		case op < 30:
			if model[name] != nil {
				if err := c.Remove(name); err != nil {
					t.Fatal(err)
				}
				delete(model, name)
			}
		case op < 32:
			to := names[rnd.Intn(len(names))]
			if model[name] != nil && to != name {
				if err := c.Splice(to, c, name); err != nil {
					t.Fatal(err)
				}
				data := bytes.Clone(*model[name])
				model[to] = &data
			}
		case op < 33:
			f.Close()
			open = slices.Delete(open, k, k+1)
		case op < 34:
			if err := c.Flush(t.Context(), "", rnd.Intn(2) == 0); err != nil {
				t.Fatal(err)
			}
		case op < 35:
			text, err := c.MarshalManifest(t.Context())
			if !failed(err) {
				checkAll(newCollection(t, text, store, 0))
				if again, err := keep.NormalizeManifest(text); err != nil || again != text {
					t.Fatalf("%q is not in normal form (%v)", text, err)
				}
			}
		case op < 38:
			check(f)
		default:
			if len(*f.data) > 0 {
				from := rnd.Intn(len(*f.data))
				got := make([]byte, min(length, len(*f.data)-from))
				if n, err := f.ReadAt(got, int64(from)); err != nil || !bytes.Equal(got, (*f.data)[from:from+n]) {
					t.Fatalf("op %d: read of %d bytes at %d: %v", i, len(got), from, err)
				}
			}
		}
		if i%50 == 0 {
			checkAll(c)
			for _, f := range open {
				check(f)
			}
		}
	}
	store.mu.Lock()
	store.on = false
	store.mu.Unlock()
	c.MarshalManifest(t.Context()) // may report a failure of before
	checkAll(newCollection(t, marshal(t, c), store, 0))
	for _, f := range open {
		check(f)
		f.Close()
	}
}

func TestRandomWrites(t *testing.T) {
	for _, tc := range []struct{ blockSize, maxSize, ops int }{{32, 200, 4000}, {4096, 60_000, 2000}} {
		for _, flaky := range []bool{false, true} {
			for seed := range int64(3) {
				t.Run(fmt.Sprintf("blocks of %d, flaky %v, seed %d", tc.blockSize, flaky, seed), func(t *testing.T) {
					t.Parallel()
					randomWrites(t, seed, tc.blockSize, tc.maxSize, tc.ops, flaky)
				})
			}
		}
	}
}

// A file of 50 GB of which little was written takes neither memory nor more than
// two blocks of zeros, and reads as it should.
func TestSparse(t *testing.T) {
	store := newMemStore()
	c := newCollection(t, "", store, 0)
	f, err := c.Create("sparse")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const size = 50 << 30
	for _, off := range []int64{size - 3, 1 << 30, 0, 1 << 20} {
		if _, err := f.WriteAt([]byte("abc"), off); err != nil {
			t.Fatal(err)
		}
	}
	text := marshal(t, c)
	if len(store.blocks) > 3 {
		t.Errorf("%d blocks", len(store.blocks))
	}
	again := newCollection(t, text, store, 0)
	g, err := again.Open("sparse")
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	if g.Size() != size {
		t.Errorf("size %d", g.Size())
	}
	for off, want := range map[int64]string{0: "abc\x00", 1<<20 - 1: "\x00abc\x00", 1<<30 - 1: "\x00abc\x00", size - 5: "\x00\x00abc", 25 << 30: "\x00\x00"} {
		got := make([]byte, len(want))
		if _, err := g.ReadAt(got, off); err != nil || string(got) != want {
			t.Errorf("at %d: %q %v", off, got, err)
		}
	}
	if err := f.Truncate(1 << 50); err == nil {
		t.Error("a file may be as long as one likes")
	}
}

// Files that have no name any more do not fill the memory, and cost nothing in
// the manifest.
func TestWriteRemoved(t *testing.T) {
	store := newMemStore()
	c := newCollection(t, "", store, 1024)
	f, err := c.OpenFile("f", os.O_RDWR|os.O_CREATE)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Remove("f"); err != nil {
		t.Fatal(err)
	}
	for i := range 100 {
		// Never a full block.
		if _, err := f.WriteAt(bytes.Repeat([]byte{byte(i)}, 500), int64(i)*5000); err != nil {
			t.Fatal(err)
		}
	}
	if got := marshal(t, c); got != "" {
		t.Errorf("manifest %q", got)
	}
	if n := c.InMemory(f); n > 3*1024 {
		t.Errorf("%d bytes in memory", n)
	}
	got := make([]byte, 2)
	if _, err := f.ReadAt(got, 99*5000-1); err != nil || string(got) != "\x00\x63" {
		t.Errorf("%q %v", got, err)
	}
	f.Close()
}
