// Package regular opens files whose names others may have put something else at:
// opening a named pipe would wait for whoever writes to it, and a device may have
// no end.
package regular

import (
	"errors"
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
