package supervisor

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"crunch-oci/arvados"
	"crunch-oci/imagestore"
	"crunch-oci/oci"
)

// Text that users control must not take nodes out of service.
func TestNodesFault(t *testing.T) {
	const full = "no space left on device"
	for name, c := range map[string]struct {
		err  error
		node bool
	}{
		"a command of that name": {fmt.Errorf("could not start container: %w", &oci.StartError{Command: full, Reason: `exec: "` + full + `": not found`}), false},
		"a layer entry":          {fmt.Errorf("unpack layer: entry %q: %w", "x: "+full, imagestore.ErrMalformed), false},
		"a bad request":          {fmt.Errorf("user %q: %w", full, oci.ErrRequest), false},
		"a full disk":            {fmt.Errorf("write layer: %w", unix.ENOSPC), true},
		"a layer too big for it": {fmt.Errorf("%w: %w", imagestore.ErrLimit, unix.ENOSPC), true},
		"a full disk, as text":   {errors.New("write /x: " + full), true},
		"something else":         {errors.New("boom"), false},
	} {
		if got := isNodesFault(c.err); got != c.node {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// Beside texts, the kind of failure tells a broken node; what happens inside the
// container's own files does not.
func TestNodesFaultByKind(t *testing.T) {
	at := func(path string, err error) func(*world) error {
		return func(w *world) error {
			return fmt.Errorf("runc: %w", &fs.PathError{Op: "mkdir", Path: strings.Replace(path, "SCRATCH", w.sup.Scratch, 1), Err: err})
		}
	}
	for name, c := range map[string]struct {
		op     string
		err    func(*world) error
		broken bool
		state  string
	}{
		"no access to control groups":         {"create container", at("/sys/fs/cgroup/pids/crunch-run", unix.EROFS), true, arvados.StateQueued},
		"scratch disk full":                   {"create container", at("SCRATCH/bundle/config.json", unix.ENOSPC), true, arvados.StateQueued},
		"read-only mount inside":              {"create container", at("SCRATCH/rootfs/sys/fs/cgroup/x", unix.EROFS), false, arvados.StateQueued},
		"an input that cannot be read":        {"create container", at("SCRATCH/keep1/by_id/x", unix.EIO), false, arvados.StateQueued},
		"something else":                      {"create container", at("/sys/fs/cgroup/pids/crunch-run", unix.EINVAL), false, arvados.StateQueued},
		"no overlay file systems":             {"unpack image", func(*world) error { return fmt.Errorf("mount an overlay: %w", unix.ENODEV) }, true, arvados.StateQueued},
		"an image that asks for the like":     {"unpack image", func(*world) error { return fmt.Errorf("%w: %w", imagestore.ErrMalformed, unix.EPERM) }, false, arvados.StateCancelled},
		"no /dev/fuse":                        {"start FUSE server", func(*world) error { return errNoFUSE }, true, arvados.StateQueued},
		"FUSE server fails for other reasons": {"start FUSE server", func(*world) error { return unix.EPERM }, false, arvados.StateCancelled},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.input()
			w.failAt(c.op, c.err(w))
			w.run()
			if got := len(w.broken) > 0; got != c.broken {
				t.Errorf("node marked as broken: %v", got)
			}
			if got := last(w.api.states); got != c.state {
				t.Errorf("state %s, want %s", got, c.state)
			}
		})
	}
}
