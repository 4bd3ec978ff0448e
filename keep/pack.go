package keep

import (
	"context"
	"slices"
	"syscall"
)

// Flush starts storing what is in memory below the directory name ("" for the
// whole tree) and returns when the last upload has begun. With short false it
// leaves in memory what would make a less than half full block and the ends of
// files that are still open for writing. How the uploads end is known from Err
// and MarshalManifest; an error says that there is no such directory or that
// ctx has ended.
func (c *Collection) Flush(ctx context.Context, name string, short bool) error {
	c.marshalMu.Lock()
	defer c.marshalMu.Unlock()
	c.mu.Lock()
	n, err := c.root.walk(name)
	if err == nil && n.dir == nil {
		err = syscall.ENOTDIR
	}
	if err != nil {
		c.mu.Unlock()
		return pathError("flush", name, err)
	}
	srcs := c.packTree(n, short, nil)
	if n == c.root && short {
		c.failed, c.stuck, c.buffered = nil, 0, 0
	}
	c.mu.Unlock()
	for _, src := range srcs {
		c.upload(ctx, src)
	}
	return ctx.Err()
}

// packTree packs dir and the directories below it, appending to srcs.
func (c *Collection) packTree(dir *node, short bool, srcs []*source) []*source {
	srcs = c.packDir(dir, short, srcs)
	for _, e := range dir.list() {
		if e.dir != nil {
			srcs = c.packTree(e, short, srcs)
		}
	}
	return srcs
}

// loose is an extent whose bytes are in memory.
type loose struct {
	file  *node
	index int
}

func (l loose) extent() extent { return l.file.extents[l.index] }

// packDir distributes what the files of one directory have in memory to blocks,
// makes the files refer to these, and appends them, claimed, to srcs. More than
// half a block becomes a block of its own; what is smaller is put together in
// order of the file names.
func (c *Collection) packDir(dir *node, short bool, srcs []*source) []*source {
	var pack []loose
	var packSize int64
	for _, f := range dir.list() {
		if f.dir != nil || !short && f.writers > 0 {
			continue
		}
		for i, e := range f.extents {
			switch {
			case !e.src.inMemory():
			case e.len > int64(c.blockSize/2):
				srcs = append(srcs, c.store([]loose{{f, i}}))
			default:
				if packSize+e.len > int64(c.blockSize) {
					srcs = append(srcs, c.store(pack))
					pack, packSize = nil, 0
				}
				pack = append(pack, loose{f, i})
				packSize += e.len
			}
		}
	}
	if len(pack) > 0 && (short || packSize > int64(c.blockSize/2)) {
		srcs = append(srcs, c.store(pack))
	}
	return srcs
}

// store makes one claimed source of the given parts, which together fit in a
// block, and the files refer to it.
func (c *Collection) store(parts []loose) *source {
	first := parts[0].extent()
	if len(parts) == 1 && first.len == first.src.size {
		c.claim(first.src)
		return first.src
	}
	var size int64
	for _, l := range parts {
		size += l.extent().len
	}
	src := &source{size: size, data: make([]byte, 0, size)}
	for _, l := range parts {
		e := l.extent()
		// A list may be shared with a manifest being written, so it is
		// replaced, not changed.
		l.file.extents = slices.Clone(l.file.extents)
		l.file.extents[l.index] = extent{src, int64(len(src.data)), e.len, e.off}
		src.data = append(src.data, e.src.data[e.pos:e.pos+e.len]...)
	}
	c.claim(src)
	return src
}
