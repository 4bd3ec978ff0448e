package imagestore

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// Snapshot is an image in use. While it is open nobody removes its layers,
// which nobody may write to.
type Snapshot struct {
	ID        digest.Digest // of RawConfig
	Names     []string      // tags in the tarball it was unpacked from
	RawConfig []byte
	Config    ocispec.Image
	// MountLabel, if set, is the SELinux label of every file in roots that are
	// mounted from now on.
	MountLabel string

	store   *Store
	name    string // of the record
	lower   []string
	rootDir string // the lowerdir that describes the root directory

	mu   sync.Mutex
	uses []*use
}

// Lowerdirs gives the directories of an overlay mount, the topmost first.
func (s *Snapshot) Lowerdirs() []string { return slices.Clone(s.lower) }

// Close gives the image back. Unmount before. It may be called several times.
func (s *Snapshot) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.uses != nil {
		s.store.touch(s.name)
	}
	closeAll(s.uses)
	s.uses = nil
	return nil
}

// Sync writes the image's layers to the disk and notes that, so that they
// survive a reboot. It may take as long as writing back everything on that file
// system does, so it is for when nothing waits: a minute after the start of a
// container most of it has happened by itself. The snapshot may be closed
// meanwhile. An image that is known to be on the disk costs nothing.
func (s *Snapshot) Sync() error {
	todo, err := s.notDurable()
	if err != nil {
		return fmt.Errorf("image store: sync: %w", err)
	}
	defer closeAll(todo)
	if len(todo) == 0 {
		return nil
	}
	if err := unix.Syncfs(int(todo[0].dir.Fd())); err != nil {
		return fmt.Errorf("image store: sync: %w", err)
	}
	var errs []error
	for _, u := range todo {
		errs = append(errs, s.store.setDurable(u))
	}
	return errors.Join(errs...)
}

// notDurable takes into use what of the image is not known to be on the disk, so
// that Close need not wait for Sync.
func (s *Snapshot) notDurable() ([]*use, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var ids []string
	for _, u := range s.uses {
		if !s.store.durable(u.id) {
			ids = append(ids, u.id)
		}
	}
	return s.store.useAll(ids)
}

func (s *Store) durable(id string) bool {
	var st state
	return readJSON(filepath.Join(s.layerPath(id), "state.json"), &st) == nil && st.Durable
}

func (s *Store) setDurable(u *use) error {
	dir := s.layerPath(u.id)
	tmp := filepath.Join(dir, fmt.Sprintf("state.%d", os.Getpid()))
	_ = os.Remove(tmp) // of a process of the same number, killed here
	if err := writeJSON(tmp, state{Version: recordVersion, Boot: s.boot, Durable: true}, true); err != nil {
		return fmt.Errorf("image store: %w", err)
	}
	if err := os.Rename(tmp, filepath.Join(dir, "state.json")); err != nil {
		return fmt.Errorf("image store: %w", err)
	}
	if err := u.dir.Sync(); err != nil {
		return fmt.Errorf("image store: %w", err)
	}
	return nil
}
