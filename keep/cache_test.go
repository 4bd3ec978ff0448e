package keep_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"
	"testing"
	"time"

	"crunch-oci/keep"
)

// slowStore hands out blocks one at a time, when told to.
type slowStore struct {
	*memStore
	asked chan keep.Locator
	let   chan struct{}
}

func (s *slowStore) ReadBlock(ctx context.Context, loc keep.Locator) ([]byte, error) {
	select {
	case s.asked <- loc:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	select {
	case <-s.let:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return s.memStore.ReadBlock(ctx, loc)
}

// storeBlocks stores n blocks of size bytes and returns their locators.
func storeBlocks(t testing.TB, store keep.BlockWriter, n, size int) (list []keep.Locator) {
	t.Helper()
	for i := range n {
		loc, err := store.WriteBlock(t.Context(), bytes.Repeat([]byte{byte(i)}, size), keep.WriteOptions{})
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, loc)
	}
	return list
}

func newCache(t testing.TB, blocks keep.BlockReader, limit int64) *keep.Cache {
	t.Helper()
	c := keep.NewCache(blocks, limit)
	t.Cleanup(func() { c.Close() })
	return c
}

func TestCacheRemembersTheLatest(t *testing.T) {
	store := newMemStore()
	locs := storeBlocks(t, store, 4, 100)
	cache := newCache(t, store, 300)
	read := func(i int) {
		t.Helper()
		data, err := cache.ReadBlock(t.Context(), locs[i])
		if err != nil || !bytes.Equal(data, bytes.Repeat([]byte{byte(i)}, 100)) {
			t.Fatalf("block %d: %q, %v", i, data, err)
		}
	}
	for _, i := range []int{0, 1, 2, 0, 3, 0, 2, 3} { // 3 displaces 1
		read(i)
	}
	if n, _ := store.count(); n != 4 {
		t.Errorf("%d fetches, want 4", n)
	}
	read(1)
	if n, _ := store.count(); n != 5 {
		t.Errorf("%d fetches, want 5", n)
	}
	if s := cache.Stats(); s.Hits != 4 || s.Misses != 5 || s.Bytes != 300 {
		t.Errorf("%+v", s)
	}
}

func TestCacheTooSmallForABlock(t *testing.T) {
	store := newMemStore()
	locs := storeBlocks(t, store, 1, 100)
	cache := newCache(t, store, 50)
	for range 2 {
		if _, err := cache.ReadBlock(t.Context(), locs[0]); err != nil {
			t.Fatal(err)
		}
	}
	if n, _ := store.count(); n != 2 || cache.Stats().Bytes != 0 {
		t.Errorf("%d fetches, %+v", n, cache.Stats())
	}
}

func TestCacheDoesNotRememberErrors(t *testing.T) {
	store := newMemStore()
	locs := storeBlocks(t, store, 1, 10)
	data := store.blocks[locs[0].Hash()]
	delete(store.blocks, locs[0].Hash())
	cache := newCache(t, store, 100)
	if _, err := cache.ReadBlock(t.Context(), locs[0]); !errors.Is(err, keep.ErrNotFound) {
		t.Error(err)
	}
	store.blocks[locs[0].Hash()] = data
	if _, err := cache.ReadBlock(t.Context(), locs[0]); err != nil {
		t.Error(err)
	}
}

func TestCacheSharesFetch(t *testing.T) {
	store := &slowStore{newMemStore(), make(chan keep.Locator), make(chan struct{})}
	locs := storeBlocks(t, store, 1, 10)
	cache := newCache(t, store, 100)
	var wg sync.WaitGroup
	for range 5 {
		wg.Go(func() {
			if _, err := cache.ReadBlock(t.Context(), locs[0]); err != nil {
				t.Error(err)
			}
		})
	}
	<-store.asked
	for !cache.Waiting(locs[0], 5) {
	}
	store.let <- struct{}{}
	wg.Wait()
	if n, _ := store.count(); n != 1 {
		t.Errorf("%d fetches", n)
	}
}

// Reading a file from front to back has the next blocks fetched meanwhile, but
// not more than fit; reading here and there does not.
func TestCacheReadAhead(t *testing.T) {
	for _, tc := range []struct {
		name  string
		limit int64
		read  func(*keep.File) (int, error)
		want  int // blocks asked for
		most  int // if a prefetch that is over by then makes room for another
	}{
		{"sequential", 1000, func(f *keep.File) (int, error) { return f.Read(make([]byte, 10)) }, 3, 3},
		{"little room", 250, func(f *keep.File) (int, error) { return f.Read(make([]byte, 10)) }, 2, 3},
		{"no room", 150, func(f *keep.File) (int, error) { return f.Read(make([]byte, 10)) }, 1, 1},
		{"random", 1000, func(f *keep.File) (int, error) { return f.ReadAt(make([]byte, 10), 110) }, 1, 1},
		{"near the end", 1000, func(f *keep.File) (int, error) {
			f.ReadAt(make([]byte, 1), 299)
			return f.ReadAt(make([]byte, 10), 300)
		}, 3, 3},
	} {
		t.Run(tc.name, func(t *testing.T) {
			store := newMemStore()
			c := newCollection(t, "", store, 100)
			data := make([]byte, 500)
			for i := range data {
				data[i] = byte(i / 100)
			}
			writeFile(t, c, "f", data)
			cache := newCache(t, store, tc.limit)
			c = newCollection(t, marshal(t, c), cache, 0)
			f, err := c.Open("f")
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if n, err := tc.read(f); n != 10 || err != nil {
				t.Fatal(n, err)
			}
			cache.WaitPrefetch()
			if n, _ := store.count(); n < tc.want || n > tc.most {
				t.Errorf("%d blocks fetched, want %d to %d", n, tc.want, tc.most)
			}
			if _, err := io.Copy(io.Discard, f); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestCacheForgetsWhenIdle(t *testing.T) {
	store := newMemStore()
	locs := storeBlocks(t, store, 2, 100)
	cache := newCache(t, store, 1000)
	cache.SetIdle(5 * time.Millisecond)
	for range 2 { // it wakes up again
		for _, loc := range locs {
			if _, err := cache.ReadBlock(t.Context(), loc); err != nil {
				t.Fatal(err)
			}
		}
		for cache.Stats().Bytes > 0 {
			time.Sleep(time.Millisecond)
		}
	}
	if n, _ := store.count(); n != 4 {
		t.Errorf("%d fetches, want 4", n)
	}
}

func TestCacheClose(t *testing.T) {
	store := &slowStore{newMemStore(), make(chan keep.Locator), make(chan struct{})}
	locs := storeBlocks(t, store, 2, 10)
	cache := newCache(t, store, 100)
	cache.Prefetch(locs[0])
	<-store.asked
	done := make(chan error)
	go func() {
		_, err := cache.ReadBlock(context.Background(), locs[0])
		done <- err
	}()
	for !cache.Waiting(locs[0], 2) {
	}
	cache.Close()
	if err := <-done; err == nil {
		t.Error("read succeeded")
	}
	if _, err := cache.ReadBlock(t.Context(), locs[1]); err == nil {
		t.Error("read after Close succeeded")
	}
	cache.Prefetch(locs[1])
}

func TestCacheRange(t *testing.T) {
	store := newMemStore()
	locs := storeBlocks(t, store, 2, 10)
	cache := newCache(t, store, 100)
	for _, tc := range []struct {
		off, n int
		ok     bool
	}{{0, 10, true}, {9, 1, true}, {10, 0, true}, {5, 6, false}, {11, 0, false}, {-1, 1, false}} {
		p := make([]byte, tc.n)
		n, err := cache.ReadBlockAt(t.Context(), locs[1], p, int64(tc.off))
		if (err == nil) != tc.ok || tc.ok && (n != tc.n || !bytes.Equal(p, bytes.Repeat([]byte{1}, tc.n))) {
			t.Errorf("%d bytes at %d: %d, %v, %v", tc.n, tc.off, n, p, err)
		}
	}
	if _, err := cache.WriteBlock(t.Context(), []byte("x"), keep.WriteOptions{}); err != nil {
		t.Error(err)
	}
	if data, err := cache.ReadBlock(t.Context(), keep.EmptyLocator); err != nil || len(data) != 0 {
		t.Error(err)
	}
}

// There is room for a block before it arrives: what is held and what is being
// fetched stay within the limit together.
func TestCacheMakesRoomFirst(t *testing.T) {
	store := &slowStore{newMemStore(), make(chan keep.Locator), make(chan struct{})}
	cache := newCache(t, store, 300)
	read := make(chan error, 1)
	for i, loc := range storeBlocks(t, store, 4, 100) {
		go func() {
			_, err := cache.ReadBlock(t.Context(), loc)
			read <- err
		}()
		<-store.asked
		if got, want := cache.Stats().Bytes, int64(min(i, 2)*100); got != want {
			t.Errorf("%d bytes are held while block %d is fetched, want %d", got, i, want)
		}
		store.let <- struct{}{}
		if err := <-read; err != nil {
			t.Fatal(err)
		}
	}
	if got := cache.Stats().Bytes; got != 300 {
		t.Errorf("%d bytes are held in the end", got)
	}
}
