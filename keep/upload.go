package keep

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Err returns why an upload failed since the latest MarshalManifest or Flush of
// everything, or nil.
func (c *Collection) Err() error {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.failed
}

// LimitUploads sets how many full blocks are stored at a time, instead of
// maxUploads, and with that how much memory a fast writer takes. It is to be
// called before anything is written.
func (c *Collection) LimitUploads(n int) { c.slots = make(chan struct{}, n) }

// claim marks src as about to be uploaded; it does not change any more. The
// caller holds the lock, and calls upload after giving it up.
func (c *Collection) claim(src *source) {
	src.sealed = true
	src.uploading = make(chan struct{})
}

// upload stores a claimed source in the background. It waits for a slot until
// ctx ends, which is what slows a writer down to the speed of the store.
func (c *Collection) upload(ctx context.Context, src *source) {
	select {
	case c.slots <- struct{}{}:
	case <-ctx.Done():
		c.unclaim(src)
		return
	case <-c.ctx.Done():
		c.unclaim(src)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	opts := c.opts
	// Close cancels under the lock, so that no upload begins while it waits.
	if c.ctx.Err() != nil {
		<-c.slots
		c.release(src)
		return
	}
	c.uploads.Add(1)
	go func() {
		defer c.uploads.Done()
		loc, err := c.writeBlock(src.data, opts)
		<-c.slots
		c.mu.Lock()
		defer c.mu.Unlock()
		if err != nil {
			c.stuck += src.size
			if c.failed == nil {
				c.failed = fmt.Errorf("store block%s: %w", c.filesWith(src), err)
			}
		} else {
			if cap(src.data) == c.blockSize && len(c.spare)+len(c.slots) < cap(c.slots) {
				c.spare = append(c.spare, src.data)
			}
			src.stored(loc)
		}
		c.release(src)
	}()
}

// filesWith says for an error which files src is for: the first few, and how many
// there are. The caller holds the lock.
func (c *Collection) filesWith(src *source) string {
	const most = 3
	var names []string
	count := 0
	zeros := src == c.zeros[0] || src == c.zeros[1]
	var visit func(n *node)
	visit = func(n *node) {
		if n.dir != nil {
			for _, e := range n.list() {
				visit(e)
			}
			return
		}
		if slices.ContainsFunc(n.extents, func(e extent) bool { return e.src == src || zeros && e.src == hole }) {
			if count++; count <= most {
				names = append(names, strconv.Quote(n.path()))
			}
		}
	}
	visit(c.root)
	switch {
	case count == 0:
		return ""
	case count > most:
		names = append(names, fmt.Sprintf("%d more", count-most))
	}
	return " of " + strings.Join(names, ", ")
}

// WritesParts tells whether the store is a PartWriter.
func (c *Collection) WritesParts() bool {
	_, ok := c.writer.(PartWriter)
	return ok
}

// WritePart stores a part of a file as a block, as SetWriteOptions says, for
// AppendBlock. The MD5 of the part must be hash. The error is ErrNoWriter unless
// WritesParts.
func (c *Collection) WritePart(ctx context.Context, hash string, part FilePart) (Locator, error) {
	w, ok := c.writer.(PartWriter)
	if !ok {
		return Locator{}, ErrNoWriter
	}
	c.mu.RLock()
	opts := c.opts
	c.mu.RUnlock()
	return w.WritePart(ctx, hash, part, opts)
}

func (c *Collection) writeBlock(data []byte, opts WriteOptions) (Locator, error) {
	if c.writer == nil {
		// Data spliced from another collection can come this far.
		return Locator{}, ErrNoWriter
	}
	loc, err := c.writer.WriteBlock(c.ctx, data, opts)
	if err == nil && loc.Size() != int64(len(data)) {
		err = fmt.Errorf("store returned a locator of %d bytes for a block of %d", loc.Size(), len(data))
	}
	return loc, err
}

// unclaim gives up an upload that never began.
func (c *Collection) unclaim(src *source) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.buffered += src.size
	c.release(src)
}

// claimAgain undoes unclaim. It tells whether it did: a collection to which the
// file was moved meanwhile may have claimed src.
func (c *Collection) claimAgain(src *source) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !src.inMemory() {
		return false
	}
	c.claim(src)
	c.buffered -= src.size
	return true
}

// release ends the upload of src, with or without success, for all who wait for
// it. The caller holds the lock.
func (c *Collection) release(src *source) {
	close(src.uploading)
	src.uploading = nil
}
