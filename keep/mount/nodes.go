package mount

import (
	"sync"

	"crunch-oci/keep"
)

// Node numbers. The kernel names files by 64-bit numbers that we choose. The
// upper half says which region of the tree, the lower half which entry of it:
//
//	0 << 32 | n                 the fixed part: the root, its directories and
//	                            their READMEs
//	region << 32 | 1            top directory of a collection
//	region << 32 | entry + 1    entry of a snapshot of a collection
//	region << 32 | 2            .arvados#collection of a writable collection
//	region << 32 | n            in all writable collections: see liveNodes
//	region << 32 | 1            directory of a project
//
// So nothing has to be remembered for a single file, and there is nothing to
// look up but the region.
const (
	rootNode    = 1 // FUSE_ROOT_ID
	regionShift = 32
)

// region is what the upper half of a node number stands for: a collection's
// top directory, which stays the same when the content changes, a snapshot, or a
// collection that is written to, what is in all of those, or a project's directory.
type region struct {
	coll  *collection
	snap  *snapshot
	live  *live
	nodes *liveNodes
	proj  *project
}

// regions is the table of them. The zero value is ready for use.
type regions struct {
	mu   sync.RWMutex
	next uint64
	m    map[uint64]region
}

// add returns the node number of entry 0 of a new region.
func (r *regions) add(x region) uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.m == nil {
		r.m = make(map[uint64]region)
	}
	r.next++
	r.m[r.next] = x
	return r.next<<regionShift | 1
}

func (r *regions) remove(node uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.m, node>>regionShift)
}

func (r *regions) get(node uint64) region {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.m[node>>regionShift]
}

// place is a node as it was found: of the fixed part, or an entry of a snapshot
// to which it holds a reference.
type place struct {
	node  uint64
	fixed *fixedNode
	snap  *snapshot
	entry uint32

	live *live
	file keep.Node // of live, unless it is the record

	proj *project
}

// at is the place of an entry; the reference stays the caller's. The top
// directory has the collection's own number.
func (snap *snapshot) at(entry uint32) place {
	if entry == 0 {
		return place{node: snap.coll.node, snap: snap}
	}
	return place{node: snap.base + uint64(entry), snap: snap, entry: entry}
}

// find resolves a node number; the caller ends with done. The kernel uses only
// numbers that it was given and has not forgotten, so a failure means a bug. It
// is answered ESTALE.
func (s *server) find(node uint64) (place, bool) {
	if node>>regionShift == 0 {
		f := s.fixed[node]
		return place{node: node, fixed: f}, f != nil
	}
	r := s.nodes.get(node)
	if r.live != nil {
		return r.live.find(uint32(node))
	}
	if r.nodes != nil {
		return s.findLive(uint32(node))
	}
	if r.proj != nil {
		return r.proj.place(), true
	}
	if r.coll != nil {
		return r.coll.acquire().at(0), true
	}
	entry := uint64(uint32(node)) - 1
	if r.snap == nil || entry > uint64(len(r.snap.tree.entries)) || !r.snap.acquire() {
		return place{}, false
	}
	return r.snap.at(uint32(entry)), true
}

func (s *server) done(p place) {
	if p.snap != nil {
		s.unref(p.snap, 1)
	}
}

// remember notes that the kernel is given the place's number once more.
func (p place) remember() {
	if p.snap != nil && p.entry != 0 {
		p.snap.refs.Add(1)
	}
}

// ino is the inode number that programs see: below 2^32, because 32-bit programs
// fail on larger ones, and so not the node number.
func (p place) ino() uint64 {
	switch {
	case p.isLiveRecord():
		return p.live.recordIno
	case p.live != nil:
		return p.file.Number(p.live.ino)
	case p.proj != nil:
		return p.proj.ino
	case p.snap == nil:
		return p.node
	case p.entry == 0:
		return p.snap.coll.ino
	}
	return p.snap.ino + uint64(p.entry)
}

// firstIno leaves room for the fixed part, whose numbers are the node numbers.
const firstIno = 1 << 16

// inodes reserves n inode numbers and returns the first.
func (s *server) inodes(n int) uint64 {
	return firstIno + s.nextIno.Add(uint64(n)) - uint64(n)
}

// Forget implements fuse.RawFileSystem.
func (s *server) Forget(node, n uint64) {
	s.stats.ops[opForget].count.Add(1)
	switch r := s.nodes.get(node); {
	case r.nodes != nil:
		r.nodes.forget(uint32(node), n)
	case r.snap != nil:
		s.unref(r.snap, int64(n))
	}
}

// isRecord tells whether p is .arvados#collection, whose index is one past the
// last entry.
func (p place) isRecord() bool {
	return p.isLiveRecord() || p.snap != nil && int(p.entry) == len(p.snap.tree.entries)
}

func (p place) isLiveRecord() bool { return p.live != nil && p.node == p.live.base+liveRecord }

func (p place) isDir() bool {
	if p.live != nil {
		return !p.isLiveRecord() && p.file.IsDir()
	}
	if p.fixed != nil {
		return p.fixed.data == nil
	}
	if p.proj != nil {
		return true
	}
	return !p.isRecord() && p.snap.tree.entries[p.entry].dir
}
