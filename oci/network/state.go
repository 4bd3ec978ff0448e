package network

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

// The lock file has two bytes that are locked (fcntl(2), open file description
// locks, which end with the process). Whoever changes the bridge, its rules or
// the leases holds the first. Every user holds the second for reading: who gets
// it for writing is the last one, and removes everything, the file included.
const (
	changeByte = 0
	userByte   = 1
)

const lockName = "bridge.lock"

// lockPoll is how often a busy lock is looked at: there is no call that waits
// for a file lock and can be cancelled.
const lockPoll = 3 * time.Millisecond

// stateFile is the open lock file of a bridge.
type stateFile struct {
	f *os.File
}

// openState opens the lock file of the bridge, locked for a change.
func openState(ctx context.Context, dir string) (*stateFile, error) {
	tick := time.NewTicker(lockPoll)
	defer tick.Stop()
	for {
		s, err := tryOpenState(dir)
		if err != nil {
			return nil, fmt.Errorf("lock the bridge: %w", err)
		}
		if s != nil {
			return s, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, fmt.Errorf("lock the bridge: %w", context.Cause(ctx))
		}
	}
}

// tryOpenState returns nil if somebody else has the lock, or has just removed
// the file.
func tryOpenState(dir string) (*stateFile, error) {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return nil, err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	path := filepath.Join(dir, lockName)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil // removed between mkdir and open
	}
	if err != nil {
		return nil, err
	}
	s := &stateFile{f}
	ok, err := s.try(unix.F_WRLCK, changeByte)
	if ok && err == nil {
		ok, err = filelock.StillNamed(f, path)
	}
	if !ok || err != nil {
		_ = f.Close()
		return nil, err
	}
	return s, nil
}

// lock locks an open file again for a change.
func (s *stateFile) lock(ctx context.Context) error {
	tick := time.NewTicker(lockPoll)
	defer tick.Stop()
	for {
		ok, err := s.try(unix.F_WRLCK, changeByte)
		if ok || err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("lock the bridge: %w", context.Cause(ctx))
		}
	}
}

func (s *stateFile) unlock() error {
	_, err := s.try(unix.F_UNLCK, changeByte)
	return err
}

// use makes the holder a user of the bridge, until the file is closed.
func (s *stateFile) use() error {
	ok, err := s.try(unix.F_RDLCK, userByte)
	if err == nil && !ok {
		err = errors.New("the bridge is being removed by somebody who does not hold its lock")
	}
	return err
}

// last tells whether there is no other user.
func (s *stateFile) last() (bool, error) { return s.try(unix.F_WRLCK, userByte) }

// remove removes the file, and with it all memory of the bridge. The holder has
// both bytes locked; who waits for them finds the file gone and begins anew.
func (s *stateFile) remove() error {
	return errors.Join(os.Remove(s.f.Name()), os.Remove(filepath.Dir(s.f.Name())))
}

func (s *stateFile) close() error { return s.f.Close() }

func (s *stateFile) try(kind int16, at int64) (bool, error) {
	return filelock.TryBytes(s.f, kind, at, 1)
}
