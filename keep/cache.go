package keep

import (
	"bytes"
	"container/list"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
	"sync"
	"time"

	"crunch-oci/keep/internal/failed"
	"crunch-oci/keep/internal/flight"
)

// Cache remembers blocks in memory and fetches ahead. It is a decorator of a
// BlockReader and passes writes through if that is a BlockStore.
//
// What it holds and what is on its way to it are bounded by a number of bytes
// together: who wants another block waits for those that are being fetched. It is
// released when nobody has asked for a while: between two bursts of reading it
// costs next to nothing.
type Cache struct {
	blocks BlockReader
	copier blockCopier // blocks, if that can fetch into memory of ours
	limit  int64
	shared flight.Group[*cached]
	inVain failed.Set // prefetches, by locator, whose signature may be why

	ctx    context.Context // of prefetches and fetches; ends with Close
	cancel context.CancelFunc

	mu        sync.Mutex
	byHash    map[string]*list.Element // of *cached
	lru       *list.List               // most recently used first
	bytes     int64                    // in lru
	taken     int64                    // by blocks in lru, on their way, and still being read
	room      chan struct{}            // closed when there may be room; nil if nobody waits for that
	dropped   int64                    // garbage since it was last collected for us
	ahead     int64                    // bytes of prefetches under way
	reading   int64                    // size of the block that was asked for last
	closed    bool
	idleTimer *time.Timer
	idle      time.Duration
	prefetch  sync.WaitGroup
	stats     CacheStats
}

// blockCopier is a BlockReader that fetches blocks into given memory: Client is
// one.
type blockCopier interface {
	CopyBlock(ctx context.Context, loc Locator, w io.WriterAt) error
}

// cached is a block.
type cached struct {
	hash string
	buffer
	used bool // since the idle timer was last looked at
	// users are the readers at this moment, and the fetch until those have it
	// who wait for it.
	users int
	gone  bool // from lru: the last user frees it
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
	c.copier, _ = blocks.(blockCopier)
	c.shared.Drop = c.release
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
	for c.lru.Len() > 0 {
		c.remove(c.lru.Back()).free()
	}
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
func (c *Cache) ReadBlock(ctx context.Context, loc Locator) (data []byte, err error) {
	if loc.IsEmptyBlock() {
		return []byte{}, nil
	}
	err = c.use(ctx, loc, func(block []byte) error {
		data = bytes.Clone(block)
		return nil
	})
	return data, err
}

// ReadBlockAt implements BlockRangeReader.
func (c *Cache) ReadBlockAt(ctx context.Context, loc Locator, p []byte, off int64) (n int, err error) {
	if loc.IsEmptyBlock() && off == 0 && len(p) == 0 {
		return 0, nil
	}
	err = c.use(ctx, loc, func(block []byte) error {
		if off < 0 || off > int64(len(block)) || len(p) > len(block)-int(off) {
			return fmt.Errorf("%w: %s has no %d bytes at %d", ErrChecksum, loc.WithoutHints(), len(p), off)
		}
		n = copy(p, block[off:])
		return nil
	})
	return n, err
}

// use calls fn with the block, of which nothing may be kept.
func (c *Cache) use(ctx context.Context, loc Locator, fn func([]byte) error) error {
	if b := c.lookup(loc, true); b != nil {
		defer c.release(b)
		return fn(b.data)
	}
	if loc.Size() > c.limit {
		data, err := c.blocks.ReadBlock(ctx, loc)
		if err != nil {
			return err
		}
		return fn(data)
	}
	return c.fetch(ctx, loc, fn)
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
// one being read and what else is being fetched ahead, and if that has not failed
// lately: who reads in small steps asks for the same block at each.
func (c *Cache) Prefetch(loc Locator) {
	size := loc.Size()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || loc.IsEmptyBlock() || c.byHash[loc.Hash()] != nil || c.ahead+size+max(size, c.reading) > c.limit || c.shared.Waiting(loc.Hash()) > 0 || c.inVain.Has(loc.String()) {
		return
	}
	c.ahead += size
	c.prefetch.Add(1)
	go func() {
		defer c.prefetch.Done()
		if err := c.fetch(c.ctx, loc, func([]byte) error { return nil }); err != nil {
			c.inVain.Add(loc.String())
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		c.ahead -= size
	}()
}

// lookup returns the block, in use, if it is held, and counts that if count is
// set. Callers call release.
func (c *Cache) lookup(loc Locator, count bool) *cached {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.byHash[loc.Hash()]
	if count {
		c.reading = loc.Size()
	}
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
	b.users++
	return b
}

// release ends a use of a block.
func (c *Cache) release(b *cached) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if b.users--; b.users > 0 {
		return
	}
	if b.gone {
		c.taken -= int64(len(b.data))
		b.free()
	}
	c.mayHaveRoom()
}

// mayHaveRoom wakes up those who wait for room. The caller holds the lock.
func (c *Cache) mayHaveRoom() {
	if c.room != nil {
		close(c.room)
		c.room = nil
	}
}

// fetch gets the block, remembers it, and calls fn with it.
func (c *Cache) fetch(ctx context.Context, loc Locator, fn func([]byte) error) error {
	return c.shared.Use(ctx, c.ctx, loc.Hash(), loc.String(), func(ctx context.Context) (*cached, error) {
		// Another fetch may have ended since the caller looked.
		if b := c.lookup(loc, false); b != nil {
			return b, nil
		}
		buf, err := c.reserve(ctx, loc.Size())
		if err != nil {
			return nil, err
		}
		b := &cached{hash: loc.Hash(), used: true, users: 1}
		b.buffer, err = c.read(ctx, loc, buf)
		c.insert(b, loc.Size(), err)
		return b, err
	}, func(b *cached) error { return fn(b.data) })
}

// read reads a block, into buf if there is one. On an error that is freed.
func (c *Cache) read(ctx context.Context, loc Locator, buf buffer) (buffer, error) {
	if c.copier == nil {
		data, err := c.blocks.ReadBlock(ctx, loc)
		return buffer{data: data}, err
	}
	if err := c.copier.CopyBlock(ctx, loc, inPlace(buf.data)); err != nil {
		buf.free()
		return buffer{}, err
	}
	return buf, nil
}

// reserve is called before a block of so many bytes is fetched, not only when it
// is there: else there would be the cache and all that is being fetched. It
// makes room, or waits for it if all blocks are being fetched or read, and returns
// memory for the block.
func (c *Cache) reserve(ctx context.Context, size int64) (buf buffer, err error) {
	c.mu.Lock()
	for c.taken+size > c.limit {
		if e := c.unused(); e != nil {
			freed := c.remove(e)
			if !buf.mapped && freed.mapped && int64(len(freed.data)) == size {
				buf = freed // neither to be mapped nor to be cleared again
			} else {
				freed.free()
			}
			continue
		}
		if c.room == nil {
			c.room = make(chan struct{})
		}
		room := c.room
		c.mu.Unlock()
		select {
		case <-room:
		case <-ctx.Done():
			buf.free()
			return buffer{}, ctx.Err()
		}
		c.mu.Lock()
	}
	c.taken += size
	collect := c.dropped >= MaxBlockSize
	if collect {
		c.dropped = 0
	}
	c.mu.Unlock()
	if collect {
		// The runtime would wait until there is half the cache of garbage. There
		// is little to be searched beside the blocks, so that it takes a hundredth
		// of a fetch.
		runtime.GC()
	}
	if !buf.mapped && c.copier != nil {
		buf, err = allocate(size)
	}
	if err != nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.taken -= size
		c.mayHaveRoom()
	}
	return buf, err
}

// unused returns the least recently used block that nobody reads, or nil.
func (c *Cache) unused() *list.Element {
	for e := c.lru.Back(); e != nil; e = e.Prev() {
		if e.Value.(*cached).users == 0 {
			return e
		}
	}
	return nil
}

// insert takes in a block for which was reserved, or notes that it does not come.
func (c *Cache) insert(b *cached, size int64, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.taken += int64(len(b.data)) - size
	c.mayHaveRoom()
	if err != nil {
		return
	}
	if c.closed {
		b.gone = true
		return
	}
	if old := c.byHash[b.hash]; old != nil {
		c.remove(old).free() // of another size, or fetched for others who all gave up
	}
	c.byHash[b.hash] = c.lru.PushFront(b)
	c.bytes += int64(len(b.data))
	if c.idleTimer == nil {
		c.idleTimer = time.AfterFunc(c.idle, c.dropIdle)
	}
}

// remove takes a block out and returns its memory, which is the caller's unless
// somebody reads it. The caller holds the lock.
func (c *Cache) remove(e *list.Element) buffer {
	b := c.lru.Remove(e).(*cached)
	delete(c.byHash, b.hash)
	c.bytes -= int64(len(b.data))
	b.gone = true
	if b.users > 0 {
		return buffer{}
	}
	c.taken -= int64(len(b.data))
	c.mayHaveRoom()
	if !b.mapped {
		c.dropped += int64(len(b.data))
	}
	return b.buffer
}

// dropIdle removes the blocks that nobody has used since it last ran, and runs
// again as long as there are others.
func (c *Cache) dropIdle() {
	c.mu.Lock()
	garbage := int64(0)
	for e := c.lru.Front(); e != nil; {
		next := e.Next()
		if b := e.Value.(*cached); b.used || b.users > 0 {
			b.used = false
		} else {
			if !b.mapped {
				garbage += int64(len(b.data))
			}
			c.remove(e).free()
		}
		e = next
	}
	if c.bytes > 0 && !c.closed {
		c.idleTimer.Reset(c.idle)
	} else {
		c.idleTimer = nil
	}
	c.mu.Unlock()
	if garbage >= freeAtOnce {
		// Left to itself the runtime would hold on to the memory for minutes
		// in a process that does nothing.
		debug.FreeOSMemory()
	}
}
