package rundir

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"crunch-oci/internal/filelock"
)

// The lock file has three bytes that are locked (fcntl(2), open file description
// locks: they end with the last descriptor, and are inherited with it). Who
// cleans up holds the first, a run holds the first two, taken at once; so it can
// be told what a directory is busy with, without a moment at which it looks
// different. The third is held by the supervisor alone, through a descriptor
// that no child inherits: if only the first two are held, the supervisor is dead
// and its children, who get their signal at the same moment, are about to be.
const (
	ownByte   = 0
	runByte   = 1
	aliveByte = 2
)

// errCleaning says that the previous run is ending, or is being cleaned up after.
var errCleaning = errors.New("the previous run of this container on this node is still ending, or being cleaned up after")

const (
	// cleaningPoll is how often a new run looks whether the cleaning is over.
	// There is no call that waits for a file lock and can be cancelled.
	cleaningPoll = 20 * time.Millisecond
	// cleaningTimeout is long enough for a million files on a slow disk; who
	// needs longer is stuck.
	cleaningTimeout = 5 * time.Minute
)

// acquireRun makes and locks the directory for a run, and waits for who cleans
// up there. It returns ErrRunning if a run holds it.
func acquireRun(ctx context.Context, path string) (*Dir, error) {
	d, err := acquire(path, true)
	if !errors.Is(err, errCleaning) {
		return d, err
	}
	ctx, cancel := context.WithTimeout(ctx, cleaningTimeout)
	defer cancel()
	tick := time.NewTicker(cleaningPoll)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", errCleaning, context.Cause(ctx))
		case <-tick.C:
		}
		if d, err = acquire(path, true); !errors.Is(err, errCleaning) {
			return d, err
		}
	}
}

// acquire locks path/lock: for a run, which makes both, or for cleaning up. It
// returns ErrRunning or errCleaning if somebody holds the lock, and
// os.ErrNotExist if there is nothing to clean up after.
func acquire(path string, run bool) (*Dir, error) {
	flags, bytes := os.O_RDWR|unix.O_NOFOLLOW, int64(1)
	if run {
		flags, bytes = flags|os.O_CREATE, 2
	}
	for {
		if run {
			if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
				return nil, err
			}
		}
		lock, err := os.OpenFile(filepath.Join(path, lockName), flags, 0o600)
		if err != nil {
			if run && errors.Is(err, os.ErrNotExist) {
				continue // removed between mkdir and open
			}
			return nil, err
		}
		same, err := false, tryLock(lock, bytes)
		if err == nil {
			same, err = filelock.StillNamed(lock, filepath.Join(path, lockName))
		}
		if same && err == nil {
			return &Dir{path: path, lock: lock}, nil
		}
		_ = lock.Close()
		if err != nil {
			return nil, err
		}
		if !run {
			return nil, os.ErrNotExist
		}
	}
}

// tryLock locks the first n bytes of f.
func tryLock(f *os.File, n int64) error {
	if ok, err := filelock.TryBytes(f, unix.F_WRLCK, ownByte, n); ok || err != nil {
		return err
	}
	for _, b := range []int64{runByte, aliveByte} {
		holder := unix.Flock_t{Type: unix.F_WRLCK, Start: b, Len: 1}
		if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &holder); err != nil {
			return &os.PathError{Op: "lock", Path: f.Name(), Err: err}
		}
		if holder.Type == unix.F_UNLCK {
			return errCleaning
		}
	}
	return ErrRunning
}

// comeAlive locks the byte that says that the supervisor itself lives, for as
// long as the file it returns is open.
func comeAlive(path string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(path, lockName), os.O_RDWR|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	ok, err := filelock.TryBytes(f, unix.F_WRLCK, aliveByte, 1)
	if err == nil && !ok {
		err = ErrRunning
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// endRun makes of the lock of a run that of who cleans up after it.
func endRun(f *os.File) error {
	_, err := filelock.TryBytes(f, unix.F_UNLCK, runByte, 1)
	return err
}
