package keep

import (
	"cmp"
	"slices"
)

// source is a run of bytes that extents of files point into: either stored,
// then it is a list of blocks, or in memory, then it is data. A manifest stream
// is one source with all its blocks, so what a manifest costs in memory is
// bounded by its length, however its files overlap.
//
// A source belongs to one collection, whose lock protects it. Data only ever
// grows at the end, and not once it is sealed.
type source struct {
	blocks []placedBlock // in order of start, no empty blocks
	size   int64

	data      []byte        // not stored yet; nil once blocks is set
	sealed    bool          // nothing will be appended any more
	uploading chan struct{} // closed when the upload under way ends; else nil
}

// placedBlock is a block and where in its source it begins.
type placedBlock struct {
	loc   Locator
	start int64
}

// stored makes the source consist of one block.
func (s *source) stored(loc Locator) {
	s.blocks = []placedBlock{{loc: loc}}
	s.data = nil
}

// inMemory tells whether the bytes are waiting for somebody to upload them.
func (s *source) inMemory() bool { return s.data != nil && s.uploading == nil }

// block returns the index of the block that holds the byte at pos.
func (s *source) block(pos int64) int {
	i, exact := slices.BinarySearchFunc(s.blocks, pos, func(b placedBlock, pos int64) int {
		return cmp.Compare(b.start, pos)
	})
	if !exact {
		i--
	}
	return i
}

// extent is a part of a file: len bytes at off are those at pos of src.
type extent struct {
	src *source
	pos int64
	len int64
	off int64
}

// from returns the part of e from the file's byte at off on, which lies at or
// before its end; an off before e means all of it.
func (e extent) from(off int64) extent {
	if skip := off - e.off; skip > 0 {
		e.pos, e.len, e.off = e.pos+skip, e.len-skip, off
	}
	return e
}

// appendExtent extends a file's list by len > 0 bytes of src at pos. An extent
// that goes on where the last one ends is merged with it.
func appendExtent(list []extent, src *source, pos, length int64) []extent {
	if len(list) == 0 {
		return append(list, extent{src, pos, length, 0})
	}
	last := &list[len(list)-1]
	if last.src == src && last.pos+last.len == pos {
		last.len += length
		return list
	}
	return append(list, extent{src, pos, length, last.off + last.len})
}

// findExtent returns the index of the extent that holds the file's byte at off,
// or len(list) if there is none.
func findExtent(list []extent, off int64) int {
	i, exact := slices.BinarySearchFunc(list, off, func(e extent, off int64) int {
		return cmp.Compare(e.off, off)
	})
	if exact {
		return i
	}
	if i > 0 && off < list[i-1].off+list[i-1].len {
		return i - 1
	}
	return len(list)
}

// Segment is a part of a file that lies in one block.
type Segment struct {
	Locator Locator
	// Offset is where in the block the segment begins.
	Offset int64
	// Length is its number of bytes, at least 1.
	Length int64
}

// segments calls fn for each block range of the extent, in order. The extent
// must be stored.
func (e extent) segments(fn func(Segment) bool) bool {
	pos, rest := e.pos, e.len
	for i := e.src.block(pos); rest > 0; i++ {
		b := e.src.blocks[i]
		seg := Segment{Locator: b.loc, Offset: pos - b.start}
		seg.Length = min(rest, b.loc.size-seg.Offset)
		if !fn(seg) {
			return false
		}
		pos += seg.Length
		rest -= seg.Length
	}
	return true
}
