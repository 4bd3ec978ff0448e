package keep

import (
	"fmt"
	"io/fs"
	"os"
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
	if err := f.c.Err(); err != nil {
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
	f.mu.Lock()
	closed := f.closed
	f.mu.Unlock()
	if closed {
		return 0, pathError("write", f.name, fs.ErrClosed)
	}
	if f.flag&(os.O_WRONLY|os.O_RDWR) == 0 {
		return 0, pathError("write", f.name, syscall.EBADF)
	}
	if len(p) == 0 {
		return 0, nil
	}
	full, tooMuch, err := f.c.append(f.n, p)
	if err != nil {
		return 0, fmt.Errorf("write %q: %w", f.name, err)
	}
	f.c.uploadAll(f.c.ctx, full)
	if tooMuch {
		f.c.relieve()
	}
	return len(p), nil
}

// append puts p at the end of n. It returns the sources that have become full,
// which the caller must upload, and whether so much has gathered in tails that
// they should be flushed.
func (c *Collection) append(n *node, p []byte) (full []*source, tooMuch bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ctx.Err() != nil {
		return nil, false, fs.ErrClosed
	}
	if c.failed != nil && c.stuck+c.buffered > int64(c.maxHeld()) {
		return nil, false, c.failed
	}
	if n.attached(c.root) {
		c.size += int64(len(p))
	}
	n.mtime = time.Now()
	c.buffered += int64(len(p))
	for len(p) > 0 {
		src := n.tail()
		if src == nil {
			src = &source{data: c.newTail(n)}
		}
		part := p[:min(len(p), c.blockSize-len(src.data))]
		p = p[len(part):]
		pos := int64(len(src.data))
		src.data = c.grow(src.data, len(part))
		src.data = append(src.data, part...)
		src.size = int64(len(src.data))
		n.extents = appendExtent(n.extents, src, pos, int64(len(part)))
		if len(src.data) == c.blockSize {
			c.claim(src)
			c.buffered -= src.size
			full = append(full, src)
		}
	}
	return full, c.failed == nil && c.buffered > int64(c.maxBuffered()), nil
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
