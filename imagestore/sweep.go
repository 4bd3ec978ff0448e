package imagestore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"crunch-oci/internal/hostdir"

	"golang.org/x/sys/unix"
)

// background is the removing that nobody waits for: an image of a million files
// that a killed process left must not delay a start. What is not done when the
// store is closed is found by the next user's sweep.
type background struct {
	ctx    context.Context // done when the store is closed
	cancel context.CancelFunc
	tasks  sync.WaitGroup
}

func newBackground() *background {
	b := new(background)
	b.ctx, b.cancel = context.WithCancel(context.Background())
	return b
}

// Close waits for the cleaning up in the background until ctx is done, and then
// stops it. The store must not be in use; snapshots may stay open.
func (s *Store) Close(ctx context.Context) {
	detach := context.AfterFunc(ctx, s.background.cancel)
	s.background.tasks.Wait()
	detach()
	s.background.cancel()
}

// sweep removes what killed processes left in tmp: directories that nobody
// holds a lock on. What is locked belongs to a living process. Then it removes
// layers that are not to be believed any more.
func (s *Store) sweep() {
	for _, name := range s.list("tmp") {
		s.removeLeftover(s.tmpPath(name))
	}
	for _, id := range s.list("layers") {
		if !layerName.MatchString(id) || s.believed(id) {
			continue
		}
		// Whoever is replacing it right now holds a lock.
		if err := s.discard(id, true); err != nil && !errors.Is(err, unix.EWOULDBLOCK) {
			s.o.Warn("image store: remove layer from before the last reboot: " + err.Error())
		}
	}
}

// list gives the names in one of the store's directories, none when the store
// is closed.
func (s *Store) list(dir string) []string {
	if s.background.ctx.Err() != nil {
		return nil
	}
	f, err := os.Open(filepath.Join(s.root, dir))
	if err != nil {
		s.o.Warn("image store: " + err.Error())
		return nil
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		s.o.Warn("image store: " + err.Error())
	}
	return names
}

// removeLeftover removes something in tmp unless it is in use.
func (s *Store) removeLeftover(path string) {
	if s.background.ctx.Err() != nil {
		return
	}
	dir, err := lockDir(path, unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.ENOTDIR) { // a scratch file that was about to lose its name
		_ = os.Remove(path)
	}
	if err != nil {
		return // in use, or gone
	}
	defer dir.Close()
	if err := hostdir.RemoveAll(s.background.ctx, path); err != nil && s.background.ctx.Err() == nil {
		s.o.Warn("image store: remove what a killed process left: " + err.Error())
	}
}

// moveAway makes the name of a directory free at once; what is in it is removed
// in the background. It ends the lock that is held, which may be nil.
func (s *Store) moveAway(path string, lock *os.File) error {
	old, err := s.moveAside(path, lock)
	if err == nil {
		s.background.tasks.Go(func() { s.removeLeftover(old) })
	}
	return err
}

// moveAside is moveAway without the removing, which is up to the caller.
func (s *Store) moveAside(path string, lock *os.File) (old string, err error) {
	// A new name for each, so that one half removed is nobody's obstacle.
	old = s.tmpPath(fmt.Sprintf("old-%s-%d-%d", filepath.Base(path), os.Getpid(), time.Now().UnixNano()))
	err = os.Rename(path, old)
	if lock != nil {
		_ = unix.Flock(int(lock.Fd()), unix.LOCK_UN) // also if a child has just been forked with it
		_ = lock.Close()
	}
	return old, err
}

// discard makes the name of a layer that nobody uses free; if stale is set, only
// that of a layer that is not to be believed. It fails with EWOULDBLOCK if the
// layer is in use.
func (s *Store) discard(id string, stale bool) error {
	old, err := s.takeOut(id, stale)
	if err == nil && old != "" {
		s.background.tasks.Go(func() { s.removeLeftover(old) })
	}
	return err
}

// takeOut is discard without the removing of old, which is "" if there is
// nothing to remove.
func (s *Store) takeOut(id string, stale bool) (old string, err error) {
	path := s.layerPath(id)
	dir, err := lockDir(path, unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	if errors.Is(err, unix.ENOTDIR) {
		// Nothing that this store has made, and in the way of what it will make.
		if err := unix.Unlink(path); err != nil && err != unix.ENOENT {
			return "", &os.PathError{Op: "unlink", Path: path, Err: err}
		}
		return "", nil
	}
	if err != nil {
		return "", err
	}
	if stale && s.believed(id) {
		return "", dir.Close() // it has been made anew
	}
	return s.moveAside(path, dir)
}

// emptyDir makes dir, whose lock is held, empty.
func (s *Store) emptyDir(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := filepath.Join(dir, e.Name())
		if e.IsDir() {
			err = s.moveAway(name, nil)
		} else {
			err = os.Remove(name)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
