package keep

import (
	"context"
	"io/fs"
	"os"
	"path"
	"sync"
	"syscall"
	"time"
)

// Collection is a file tree whose content lies in Keep. All methods may be
// called from several goroutines. Names are paths with "/" between their parts,
// relative to the root, which is "" or "."; parts are compared byte by byte.
// Errors about names are *fs.PathError with a syscall.Errno in it.
//
// What is written is kept in memory until there is a block's worth, which is
// then uploaded in the background; MarshalManifest stores the rest. A
// collection that was written to must be closed.
type Collection struct {
	blocks    BlockReader
	writer    BlockWriter // nil if blocks is none
	blockSize int         // MaxBlockSize, less in tests

	// marshalMu makes flushes follow each other: two at once would only store
	// the same data twice. It is taken before mu, and held while blocks are
	// uploaded, so it can be waited for with a context: it has one token.
	marshalMu chan struct{}

	// mu is shared by all collections between which files can be moved, see Join.
	mu       *sync.RWMutex
	root     *node
	mtime    time.Time
	size     int64 // bytes in all files
	buffered int64 // bytes appended since everything was last handed to uploads
	stuck    int64 // bytes whose upload failed; they are still in memory
	failed   error // why, until the next flush tries again
	opts     WriteOptions
	spare    [][]byte // full-size buffers of finished uploads
	// zeros are a short and a long block of zeros, once there is a hole to be
	// stored.
	zeros [2]*source
	// orphans are files that were removed while open for writing.
	orphans map[*node]struct{}

	renewal *renewal // nil: the signatures are what they are

	slots   chan struct{} // one token per upload under way
	uploads sync.WaitGroup
	ctx     context.Context // of the uploads
	cancel  context.CancelFunc
}

// maxUploads is how many blocks of a collection are uploaded at once.
const maxUploads = 4

// NewCollection reads a manifest; "" is the empty collection. Blocks are
// fetched from blocks when files are read. To write files it must be a
// BlockWriter as well; a nil one is enough to look at names and sizes.
// Errors wrap ErrInvalidManifest.
func NewCollection(manifest string, blocks BlockReader) (*Collection, error) {
	c := &Collection{
		blocks:    blocks,
		blockSize: MaxBlockSize,
		mu:        new(sync.RWMutex),
		root:      newDir("."),
		mtime:     time.Now(),
		slots:     make(chan struct{}, maxUploads),
		marshalMu: make(chan struct{}, 1),
	}
	c.writer, _ = blocks.(BlockWriter)
	if err := parseManifest(c.root, manifest); err != nil {
		return nil, err
	}
	c.root.dir.owner = c
	c.size = c.root.totalSize()
	c.ctx, c.cancel = context.WithCancel(context.Background())
	return c, nil
}

// Close abandons data that is not stored yet, cancels uploads and waits until
// they have ended. Files that are stored can still be read.
func (c *Collection) Close() error {
	c.mu.Lock()
	c.cancel()
	c.mu.Unlock()
	c.uploads.Wait()
	return nil
}

// SetWriteOptions says how blocks are stored from now on, as the collection
// record's replication_desired and storage_classes_desired demand.
func (c *Collection) SetWriteOptions(opts WriteOptions) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.opts = opts
}

// SetModTime sets the time shown for everything that was not written here, by
// convention the record's modified_at. Without it, it is the time of
// NewCollection.
func (c *Collection) SetModTime(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mtime = t
}

// Size returns the number of bytes in all files, stored or not.
func (c *Collection) Size() int64 {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.size
}

func (c *Collection) info(n *node) FileInfo {
	i := FileInfo{name: n.name, mtime: n.mtime, dir: n.dir != nil}
	if i.mtime.IsZero() {
		i.mtime = c.mtime
	}
	if n.dir == nil {
		i.size = n.size()
	}
	return i
}

// Stat describes a file or directory.
func (c *Collection) Stat(name string) (FileInfo, error) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	n, err := c.root.walk(name)
	if err != nil {
		return FileInfo{}, pathError("stat", name, err)
	}
	return c.info(n), nil
}

// ReadDir lists a directory in byte order of the names.
func (c *Collection) ReadDir(name string) ([]FileInfo, error) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	n, err := c.root.walk(name)
	if err == nil && n.dir == nil {
		err = syscall.ENOTDIR
	}
	if err != nil {
		return nil, pathError("readdir", name, err)
	}
	list := make([]FileInfo, 0, len(n.dir.entries))
	for _, e := range n.list() {
		list = append(list, c.info(e))
	}
	return list, nil
}

// Walk calls fn for name and everything below it, directories before their
// entries and those in byte order. It stops at fn's first error, except that
// fs.SkipDir skips a directory's entries, or the rest of a file's directory, and
// fs.SkipAll ends the walk without an error. fn may change the collection.
func (c *Collection) Walk(name string, fn func(name string, info FileInfo) error) error {
	info, err := c.Stat(name)
	if err != nil {
		return err
	}
	err = c.walk(path.Clean(name), info, fn)
	if err == fs.SkipDir || err == fs.SkipAll {
		return nil
	}
	return err
}

func (c *Collection) walk(name string, info FileInfo, fn func(string, FileInfo) error) error {
	if err := fn(name, info); err != nil {
		if err == fs.SkipDir && info.IsDir() {
			return nil
		}
		return err
	}
	if !info.IsDir() {
		return nil
	}
	list, err := c.ReadDir(name)
	if err != nil {
		return err
	}
	for _, e := range list {
		child := e.name
		if name != "." {
			child = name + "/" + e.name
		}
		if err := c.walk(child, e, fn); err != nil {
			if err == fs.SkipDir {
				return nil
			}
			return err
		}
	}
	return nil
}

// Mkdir makes a directory in an existing one.
func (c *Collection) Mkdir(name string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	parent, base, err := c.root.walkParent(name)
	if err == nil {
		switch {
		case base == "" || parent.child(base) != nil:
			err = syscall.EEXIST
		case parent.depth() >= maxDepth:
			err = syscall.ENAMETOOLONG
		}
	}
	if err != nil {
		return pathError("mkdir", name, err)
	}
	c.insert(parent, newDir(base))
	return nil
}

// MkdirAll makes a directory and those above it, as far as they are missing.
func (c *Collection) MkdirAll(name string) error {
	err := c.Mkdir(name)
	switch {
	case err == nil:
		return nil
	case isErrno(err, syscall.EEXIST):
		if info, err := c.Stat(name); err == nil && !info.IsDir() {
			return pathError("mkdir", name, syscall.ENOTDIR)
		}
		return nil
	case !isErrno(err, syscall.ENOENT):
		return err
	}
	if err := c.MkdirAll(path.Dir(path.Clean(name))); err != nil {
		return err
	}
	return c.Mkdir(name)
}

// Remove removes a file or an empty directory. A file that is open stays
// usable through its handles.
func (c *Collection) Remove(name string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	n, err := c.root.walk(name)
	switch {
	case err != nil:
	case n == c.root:
		err = syscall.EBUSY
	case n.dir != nil && len(n.dir.entries) > 0:
		err = syscall.ENOTEMPTY
	}
	if err != nil {
		return pathError("remove", name, err)
	}
	c.detach(n)
	return nil
}

// RemoveAll removes a file or a directory with everything in it. A missing one
// is no error; the root loses its entries but stays.
func (c *Collection) RemoveAll(name string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	n, err := c.root.walk(name)
	if isErrno(err, syscall.ENOENT) {
		return nil
	}
	if err != nil {
		return pathError("remove", name, err)
	}
	if n != c.root {
		c.detach(n)
		return nil
	}
	for _, e := range n.list() {
		c.detach(e)
	}
	return nil
}

// Rename moves a file or directory. A file or an empty directory at the target
// is replaced by one of its kind, as rename(2) does. If the target ends in "/",
// the source moves into that directory under its own name.
func (c *Collection) Rename(from, to string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.rename(from, to); err != nil {
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
	}
	return nil
}

func (c *Collection) rename(from, to string) error {
	n, err := c.root.walk(from)
	if err != nil {
		return err
	}
	if n == c.root {
		return syscall.EBUSY
	}
	if to != "" && to[len(to)-1] == '/' {
		to += n.name
	}
	parent, base, err := c.root.walkParent(to)
	if err != nil {
		return err
	}
	if base == "" {
		return syscall.EBUSY
	}
	return c.move(n, parent, base)
}

// move makes n the entry base of parent, as rename(2) does.
func (c *Collection) move(n, parent *node, base string) error {
	if parent.child(base) == n {
		return nil
	}
	if err := movable(n, parent, base); err != nil {
		return err
	}
	c.unlink(n)
	n.name = base
	c.insert(parent, n)
	return nil
}

// movable tells whether n can become the entry base of parent.
func movable(n, parent *node, base string) error {
	if parent.within(n) {
		return syscall.EINVAL
	}
	if n.dir != nil && parent.depth()+n.height() > maxDepth {
		return syscall.ENAMETOOLONG
	}
	if old := parent.child(base); old != nil {
		switch {
		case old.dir == nil && n.dir != nil:
			return syscall.ENOTDIR
		case old.dir != nil && n.dir == nil:
			return syscall.EISDIR
		case old.dir != nil && len(old.dir.entries) > 0:
			return syscall.ENOTEMPTY
		}
	}
	return nil
}

// insert makes n an entry of parent, replacing one of the same name.
func (c *Collection) insert(parent, n *node) {
	if old := parent.child(n.name); old != nil {
		c.detach(old)
	}
	parent.add(n)
	c.size += n.totalSize()
	c.touch(parent)
}

// detach takes n out of the tree for good.
func (c *Collection) detach(n *node) {
	c.unlink(n)
	c.orphan(n)
}

func (c *Collection) unlink(n *node) {
	c.size -= n.totalSize()
	n.parent.remove(n)
	c.touch(n.parent)
}

// orphan notes the files below n that go on being written to: what they have in
// memory is bounded too.
func (c *Collection) orphan(n *node) {
	if n.dir == nil && n.writers > 0 {
		c.adopt(n)
	}
	if n.dir != nil {
		for _, e := range n.dir.entries {
			c.orphan(e)
		}
	}
}

func (c *Collection) adopt(n *node) {
	if c.orphans == nil {
		c.orphans = make(map[*node]struct{})
	}
	c.orphans[n] = struct{}{}
}

func (c *Collection) touch(n *node) { n.mtime = time.Now() }

func pathError(op, name string, err error) error {
	return &fs.PathError{Op: op, Path: name, Err: err}
}
