package localcluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrInUse is wrapped by the error of Start when another process has the
// directory.
var ErrInUse = errors.New("the directory is in use by another process")

const lockFile = "lock"

// lockDir takes the directory for this process. The kernel gives it back when
// the process ends in whatever way (flock(2)); the file stays, with the pid of
// the last holder.
func lockDir(dir string) (unlock func(context.Context) error, err error) {
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		pid, _ := io.ReadAll(io.LimitReader(f, 20)) // only for the message
		f.Close()
		return nil, fmt.Errorf("%w (pid %s): stop it, or use another directory", ErrInUse, strings.TrimSpace(string(pid)))
	}
	if err == nil {
		err = f.Truncate(0)
	}
	if err == nil {
		_, err = fmt.Fprintln(f, os.Getpid())
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return func(context.Context) error { return f.Close() }, nil
}
