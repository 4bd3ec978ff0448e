package layer

import (
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// finish makes the whiteouts and gives directories their metadata: last,
// because making an entry changes the time of its directory, and because a
// default access list or set-group-ID bit would be inherited.
func (x *extractor) finish() error {
	root := x.tree.root
	if links := root.children[aufsLinks]; links != nil {
		if err := x.remove(root, aufsLinks); err != nil {
			return &EntryError{Name: aufsLinks, Err: err}
		}
	}
	x.res.OpaqueRoot = root.opaque
	// Depth first without recursion, in a stable order.
	stack := []*dirNode{root}
	for len(stack) > 0 {
		if err := x.ctx.Err(); err != nil {
			return err
		}
		d := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		if err := x.finishDir(d); err != nil {
			return &EntryError{Name: d.path(), Err: err}
		}
		first := len(stack)
		for _, c := range d.children {
			stack = append(stack, c)
		}
		slices.SortFunc(stack[first:], func(a, b *dirNode) int { return strings.Compare(b.name, a.name) })
	}
	return nil
}

func (x *extractor) finishDir(d *dirNode) error {
	if !d.explicit {
		x.res.ImplicitDirs = append(x.res.ImplicitDirs, d.path())
	}
	fd, err := x.tree.fd(d)
	if err != nil {
		return err
	}
	made := false
	for base := range d.whiteouts {
		if child := d.children[base]; child != nil {
			child.opaque = true // replaced, not merged
			continue
		}
		if d.opaque {
			continue // there is nothing to hide, and the kernel would show it
		}
		err := unix.Mknodat(fd, base, unix.S_IFCHR, 0)
		if err == unix.EEXIST {
			continue // this layer's own entry hides the lower one already
		}
		if err != nil {
			return fmt.Errorf("whiteout of %s: %w", printable(base), err)
		}
		made = true
	}
	if made {
		x.res.WhiteoutDirs = append(x.res.WhiteoutDirs, d.path())
	}
	if d.opaque && d.parent != nil {
		if err := unix.Fsetxattr(fd, "trusted.overlay.opaque", []byte{'y'}, 0); err != nil {
			return fmt.Errorf("mark as opaque: %w", err)
		}
	}
	return x.apply(fd, anyMode, d.meta)
}
