package imagestore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"crunch-oci/internal/filelock"
)

// claim is the right to make the thing called name: an exclusive lock on
// tmp/<name>. The directory is empty when the claim is granted.
type claim struct {
	name string
	path string
	dir  *os.File
}

// claim waits for the right to make name. waiting is called once if another
// process is at it; what that one made may be there when the claim is granted.
func (s *Store) claim(ctx context.Context, name string, waiting func()) (*claim, error) {
	for waited := false; ; waited = true {
		c, err := s.tryClaim(name)
		if err == nil {
			if err := s.emptyDir(c.path); err != nil {
				c.unlock()
				return nil, fmt.Errorf("image store: remove what a killed process left: %w", err)
			}
			return c, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("image store: %w", err)
		}
		if !waited {
			waiting()
		}
		if err := pause(ctx); err != nil {
			return nil, err
		}
	}
}

// pause is one turn of waiting for a lock. There is no call that waits for a
// file lock and can be cancelled.
func pause(ctx context.Context) error {
	t := time.NewTimer(20 * time.Millisecond)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// tryClaim fails with EWOULDBLOCK if another has the claim.
func (s *Store) tryClaim(name string) (*claim, error) {
	path := s.tmpPath(name)
	for {
		if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
			return nil, err
		}
		dir, err := lockDir(path, unix.LOCK_EX|unix.LOCK_NB)
		if errors.Is(err, os.ErrNotExist) {
			continue // its maker has just renamed or removed it
		}
		if err != nil {
			return nil, err
		}
		return &claim{name: name, path: path, dir: dir}, nil
	}
}

// lockDir opens a directory and locks it as flock(2) says: how is LOCK_SH or
// LOCK_EX, with LOCK_NB not to wait. It fails with os.ErrNotExist if the
// directory is not, or no longer, what path names.
func lockDir(path string, how int) (*os.File, error) {
	dir, err := os.OpenFile(path, unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	if err := filelock.Flock(dir, how); err != nil {
		_ = dir.Close()
		return nil, &os.PathError{Op: "flock", Path: path, Err: err}
	}
	// It may have been renamed or removed between the two calls.
	if same, err := filelock.StillNamed(dir, path); err != nil || !same {
		_ = dir.Close()
		if err == nil {
			err = &os.PathError{Op: "flock", Path: path, Err: os.ErrNotExist}
		}
		return nil, err
	}
	return dir, nil
}

// unlock gives the claim back and leaves the directory for the next to empty.
func (c *claim) unlock() { _ = c.dir.Close() }

// abandon removes what was made so far and gives the claim back.
func (c *claim) abandon() error {
	defer c.unlock()
	return os.RemoveAll(c.path)
}

// publish renames the claimed directory to path, which must not exist. The lock
// on it becomes a shared one, that of a user. The claim is over whatever the
// result; EWOULDBLOCK says that the directory was removed right away.
func (c *claim) publish(path string) (*os.File, error) {
	if err := os.Rename(c.path, path); err != nil {
		return nil, errors.Join(err, c.abandon())
	}
	// From here on the next claim may use c.path. The kernel drops the old lock before
	// it takes the new one (flock(2)): the layer may have been removed in between.
	err := filelock.Flock(c.dir, unix.LOCK_SH|unix.LOCK_NB)
	if err == nil {
		var same bool
		if same, err = filelock.StillNamed(c.dir, path); err == nil && same {
			return c.dir, nil
		}
		err = unix.EWOULDBLOCK
	}
	c.unlock()
	return nil, &os.PathError{Op: "flock", Path: path, Err: err}
}
