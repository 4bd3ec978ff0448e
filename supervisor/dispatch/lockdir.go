package dispatch

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"crunch-oci/internal/filelock"
	"crunch-oci/internal/regular"
)

const (
	lockPrefix = "crunch-run-"
	lockSuffix = ".lock"
	allName    = "crunch-run-all.lock"
	brokenName = "crunch-run-broken"
	pricesName = "crunch-run-prices.json"
)

// lockMode is the mode of lock files and of the broken flag.
const lockMode = 0o700

// Dir is the directory of the run locks, usually /var/lock.
type Dir string

// RunLock is the path of a container's lock file. The UUID must have been
// checked.
func (d Dir) RunLock(uuid string) string {
	return filepath.Join(string(d), lockPrefix+uuid+lockSuffix)
}

// Prices is the path of the list of prices.
func (d Dir) Prices() string { return filepath.Join(string(d), pricesName) }

// Broken is the path of the file that says that the node is broken.
func (d Dir) Broken() string { return filepath.Join(string(d), brokenName) }

// MarkBroken makes the file that says that this node cannot run containers. A
// file that is there already is kept.
func (d Dir) MarkBroken() error {
	f, err := os.OpenFile(d.Broken(), os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, lockMode)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return f.Close()
}

const (
	// The lock of the directory is held for the time of a few system calls.
	// Whoever holds it longer is stopped, or wants to be in the way.
	lockAllPatience = 5 * time.Second
	lockAllPoll     = 5 * time.Millisecond
)

// errAllLocked says that somebody does not let go of the directory's lock.
var errAllLocked = fmt.Errorf("still locked by another process after %v", lockAllPatience)

// lockAll takes the directory's lock, which lasts until the file is closed. It
// waits for others, but not for ever: a dispatcher waits for this program
// without a time limit.
func (d Dir) lockAll(ctx context.Context) (*os.File, error) {
	path := filepath.Join(string(d), allName)
	f, err := openOrCreate(path)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, lockAllPatience, errAllLocked)
	defer cancel()
	// There is no call that waits for a file lock and can be cancelled.
	tick := time.NewTicker(lockAllPoll)
	defer tick.Stop()
	for {
		err := filelock.Flock(f, unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if errors.Is(err, unix.EWOULDBLOCK) {
			select {
			case <-tick.C:
				continue
			case <-ctx.Done():
				err = context.Cause(ctx)
			}
		}
		_ = f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
}

// openOrCreate opens a lock file for reading and writing. It is created in a
// call of its own: the kernel refuses to open other people's files in a
// directory that everybody may write to with O_CREAT (fs.protected_regular).
//
// A file of another user, who could change it and hold its lock for ever, is
// replaced if this user is root.
func openOrCreate(path string) (*os.File, error) {
	for {
		f, err := openRegular(path, os.O_RDWR)
		if errors.Is(err, errForeign) && os.Geteuid() == 0 {
			if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, err
			}
			continue
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return f, err
		}
		f, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, lockMode)
		if !errors.Is(err, fs.ErrExist) {
			return f, err
		}
		// Somebody was faster; or it is a link that leads nowhere, which the
		// next round refuses.
	}
}

// Lock files can be made by everybody where the directory is everybody's.
var (
	errNotRegular = fmt.Errorf("%w (remove it)", regular.ErrNot)
	errForeign    = errors.New("belongs to another user (remove it)")
)

// openRegular opens an existing file unless it is something else than a regular
// file of root's or this user's. It does not block.
func openRegular(path string, flag int) (*os.File, error) {
	f, err := regular.Open(path, flag|unix.O_NOFOLLOW)
	if errors.Is(err, regular.ErrNot) {
		err = &fs.PathError{Op: "open", Path: path, Err: errNotRegular}
	}
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	// Others could have written it.
	if err == nil && !regular.Ours(info) {
		err = &fs.PathError{Op: "open", Path: path, Err: errForeign}
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// takeRunLock opens or makes the container's lock file and locks it, for as long
// as any process has the file open. The file is empty then.
func (d Dir) takeRunLock(ctx context.Context, uuid string) (*os.File, error) {
	if err := os.MkdirAll(string(d), 0o755); err != nil {
		return nil, err
	}
	all, err := d.lockAll(ctx)
	if err != nil {
		return nil, err
	}
	defer all.Close()
	path := d.RunLock(uuid)
	for {
		f, err := openOrCreate(path)
		if err != nil {
			return nil, err
		}
		if err := filelock.Flock(f, unix.LOCK_EX|unix.LOCK_NB); err != nil {
			_ = f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		same, err := filelock.StillNamed(f, path)
		if err == nil && same {
			err = f.Truncate(0)
		}
		if err == nil && same {
			return f, nil
		}
		_ = f.Close()
		if err != nil {
			return nil, err
		}
		// Removed by somebody who has no respect for the directory's lock.
	}
}
