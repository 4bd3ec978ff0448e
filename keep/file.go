package keep

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
	"syscall"
	"time"
)

// File is an open file of a collection. Reading sees what any handle has
// written so far. Its methods may be called from several goroutines, but Read
// and Seek share one position.
type File struct {
	c    *Collection
	n    *node
	name string
	flag int
	ctx  context.Context

	readMu sync.Mutex // held during Read and Seek; taken before mu
	pos    int64

	mu     sync.Mutex // never held while a block is fetched
	closed bool
	// next is where the read after the latest one begins if the file is read
	// through, which is when it pays to prefetch.
	next int64
	// held keeps the block read last when the store hands out whole blocks
	// only and may not remember them.
	held     []byte
	heldHash string
}

// readAhead is how many blocks are fetched ahead of a sequential reader.
const readAhead = 2

// Open opens a file for reading.
func (c *Collection) Open(name string) (*File, error) {
	return c.OpenFile(name, os.O_RDONLY)
}

// Create makes a file, or empties an existing one, and opens it for reading and
// appending.
func (c *Collection) Create(name string) (*File, error) {
	return c.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_TRUNC)
}

// OpenFile opens a file with the flags of package os: O_CREATE, O_EXCL, O_TRUNC
// and O_APPEND are understood, O_SYNC is refused with EINVAL, since nothing is
// durable before MarshalManifest. Write appends, wherever the position is;
// WriteAt and Truncate change what is there.
func (c *Collection) OpenFile(name string, flag int) (*File, error) {
	f, err := c.openFile(name, flag)
	if err != nil {
		return nil, pathError("open", name, err)
	}
	return f, nil
}

func (c *Collection) openFile(name string, flag int) (*File, error) {
	writable := flag&(os.O_WRONLY|os.O_RDWR) != 0
	if flag&os.O_SYNC != 0 || flag&os.O_TRUNC != 0 && !writable {
		return nil, syscall.EINVAL
	}
	if writable && c.writer == nil {
		return nil, ErrNoWriter
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	parent, base, err := c.root.walkParent(name)
	if err != nil {
		return nil, err
	}
	n := parent
	if base != "" {
		n = parent.child(base)
	}
	switch {
	case n == nil && flag&os.O_CREATE == 0:
		return nil, syscall.ENOENT
	case n == nil:
		n = &node{name: base, mtime: time.Now()}
		c.insert(parent, n)
	case flag&(os.O_CREATE|os.O_EXCL) == os.O_CREATE|os.O_EXCL:
		return nil, syscall.EEXIST
	case n.dir != nil:
		return nil, syscall.EISDIR
	case flag&os.O_TRUNC != 0:
		c.resize(n, 0)
	}
	return c.handle(n, name, flag), nil
}

// handle opens n. The caller holds the lock.
func (c *Collection) handle(n *node, name string, flag int) *File {
	if flag&(os.O_WRONLY|os.O_RDWR) != 0 {
		n.writers++
	}
	return &File{c: c, n: n, name: name, flag: flag, ctx: context.Background()}
}

// WithContext makes block fetches of Read, ReadAt and WriteTo end with ctx. It
// returns f and is meant to be called right after opening.
func (f *File) WithContext(ctx context.Context) *File {
	f.ctx = ctx
	return f
}

// Name returns the name the file was opened with.
func (f *File) Name() string { return f.name }

// Size returns the current length in bytes.
func (f *File) Size() int64 {
	f.c.mu.RLock()
	defer f.c.mu.RUnlock()
	return f.n.size()
}

// Stat describes the file as it is now.
func (f *File) Stat() (FileInfo, error) {
	f.c.mu.RLock()
	defer f.c.mu.RUnlock()
	return f.n.holder().info(f.n), nil
}

// Close ends the use of the handle. What was written stays in the collection.
func (f *File) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return pathError("close", f.name, fs.ErrClosed)
	}
	f.closed, f.held, f.heldHash = true, nil, ""
	if f.flag&(os.O_WRONLY|os.O_RDWR) != 0 {
		f.c.mu.Lock()
		if f.n.writers--; f.n.writers == 0 {
			delete(f.n.holder().orphans, f.n)
		}
		f.c.mu.Unlock()
	}
	return nil
}

// Read reads from the position on. At the current end it returns io.EOF; if the
// file grows, later calls go on.
func (f *File) Read(p []byte) (int, error) {
	f.readMu.Lock()
	defer f.readMu.Unlock()
	n, err := f.readAt(f.ctx, p, f.pos)
	f.pos += int64(n)
	if n > 0 && err == io.EOF {
		err = nil
	}
	return n, err
}

// Seek sets the position of the next Read.
func (f *File) Seek(offset int64, whence int) (int64, error) {
	f.readMu.Lock()
	defer f.readMu.Unlock()
	switch whence {
	case io.SeekCurrent:
		offset += f.pos
	case io.SeekEnd:
		offset += f.Size()
	case io.SeekStart:
	default:
		return 0, pathError("seek", f.name, syscall.EINVAL)
	}
	if offset < 0 {
		return 0, pathError("seek", f.name, syscall.EINVAL)
	}
	f.pos = offset
	return offset, nil
}

// ReadAt implements io.ReaderAt.
func (f *File) ReadAt(p []byte, off int64) (int, error) {
	return f.ReadAtContext(f.ctx, p, off)
}

// ReadAtContext is ReadAt with a context for the block fetches.
func (f *File) ReadAtContext(ctx context.Context, p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, pathError("read", f.name, syscall.EINVAL)
	}
	return f.readAt(ctx, p, off)
}

// piece is a stored part of what is being read.
type piece struct {
	Segment
	at int // where in the caller's buffer it goes
}

func (f *File) readAt(ctx context.Context, p []byte, off int64) (int, error) {
	if f.flag&os.O_WRONLY != 0 {
		return 0, pathError("read", f.name, syscall.EBADF)
	}
	pieces, n := f.plan(p, off)
	f.mu.Lock()
	closed, sequential := f.closed, f.next == off
	f.next = off + int64(n)
	f.mu.Unlock()
	if closed {
		return 0, pathError("read", f.name, fs.ErrClosed)
	}
	if len(p) == 0 {
		return 0, nil
	}
	if sequential && len(pieces) > 0 {
		f.prefetch(off+int64(n), pieces[len(pieces)-1].Locator)
	}
	for _, piece := range pieces {
		if err := f.read(ctx, p, piece); err != nil {
			// What lies before the missing block is good.
			return piece.at, fmt.Errorf("read %q: %w", f.name, err)
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// plan copies what is in memory and says which parts of which blocks are to be
// fetched for the rest. n is how many bytes of p there are in the file.
func (f *File) plan(p []byte, off int64) (pieces []piece, n int) {
	f.c.mu.RLock()
	defer f.c.mu.RUnlock()
	list := f.n.extents
	for i := findExtent(list, off); i < len(list) && n < len(p); i++ {
		e := list[i].from(off + int64(n))
		e.len = min(e.len, int64(len(p)-n))
		if e.src.data != nil {
			n += copy(p[n:], e.src.data[e.pos:e.pos+e.len])
			continue
		}
		if e.src == hole {
			clear(p[n : n+int(e.len)])
			n += int(e.len)
			continue
		}
		e.segments(func(s Segment) bool {
			pieces = append(pieces, piece{s, n})
			n += int(s.Length)
			return true
		})
	}
	return pieces, n
}

// prefetch asks for the blocks that follow last in the file from off on.
func (f *File) prefetch(off int64, last Locator) {
	store, ok := f.c.blocks.(Prefetcher)
	if !ok {
		return
	}
	var ahead []Locator
	f.c.mu.RLock()
	list := f.n.extents
	for i := findExtent(list, off); i < len(list) && len(ahead) < readAhead; i++ {
		e := list[i].from(off)
		if e.src.data != nil || e.src == hole {
			break
		}
		e.segments(func(s Segment) bool {
			if s.Locator != last {
				last = s.Locator
				ahead = append(ahead, last)
			}
			return len(ahead) < readAhead
		})
	}
	f.c.mu.RUnlock()
	for _, loc := range ahead {
		store.Prefetch(loc)
	}
}

// fetch reads one piece into its place in p.
func (f *File) fetch(ctx context.Context, p []byte, piece piece) error {
	dst := p[piece.at : piece.at+int(piece.Length)]
	if r, ok := f.c.blocks.(BlockRangeReader); ok {
		_, err := r.ReadBlockAt(ctx, piece.Locator, dst, piece.Offset)
		return err
	}
	data, err := f.wholeBlock(ctx, piece.Locator)
	if err != nil {
		return err
	}
	if int64(len(data)) < piece.Offset+piece.Length {
		return fmt.Errorf("%w: %s is shorter than its size hint", ErrChecksum, piece.Locator.WithoutHints())
	}
	copy(dst, data[piece.Offset:])
	return nil
}

// wholeBlock returns a block, the one read last without asking the store.
func (f *File) wholeBlock(ctx context.Context, loc Locator) ([]byte, error) {
	hash := loc.Hash()
	f.mu.Lock()
	data, held := f.held, f.heldHash == hash
	f.mu.Unlock()
	if held {
		return data, nil
	}
	if f.c.blocks == nil {
		return nil, errors.New("collection was opened without a block store")
	}
	data, err := f.c.blocks.ReadBlock(ctx, loc)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	if !f.closed {
		f.held, f.heldHash = data, hash
	}
	f.mu.Unlock()
	return data, nil
}

// Segments lists the block ranges that make up the file. Data that is not
// stored yet, and holes, end the list.
func (f *File) Segments() []Segment {
	f.c.mu.RLock()
	defer f.c.mu.RUnlock()
	var list []Segment
	for _, e := range f.n.extents {
		if e.src.data != nil || e.src == hole {
			break
		}
		e.segments(func(s Segment) bool {
			list = append(list, s)
			return true
		})
	}
	return list
}
