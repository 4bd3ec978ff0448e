// Package diskcache keeps blocks of Keep in a directory that all processes of a
// node share, in the layout that Arvados documents (spec keep.md section 10):
//
//	<3 hex>/<32 hex>.keepcacheblock   a block, mode 0600
//	tmp/*.tmp                         a block on its way
//	tmp/tidy.lock                     held by the process that evicts
//	tmp/*.budget                      ours: what a live process may use
//
// Nothing in the directory is trusted and nothing in it is needed. A block is
// written under a temporary name and renamed when its length and MD5 are right;
// one that is found there is verified before the first byte of it is used, once
// for each time that it is opened. So there is no fsync, and a crash, a damaged
// disk or a foreign process can cost time but not give a wrong byte. Where the
// disk cannot be used, because it is full, read-only or broken, blocks are held
// in memory instead.
//
// The memory of the process stays small: blocks go from the network to the file
// in small pieces, and from the file, which is in the kernel's page cache as
// long as there is room, to whoever reads.
package diskcache

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"crunch-oci/keep"
	"crunch-oci/keep/internal/failed"
	"crunch-oci/keep/internal/flight"
)

// Source is where blocks come from: keep.Client is one.
type Source interface {
	keep.BlockReader
	// CopyBlock fetches a block into w. An error of w ends it and is returned,
	// wrapped.
	CopyBlock(ctx context.Context, loc keep.Locator, w io.WriterAt) error
}

// Config says where blocks are kept and how many.
type Config struct {
	Source Source
	// Dir is the directory; "" means DefaultDir.
	Dir string
	// Limit is how much this process may add to what is in the directory. It is
	// shared: together the processes that have it open use the sum of their
	// limits.
	Limit Limit
	// Memory bounds, in bytes, what is held in memory instead while the disk
	// cannot be used. 0 means two full blocks.
	Memory int64
	// Warn is told, in one sentence each, what an operator should know. nil
	// means nobody wants to.
	Warn func(string)
}

// Stats counts what a Cache did.
type Stats struct {
	// Hits and Misses count reads: answered without Keep, or after fetching.
	Hits, Misses int64
	// Fetched is the number of bytes fetched for them and ahead of them.
	Fetched int64
	// Damaged counts blocks found in the directory that were not what their
	// names say.
	Damaged int64
}

// Cache is a BlockStore that keeps on disk what it has read or written.
type Cache struct {
	cfg    Config
	dir    *dir // nil: the directory cannot be used at all
	memory *keep.Cache
	shared flight.Group[*block]

	ctx    context.Context // of fetches; ends with Close
	cancel context.CancelFunc
	tasks  sync.WaitGroup
	tokens chan struct{} // one for each block being fetched ahead
	inVain failed.Set    // what was to be, by locator, whose signature may be why

	mu      sync.Mutex
	closed  bool
	byHash  map[string]*list.Element // of *block
	lru     *list.List               // most recently used first
	maxOpen int
	queued  map[string]bool // to be fetched ahead
	broken  time.Time       // until when nothing is written
	told    map[string]time.Time
	stats   Stats
}

// block is a verified block, an open file.
type block struct {
	hash    string
	file    *os.File
	size    int64
	fetched bool
	used    int // by readers; with cache.mu
	gone    bool
	touched time.Time // when its access time was last set
}

const (
	// inFlight is how many blocks are fetched ahead at a time.
	inFlight = 4
	// maxQueued is how many may wait for that.
	maxQueued = 32
	// brokenFor is how long the disk is left alone after it failed.
	brokenFor = 30 * time.Second
	// touchAfter is how exact the access times are that others evict by.
	touchAfter = time.Minute
	// tellAfter is how often the same trouble is reported.
	tellAfter = 10 * time.Minute
)

var _ interface {
	keep.BlockStore
	keep.BlockRangeReader
	keep.Prefetcher
	keep.Localizer
} = (*Cache)(nil)

// Open opens the cache. A directory that cannot be used is no error: Warn hears
// of it and blocks are held in memory.
func Open(cfg Config) *Cache {
	if cfg.Memory <= 0 {
		cfg.Memory = 2 * keep.MaxBlockSize
	}
	c := &Cache{
		cfg:     cfg,
		memory:  keep.NewCache(cfg.Source, cfg.Memory),
		byHash:  make(map[string]*list.Element),
		lru:     list.New(),
		maxOpen: maxOpenFiles(),
		queued:  make(map[string]bool),
		told:    make(map[string]time.Time),
		tokens:  make(chan struct{}, inFlight),
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	d, err := openDir(cfg.Dir, cfg.Limit)
	if err != nil {
		c.warn("block cache on disk cannot be used, blocks are held in memory: %v", err)
		return c
	}
	c.dir = d
	return c
}

// Close ends fetches under way and lets go of the directory, whose blocks stay
// for the next process. It does not close the source.
func (c *Cache) Close() error {
	c.mu.Lock()
	c.closed = true
	c.cancel()
	c.mu.Unlock()
	c.tasks.Wait()
	c.shared.Close()
	err := c.memory.Close()
	c.mu.Lock()
	for e := c.lru.Front(); e != nil; e = c.lru.Front() {
		c.forget(e)
	}
	c.mu.Unlock()
	if c.dir != nil {
		err = errors.Join(err, c.dir.close())
	}
	return err
}

// Stats returns the counters.
func (c *Cache) Stats() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stats
}

// ReadBlockAt implements keep.BlockRangeReader.
func (c *Cache) ReadBlockAt(ctx context.Context, loc keep.Locator, p []byte, off int64) (int, error) {
	if off < 0 || off > loc.Size() || int64(len(p)) > loc.Size()-off {
		return 0, fmt.Errorf("%w: %s has no %d bytes at %d", keep.ErrChecksum, loc.WithoutHints(), len(p), off)
	}
	if len(p) == 0 {
		return 0, nil
	}
	// A file that cannot be read any more is fetched anew, once.
	for range 2 {
		b, err := c.acquire(ctx, loc, true)
		if errors.Is(err, errNoDisk) {
			return c.memory.ReadBlockAt(ctx, loc, p, off)
		}
		if err != nil {
			return 0, err
		}
		n, err := b.file.ReadAt(p, off)
		c.release(b, n < len(p))
		if n == len(p) {
			return n, nil
		}
		c.warn("block cache: %s cannot be read, fetching the block again: %v", b.file.Name(), err)
	}
	return c.memory.ReadBlockAt(ctx, loc, p, off)
}

// ReadBlock implements keep.BlockReader.
func (c *Cache) ReadBlock(ctx context.Context, loc keep.Locator) ([]byte, error) {
	switch {
	case loc.IsZero():
		return nil, keep.ErrInvalidLocator
	case loc.Size() > keep.MaxBlockSize:
		return nil, fmt.Errorf("read block %s: %w", loc.WithoutHints(), keep.ErrBlockTooBig)
	}
	data := make([]byte, loc.Size())
	if _, err := c.ReadBlockAt(ctx, loc, data, 0); err != nil {
		return nil, err
	}
	return data, nil
}

// Prefetch implements keep.Prefetcher. A few blocks are fetched at a time; more
// wait for their turn. What has failed lately is not tried.
func (c *Cache) Prefetch(loc keep.Locator) {
	hash := loc.Hash()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dir == nil || time.Now().Before(c.broken) {
		c.memory.Prefetch(loc)
		return
	}
	if c.closed || loc.IsEmptyBlock() || loc.Size() > keep.MaxBlockSize ||
		c.byHash[hash] != nil || c.queued[hash] || len(c.queued) >= maxQueued || c.inVain.Has(loc.String()) {
		return
	}
	c.queued[hash] = true
	c.tasks.Go(func() {
		select {
		case c.tokens <- struct{}{}:
			if b, err := c.acquire(c.ctx, loc, false); err == nil {
				c.release(b, false)
			} else if !errors.Is(err, errNoDisk) {
				c.inVain.Add(loc.String())
			}
			<-c.tokens
		case <-c.ctx.Done():
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.queued, hash)
	})
}

// WriteBlock passes the block on and keeps it: who writes a collection in the
// mount reads some of it back.
func (c *Cache) WriteBlock(ctx context.Context, data []byte, opts keep.WriteOptions) (keep.Locator, error) {
	w, ok := c.cfg.Source.(keep.BlockWriter)
	if !ok {
		return keep.Locator{}, keep.ErrNoWriter
	}
	loc, err := w.WriteBlock(ctx, data, opts)
	if err == nil && !loc.IsEmptyBlock() {
		c.keep(loc, data)
	}
	return loc, err
}

// LocalLocator passes the request on.
func (c *Cache) LocalLocator(ctx context.Context, loc keep.Locator) (keep.Locator, error) {
	l, ok := c.cfg.Source.(keep.Localizer)
	if !ok {
		return keep.Locator{}, errors.ErrUnsupported
	}
	return l.LocalLocator(ctx, loc)
}

// errNoDisk says that a block has to be held in memory.
var errNoDisk = errors.New("no room on disk")

// acquire returns the block, in use. Callers call release.
func (c *Cache) acquire(ctx context.Context, loc keep.Locator, count bool) (*block, error) {
	if b := c.lookup(loc, count); b != nil {
		return b, nil
	}
	if c.dir == nil {
		c.count(count, false)
		return nil, errNoDisk
	}
	for {
		b, err := c.shared.Do(ctx, c.ctx, loc.Hash(), loc.String(), func(ctx context.Context) (*block, error) {
			if b := c.lookup(loc, false); b != nil {
				c.release(b, false) // another call has ended just now
				return b, nil
			}
			b, err := c.get(ctx, loc)
			if err == nil {
				c.insert(b)
			}
			return b, err
		})
		if err != nil {
			c.count(count, false)
			return nil, err
		}
		if again := c.lookup(loc, false); again != nil {
			c.count(count, !b.fetched)
			return again, nil
		}
		// It was opened and closed again before we came.
	}
}

func (c *Cache) count(count, hit bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if count && hit {
		c.stats.Hits++
	} else if count {
		c.stats.Misses++
	}
}

// lookup returns the block, in use, if it is open.
func (c *Cache) lookup(loc keep.Locator, count bool) *block {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.byHash[loc.Hash()]
	if e == nil {
		return nil
	}
	b := e.Value.(*block)
	if b.size != loc.Size() {
		return nil // the locator is wrong, or the hash has two sizes
	}
	c.lru.MoveToFront(e)
	b.used++
	if count {
		c.stats.Hits++
	}
	if now := time.Now(); now.Sub(b.touched) > touchAfter {
		b.touched = now
		touch(b.file)
	}
	return b
}

func (c *Cache) release(b *block, bad bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	b.used--
	if e := c.byHash[b.hash]; bad && e != nil && e.Value == b {
		c.forget(e)
		return
	}
	if b.gone && b.used == 0 {
		_ = b.file.Close()
	}
}

func (c *Cache) insert(b *block) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		_ = b.file.Close()
		return
	}
	if old := c.byHash[b.hash]; old != nil {
		c.forget(old)
	}
	c.byHash[b.hash] = c.lru.PushFront(b)
	for c.lru.Len() > c.maxOpen {
		c.forget(c.lru.Back())
	}
}

// forget closes a block as soon as nobody uses it. Others may evict it then. The
// caller holds the mutex.
func (c *Cache) forget(e *list.Element) {
	b := c.lru.Remove(e).(*block)
	delete(c.byHash, b.hash)
	b.gone = true
	if b.used == 0 {
		_ = b.file.Close()
	}
}

// letGo closes open blocks, the least recently used first, until about n bytes
// more can be evicted.
func (c *Cache) letGo(n int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for e := c.lru.Back(); e != nil && n > 0; {
		before := e.Prev()
		if b := e.Value.(*block); b.used == 0 {
			n -= b.size
			c.forget(e)
		}
		e = before
	}
}

// warn reports, but the same kind of trouble only once in a while.
func (c *Cache) warn(format string, args ...any) {
	if c.cfg.Warn == nil {
		return
	}
	now := time.Now()
	c.mu.Lock()
	before, repeated := c.told[format]
	if repeated = repeated && now.Sub(before) < tellAfter; !repeated {
		c.told[format] = now
	}
	c.mu.Unlock()
	if !repeated {
		c.cfg.Warn(fmt.Sprintf(format, args...))
	}
}
