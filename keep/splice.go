package keep

import (
	"slices"
	"strings"
	"syscall"
)

// Splice copies the file or directory srcPath of src to the path dst of c by
// reference: no block is read or written. Whatever is at dst is replaced; its
// parent must exist. A file cannot replace the root. src may be c itself; it is
// not changed, and later changes of either do not show in the other.
func (c *Collection) Splice(dst string, src *Collection, srcPath string) error {
	copied, err := src.copyTree(srcPath, src != c)
	if err != nil {
		return pathError("splice", srcPath, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.splice(dst, copied); err != nil {
		return pathError("splice", dst, err)
	}
	return nil
}

func (c *Collection) splice(dst string, n *node) error {
	parent, base, err := c.root.walkParent(dst)
	if err != nil {
		return err
	}
	if base != "" {
		if parent.depth()+n.height() > maxDepth {
			return syscall.ENAMETOOLONG
		}
		n.name = strings.Clone(base)
		c.insert(parent, n)
		return nil
	}
	if n.dir == nil {
		return syscall.EISDIR
	}
	for _, e := range c.root.list() {
		c.detach(e)
	}
	for _, e := range n.list() {
		c.insert(c.root, e)
	}
	return nil
}

// copyTree returns a copy of what is at name. For another collection nothing in
// it refers to c: strings do not keep c's manifest alive, and what is still in
// memory is copied, because sources belong to one collection.
func (c *Collection) copyTree(name string, foreign bool) (*node, error) {
	c.mu.Lock() // sources of which there will be two users are sealed
	defer c.mu.Unlock()
	n, err := c.root.walk(name)
	if err != nil {
		return nil, err
	}
	cp := copier{foreign: foreign, srcs: make(map[*source]*source)}
	return cp.node(n), nil
}

type copier struct {
	foreign bool
	srcs    map[*source]*source
}

func (cp *copier) node(n *node) *node {
	if n.dir == nil {
		f := &node{name: n.name, extents: slices.Clone(n.extents)}
		if cp.foreign {
			f.name = strings.Clone(n.name)
			for i := range f.extents {
				f.extents[i].src, f.extents[i].pos = cp.source(f.extents[i])
			}
			return f
		}
		for _, e := range f.extents {
			e.src.seal()
		}
		return f
	}
	d := newDir(strings.Clone(n.name))
	for _, e := range n.dir.entries {
		d.add(cp.node(e))
	}
	return d
}

// source returns a copy of what e refers to, and where e's bytes are in it.
func (cp *copier) source(e extent) (*source, int64) {
	if e.src == hole {
		return hole, 0
	}
	if e.src.data != nil {
		data := slices.Clone(e.src.data[e.pos : e.pos+e.len])
		return &source{size: e.len, data: data, sealed: true}, 0
	}
	s := cp.srcs[e.src]
	if s == nil {
		s = &source{size: e.src.size, blocks: slices.Clone(e.src.blocks), sealed: true}
		for i := range s.blocks {
			s.blocks[i].loc = s.blocks[i].loc.clone()
		}
		cp.srcs[e.src] = s
	}
	return s, e.pos
}
