// Package rundir is the runtime directory of one run: it is locked for as long
// as any process of the run lives, it tells what the run owns elsewhere, and
// whoever finds its lock free cleans up after the dead.
//
// Layout: ROOT/<container uuid>/ with
//
//	lock     held by flock(2); an inherited descriptor keeps it locked
//	owned    one JSON object per line, written before the thing exists
//	bundle/  and whatever else the run keeps there
//
// An entry of owned whose thing was never made, or is gone, costs nothing.
// A lock file may be removed by the run that cleans up while another process
// waits for it; a process that gets the lock of a removed file tries again.
package rundir

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// ErrRunning says that a living process holds the directory.
var ErrRunning = errors.New("a supervisor for this container is already running on this node")

const (
	lockName  = "lock"
	ownedName = "owned"
)

// Thing is something a run owns outside its runtime directory.
type Thing struct {
	// Kind selects the function that removes it: "dir", "cgroup", ...
	Kind string `json:"kind"`
	// ID says which one, in the terms of its kind.
	ID string `json:"id"`
}

// Removers removes things by kind. Removing what does not exist is no error.
type Removers map[string]func(id string) error

// Dir is a locked runtime directory.
type Dir struct {
	path string
	lock *os.File

	mu    sync.Mutex
	owned *os.File // opened by the first Own
}

// Create makes and locks the runtime directory of the container called name
// below root, cleaning up first after a dead run of the same container.
// It returns ErrRunning, wrapped, if that run is alive.
func Create(root, name string, rm Removers) (*Dir, error) {
	if name == "" || name == "." || name == ".." || strings.ContainsRune(name, '/') {
		return nil, fmt.Errorf("runtime directory: %q cannot be a directory name", name)
	}
	if err := os.MkdirAll(root, 0o755); err != nil {
		return nil, fmt.Errorf("runtime directory: %w", err)
	}
	path := filepath.Join(root, name)
	d, err := acquire(path, true)
	if err != nil {
		return nil, fmt.Errorf("runtime directory %s: %w", path, err)
	}
	if err := d.clean(rm); err != nil {
		_ = d.lock.Close()
		return nil, fmt.Errorf("clean up after the previous run in %s: %w", path, err)
	}
	return d, nil
}

// acquire locks path/lock, making both if create is set. It returns ErrRunning
// if the lock is held, and os.ErrNotExist if there is no such directory.
func acquire(path string, create bool) (*Dir, error) {
	for {
		flags := os.O_RDWR
		if create {
			if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
				return nil, err
			}
			flags |= os.O_CREATE
		}
		lock, err := os.OpenFile(filepath.Join(path, lockName), flags|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			if create && errors.Is(err, os.ErrNotExist) {
				continue // removed between mkdir and open
			}
			return nil, err
		}
		if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			_ = lock.Close()
			if err == unix.EWOULDBLOCK {
				return nil, ErrRunning
			}
			return nil, fmt.Errorf("lock: %w", err)
		}
		same, err := stillNamed(lock, filepath.Join(path, lockName))
		if err != nil {
			_ = lock.Close()
			return nil, err
		}
		if same {
			return &Dir{path: path, lock: lock}, nil
		}
		_ = lock.Close()
		if !create {
			return nil, os.ErrNotExist
		}
	}
}

// stillNamed reports whether name still leads to the open file f.
func stillNamed(f *os.File, name string) (bool, error) {
	have, err := f.Stat()
	if err != nil {
		return false, err
	}
	named, err := os.Lstat(name)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return os.SameFile(have, named), nil
}

// Path is the directory's path.
func (d *Dir) Path() string { return d.path }

// LockFile is the locked file. A child process that gets it as an inherited
// descriptor keeps the directory locked for as long as it lives.
func (d *Dir) LockFile() *os.File { return d.lock }

// Own records that the run is about to make a thing outside the directory.
// No sync: a run killed here leaves its page cache behind, and the runtime
// directory does not survive a reboot.
func (d *Dir) Own(t Thing) error {
	line, err := json.Marshal(t)
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.owned == nil {
		f, err := os.OpenFile(filepath.Join(d.path, ownedName), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
		if err != nil {
			return fmt.Errorf("record owned %s %s: %w", t.Kind, t.ID, err)
		}
		d.owned = f
	}
	if _, err := d.owned.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("record owned %s %s: %w", t.Kind, t.ID, err)
	}
	return nil
}

// Remove ends the run: it removes what is still owned and the directory, and
// releases the lock. On error the directory stays, for the next one to try.
func (d *Dir) Remove(rm Removers) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	defer d.lock.Close()
	if d.owned != nil {
		_ = d.owned.Close()
		d.owned = nil
	}
	return d.destroy(rm)
}
