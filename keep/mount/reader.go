package mount

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"crunch-oci/keep"
)

const (
	// aheadAfter is how many bytes of a file must have been read through
	// before the blocks that follow are fetched: programs that look at the
	// head of a file do not cause 64 MiB of traffic.
	aheadAfter = 1 << 20
	// aheadMost and aheadBlocks are how far to fetch ahead at most: four full
	// blocks, or a number of small ones. It begins with one block and grows
	// with what has been read through: twice as much may turn out to be in vain.
	// A cache in memory may hold only four: one would be dropped before it is
	// read.
	aheadMost       = 4 * keep.MaxBlockSize
	aheadMostMemory = 2 * keep.MaxBlockSize
	aheadBlocks     = 16
	// aheadSlack is how far reads may arrive out of order and still count as
	// reading through: the kernel's own read-ahead is served in parallel.
	aheadSlack = 8 << 20
	// failureHeld is how long a block that could not be read is not asked for
	// again. The kernel repeats a failed read-ahead page by page.
	failureHeld = time.Second
)

// blockReader reads ranges of blocks.
type blockReader struct {
	blocks   keep.BlockReader
	ranges   keep.BlockRangeReader // nil if blocks cannot
	prefetch keep.Prefetcher       // nil if blocks cannot
	most     int64                 // bytes to fetch ahead of a reader

	mu     sync.Mutex
	failed map[string]failure // by hash
}

type failure struct {
	at  time.Time
	err error
}

// repeatedError is an error that was already reported for the same block.
type repeatedError struct{ err error }

func (e *repeatedError) Error() string { return e.err.Error() }
func (e *repeatedError) Unwrap() error { return e.err }

func newBlockReader(b Backend) *blockReader {
	r := &blockReader{blocks: b.Blocks, failed: make(map[string]failure)}
	r.most = aheadMost
	if b.InMemory {
		r.most = aheadMostMemory
	}
	r.ranges, _ = b.Blocks.(keep.BlockRangeReader)
	r.prefetch, _ = b.Blocks.(keep.Prefetcher)
	return r
}

// read fills buf with the bytes of a file from off on.
func (r *blockReader) read(ctx context.Context, segs *segments, buf []byte, off int64, ahead *readAhead) error {
	i, found := slices.BinarySearch(segs.off, off)
	if !found {
		i--
	}
	last := i
	for rest := off + int64(len(buf)); last+1 < len(segs.off) && segs.off[last+1] < rest; {
		last++
	}
	if r.prefetch != nil {
		// Several small blocks in one read: fetch them at the same time.
		for j := i + 1; j <= last; j++ {
			r.prefetch.Prefetch(segs.list[j].Locator)
		}
		if ahead.sequential(off, len(buf)) {
			r.readAhead(segs, last, ahead)
		}
	}
	for ; len(buf) > 0; i++ {
		if i < 0 || i >= len(segs.list) {
			return fmt.Errorf("no block for byte %d", off)
		}
		seg := segs.list[i]
		skip := off - segs.off[i]
		n := int(min(int64(len(buf)), seg.Length-skip))
		if err := r.readBlock(ctx, seg.Locator, buf[:n], seg.Offset+skip); err != nil {
			return err
		}
		buf = buf[n:]
		off += int64(n)
	}
	return nil
}

// readBlock fills p with the bytes of a block from off on.
func (r *blockReader) readBlock(ctx context.Context, loc keep.Locator, p []byte, off int64) error {
	if err := r.recentFailure(loc); err != nil {
		return err
	}
	var err error
	if r.ranges != nil {
		_, err = r.ranges.ReadBlockAt(ctx, loc, p, off)
	} else {
		var data []byte
		data, err = r.blocks.ReadBlock(ctx, loc)
		if end := off + int64(len(p)); err == nil && end > int64(len(data)) {
			err = fmt.Errorf("block %s: %w", loc.WithoutHints(), keep.ErrChecksum)
		} else if err == nil {
			copy(p, data[off:])
		}
	}
	if err != nil && ctx.Err() == nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.failed[loc.String()] = failure{time.Now(), err}
	}
	return err
}

// recentFailure returns why the block could not be read a moment ago. It is
// kept by locator with its signature, as a new one may cure it.
func (r *blockReader) recentFailure(loc keep.Locator) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.failed) == 0 {
		return nil
	}
	for l, f := range r.failed {
		if time.Since(f.at) > failureHeld {
			delete(r.failed, l)
		}
	}
	if f, ok := r.failed[loc.String()]; ok {
		return &repeatedError{f.err}
	}
	return nil
}

// readAhead follows how one handle is read.
type readAhead struct {
	next atomic.Int64 // end of the latest read
	run  atomic.Int64 // bytes read through so far
	done atomic.Int64 // segments that were fetched ahead
}

// sequential notes a read and tells whether the file is being read through.
func (a *readAhead) sequential(off int64, n int) bool {
	next := a.next.Load()
	if off < next-aheadSlack || off > next+aheadSlack {
		a.next.Store(off + int64(n))
		a.run.Store(0)
		a.done.Store(0)
		return false
	}
	if end := off + int64(n); end > next {
		a.next.Store(end)
	}
	return a.run.Add(int64(n)) > aheadAfter
}

// readAhead fetches the blocks after the segment that is being read.
func (r *blockReader) readAhead(segs *segments, current int, ahead *readAhead) {
	here := segs.list[current].Locator.Hash()
	var bytes int64
	window := min(max(2*ahead.run.Load(), keep.MaxBlockSize), r.most)
	blocks := 0
	for i := current + 1; i < len(segs.list) && blocks < aheadBlocks; i++ {
		loc := segs.list[i].Locator
		if loc.Hash() == here {
			continue
		}
		here = loc.Hash()
		blocks++
		if bytes += loc.Size(); bytes > window {
			return
		}
		if ahead.done.Load() < int64(i) {
			ahead.done.Store(int64(i))
			r.prefetch.Prefetch(loc)
		}
	}
}
