package idmap

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"crunch-oci/internal/regular"
)

// ErrTaken says that others have all the ranges.
var ErrTaken = errors.New("all ranges of user ids are in use")

// Lease is the right to a range of ids, until it is closed or this process ends.
type Lease struct {
	Range
	file *os.File
}

// Take lends one of n ranges, of which r is the first and the others follow: none
// that another process has taken in the same directory, which is made. remains is a
// path that exists until everything of the borrower is gone: who dies leaves it
// behind, and until it has been cleaned up nobody else gets the range.
func (r Range) Take(dir string, n uint32, remains string) (*Lease, error) {
	// In a directory of others, who may be faster in /var/lock, a range could be lent
	// twice.
	if err := regular.MakeDir(dir, 0o700); err != nil {
		return nil, fmt.Errorf("take a range of user ids: %w", err)
	}
	for i := range n {
		first := r.First + i*r.Count
		// Named by the id, not by i: the setting may change while containers run.
		f, err := take(filepath.Join(dir, strconv.FormatUint(uint64(first), 10)), remains)
		if err != nil {
			return nil, fmt.Errorf("take a range of user ids: %w", err)
		}
		if f != nil {
			return &Lease{Range{first, r.Count}, f}, nil
		}
	}
	return nil, fmt.Errorf("%w (there are %d: as many containers can run at a time)", ErrTaken, n)
}

// take locks a file and writes remains into it; nil if another has it.
func take(name, remains string) (_ *os.File, err error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, err
	}
	taken := false
	defer func() {
		if err != nil || taken {
			_ = f.Close()
		}
	}()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		taken = true
		return nil, nil
	} else if err != nil {
		return nil, os.NewSyscallError("flock "+name, err)
	}
	last, err := io.ReadAll(io.LimitReader(f, unix.PathMax))
	if err != nil {
		return nil, err
	}
	if path := string(last); filepath.IsAbs(path) && path != remains {
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			taken = true
			return nil, nil
		}
	}
	if err := f.Truncate(0); err != nil {
		return nil, err
	}
	_, err = f.WriteAt([]byte(remains), 0)
	return f, err
}

// Close gives the range back; others get it when what remains of the borrower is gone.
func (l *Lease) Close() error { return l.file.Close() }
