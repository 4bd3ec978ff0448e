// Package filelock is what users of the kernel's file locks have in common. Such a
// lock ends with its process, whatever kills it, but three things are easily
// forgotten: that a signal interrupts the call, that the errors for "somebody else
// has it" differ, and that a file may have been removed by the time it is locked.
package filelock

import (
	"errors"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// Flock is flock(2), called again when a signal has interrupted it. The error is a
// bare unix.Errno: with LOCK_NB in how, EWOULDBLOCK if another has a lock that does
// not go with this one.
func Flock(f *os.File, how int) error {
	for {
		err := unix.Flock(int(f.Fd()), how)
		if err != unix.EINTR {
			return err
		}
	}
}

// TryBytes puts an open file description lock (fcntl(2), F_OFD_SETLK) on length bytes
// of f from start on, 0 being all to the end of the file. kind is F_RDLCK, F_WRLCK
// or F_UNLCK. It returns false if another has a lock that does not go with it.
func TryBytes(f *os.File, kind int16, start, length int64) (bool, error) {
	for {
		err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: kind, Start: start, Len: length})
		switch err {
		case nil:
			return true, nil
		case unix.EINTR:
		case unix.EAGAIN, unix.EACCES:
			return false, nil
		default:
			return false, &os.PathError{Op: "lock", Path: f.Name(), Err: err}
		}
	}
}

// StillNamed tells whether path still names the open file or directory f, and not
// another one, or none. Links are not followed.
func StillNamed(f *os.File, path string) (bool, error) {
	have, err := f.Stat()
	if err != nil {
		return false, err
	}
	named, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return os.SameFile(have, named), nil
}
