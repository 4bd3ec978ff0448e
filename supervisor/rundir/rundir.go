// Package rundir is the runtime directory of one run: it is locked for as long
// as any process of the run lives, it tells what the run owns elsewhere, and
// whoever finds its lock free cleans up after the dead.
//
// Layout: ROOT/<container uuid>/ with
//
//	lock     locked, see lock.go; an inherited descriptor keeps it so
//	owned    one JSON object per line, written before the thing exists
//	...      and whatever else the run keeps there
//
// An entry of owned whose thing was never made, or is gone, costs nothing.
// A lock file may be removed by the run that cleans up while another process
// waits for it; a process that gets the lock of a removed file tries again.
package rundir

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
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
// They stop when ctx is done, and then fail; they are called again later.
type Removers map[string]func(ctx context.Context, id string) error

// Dir is a locked runtime directory.
type Dir struct {
	path  string
	lock  *os.File
	alive *os.File // of a run: see aliveByte

	mu    sync.Mutex
	owned *os.File // opened by the first Own
}

// Create makes and locks the runtime directory of the container called name
// below root, cleaning up first after a dead run of the same container, or
// waiting for whoever is doing that, until ctx is done. It returns ErrRunning,
// wrapped, if that run is alive.
func Create(ctx context.Context, root, name string, rm Removers) (*Dir, error) {
	if name == "" || name == "." || name == ".." || strings.ContainsRune(name, '/') {
		return nil, fmt.Errorf("runtime directory: %q cannot be a directory name", name)
	}
	if err := os.MkdirAll(root, 0o755); err != nil {
		return nil, fmt.Errorf("runtime directory: %w", err)
	}
	path := filepath.Join(root, name)
	d, err := acquireRun(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("runtime directory %s: %w", path, err)
	}
	if d.alive, err = comeAlive(path); err != nil {
		_ = d.lock.Close()
		return nil, fmt.Errorf("runtime directory %s: %w", path, err)
	}
	if err := d.clean(ctx, rm); err != nil {
		_ = d.alive.Close()
		_ = d.lock.Close()
		return nil, fmt.Errorf("clean up after the previous run in %s: %w", path, err)
	}
	return d, nil
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
// releases the lock. On error the directory stays, for the next one to try. A
// new run of the same container waits meanwhile; this one is over.
func (d *Dir) Remove(rm Removers) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	defer d.lock.Close()
	if d.alive != nil {
		_ = d.alive.Close()
		d.alive = nil
	}
	if d.owned != nil {
		_ = d.owned.Close()
		d.owned = nil
	}
	if err := endRun(d.lock); err != nil {
		return err
	}
	return d.destroy(context.Background(), rm)
}
