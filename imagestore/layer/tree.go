package layer

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Bounds on names. Deeper trees could be made through descriptors, but no
// program could use them by name.
const (
	maxPath  = unix.PathMax - 512 // bytes of a path below the root: some are for what is above
	maxLinks = 40                 // symbolic links met while resolving one name, as in the kernel
)

// maxOpen is the number of directories kept open. Tar entries come in
// directory order, so few are needed; several layers are unpacked at once.
const maxOpen = 64

// dirNode is a directory that this layer has made. The tree of them is the only
// thing that names are resolved against.
type dirNode struct {
	parent   *dirNode // nil for the root
	name     string
	pathLen  int // bytes of the path below the root
	children map[string]*dirNode

	fd   int  // -1 when closed
	pins int  // users of fd who must not lose it
	used bool // since the clock hand last passed

	explicit  bool // has an entry of its own
	opaque    bool
	meta      metadata            // applied when the layer is complete
	whiteouts map[string]struct{} // names hidden here
}

// path gives the node's name below the root, "" for the root.
func (d *dirNode) path() string {
	if d.parent == nil {
		return ""
	}
	if up := d.parent.path(); up != "" {
		return up + "/" + d.name
	}
	return d.name
}

// tree is what has been made so far, with a bounded set of open directories.
type tree struct {
	root *dirNode
	open []*dirNode // all nodes but the root with fd >= 0
	hand int        // clock hand into open

	// The directory of the previous entry, by the name the entry gave it.
	lastName string
	lastDir  *dirNode
}

func openTree(dir string) (*tree, error) {
	var fd int
	err := retry(func() (err error) {
		fd, err = unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	// What is made below must not inherit a group or an access list from here.
	// (Errors: no such attribute, or a file system without access lists.)
	_ = unix.Fremovexattr(fd, "system.posix_acl_default")
	_ = unix.Fremovexattr(fd, "system.posix_acl_access")
	if err := unix.Fchown(fd, 0, 0); err != nil {
		_ = unix.Close(fd)
		return nil, &os.PathError{Op: "chown", Path: dir, Err: err}
	}
	if err := unix.Fchmod(fd, 0o700); err != nil {
		_ = unix.Close(fd)
		return nil, &os.PathError{Op: "chmod", Path: dir, Err: err}
	}
	root := &dirNode{fd: fd, pins: 1, meta: metadata{mode: 0o755}}
	return &tree{root: root}, nil
}

func (t *tree) close() {
	for _, d := range t.open {
		_ = unix.Close(d.fd)
		d.fd = -1
	}
	t.open = nil
	_ = unix.Close(t.root.fd)
}

// fd gives an open descriptor of d. It stays valid until the next call unless d
// is pinned.
func (t *tree) fd(d *dirNode) (int, error) {
	d.used = true
	if d.fd >= 0 {
		return d.fd, nil
	}
	// Climb to the nearest open ancestor (the root always is), then descend:
	// names may be 2,000 directories deep, so there is no recursion.
	var chain []*dirNode
	for a := d; a.fd < 0; a = a.parent {
		chain = append(chain, a)
	}
	for i := len(chain) - 1; i >= 0; i-- {
		a := chain[i]
		fd, err := openDirAt(a.parent.fd, a.name)
		if err != nil {
			return -1, fmt.Errorf("open directory: %w", err)
		}
		t.adopt(a, fd)
	}
	return d.fd, nil
}

func openDirAt(dirfd int, name string) (fd int, err error) {
	err = retry(func() error {
		fd, err = unix.Openat(dirfd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		return err
	})
	return fd, err
}

// adopt enters fd as d's, closing another one if there are too many.
func (t *tree) adopt(d *dirNode, fd int) {
	d.fd, d.used = fd, true
	if len(t.open) < maxOpen {
		t.open = append(t.open, d)
		return
	}
	for tries := 0; tries < 2*len(t.open); tries++ {
		t.hand = (t.hand + 1) % len(t.open)
		victim := t.open[t.hand]
		if victim.pins > 0 {
			continue
		}
		if victim.used {
			victim.used = false
			continue
		}
		_ = unix.Close(victim.fd)
		victim.fd = -1
		t.open[t.hand] = d
		return
	}
	t.open = append(t.open, d) // all pinned: cannot happen with two pins
}

// resolve finds the directory that name (cleaned, relative, "" is the root)
// stands for, following symbolic links inside the root, and makes what is
// missing. An entry that is in the way and no directory gives way, as it would
// to a directory entry.
func (x *extractor) resolve(name string, mtime time.Time) (*dirNode, error) {
	return x.walk(name, mtime, true)
}

// errInTheWay is walk's error for a name that leads through something that is
// no directory.
var errInTheWay = errors.New("not a directory")

// walk is resolve if replace is set; otherwise what is in the way stays, and the
// error is errInTheWay.
func (x *extractor) walk(name string, mtime time.Time, replace bool) (*dirNode, error) {
	t := x.tree
	if name == "" {
		return t.root, nil
	}
	if t.lastDir != nil && name == t.lastName {
		return t.lastDir, nil
	}
	cur, rest, links := t.root, name, 0
	for rest != "" {
		var comp string
		comp, rest, _ = strings.Cut(rest, "/")
		switch comp {
		case "", ".":
			continue
		case "..": // only from a link's target
			if cur.parent != nil {
				cur = cur.parent
			}
			continue
		}
		if child := cur.children[comp]; child != nil {
			cur = child
			continue
		}
		fd, err := t.fd(cur)
		if err != nil {
			return nil, err
		}
		target, err := readlinkAt(fd, comp)
		switch err {
		case nil:
			if links++; links > maxLinks {
				return nil, unix.ELOOP
			}
			if strings.HasPrefix(target, "/") {
				cur = t.root
			}
			if len(target)+len(rest) > 2*maxPath {
				return nil, unix.ENAMETOOLONG
			}
			rest = target + "/" + rest
			continue
		case unix.EINVAL: // something, and neither a link nor a directory of ours
			if !replace {
				return nil, errInTheWay
			}
			if err := unix.Unlinkat(fd, comp, 0); err != nil {
				return nil, fmt.Errorf("replace by a directory: %w", err)
			}
		case unix.ENOENT:
		default:
			return nil, err
		}
		if cur, err = x.mkdir(cur, comp); err != nil {
			return nil, err
		}
		cur.meta = metadata{mode: 0o755, mtime: mtime}
	}
	t.lastName, t.lastDir = name, cur
	return cur, nil
}

// mkdir makes the directory name in d, which has nothing of that name. The
// modes of directories are set last, so that a set-group-ID bit of the parent
// has no effect on what is made meanwhile.
func (x *extractor) mkdir(d *dirNode, name string) (*dirNode, error) {
	pathLen := d.pathLen + 1 + len(name)
	if pathLen > maxPath {
		return nil, unix.ENAMETOOLONG
	}
	if err := x.count(); err != nil {
		return nil, err
	}
	fd, err := x.tree.fd(d)
	if err != nil {
		return nil, err
	}
	if err := unix.Mkdirat(fd, name, 0o700); err != nil {
		return nil, err
	}
	name = strings.Clone(name) // it is a part of the whole header, which may be large
	child := &dirNode{parent: d, name: name, pathLen: pathLen, fd: -1}
	if d.children == nil {
		d.children = make(map[string]*dirNode)
	}
	d.children[name] = child
	return child, nil
}

// remove takes away whatever the layer has made as name in d so far.
func (x *extractor) remove(d *dirNode, name string) error {
	fd, err := x.tree.fd(d)
	if err != nil {
		return err
	}
	child := d.children[name]
	if child == nil {
		return unix.Unlinkat(fd, name, 0)
	}
	x.tree.forget(child)
	delete(d.children, name)
	return removeDir(fd, name)
}

// forget closes every descriptor below d, which is about to vanish.
func (t *tree) forget(d *dirNode) {
	t.lastDir = nil
	kept := t.open[:0]
	for _, o := range t.open {
		if o.below(d) {
			_ = unix.Close(o.fd)
			o.fd = -1
			continue
		}
		kept = append(kept, o)
	}
	clear(t.open[len(kept):])
	t.open, t.hand = kept, 0
}

func (d *dirNode) below(ancestor *dirNode) bool {
	for ; d != nil; d = d.parent {
		if d == ancestor {
			return true
		}
	}
	return false
}

// removeDir removes the directory name in dirfd and everything in it, without
// following a link.
func removeDir(dirfd int, name string) error {
	fd, err := openDirAt(dirfd, name)
	if err != nil {
		return err
	}
	// os.Root descends by descriptor, each step without following links.
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	root, err := os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return err
	}
	defer root.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := root.RemoveAll(n); err != nil {
			return err
		}
	}
	return unix.Unlinkat(dirfd, name, unix.AT_REMOVEDIR)
}

// readlinkAt reads a link whose target fits PATH_MAX, as all do.
func readlinkAt(dirfd int, name string) (string, error) {
	buf := make([]byte, unix.PathMax)
	var n int
	err := retry(func() (err error) {
		n, err = unix.Readlinkat(dirfd, name, buf)
		return err
	})
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}
