package keep

import (
	"context"
	"time"
)

// SetBlockSize lowers the block limit of a collection.
func (c *Collection) SetBlockSize(n int) { c.blockSize = n }

// SetIdle shortens the time after which a cache forgets.
func (c *Cache) SetIdle(d time.Duration) { c.idle = d }

// Waiting tells whether n callers wait for the fetch of a block.
func (c *Client) Waiting(loc Locator, n int) bool { return c.shared.Waiting(loc.Hash()) == n }

func (c *Cache) Waiting(loc Locator, n int) bool { return c.shared.Waiting(loc.Hash()) == n }

// Use calls fn with a block as it lies in the cache.
func (c *Cache) Use(ctx context.Context, loc Locator, fn func([]byte) error) error {
	return c.use(ctx, loc, fn)
}

// Taken is how many bytes of memory blocks have.
func (c *Cache) Taken() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.taken
}

// WaitPrefetch returns when no block is being fetched ahead.
func (c *Cache) WaitPrefetch() { c.prefetch.Wait() }

// HintedServices is the order in which a block is looked for.
var HintedServices = hintedServices

// WaitUploads returns when no upload is under way.
func (c *Collection) WaitUploads() { c.uploads.Wait() }

// DoubtAtOnce makes a cache ask again as soon as it is told to.
func (s *ServiceCache) DoubtAtOnce() { s.doubtAfter = 0 }

// InMemory is how many bytes of a file wait for their upload.
func (c *Collection) InMemory(f *File) (n int64) {
	c.uploads.Wait()
	c.mu.RLock()
	defer c.mu.RUnlock()
	for _, e := range f.n.extents {
		if e.src.data != nil {
			n += e.len
		}
	}
	return n
}

// Orphans is how many removed files are held because they are written to.
func (c *Collection) Orphans() int {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return len(c.orphans)
}

// WaitClosed returns when Close has dropped what was held.
func (c *Cache) WaitClosed() {
	<-c.ctx.Done()
	c.mu.Lock()
	defer c.mu.Unlock()
}

// Mapped returns the blocks that c holds outside of the Go heap, as long as it does.
func (c *Cache) Mapped() (blocks [][]byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for e := c.lru.Front(); e != nil; e = e.Next() {
		if b := e.Value.(*cached); b.mapped {
			blocks = append(blocks, b.data)
		}
	}
	return blocks
}
