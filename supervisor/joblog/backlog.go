package joblog

import (
	"sync"
	"time"
)

const (
	// patience is how long the author of a message waits for it to be in the
	// tree. The supervisor must be able to say, and do, something while Keep
	// is stuck.
	patience = time.Second
	// maxBacklog is where patience ends: that much memory may messages take.
	maxBacklog = 16 << 20
)

// backlog carries messages into the tree, in order, on behalf of authors who do
// not wait for Keep.
type backlog struct {
	put func([]byte) error // into the tree; its error has nobody to go to
	end <-chan struct{}    // closed when it is no use to wait any more

	mu      sync.Mutex
	pending []byte
	drained chan struct{} // closed when pending is empty; nil while it is
	stuck   bool          // somebody has lost patience already
}

func (b *backlog) add(p []byte) {
	b.mu.Lock()
	b.pending = append(b.pending, p...)
	if b.drained == nil {
		b.drained = make(chan struct{})
		go b.drain()
	}
	drained, stuck, full := b.drained, b.stuck, len(b.pending) > maxBacklog
	b.mu.Unlock()
	if stuck && !full {
		return
	}
	var lost <-chan time.Time // patience
	if !full {
		t := time.NewTimer(patience)
		defer t.Stop()
		lost = t.C
	}
	select {
	case <-drained:
	case <-b.end:
	case <-lost:
		b.mu.Lock()
		b.stuck = b.drained == drained
		b.mu.Unlock()
	}
}

// drain ends when there is nothing left.
func (b *backlog) drain() {
	for {
		b.mu.Lock()
		p := b.pending
		b.pending = nil
		if len(p) == 0 {
			close(b.drained)
			b.drained, b.stuck = nil, false
			b.mu.Unlock()
			return
		}
		b.mu.Unlock()
		b.put(p) //nolint:errcheck // it is on stderr
	}
}

// size is what is still to come.
func (b *backlog) size() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return int64(len(b.pending))
}

// wait waits, not for long, and says whether what was added is in the tree.
func (b *backlog) wait() bool {
	b.mu.Lock()
	drained := b.drained
	b.mu.Unlock()
	if drained == nil {
		return true
	}
	t := time.NewTimer(patience)
	defer t.Stop()
	select {
	case <-drained:
		return true
	case <-t.C:
		return false
	}
}
