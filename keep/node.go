package keep

import (
	"os"
	"sync"
	"syscall"
	"time"
)

// Node is a file or a directory of a collection, whatever it is called by now,
// also after it was removed: what an inode is to a local file system. Two Nodes
// of the same file are equal. Its errors are syscall.Errno as a rule.
type Node struct {
	mu *sync.RWMutex // of the collection that it is in, and of those it can be moved to
	n  *node
}

// Root is the top directory.
func (c *Collection) Root() Node { return Node{c.mu, c.root} }

// IsDir tells whether it is a directory.
func (x Node) IsDir() bool { return x.n.dir != nil }

// Stat describes it, under its present name.
func (x Node) Stat() FileInfo {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.n.holder().info(x.n)
}

// Linked tells whether it can still be reached by a name.
func (x Node) Linked() bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.n.attached(x.n.holder().root)
}

// Number returns a number for it, always the same: what next returns at the
// first call.
func (x Node) Number(next func() uint64) uint64 {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.n.number == 0 {
		x.n.number = next()
	}
	return x.n.number
}

// Path is where it is now, relative to the root; of a removed one, where it was.
func (x Node) Path() string {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.n.path()
}

func (n *node) path() string {
	path := ""
	for ; n.parent != nil; n = n.parent {
		if path == "" {
			path = n.name
		} else {
			path = n.name + "/" + path
		}
	}
	return path
}

// Lookup finds an entry of a directory.
func (x Node) Lookup(name string) (Node, error) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if x.n.dir == nil {
		return Node{}, syscall.ENOTDIR
	}
	if n := x.n.child(name); n != nil {
		return Node{x.mu, n}, nil
	}
	return Node{}, syscall.ENOENT
}

// Entry is an entry of a directory.
type Entry struct {
	Name string
	Node Node
}

// List returns the entries of a directory in byte order of their names.
func (x Node) List() []Entry {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if x.n.dir == nil {
		return nil
	}
	list := make([]Entry, 0, len(x.n.dir.entries))
	for _, e := range x.n.list() {
		list = append(list, Entry{e.name, Node{x.mu, e}})
	}
	return list
}

// add checks that name can become an entry of x and adds n under that name. The
// caller holds the lock.
func (x Node) add(name string, n *node) error {
	switch {
	case x.n.dir == nil:
		return syscall.ENOTDIR
	case !x.n.attached(x.n.holder().root):
		return syscall.ENOENT
	case x.n.child(name) != nil:
		return syscall.EEXIST
	case n.dir != nil && x.n.depth() >= maxDepth:
		return syscall.ENAMETOOLONG
	}
	n.name, n.mtime = name, time.Now()
	x.n.holder().insert(x.n, n)
	return nil
}

// Mkdir makes a directory in a directory.
func (x Node) Mkdir(name string) (Node, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	n := newDir(name)
	return Node{x.mu, n}, x.add(name, n)
}

// Create makes a file in a directory, where nothing may be of that name.
func (x Node) Create(name string) (Node, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.n.holder().writer == nil {
		return Node{}, ErrNoWriter
	}
	n := &node{}
	return Node{x.mu, n}, x.add(name, n)
}

// Open opens a file; of the flags, how it is opened, O_TRUNC and O_APPEND count.
func (x Node) Open(flag int) (*File, error) {
	if x.n.dir != nil {
		return nil, syscall.EISDIR
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	c := x.n.holder()
	writable := flag&(os.O_WRONLY|os.O_RDWR) != 0
	if writable && c.writer == nil {
		return nil, ErrNoWriter
	}
	if writable && flag&os.O_TRUNC != 0 {
		c.resize(x.n, 0)
	}
	f := c.handle(x.n, x.n.path(), flag)
	if writable && !x.n.attached(c.root) {
		c.orphan(x.n)
	}
	return f, nil
}

// Truncate is File.Truncate without a handle.
func (x Node) Truncate(size int64) error {
	if x.n.dir != nil {
		return syscall.EISDIR
	}
	return x.Collection().truncate(x.n, x.Path(), size)
}

// SetModTime sets the time that Stat shows. It is not stored.
func (x Node) SetModTime(t time.Time) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.n.mtime = t
}

// Remove removes an entry: with dir an empty directory, else a file.
func (x Node) Remove(name string, dir bool) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.n.dir == nil {
		return syscall.ENOTDIR
	}
	n := x.n.child(name)
	switch {
	case n == nil:
		return syscall.ENOENT
	case dir && n.dir == nil:
		return syscall.ENOTDIR
	case !dir && n.dir != nil:
		return syscall.EISDIR
	case dir && len(n.dir.entries) > 0:
		return syscall.ENOTEMPTY
	}
	x.n.holder().detach(n)
	return nil
}
