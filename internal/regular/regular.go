// Package regular opens files, and makes directories, whose names others may have put
// something else at: opening a named pipe would wait for whoever writes to it, a
// device may have no end, and what is in a directory of somebody else may change.
package regular

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// ErrNot says that there is something, but no regular file.
var ErrNot = errors.New("not a regular file")

// Open opens a regular file that exists, with flags of open(2), and waits for
// nothing. With O_NOFOLLOW a symbolic link is no regular file.
func Open(path string, flags int) (*os.File, error) {
	f, err := os.OpenFile(path, flags|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	// A link, a directory opened for writing, a socket.
	if flags&unix.O_NOFOLLOW != 0 && errors.Is(err, unix.ELOOP) || errors.Is(err, unix.EISDIR) || errors.Is(err, unix.ENXIO) {
		return nil, &fs.PathError{Op: "open", Path: path, Err: ErrNot}
	}
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = &fs.PathError{Op: "open", Path: path, Err: ErrNot}
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// Ours tells whether a file belongs to root or to the user of this process.
func Ours(info fs.FileInfo) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && (st.Uid == 0 || int(st.Uid) == os.Geteuid())
}

// MakeDir makes a directory, and its parents, unless there is one. It fails if others
// than this process's user, and the directory's group, can write to that.
func MakeDir(dir string, mode fs.FileMode) error {
	if err := os.MkdirAll(dir, mode); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return &fs.PathError{Op: "lstat", Path: dir, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || int(st.Uid) != os.Geteuid() || st.Mode&0o002 != 0 {
		return fmt.Errorf("%s is not a directory that only user %d can write: remove it", dir, os.Geteuid())
	}
	return nil
}
