package capture

import (
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"crunch-oci/keep"
)

// longHole is from how many bytes on a hole of a sparse file is neither read nor
// stored: a whole block. Shorter ones are treated as the zeros that they read
// as, so that the manifest of all but very sparse files depends on nothing but
// their content.
const longHole = keep.MaxBlockSize

// holes finds the long holes of a file (lseek(2), SEEK_DATA and SEEK_HOLE). A
// file system that knows of none has only data.
type holes struct {
	f io.Seeker
	// next is where the next hole may begin: before, there is nothing to be
	// skipped. -1 if there is none any more.
	next int64
}

func newHoles(f *os.File) holes {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil || st.Size-512*st.Blocks < longHole {
		return holes{next: -1}
	}
	return holes{f: f}
}

// skip returns the end of the hole at off, to which it moves the file's
// position, or off, if there is no long one. A hole at the end of the file ends
// with it.
func (h *holes) skip(off int64) (int64, error) {
	if h.next < 0 || off < h.next {
		return off, nil
	}
	to, err := h.f.Seek(off, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO): // nothing but a hole, or the file is shorter now
		h.next = -1
		if to, err = h.f.Seek(0, unix.SEEK_END); err != nil {
			return 0, err
		}
	case err != nil:
		// Nobody knows. Reading tells what there is, or why it cannot be read.
		h.next, to = -1, off
	default:
		if h.next, err = h.f.Seek(to, unix.SEEK_HOLE); err != nil {
			h.next = -1
		}
	}
	if to-off < longHole {
		to = off
	}
	return h.f.Seek(to, unix.SEEK_SET)
}
