package keep_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"crunch-oci/keep"
)

// copyStore fetches into memory of the caller, in pieces, and sometimes fails.
type copyStore struct {
	*memStore
	fetching, most atomic.Int64
}

var errCopy = errors.New("connection reset")

func (s *copyStore) CopyBlock(ctx context.Context, loc keep.Locator, w io.WriterAt) error {
	now := s.fetching.Add(loc.Size())
	defer s.fetching.Add(-loc.Size())
	for most := s.most.Load(); now > most && !s.most.CompareAndSwap(most, now); most = s.most.Load() {
	}
	data, err := s.ReadBlock(ctx, loc)
	if err != nil {
		return err
	}
	for off := 0; off < len(data); off += 50_000 {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if rand.IntN(200) == 0 {
			return errCopy
		}
		if _, err := w.WriteAt(data[off:min(len(data), off+50_000)], int64(off)); err != nil {
			return err
		}
	}
	return nil
}

// Many readers, of whom some give up, get the right bytes of blocks that come and
// go, and never more memory is used for them than there may be.
func TestCacheMemory(t *testing.T) {
	store := &copyStore{memStore: newMemStore()}
	var locs []keep.Locator
	for i, size := range []int{100, 300_000, 300_000, 300_000, 400_000, 400_000, 500_000, 2_000_000} {
		locs = append(locs, storeBlocks(t, store, i+1, size)[i])
	}
	const limit = 1_000_000 // less than the largest: that one is not kept
	cache := newCache(t, store, limit)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 200 {
				i := rand.IntN(len(locs))
				n := rand.IntN(int(locs[i].Size()))
				p := make([]byte, n)
				ctx, cancel := context.WithCancel(t.Context())
				if rand.IntN(4) == 0 {
					ctx, cancel = context.WithTimeout(ctx, time.Duration(rand.IntN(100))*time.Microsecond)
				}
				if rand.IntN(4) == 0 {
					cache.Prefetch(locs[rand.IntN(len(locs)-1)])
				}
				_, err := cache.ReadBlockAt(ctx, locs[i], p, rand.Int64N(locs[i].Size()-int64(n)))
				if err == nil && !bytes.Equal(p, bytes.Repeat([]byte{byte(i)}, n)) {
					t.Errorf("wrong bytes of block %d", i)
				}
				if err != nil && !errors.Is(err, errCopy) && ctx.Err() == nil {
					t.Error(err)
				}
				cancel()
			}
		})
	}
	wg.Wait()
	cache.WaitPrefetch()
	if most := store.most.Load(); most > limit || most < 500_000 {
		t.Errorf("%d bytes on their way at a time", most)
	}
	// The last that were fetched may have failed after all others had made room.
	for {
		if _, err := cache.ReadBlockAt(t.Context(), locs[1], make([]byte, 1), 0); err == nil {
			break
		}
	}
	if held := cache.Stats().Bytes; cache.Taken() > limit || held == 0 {
		t.Errorf("%d bytes taken, %d held", cache.Taken(), held)
	}
	cache.Close()
	if n := cache.Taken(); n != 0 {
		t.Errorf("%d bytes are not given back", n)
	}
}

// A block that is fetched ahead does not take the place of a larger one that is
// being read.
func TestPrefetchLeavesWhatIsRead(t *testing.T) {
	store := newMemStore()
	large, small := storeBlocks(t, store, 1, 600_000)[0], storeBlocks(t, store, 2, 300_000)[1]
	cache := newCache(t, store, 700_000)
	for range 3 {
		if _, err := cache.ReadBlockAt(t.Context(), large, make([]byte, 10), 0); err != nil {
			t.Fatal(err)
		}
		cache.Prefetch(small)
		cache.WaitPrefetch()
	}
	if st := cache.Stats(); st.Misses != 1 {
		t.Errorf("the block was fetched %d times", st.Misses)
	}
}

// A block that cannot be fetched ahead is not asked for at each step of who reads
// the one before, unless there is another signature for it.
func TestPrefetchInVain(t *testing.T) {
	store := newMemStore()
	cache := newCache(t, store, 1000)
	signed := func(expiry string) keep.Locator {
		loc, err := keep.ParseLocator("acbd18db4cc2f85cedef654fccc4a4d8+3+A0123456789abcdef0123456789abcdef01234567@" + expiry)
		if err != nil {
			t.Fatal(err)
		}
		return loc
	}
	for i, expiry := range []string{"5b16a41b", "5b16a41b", "5b16a41b", "6b16a41b", "6b16a41b"} {
		cache.Prefetch(signed(expiry))
		cache.WaitPrefetch()
		if n, _ := store.count(); n != 1+i/3 {
			t.Errorf("asked %d times after prefetch %d", n, i)
		}
	}
	// Who wants it is not kept from asking.
	if _, err := cache.ReadBlock(t.Context(), signed("6b16a41b")); err == nil {
		t.Error("read what is not there")
	}
	if n, _ := store.count(); n != 3 {
		t.Errorf("asked %d times in all", n)
	}
}

// What a cache has held is the system's again, without a garbage collection.
func TestCacheGivesMemoryBack(t *testing.T) {
	store := &copyStore{memStore: newMemStore()}
	locs := storeBlocks(t, store, 3, 9<<20)[1:] // not zeros, as new memory is
	cache := newCache(t, store, 1<<30)
	for _, loc := range locs {
		for {
			if _, err := cache.ReadBlockAt(t.Context(), loc, make([]byte, 1), 0); err == nil {
				break
			}
		}
	}
	blocks := cache.Mapped()
	if len(blocks) != len(locs) {
		t.Fatalf("%d blocks are where they should be", len(blocks))
	}
	var content [][]byte
	for _, b := range blocks {
		content = append(content, bytes.Clone(b[:512]))
	}
	cache.Close()
	for i, b := range blocks {
		// Something else may be mapped there by now.
		if now, err := peek(b[:512]); err == nil && bytes.Equal(now, content[i]) {
			t.Errorf("block %d is still in memory", i)
		}
	}
}

// peek copies b, and returns an error where touching it would end the process.
func peek(b []byte) ([]byte, error) {
	memory, err := os.Open("/proc/self/mem")
	if err != nil {
		return nil, err
	}
	defer memory.Close()
	now := make([]byte, len(b))
	_, err = memory.ReadAt(now, int64(uintptr(unsafe.Pointer(&b[0]))))
	return now, err
}

// lateStore fetches whatever becomes of the context: the last bytes have come
// already.
type lateStore struct {
	*memStore
	fetching, come chan struct{}
}

func (s *lateStore) CopyBlock(_ context.Context, loc keep.Locator, w io.WriterAt) error {
	s.fetching <- struct{}{}
	<-s.come
	data, err := s.ReadBlock(context.Background(), loc)
	if err == nil {
		_, err = w.WriteAt(data, 0)
	}
	return err
}

// A cache that is closed while a block of it is being read, or comes, leaves the
// reader what it reads, and gives it back afterwards.
func TestCacheCloseWhileRead(t *testing.T) {
	const size = 1 << 20
	for _, c := range []struct {
		name   string
		before bool // the block is in the cache before
		late   bool // closed when the block is about to come, not when it is read
	}{
		{"held", true, false},
		{"fetched", false, false},
		{"on its way", false, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			store := &lateStore{newMemStore(), make(chan struct{}), make(chan struct{})}
			loc := storeBlocks(t, store, 2, size)[1] // ones
			cache := newCache(t, store, 1<<30)
			read := func(fn func([]byte) error) <-chan error {
				done := make(chan error, 1)
				go func() { done <- cache.Use(t.Context(), loc, fn) }()
				return done
			}
			if c.before {
				done := read(func([]byte) error { return nil })
				<-store.fetching
				store.come <- struct{}{}
				if err := <-done; err != nil {
					t.Fatal(err)
				}
			}
			var block []byte
			closed := make(chan error, 1)
			done := read(func(b []byte) error {
				block = b
				if c.late {
					// Close waits only for the fetch.
					if err := <-closed; err != nil {
						return err
					}
				} else if err := cache.Close(); err != nil {
					return err
				}
				now, err := peek(b)
				if err == nil && !bytes.Equal(now, bytes.Repeat([]byte{1}, size)) {
					err = errors.New("something else is there")
				}
				if taken := cache.Taken(); taken != size {
					t.Errorf("%d bytes are taken while one block is read", taken)
				}
				return err
			})
			if !c.before {
				<-store.fetching
			}
			if c.late {
				go func() { closed <- cache.Close() }()
				cache.WaitClosed()
			}
			if !c.before {
				store.come <- struct{}{}
			}
			if err := <-done; err != nil {
				t.Fatalf("reading while the cache is closed: %v", err)
			}
			if now, err := peek(block); err == nil && bytes.Equal(now, bytes.Repeat([]byte{1}, size)) {
				t.Error("the block is still in memory")
			}
			if taken, held := cache.Taken(), cache.Stats().Bytes; taken != 0 || held != 0 {
				t.Errorf("%d bytes taken, %d held when all is over", taken, held)
			}
		})
	}
}
