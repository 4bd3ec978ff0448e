package keep

import (
	"context"
	"fmt"
	"io/fs"
	"slices"
	"syscall"
	"time"
)

// maxBuffered is how many bytes may gather in the ends of files before they are
// stored without being asked for.
func (c *Collection) maxBuffered() int { return c.blockSize }

// maxHeld is how many bytes are kept in memory while uploads fail: what has
// failed, and as much that has not been tried yet.
func (c *Collection) maxHeld() int { return 2 * cap(c.slots) * c.blockSize }

// Write appends p. It may wait for an upload slot. If an upload of this
// collection has failed, of whatever file, Write says so and takes nothing:
// there is no point in producing the rest of an output that cannot be stored.
func (f *File) Write(p []byte) (int, error) {
	if err := f.coll().Err(); err != nil {
		return 0, fmt.Errorf("write %q: %w", f.name, err)
	}
	return f.Append(p)
}

// Append appends p, all of it in one piece as far as readers and other writers
// can see. Unlike Write it goes on after a failed upload, for files such as
// logs that had better be late than have a gap: the data stays in memory and
// the next MarshalManifest tries again. Only when that has become too much it
// takes nothing and returns the upload's error.
func (f *File) Append(p []byte) (int, error) {
	if err := f.writable(); err != nil {
		return 0, err
	}
	return f.write(f.c.ctx, p, -1)
}

// AppendBlock appends a whole block that is stored already.
func (f *File) AppendBlock(loc Locator) error {
	if err := f.writable(); err != nil {
		return err
	}
	f.c.mu.Lock()
	defer f.c.mu.Unlock()
	f.n.mtime = time.Now()
	if loc.Size() <= 0 {
		return nil
	}
	if f.n.size() > maxFileSize-loc.Size() {
		return pathError("write", f.name, syscall.EFBIG)
	}
	src := &source{size: loc.Size(), sealed: true}
	src.stored(loc)
	f.n.extents = appendExtent(f.n.extents, src, 0, src.size)
	if c := f.n.holder(); f.n.attached(c.root) {
		c.size += src.size
	}
	return nil
}

// write puts p at off, or at the end if that is negative.
func (f *File) write(ctx context.Context, p []byte, off int64) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	c, full, tooMuch, err := f.c.write(f.n, p, off)
	if err != nil {
		return 0, fmt.Errorf("write %q: %w", f.name, err)
	}
	c.uploadAll(ctx, full)
	if tooMuch {
		c.relieve(ctx)
	}
	return len(p), nil
}

// write puts p into n at off, or at its end if off is negative. It returns the
// collection that n is in by now, the sources that have become full, which the
// caller must upload, and whether so much has gathered in memory that it should
// be stored.
func (c *Collection) write(n *node, p []byte, off int64) (in *Collection, full []*source, tooMuch bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c = n.holder()
	size := n.size()
	if off < 0 {
		off = size
	}
	switch {
	case c.ctx.Err() != nil:
		return c, nil, false, fs.ErrClosed
	case c.failed != nil && c.stuck+c.buffered > int64(c.maxHeld()):
		return c, nil, false, c.failed
	case off > maxFileSize-int64(len(p)):
		return c, nil, false, syscall.EFBIG
	}
	if end := off + int64(len(p)); end > size && n.attached(c.root) {
		c.size += end - size
	}
	n.mtime = time.Now()
	if off > size {
		full = c.extend(n, off)
	}
	return c, append(full, c.put(n, p, off)...), c.failed == nil && c.buffered > int64(c.maxBuffered()), nil
}

// put overwrites and extends n from off on, which is at most its size. What is
// stored, or on its way, is left where it is; the file refers to new data
// instead.
func (c *Collection) put(n *node, p []byte, off int64) (full []*source) {
	for len(p) > 0 {
		i := findExtent(n.extents, off)
		if i < len(n.extents) {
			if e := n.extents[i]; e.src.dirty() {
				done := copy(e.src.data[off-e.off:], p)
				p, off = p[done:], off+int64(done)
				continue
			}
		}
		src := c.sourceFor(n, off)
		part := p[:min(len(p), c.blockSize-len(src.data), n.untilDirty(i, off, len(p)))]
		pos := int64(len(src.data))
		src.data = append(c.grow(src.data, len(part)), part...)
		src.size = int64(len(src.data))
		length := int64(len(part))
		c.buffered += length
		if old := min(length, n.size()-off); old > 0 {
			n.extents = cutExtents(n.extents, off, old, extent{src, pos, old, off})
			if before := findExtent(n.extents, off); pos > 0 {
				n.extents[before-1].len += old
				n.extents = slices.Delete(n.extents, before, before+1)
			}
			pos, length = pos+old, length-old
		}
		if length > 0 {
			n.extents = appendExtent(n.extents, src, pos, length)
		}
		p, off = p[len(part):], off+int64(len(part))
		if len(src.data) == c.blockSize {
			c.claim(src)
			c.buffered -= src.size
			full = append(full, src)
		}
	}
	return full
}

// untilDirty is how many of length bytes from off, in extent i, on are to be
// replaced by others: those before the next data that can be changed in place.
func (n *node) untilDirty(i int, off int64, length int) int {
	for ; i < len(n.extents) && n.extents[i].off < off+int64(length); i++ {
		if e := n.extents[i]; e.src.dirty() {
			return int(e.off - off)
		}
	}
	return length
}

// sourceFor returns the source to which new data for off is appended: the one in
// which the file's bytes before off end, if it can still grow, or a new one.
func (c *Collection) sourceFor(n *node, off int64) *source {
	if off == n.size() {
		if src := n.tail(); src != nil {
			return src
		}
		return &source{data: c.newTail(n)}
	}
	if off > 0 {
		if e := n.extents[findExtent(n.extents, off-1)]; e.src.dirty() && e.off+e.len == off {
			return e.src
		}
	}
	return &source{data: []byte{}}
}

// tail returns the source that the end of the file lies in if the file can grow
// there, else nil.
func (n *node) tail() *source {
	if len(n.extents) == 0 {
		return nil
	}
	last := n.extents[len(n.extents)-1]
	if last.src.sealed || last.pos+last.len != last.src.size {
		return nil
	}
	return last.src
}

// newTail returns the buffer for a source at the end of n. A file of which a
// block is full already will most likely fill another.
func (c *Collection) newTail(n *node) []byte {
	if len(n.extents) > 0 && n.extents[len(n.extents)-1].len >= int64(c.blockSize) && len(c.spare) > 0 {
		return c.buffer(c.blockSize)
	}
	return []byte{}
}

// grow makes room for n more bytes, doubling so that small files stay small.
func (c *Collection) grow(data []byte, n int) []byte {
	need := len(data) + n
	if need <= cap(data) {
		return data
	}
	return append(c.buffer(min(max(2*cap(data), need, 1024), c.blockSize)), data...)
}

// buffer returns an empty buffer for size bytes. For a large one it prefers the
// full-size buffer of a finished upload: a stream of new ones would be garbage
// that piles up to several times what is in use.
func (c *Collection) buffer(size int) []byte {
	if size <= c.blockSize/4 {
		return make([]byte, 0, size)
	}
	if last := len(c.spare) - 1; last >= 0 {
		b := c.spare[last]
		c.spare = c.spare[:last]
		return b[:0]
	}
	if size > c.blockSize/2 {
		size = c.blockSize // so that it can be used again
	}
	return make([]byte, 0, size)
}
