package keepstore

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// bufferIdle is how long a buffer without work keeps its memory.
const bufferIdle = 5 * time.Second

// buffers admits at most n block requests at a time and lends those that
// store a block 64 MiB to receive it. The memory lies outside of the Go heap:
// it costs what was written to it, and goes back to the system when there is
// nothing to store, instead of doubling the heap for minutes.
type buffers struct {
	slots chan struct{}

	mu     sync.Mutex
	free   [][]byte // each maxBlockSize long
	closed bool
	trim   *time.Timer
}

func newBuffers(n int) *buffers {
	b := &buffers{slots: make(chan struct{}, n)}
	b.trim = time.AfterFunc(bufferIdle, b.drop)
	return b
}

// acquire waits for a place. The caller gives it back with release.
func (b *buffers) acquire(ctx context.Context) error {
	select {
	case b.slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (b *buffers) release() { <-b.slots }

// get returns maxBlockSize bytes of memory with any content.
func (b *buffers) get() ([]byte, error) {
	b.mu.Lock()
	if n := len(b.free); n > 0 {
		buf := b.free[n-1]
		b.free = b.free[:n-1]
		b.mu.Unlock()
		return buf, nil
	}
	b.mu.Unlock()
	buf, err := unix.Mmap(-1, 0, maxBlockSize, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("allocate a block buffer of %d bytes: %w", maxBlockSize, err)
	}
	return buf, nil
}

// put takes back what get returned.
func (b *buffers) put(buf []byte) {
	b.mu.Lock()
	keep := !b.closed && len(b.free) < runtime.GOMAXPROCS(0)
	if keep {
		b.free = append(b.free, buf)
		b.trim.Reset(bufferIdle)
	}
	b.mu.Unlock()
	if !keep {
		_ = unix.Munmap(buf)
	}
}

// drop frees the memory that nobody uses.
func (b *buffers) drop() {
	b.mu.Lock()
	free := b.free
	b.free = nil
	b.mu.Unlock()
	for _, buf := range free {
		_ = unix.Munmap(buf)
	}
}

func (b *buffers) close() {
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	b.trim.Stop()
	b.drop()
}
