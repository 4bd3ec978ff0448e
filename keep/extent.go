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
// A source belongs to one collection, whose lock protects it. While it is not
// sealed, exactly one extent refers to it, to all of it: its data may grow,
// shrink and be overwritten in place. Sealed, it never changes again.
type source struct {
	blocks []placedBlock // in order of start, no empty blocks
	size   int64

	data      []byte // not stored yet; nil once blocks is set
	sealed    bool
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

// hole is the source of all extents that were never written. It has neither
// data nor blocks, and no end: what is read from it is zeros. In a manifest it
// refers, again and again if it is long, to a block of them; see fill.
var hole = &source{sealed: true}

// inMemory tells whether the bytes are waiting for somebody to upload them.
func (s *source) inMemory() bool { return s.data != nil && s.uploading == nil }

// dirty tells whether the data may still be changed in place.
func (s *source) dirty() bool { return s.data != nil && !s.sealed }

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

// cutExtents returns list without the file's bytes from off to off+length, with
// repl in their place, if it is not empty. The range must lie in the file, and
// repl, if given, be as long. What is left of a dirty source that was cut in two
// or at its start is sealed.
func cutExtents(list []extent, off, length int64, repl ...extent) []extent {
	end := off + length
	i := findExtent(list, off)
	j := findExtent(list, end-1)
	var parts [3]extent
	keep := parts[:0]
	if first := list[i]; first.off < off {
		first.len = off - first.off
		keep = append(keep, first)
		first.src.seal()
	}
	keep = append(keep, repl...)
	if last := list[j].from(end); list[j].off+list[j].len > end {
		keep = append(keep, last)
		last.src.seal()
	}
	return slices.Replace(list, i, j+1, keep...)
}

func (s *source) seal() {
	if s != hole {
		s.sealed = true
	}
}

// mergeExtents joins extents that go on in the same source.
func mergeExtents(list []extent) []extent {
	out := list[:0]
	for _, e := range list {
		if n := len(out); n > 0 && out[n-1].src == e.src && (e.src == hole || out[n-1].pos+out[n-1].len == e.pos) {
			out[n-1].len += e.len
			continue
		}
		out = append(out, e)
	}
	clear(list[len(out):])
	return out
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
