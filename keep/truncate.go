package keep

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"syscall"
	"time"
)

// maxFileSize bounds the length of a file, in bytes: a sparse one costs a token
// of the manifest for every block.
const maxFileSize = 1 << 44

// smallHole is up to how many bytes of zeros are treated as data: more blocks
// would make reading slower than a few zeros do.
func (c *Collection) smallHole() int64 { return int64(c.blockSize) / 1024 }

// WriteAt writes p at off, all of it in one piece as far as readers and other
// writers can see; a gap between the end of the file and off reads as zeros.
// With O_APPEND it appends, as pwrite(2) does. Like Write it takes nothing
// while an upload has failed.
func (f *File) WriteAt(p []byte, off int64) (int, error) {
	return f.WriteAtContext(f.c.ctx, p, off)
}

// WriteAtContext is WriteAt that does not wait longer for an upload to begin
// than until ctx ends; p is taken all the same.
func (f *File) WriteAtContext(ctx context.Context, p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, pathError("write", f.name, syscall.EINVAL)
	}
	if f.flag&os.O_APPEND != 0 {
		off = -1
	}
	if err := f.writable(); err != nil {
		return 0, err
	}
	if err := f.coll().Err(); err != nil {
		return 0, fmt.Errorf("write %q: %w", f.name, err)
	}
	return f.write(ctx, p, off)
}

func (f *File) writable() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.closed:
		return pathError("write", f.name, fs.ErrClosed)
	case f.flag&(os.O_WRONLY|os.O_RDWR) == 0:
		return pathError("write", f.name, syscall.EBADF)
	}
	return nil
}

// Truncate cuts the file off at size, or extends it by zeros, which take no
// memory.
func (f *File) Truncate(size int64) error {
	if err := f.writable(); err != nil {
		return err
	}
	return f.c.truncate(f.n, f.name, size)
}

func (c *Collection) truncate(n *node, name string, size int64) error {
	var err error
	switch {
	case size < 0:
		err = syscall.EINVAL
	case size > maxFileSize:
		err = syscall.EFBIG
	case c.writer == nil:
		err = ErrNoWriter
	}
	if err != nil {
		return pathError("truncate", name, err)
	}
	c.mu.Lock()
	c = n.holder()
	full := c.resize(n, size)
	c.mu.Unlock()
	c.uploadAll(c.ctx, full)
	return nil
}

// resize sets the size of n. The caller holds the lock, and uploads what is
// returned.
func (c *Collection) resize(n *node, size int64) (full []*source) {
	old := n.size()
	if n.attached(c.root) {
		c.size += size - old
	}
	n.mtime = time.Now()
	switch {
	case size > old:
		return c.extend(n, size)
	case size == 0:
		c.forget(n.extents)
		n.extents = nil
	case size < old:
		i := findExtent(n.extents, size-1)
		c.forget(n.extents[i+1:])
		clear(n.extents[i+1:])
		n.extents = n.extents[:i+1]
		last := &n.extents[i]
		cut := last.off + last.len - size
		last.len -= cut
		if last.src.dirty() {
			last.src.size -= cut
			last.src.data = last.src.data[:last.src.size]
			c.buffered -= cut
		}
	}
	return nil
}

// forget takes data that is not used any more out of the account.
func (c *Collection) forget(list []extent) {
	for _, e := range list {
		if e.src.dirty() {
			c.buffered -= e.len
		}
	}
}

// extend makes n longer, up to size, by zeros. The caller holds the lock, and
// uploads what is returned.
func (c *Collection) extend(n *node, size int64) (full []*source) {
	old := n.size()
	if size-old <= c.smallHole() {
		return c.put(n, make([]byte, size-old), old)
	}
	n.extents = appendExtent(n.extents, hole, 0, size-old)
	return nil
}

// Zero replaces length bytes from off on by zeros, which take no memory. Those
// beyond the end of the file are not made.
func (f *File) Zero(off, length int64) error {
	if err := f.writable(); err != nil {
		return err
	}
	if off < 0 || length <= 0 {
		return pathError("write", f.name, syscall.EINVAL)
	}
	f.c.mu.Lock()
	c := f.n.holder()
	length = min(length, f.n.size()-off)
	var full []*source
	switch {
	case length <= 0:
	case length <= c.smallHole():
		full = c.put(f.n, make([]byte, length), off)
	default:
		f.n.extents = mergeExtents(cutExtents(f.n.extents, off, length, extent{hole, 0, length, off}))
	}
	f.n.mtime = time.Now()
	f.c.mu.Unlock()
	c.uploadAll(c.ctx, full)
	return nil
}

// Extend makes the file at least size long.
func (f *File) Extend(size int64) error {
	if size <= f.Size() {
		return f.writable()
	}
	return f.Truncate(size)
}
