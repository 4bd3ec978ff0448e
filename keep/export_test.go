package keep

import "time"

// SetBlockSize lowers the block limit of a collection.
func (c *Collection) SetBlockSize(n int) { c.blockSize = n }

// SetIdle shortens the time after which a cache forgets.
func (c *Cache) SetIdle(d time.Duration) { c.idle = d }
