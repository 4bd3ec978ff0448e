// Package rmtree removes a directory tree without ever leaving its file system:
// a mount that could not be undone is never emptied through.
package rmtree

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// ErrMounted says that something is still mounted below the tree; everything
// else in it has been removed.
var ErrMounted = errors.New("a file system is still mounted there")

// Remove removes path and everything below it that lies on the same mount. A
// path that does not exist is no error. Links are removed, never followed.
func Remove(path string) error {
	parent, err := unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		if err == unix.ENOENT {
			return nil
		}
		return &os.PathError{Op: "open", Path: filepath.Dir(path), Err: err}
	}
	defer unix.Close(parent)
	return removeAt(parent, filepath.Base(path), path)
}

func removeAt(dir int, name, path string) error {
	err := unix.Unlinkat(dir, name, 0)
	if err == nil || err == unix.ENOENT {
		return nil
	}
	if err != unix.EISDIR && err != unix.EPERM {
		if err == unix.EBUSY {
			return fmt.Errorf("remove %s: %w", path, ErrMounted)
		}
		return &os.PathError{Op: "unlink", Path: path, Err: err}
	}
	// RESOLVE_NO_XDEV makes opening a mount point fail, also a bind mount of
	// the same file system, which comparing device numbers would miss.
	fd, err := unix.Openat2(dir, name, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_NO_XDEV | unix.RESOLVE_NO_SYMLINKS,
	})
	switch err {
	case nil:
	case unix.ENOENT:
		return nil
	case unix.EXDEV:
		return fmt.Errorf("remove %s: %w", path, ErrMounted)
	default:
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	if err := empty(fd, path); err != nil {
		return err
	}
	if err := unix.Unlinkat(dir, name, unix.AT_REMOVEDIR); err != nil && err != unix.ENOENT {
		return &os.PathError{Op: "rmdir", Path: path, Err: err}
	}
	return nil
}

// empty removes all entries of the directory fd and closes it.
func empty(fd int, path string) error {
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	var errs []error
	for {
		names, err := f.Readdirnames(1024)
		for _, name := range names {
			if err := removeAt(fd, name, filepath.Join(path, name)); err != nil {
				errs = append(errs, err)
			}
		}
		if err == io.EOF || len(names) == 0 {
			return errors.Join(errs...)
		}
		if err != nil {
			return err
		}
	}
}
