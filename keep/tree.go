package keep

import (
	"errors"
	"io/fs"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// maxDepth bounds how deep directories may nest, so that a small manifest
// cannot ask for unbounded recursion. PATH_MAX allows 2048.
const maxDepth = 4096

// node is a file or a directory. The lock of the collection that holds it
// protects it.
type node struct {
	name   string
	parent *node
	dir    *directory // nil in a file
	mtime  time.Time  // zero: that of the collection

	// Of a file:
	extents []extent // in order of off, without gaps
	writers int      // handles open for writing
	number  uint64   // what Node.Number has given it
}

// directory holds the entries of a directory node.
type directory struct {
	entries map[string]*node
	// sorted caches the entries in byte order of their names until the next
	// change. It is atomic because readers fill it under the read lock.
	sorted atomic.Pointer[[]*node]
	owner  *Collection // of a root
}

func newDir(name string) *node { return &node{name: name, dir: &directory{}} }

// size is the length of a file in bytes.
func (n *node) size() int64 {
	if len(n.extents) == 0 {
		return 0
	}
	last := n.extents[len(n.extents)-1]
	return last.off + last.len
}

// child returns the entry name of a directory, or nil.
func (n *node) child(name string) *node { return n.dir.entries[name] }

// add makes child an entry of n, replacing one of the same name.
func (n *node) add(child *node) {
	if n.dir.entries == nil {
		n.dir.entries = make(map[string]*node)
	}
	child.parent = n
	n.dir.entries[child.name] = child
	n.dir.sorted.Store(nil)
}

// remove takes the entry child out of n. The child's parent link stays, so that
// an open file of it can still say where it was.
func (n *node) remove(child *node) {
	delete(n.dir.entries, child.name)
	n.dir.sorted.Store(nil)
}

// list returns the entries in byte order of their names. The caller does not
// change the slice.
func (n *node) list() []*node {
	if s := n.dir.sorted.Load(); s != nil {
		return *s
	}
	list := make([]*node, 0, len(n.dir.entries))
	for _, e := range n.dir.entries {
		list = append(list, e)
	}
	slices.SortFunc(list, func(a, b *node) int { return strings.Compare(a.name, b.name) })
	n.dir.sorted.Store(&list)
	return list
}

// totalSize sums the files below n.
func (n *node) totalSize() int64 {
	if n.dir == nil {
		return n.size()
	}
	var sum int64
	for _, e := range n.dir.entries {
		sum += e.totalSize()
	}
	return sum
}

// within tells whether n is root or lies below it.
func (n *node) within(root *node) bool {
	for ; n != nil; n = n.parent {
		if n == root {
			return true
		}
	}
	return false
}

// depth is the number of directories above n.
func (n *node) depth() (d int) {
	for n = n.parent; n != nil; n = n.parent {
		d++
	}
	return d
}

// height is the number of directory levels from n down, n included.
func (n *node) height() int {
	if n.dir == nil {
		return 0
	}
	most := 0
	for _, e := range n.dir.entries {
		most = max(most, e.height())
	}
	return most + 1
}

// attached tells whether n can still be reached from root.
func (n *node) attached(root *node) bool {
	for n.parent != nil {
		if n.parent.child(n.name) != n {
			return false
		}
		n = n.parent
	}
	return n == root
}

// holder is the collection that n is in, or was when it was removed.
func (n *node) holder() *Collection {
	for n.parent != nil {
		n = n.parent
	}
	return n.dir.owner
}

// walk resolves a path of names separated by "/" from n. Empty names and "."
// are skipped; ".." is refused, because the callers' paths come from outside
// and nothing legitimate needs it.
func (n *node) walk(path string) (*node, error) {
	for path != "" {
		var name string
		name, path, _ = strings.Cut(path, "/")
		if name == "" || name == "." {
			continue
		}
		if name == ".." {
			return nil, syscall.EINVAL
		}
		if n.dir == nil {
			return nil, syscall.ENOTDIR
		}
		if n = n.child(name); n == nil {
			return nil, syscall.ENOENT
		}
	}
	return n, nil
}

// walkParent resolves all but the last name of path to a directory. name is
// empty if path denotes n itself.
func (n *node) walkParent(path string) (parent *node, name string, err error) {
	path = strings.TrimRight(path, "/")
	for path == "." || strings.HasSuffix(path, "/.") {
		path = strings.TrimRight(path[:len(path)-1], "/")
	}
	dir := ""
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		dir, name = path[:i], path[i+1:]
	} else {
		name = path
	}
	if name == ".." {
		return nil, "", syscall.EINVAL
	}
	parent, err = n.walk(dir)
	if err != nil {
		return nil, "", err
	}
	if parent.dir == nil {
		return nil, "", syscall.ENOTDIR
	}
	return parent, name, nil
}

// FileInfo describes a file or a directory of a collection.
type FileInfo struct {
	name  string
	size  int64
	mtime time.Time
	dir   bool
}

var _ fs.FileInfo = FileInfo{}

// Name returns the last part of the path; "." for the root.
func (i FileInfo) Name() string { return i.name }

// Size returns the length of a file in bytes, 0 for a directory.
func (i FileInfo) Size() int64 { return i.size }

// ModTime returns when the file was last written here, else the collection's
// time.
func (i FileInfo) ModTime() time.Time { return i.mtime }

// IsDir tells whether it is a directory.
func (i FileInfo) IsDir() bool { return i.dir }

// Mode returns 0755, with fs.ModeDir for a directory: Keep stores no modes.
func (i FileInfo) Mode() fs.FileMode {
	if i.dir {
		return fs.ModeDir | 0o755
	}
	return 0o755
}

// Sys returns nil.
func (i FileInfo) Sys() any { return nil }

// isErrno tells whether err is or wraps errno.
func isErrno(err error, errno syscall.Errno) bool {
	var e syscall.Errno
	return errors.As(err, &e) && e == errno
}
