package keep

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"sync"
	"time"

	"crunch-oci/keep/internal/flight"
)

// Cache remembers blocks in memory and fetches ahead. It is a decorator of a
// BlockReader and passes writes through if that is a BlockStore.
//
// What it holds is bounded by a number of bytes and released when nobody has
// asked for a while: between two bursts of reading it costs next to nothing.
type Cache struct {
	blocks BlockReader
	limit  int64
	shared flight.Group[[]byte]

	ctx    context.Context // of prefetches and fetches; ends with Close
	cancel context.CancelFunc

	mu        sync.Mutex
	byHash    map[string]*list.Element // of *cached
	lru       *list.List               // most recently used first
	bytes     int64                    // in lru
	dropped   int64                    // from lru since garbage was last collected for it
	ahead     int64                    // bytes of prefetches under way
	closed    bool
	idleTimer *time.Timer
	idle      time.Duration
	prefetch  sync.WaitGroup
	stats     CacheStats
}

type cached struct {
	hash string
	data []byte
	used bool // since the idle timer was last looked at
}

// CacheStats counts what a Cache did.
type CacheStats struct {
	// Hits and Misses count reads: answered from memory, or fetched.
	Hits, Misses int64
	// Bytes is the size of the blocks held.
	Bytes int64
}

const (
	cacheIdle = 20 * time.Second
	// freeAtOnce is how many bytes must have been dropped before memory is
	// given back to the system at once, which costs a garbage collection.
	freeAtOnce = 16 << 20
)

var _ interface {
	BlockStore
	BlockRangeReader
	Prefetcher
	Localizer
} = (*Cache)(nil)

// NewCache returns a cache of blocks that holds at most limit bytes. With less
// than two or three blocks' worth it still works, but nothing is fetched ahead.
func NewCache(blocks BlockReader, limit int64) *Cache {
	c := &Cache{
		blocks: blocks,
		limit:  limit,
		byHash: make(map[string]*list.Element),
		lru:    list.New(),
		idle:   cacheIdle,
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	return c
}

// Close cancels fetches under way, waits for them, and drops all blocks. It does
// not close what it decorates.
func (c *Cache) Close() error {
	c.mu.Lock()
	c.closed = true
	if c.idleTimer != nil {
		c.idleTimer.Stop()
	}
	c.cancel()
	c.drop(0)
	c.mu.Unlock()
	c.prefetch.Wait()
	c.shared.Close()
	return nil
}

// Stats returns the counters.
func (c *Cache) Stats() CacheStats {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.stats
	s.Bytes = c.bytes
	return s
}

// ReadBlock implements BlockReader.
func (c *Cache) ReadBlock(ctx context.Context, loc Locator) ([]byte, error) {
	if loc.IsEmptyBlock() {
		return []byte{}, nil
	}
	if data := c.lookup(loc, true); data != nil {
		return data, nil
	}
	return c.fetch(ctx, loc)
}

// ReadBlockAt implements BlockRangeReader.
func (c *Cache) ReadBlockAt(ctx context.Context, loc Locator, p []byte, off int64) (int, error) {
	data, err := c.ReadBlock(ctx, loc)
	if err != nil {
		return 0, err
	}
	if off < 0 || off > int64(len(data)) || len(p) > len(data)-int(off) {
		return 0, fmt.Errorf("%w: %s has no %d bytes at %d", ErrChecksum, loc.WithoutHints(), len(p), off)
	}
	return copy(p, data[off:]), nil
}

// WriteBlock passes the block on. It is not remembered: what was just written is
// rarely read back.
func (c *Cache) WriteBlock(ctx context.Context, data []byte, opts WriteOptions) (Locator, error) {
	w, ok := c.blocks.(BlockWriter)
	if !ok {
		return Locator{}, ErrNoWriter
	}
	return w.WriteBlock(ctx, data, opts)
}

// LocalLocator passes the request on.
func (c *Cache) LocalLocator(ctx context.Context, loc Locator) (Locator, error) {
	l, ok := c.blocks.(Localizer)
	if !ok {
		return Locator{}, errors.ErrUnsupported
	}
	return l.LocalLocator(ctx, loc)
}

// Prefetch implements Prefetcher. A block is fetched only if it fits beside the
// one being read and what else is being fetched ahead.
func (c *Cache) Prefetch(loc Locator) {
	size := loc.Size()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || loc.IsEmptyBlock() || c.byHash[loc.Hash()] != nil || c.ahead+2*size > c.limit || c.shared.Waiting(loc.Hash()) > 0 {
		return
	}
	c.ahead += size
	c.prefetch.Add(1)
	go func() {
		defer c.prefetch.Done()
		c.fetch(c.ctx, loc)
		c.mu.Lock()
		defer c.mu.Unlock()
		c.ahead -= size
	}()
}

// lookup returns the block if it is held, and counts that if count is set.
func (c *Cache) lookup(loc Locator, count bool) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.byHash[loc.Hash()]
	if count && e != nil {
		c.stats.Hits++
	} else if count {
		c.stats.Misses++
	}
	if e == nil {
		return nil
	}
	c.lru.MoveToFront(e)
	b := e.Value.(*cached)
	b.used = true
	return b.data
}

// fetch gets the block and remembers it.
func (c *Cache) fetch(ctx context.Context, loc Locator) ([]byte, error) {
	return c.shared.Do(ctx, c.ctx, loc.Hash(), loc.String(), func(ctx context.Context) ([]byte, error) {
		// Another fetch may have ended since the caller looked.
		if data := c.lookup(loc, false); data != nil {
			return data, nil
		}
		c.makeRoom(loc.Size())
		data, err := c.blocks.ReadBlock(ctx, loc)
		if err == nil {
			c.insert(loc.Hash(), data)
		}
		return data, err
	})
}

// makeRoom is called before a block of so many bytes is fetched, not only when it
// is there: else there would be the cache and all that is being fetched. What was
// dropped is collected as soon as it is as much as a large block: the runtime
// would wait until there is half the cache of it. There is little to be searched
// for that beside the blocks, so that it takes a hundredth of the fetch.
func (c *Cache) makeRoom(size int64) {
	c.mu.Lock()
	if size <= c.limit {
		c.drop(c.limit - size)
	}
	collect := c.dropped >= MaxBlockSize
	if collect {
		c.dropped = 0
	}
	c.mu.Unlock()
	if collect {
		runtime.GC()
	}
}

func (c *Cache) insert(hash string, data []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	size := int64(len(data))
	if c.closed || size > c.limit || c.byHash[hash] != nil {
		return
	}
	c.drop(c.limit - size)
	c.byHash[hash] = c.lru.PushFront(&cached{hash, data, true})
	c.bytes += size
	if c.idleTimer == nil {
		c.idleTimer = time.AfterFunc(c.idle, c.dropIdle)
	}
}

// drop removes the least recently used blocks until at most keep bytes are held.
func (c *Cache) drop(keep int64) {
	for e := c.lru.Back(); e != nil && c.bytes > keep; e = c.lru.Back() {
		c.remove(e)
	}
}

func (c *Cache) remove(e *list.Element) {
	b := c.lru.Remove(e).(*cached)
	delete(c.byHash, b.hash)
	c.bytes -= int64(len(b.data))
	c.dropped += int64(len(b.data))
}

// dropIdle removes the blocks that nobody has used since it last ran, and runs
// again as long as there are others.
func (c *Cache) dropIdle() {
	c.mu.Lock()
	before := c.bytes
	for e := c.lru.Front(); e != nil; {
		next := e.Next()
		if b := e.Value.(*cached); b.used {
			b.used = false
		} else {
			c.remove(e)
		}
		e = next
	}
	freed := before - c.bytes
	if c.bytes > 0 && !c.closed {
		c.idleTimer.Reset(c.idle)
	} else {
		c.idleTimer = nil
	}
	c.mu.Unlock()
	if freed >= freeAtOnce {
		// Left to itself the runtime would hold on to the memory for minutes
		// in a process that does nothing.
		debug.FreeOSMemory()
	}
}
