package idmap

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

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
// with an id that another process has been lent in the same directory, which is made.
// remains is a path that exists until everything of the borrower is gone: who dies
// leaves it behind, and until it has been cleaned up nobody else gets the range.
func (r Range) Take(dir string, n uint32, remains string) (*Lease, error) {
	for i := range n {
		l, err := Range{r.First + i*r.Count, r.Count}.lend(dir, unix.LOCK_EX, remains)
		if l != nil || err != nil {
			return l, err
		}
	}
	return nil, fmt.Errorf("%w (there are %d: as many containers can run at a time)", ErrTaken, n)
}

// Share lends the range to everybody who shares it, but to nobody while one of its
// ids is lent by Take, and the other way round.
func (r Range) Share(dir string) (*Lease, error) {
	l, err := r.lend(dir, unix.LOCK_SH, "")
	if l == nil && err == nil {
		return nil, fmt.Errorf("%w by containers that began before the setting was changed", ErrTaken)
	}
	return l, err
}

// lend returns nil if others have some of the ids. Each range has a file, named by
// its ids, since the setting may change while containers run.
func (r Range) lend(dir string, how int, remains string) (_ *Lease, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("take a range of user ids: %w", err)
		}
	}()
	// In a directory of others, who may be faster in /var/lock, a range could be lent
	// twice.
	if err := regular.MakeDir(dir, 0o700); err != nil {
		return nil, err
	}
	f, err := take(filepath.Join(dir, r.name()), os.O_CREATE, how, remains)
	if f == nil || err != nil {
		return nil, err
	}
	// Only now, so that of two who ask for overlapping ranges one sees the other.
	free, err := r.othersFree(dir, how, remains)
	if free && err == nil && remains != "" {
		if err = f.Truncate(0); err == nil {
			_, err = f.WriteAt([]byte(remains), 0)
		}
	}
	if !free || err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &Lease{r, f}, nil
}

func (r Range) name() string { return fmt.Sprintf("%d-%d", r.First, r.First+r.Count-1) }

// othersFree tells whether nobody has another range that shares ids with this one.
func (r Range) othersFree(dir string, how int, remains string) (bool, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return false, err
	}
	for _, e := range entries {
		var first, last uint32
		if _, err := fmt.Sscanf(e.Name(), "%d-%d", &first, &last); err != nil || e.Name() == r.name() || last < r.First || first > r.First+r.Count-1 {
			continue
		}
		f, err := take(filepath.Join(dir, e.Name()), 0, how, remains)
		if f == nil || err != nil {
			return false, err
		}
		_ = f.Close()
	}
	return true, nil
}

// take locks a file; nil if another has it, or has died and left something behind.
func take(name string, create, how int, remains string) (_ *os.File, err error) {
	f, err := os.OpenFile(name, os.O_RDWR|create|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, err
	}
	taken := false
	defer func() {
		if err != nil || taken {
			_ = f.Close()
		}
	}()
	if err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
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
	return f, nil
}

// Close gives the range back; others get it when what remains of the borrower is gone.
func (l *Lease) Close() error { return l.file.Close() }
