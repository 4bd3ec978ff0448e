package keep

import (
	"os"
	"syscall"
	"time"
)

// Node is a file or a directory of a collection, whatever it is called by now,
// also after it was removed: what an inode is to a local file system. Two Nodes
// of the same file are equal. Its errors are syscall.Errno as a rule.
type Node struct {
	c *Collection
	n *node
}

// Root is the top directory.
func (c *Collection) Root() Node { return Node{c, c.root} }

// IsDir tells whether it is a directory.
func (x Node) IsDir() bool { return x.n.dir != nil }

// Stat describes it, under its present name.
func (x Node) Stat() FileInfo {
	x.c.mu.RLock()
	defer x.c.mu.RUnlock()
	return x.c.info(x.n)
}

// Linked tells whether it can still be reached by a name.
func (x Node) Linked() bool {
	x.c.mu.RLock()
	defer x.c.mu.RUnlock()
	return x.n.attached(x.c.root)
}

// Number returns a number for it, always the same: what next returns at the
// first call.
func (x Node) Number(next func() uint64) uint64 {
	x.c.mu.Lock()
	defer x.c.mu.Unlock()
	if x.n.number == 0 {
		x.n.number = next()
	}
	return x.n.number
}

// Path is where it is now, relative to the root; of a removed one, where it was.
func (x Node) Path() string {
	x.c.mu.RLock()
	defer x.c.mu.RUnlock()
	return x.path()
}

func (x Node) path() string {
	path := ""
	for n := x.n; n.parent != nil; n = n.parent {
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
	x.c.mu.RLock()
	defer x.c.mu.RUnlock()
	if x.n.dir == nil {
		return Node{}, syscall.ENOTDIR
	}
	if n := x.n.child(name); n != nil {
		return Node{x.c, n}, nil
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
	x.c.mu.RLock()
	defer x.c.mu.RUnlock()
	if x.n.dir == nil {
		return nil
	}
	list := make([]Entry, 0, len(x.n.dir.entries))
	for _, e := range x.n.list() {
		list = append(list, Entry{e.name, Node{x.c, e}})
	}
	return list
}

// add checks that name can become an entry of x and adds n under that name. The
// caller holds the lock.
func (x Node) add(name string, n *node) error {
	switch {
	case x.n.dir == nil:
		return syscall.ENOTDIR
	case !x.n.attached(x.c.root):
		return syscall.ENOENT
	case x.n.child(name) != nil:
		return syscall.EEXIST
	case n.dir != nil && x.n.depth() >= maxDepth:
		return syscall.ENAMETOOLONG
	}
	n.name, n.mtime = name, time.Now()
	x.c.insert(x.n, n)
	return nil
}

// Mkdir makes a directory in a directory.
func (x Node) Mkdir(name string) (Node, error) {
	x.c.mu.Lock()
	defer x.c.mu.Unlock()
	n := newDir(name)
	return Node{x.c, n}, x.add(name, n)
}

// Create makes a file in a directory, where nothing may be of that name.
func (x Node) Create(name string) (Node, error) {
	if x.c.writer == nil {
		return Node{}, ErrNoWriter
	}
	x.c.mu.Lock()
	defer x.c.mu.Unlock()
	n := &node{}
	return Node{x.c, n}, x.add(name, n)
}

// Open opens a file; of the flags, how it is opened, O_TRUNC and O_APPEND count.
func (x Node) Open(flag int) (*File, error) {
	writable := flag&(os.O_WRONLY|os.O_RDWR) != 0
	switch {
	case x.n.dir != nil:
		return nil, syscall.EISDIR
	case writable && x.c.writer == nil:
		return nil, ErrNoWriter
	}
	name := x.Path()
	x.c.mu.Lock()
	defer x.c.mu.Unlock()
	if writable && flag&os.O_TRUNC != 0 {
		x.c.resize(x.n, 0)
	}
	f := x.c.handle(x.n, name, flag)
	if writable && !x.n.attached(x.c.root) {
		x.c.orphan(x.n)
	}
	return f, nil
}

// Truncate is File.Truncate without a handle.
func (x Node) Truncate(size int64) error {
	if x.n.dir != nil {
		return syscall.EISDIR
	}
	return x.c.truncate(x.n, x.Path(), size)
}

// SetModTime sets the time that Stat shows. It is not stored.
func (x Node) SetModTime(t time.Time) {
	x.c.mu.Lock()
	defer x.c.mu.Unlock()
	x.n.mtime = t
}

// Remove removes an entry: with dir an empty directory, else a file.
func (x Node) Remove(name string, dir bool) error {
	x.c.mu.Lock()
	defer x.c.mu.Unlock()
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
	x.c.detach(n)
	return nil
}

// Rename moves an entry of x into a directory of the same collection, as
// rename(2) does; without replace only if nothing has that name there.
func (x Node) Rename(name string, to Node, newName string, replace bool) error {
	if to.c != x.c {
		return syscall.EXDEV
	}
	c := x.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if x.n.dir == nil || to.n.dir == nil {
		return syscall.ENOTDIR
	}
	n := x.n.child(name)
	if n == nil || !to.n.attached(c.root) {
		return syscall.ENOENT
	}
	if !replace && to.n.child(newName) != nil {
		return syscall.EEXIST
	}
	return c.move(n, to.n, newName)
}
