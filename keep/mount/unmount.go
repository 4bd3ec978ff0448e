package mount

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Unmount removes all FUSE mounts at dir, alive or dead, busy or not, in at most
// timeout: it aborts the connection, so that nobody waits for its server any
// more, and detaches the mount, so that nobody finds it. A directory on which
// nothing is mounted is no error.
func Unmount(ctx context.Context, dir string, timeout time.Duration) error {
	dir, err := realPath(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	// Each step is made in a goroutine of its own, because no system call on a
	// broken mount can be trusted to return. One that hangs ends with the
	// process.
	var last error
	for {
		type result struct {
			mounts int
			err    error
		}
		done := make(chan result, 1)
		go func() {
			n, err := unmountOnce(dir)
			done <- result{n, err}
		}()
		select {
		case r := <-done:
			if r.mounts == 0 && r.err == nil {
				return nil
			}
			last = r.err
		case <-ctx.Done():
			return unmountError(dir, timeout, last)
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return unmountError(dir, timeout, last)
		}
	}
}

func unmountError(dir string, timeout time.Duration, last error) error {
	if last == nil {
		last = errors.New("the system call did not return")
	}
	return fmt.Errorf("unmount %s: still mounted after %v: %w", dir, timeout, last)
}

// unmountOnce takes off what is mounted now and returns how many mounts it found.
func unmountOnce(dir string) (int, error) {
	mounts, err := fuseMounts(dir)
	if err != nil {
		return 0, err
	}
	for range mounts {
		// Without the abort, detaching still works; it only leaves those who
		// wait for the server waiting.
		_ = abortMount(dir, "")
		err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if err != nil && err != unix.EINVAL {
			return len(mounts), err
		}
	}
	left, err := fuseMounts(dir)
	return len(left), err
}

// realPath makes a path absolute and resolves symbolic links in it, as far as
// that is possible without asking what may be mounted there: readlink(2) of a
// directory asks nobody.
func realPath(dir string) (string, error) {
	const maxLinks = 40 // as many as the kernel follows
	dir, err := filepath.Abs(dir)
	for range maxLinks {
		if err != nil || dir == "/" {
			return dir, err
		}
		parent, err := filepath.EvalSymlinks(filepath.Dir(dir))
		if err != nil {
			return filepath.Join(parent, filepath.Base(dir)), err
		}
		dir = filepath.Join(parent, filepath.Base(dir))
		target, err := os.Readlink(dir)
		if err != nil {
			return dir, nil
		}
		if !filepath.IsAbs(target) {
			target = filepath.Join(parent, target)
		}
		dir = filepath.Clean(target)
	}
	return dir, &fs.PathError{Op: "open", Path: dir, Err: unix.ELOOP}
}
