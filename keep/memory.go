package keep

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Blocks in memory that have an owner lie outside of the Go heap: there they
// would count again as the garbage that the collector lets grow beside what is in
// use, and would be cleared each time.

// minMapped is the least size of a block for which that is done: each costs a
// mapping, of which a process may have 65,530 (vm.max_map_count).
const minMapped = 256 << 10

// buffer is memory for a block.
type buffer struct {
	data   []byte
	mapped bool // else the heap's
}

// allocate returns a buffer with any content.
func allocate(size int64) (buffer, error) {
	if size < minMapped {
		return buffer{data: make([]byte, size)}, nil
	}
	data, err := unix.Mmap(-1, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return buffer{}, fmt.Errorf("allocate memory for a block of %d bytes: %w", size, err)
	}
	return buffer{data, true}, nil
}

// free gives it back. Nobody may use it any more.
func (b buffer) free() {
	if b.mapped {
		_ = unix.Munmap(b.data)
	}
}
