package mount

import "sync"

// neighbours follows a program that reads the small files of a directory one
// after the other. Files are packed into blocks in the order of their names, so
// the block that comes next can be fetched while the files of this one are
// read.
type neighbours struct {
	mu     sync.Mutex
	last   uint32 // entry read to its end most recently
	run    int    // how many were, in order
	tried  uint32 // entry for which the next block was last looked for
	beyond string // hash of the block whose successor was found
}

const (
	// inOrder is how many files must have been read in order, and skip how
	// many may be left out between two of them.
	inOrder = 8
	skip    = 8
	// lookAhead is how many files the search for the next block looks ahead
	// at most; it doubles its steps on the way.
	lookAhead = 4096
)

// due notes that an entry was read to its end, from a block of that hash, and
// tells whether to look for the next block.
func (n *neighbours) due(entry uint32, hash string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if entry == n.last {
		return false
	}
	if entry < n.last || entry > n.last+skip {
		n.run, n.tried = 0, 0
	}
	n.last = entry
	n.run++
	if n.run < inOrder || hash == n.beyond || n.tried != 0 && entry < n.tried+16 {
		return false
	}
	n.tried = entry
	return true
}

func (n *neighbours) found(hash string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.beyond = hash
}

// prefetchNeighbour fetches the block that the files after h's continue in, if
// h's has just been read to its end and files are being read in order.
func (s *server) prefetchNeighbour(h *handle, segs *segments) {
	if s.reader.prefetch == nil || len(segs.list) == 0 {
		return
	}
	seg := segs.list[len(segs.list)-1]
	hash := seg.Locator.Hash()
	if seg.Offset+seg.Length < seg.Locator.Size()/2 || !h.snap.neighbours.due(h.entry, hash) {
		return
	}
	t := h.snap.tree
	dir := &t.entries[t.entries[h.entry].parent]
	for step := uint32(1); step <= lookAhead && h.entry+step < dir.first+dir.count; step *= 2 {
		f, err := segs.from.files.Open(t.path(h.entry + step))
		if err != nil {
			continue // a directory
		}
		next := f.Segments()
		f.Close()
		if len(next) > 0 && next[0].Locator.Hash() != hash {
			s.reader.prefetch.Prefetch(next[0].Locator)
			h.snap.neighbours.found(hash)
			return
		}
	}
}
