package keep

import (
	"context"
	"fmt"
	"syscall"
	"time"
)

// Moving files and directories, within a collection and from one to another.
// Nothing of their content is read or written for that: the blocks are the same,
// what is still in memory goes along, also while it is being uploaded, and open
// files go on where the file is now.

// Join makes it possible to move files between c and all collections to which
// other was joined, by giving them one lock. It must be called before c is used.
func (c *Collection) Join(other *Collection) { c.mu = other.mu }

// coll is the collection that the file is in by now.
func (f *File) coll() *Collection {
	f.c.mu.RLock()
	defer f.c.mu.RUnlock()
	return f.n.holder()
}

// Collection is the one that x is in by now, or was when it was removed.
func (x Node) Collection() *Collection {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.n.holder()
}

// Rename moves an entry of x into a directory of the same collection, or of one
// that was joined with it, as rename(2) does; without replace only if nothing has
// that name there. If that brings a lot of data that is not stored yet into a
// collection, Rename waits for uploads to begin until ctx ends. An error that is
// no syscall.Errno is that of uploads of the other collection, which cannot take
// more.
func (x Node) Rename(ctx context.Context, name string, to Node, newName string, replace bool) error {
	if to.mu != x.mu {
		return syscall.EXDEV
	}
	dest, tooMuch, err := x.rename(name, to, newName, replace)
	if tooMuch {
		dest.relieve(ctx)
	}
	return err
}

func (x Node) rename(name string, to Node, newName string, replace bool) (dest *Collection, tooMuch bool, err error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.n.dir == nil || to.n.dir == nil {
		return nil, false, syscall.ENOTDIR
	}
	c, dest := x.n.holder(), to.n.holder()
	n := x.n.child(name)
	if n == nil || !to.n.attached(dest.root) {
		return nil, false, syscall.ENOENT
	}
	if !replace && to.n.child(newName) != nil {
		return nil, false, syscall.EEXIST
	}
	if c == dest {
		return c, false, c.move(n, to.n, newName)
	}
	err = c.moveTo(dest, n, to.n, newName)
	return dest, err == nil && dest.failed == nil && dest.buffered > int64(dest.maxBuffered()), err
}

// moveTo is move to a directory of another collection.
func (c *Collection) moveTo(dest *Collection, n, parent *node, base string) error {
	if err := movable(n, parent, base); err != nil {
		return err
	}
	idle, all := n.inMemory()
	if all > 0 && dest.failed != nil && dest.stuck+dest.buffered > int64(dest.maxHeld()) {
		return fmt.Errorf("take over %q: %w", n.name, dest.failed)
	}
	c.unlink(n)
	n.name = base
	n.keepTime(c.mtime)
	dest.insert(parent, n)
	// What is on its way may come back.
	c.buffered = max(c.buffered-idle, 0)
	dest.buffered += all
	for o := range c.orphans {
		if o.within(n) {
			delete(c.orphans, o)
			dest.adopt(o)
		}
	}
	return nil
}

// inMemory sums what the files below n have in memory: that of which nobody
// uploads anything, and all.
func (n *node) inMemory() (idle, all int64) {
	for _, e := range n.extents {
		if e.src.data != nil {
			all += e.len
			if e.src.inMemory() {
				idle += e.len
			}
		}
	}
	if n.dir != nil {
		for _, e := range n.dir.entries {
			i, a := e.inMemory()
			idle, all = idle+i, all+a
		}
	}
	return idle, all
}

// keepTime makes the time of the collection that of what has none of its own.
func (n *node) keepTime(t time.Time) {
	if n.mtime.IsZero() {
		n.mtime = t
	}
	if n.dir != nil {
		for _, e := range n.dir.entries {
			e.keepTime(t)
		}
	}
}

// Restore makes old, which was replaced or removed, the entry name of x again,
// unless there is one by now.
func (x Node) Restore(name string, old Node) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.n.dir == nil {
		return syscall.ENOTDIR
	}
	if x.n.child(name) != nil {
		return syscall.EEXIST
	}
	c := x.n.holder()
	old.n.name = name
	c.insert(x.n, old.n)
	delete(c.orphans, old.n)
	return nil
}
