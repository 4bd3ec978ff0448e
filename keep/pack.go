package keep

import (
	"context"
	"syscall"
)

// Flush starts storing what is in memory below the directory name ("" for the
// whole tree) and returns when the last upload has begun. With short false it
// leaves in memory what would make a less than half full block and the ends of
// files that are still open for writing. How the uploads end is known from Err
// and MarshalManifest; an error says that there is no such directory or that
// ctx has ended.
func (c *Collection) Flush(ctx context.Context, name string, short bool) error {
	if err := c.lockMarshal(ctx); err != nil {
		return err
	}
	defer c.unlockMarshal()
	c.mu.Lock()
	n, err := c.root.walk(name)
	if err == nil && n.dir == nil {
		err = syscall.ENOTDIR
	}
	if err != nil {
		c.mu.Unlock()
		return pathError("flush", name, err)
	}
	p := packer{c: c, short: short}
	p.tree(n)
	if n == c.root && short {
		c.failed, c.stuck, c.buffered = nil, 0, 0
	}
	c.mu.Unlock()
	c.uploadAll(ctx, p.claimed)
	return ctx.Err()
}

// relieve stores what has gathered in memory: first what makes good blocks, and
// if that leaves much, everything.
func (c *Collection) relieve(ctx context.Context) {
	if c.lockMarshal(ctx) != nil {
		return // it stays in memory
	}
	defer c.unlockMarshal()
	c.mu.Lock()
	p := packer{c: c}
	p.everything()
	if p.left > int64(c.maxBuffered()/2) {
		p.short, p.left = true, 0
		p.everything()
	}
	c.buffered = p.left
	c.mu.Unlock()
	c.uploadAll(ctx, p.claimed)
}

func (c *Collection) uploadAll(ctx context.Context, srcs []*source) {
	for _, src := range srcs {
		c.upload(ctx, src)
	}
}

// packer distributes what files have in memory to blocks. The caller holds
// marshalMu, because a manifest being written refers to the lists that are
// changed here, and mu, and uploads what was claimed after giving up the latter.
type packer struct {
	c     *Collection
	short bool // also blocks that are not half full, and ends of open files

	claimed []*source
	left    int64 // bytes that stay in memory
}

// everything packs the tree and the files that were removed but are in use.
func (p *packer) everything() {
	p.tree(p.c.root)
	for n := range p.c.orphans {
		p.files([]*node{n})
	}
}

// tree packs dir and the directories below it.
func (p *packer) tree(dir *node) {
	p.files(dir.list())
	for _, e := range dir.list() {
		if e.dir != nil {
			p.tree(e)
		}
	}
}

// loose is an extent whose bytes are in memory.
type loose struct {
	file  *node
	index int
}

func (l loose) extent() extent { return l.file.extents[l.index] }

// files packs the files of one directory. More than half a block becomes a
// block of its own; what is smaller is put together in order of the file names.
func (p *packer) files(list []*node) {
	blockSize := int64(p.c.blockSize)
	var pack []loose
	var packSize int64
	var changed []*node
	for _, f := range list {
		if f.dir != nil {
			continue
		}
		if len(f.extents) > 1 {
			changed = append(changed, f)
		}
		for i, e := range f.extents {
			switch {
			case !e.src.inMemory():
			case !p.short && f.writers > 0:
				p.left += e.len
			case e.len > blockSize/2:
				p.store([]loose{{f, i}}, e.len)
			default:
				if packSize+e.len > blockSize {
					p.store(pack, packSize)
					pack, packSize = nil, 0
				}
				pack = append(pack, loose{f, i})
				packSize += e.len
			}
		}
	}
	if packSize > 0 && (p.short || packSize > blockSize/2) {
		p.store(pack, packSize)
	} else {
		p.left += packSize
	}
	for _, f := range changed {
		f.extents = mergeExtents(f.extents)
	}
}

// store makes one claimed source of the given parts, size bytes together, and
// the files refer to it.
func (p *packer) store(parts []loose, size int64) {
	first := parts[0].extent()
	src := first.src
	if len(parts) > 1 || size < src.size {
		src = &source{size: size, data: p.c.buffer(int(size))}
		for _, l := range parts {
			e := l.extent()
			l.file.extents[l.index] = extent{src, int64(len(src.data)), e.len, e.off}
			src.data = append(src.data, e.src.data[e.pos:e.pos+e.len]...)
		}
	}
	p.c.claim(src)
	p.claimed = append(p.claimed, src)
}
