package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"crunch-oci/cgroups"
	"crunch-oci/oci/internal/libct"
)

// ErrSeccomp is returned by Create for a specification with a system call
// filter by a program built without libseccomp.
var ErrSeccomp = errors.New("this crunch-run was built without seccomp support (build tag \"seccomp\"): " +
	"use one that has it, or switch the system call filter off for this site")

// ErrExist is returned by Create if there is state of a container of that id.
// If no process owns it any more, Cleanup removes it.
var ErrExist = errors.New("a container of this id exists")

// Runtime creates containers.
type Runtime struct {
	// StateDir is an absolute directory, made if missing, in which each
	// container has a directory with its state. It should be on a tmpfs.
	StateDir string
	// Warn is told what libcontainer has to say about containers that have been
	// created and not deleted, without a line break at the end; nil: log/slog is.
	// It is called from several goroutines.
	Warn func(text string)
}

// Stdio are the container's standard streams; nil is /dev/null. Create hands
// them over to the container: the caller closes its own copies afterwards.
type Stdio struct {
	Stdin, Stdout, Stderr *os.File
}

// cgroupRecord is the file in a container's state directory that says which
// cgroup belongs to it.
const cgroupRecord = "cgroup.json"

// tidyTimeout bounds the time for each step of removing a container whose
// processes have been killed.
const tidyTimeout = 10 * time.Second

// Create makes a container from the bundle in bundleDir: everything is set up,
// and its first process waits to execute the command (see Container.Start).
// Nothing is left behind on error, and nothing outlives this process.
//
// ctx bounds the set-up only. Errors that lie in the request itself are
// ErrRequest. A command that cannot be executed is not reported here but by
// Start, as with Docker, however early it was noticed.
func (r *Runtime) Create(ctx context.Context, id, bundleDir string, stdio Stdio) (_ *Container, err error) {
	if !filepath.IsAbs(r.StateDir) {
		return nil, fmt.Errorf("create container: state directory %q is not an absolute path", r.StateDir)
	}
	if err := checkID(id); err != nil {
		return nil, fmt.Errorf("create container: %w", err)
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("create container: %w", context.Cause(ctx))
	}
	spec, err := readBundle(bundleDir)
	if err != nil {
		return nil, fmt.Errorf("create container: %w", err)
	}
	if spec.Linux.Seccomp != nil && !libct.SeccompEnabled {
		return nil, fmt.Errorf("create container: %w", ErrSeccomp)
	}
	features, err := cgroups.Reader{FS: os.DirFS("/")}.Features()
	if err != nil {
		return nil, fmt.Errorf("create container: %w", err)
	}
	c := &Container{id: id, command: spec.Process.Args[0], ids: idsOf(spec), init: spec.Annotations[wantsInit] != "", ended: make(chan struct{})}
	c.warnings = dropUnenforceable(spec, features)

	if _, err := os.Lstat(filepath.Join(r.StateDir, id)); err == nil {
		return nil, fmt.Errorf("create container %s: %w", id, ErrExist)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("create container %s: %w", id, errors.Join(err, c.tidy.Run(ctx)))
		}
	}()
	if r.Warn != nil {
		stop := libct.OnWarning(r.Warn)
		c.tidy.Add("stop listening to warnings", func(context.Context) error { stop(); return nil })
	}
	if err := c.prepare(r.StateDir, bundleDir, spec); err != nil {
		return nil, err
	}
	if err := giveStreams([3]*os.File{stdio.Stdin, stdio.Stdout, stdio.Stderr}, spec.Process.User.UID, c.ids); err != nil {
		return nil, err
	}
	if err := c.startInit(ctx, r.StateDir, stdio, spec); err != nil {
		var startErr *StartError
		if err = explain(err, spec.Process); !errors.As(err, &startErr) {
			return nil, err
		}
		c.startErr.Store(startErr)
		close(c.ended)
	}
	return c, nil
}

// Cleanup removes what a process that no longer lives has left of container
// id: processes, cgroup, state. The caller must know that its creator is gone,
// since a container that is alive is killed. Nothing to remove is no error.
func (r *Runtime) Cleanup(ctx context.Context, id string) error {
	if err := checkID(id); err != nil {
		return fmt.Errorf("clean up container: %w", err)
	}
	dir := filepath.Join(r.StateDir, id)
	record, err := os.ReadFile(filepath.Join(dir, cgroupRecord))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		// Its creator died before it made the cgroup, or after it removed it.
	case err != nil:
		return fmt.Errorf("clean up container %s: %w", id, err)
	case len(record) > 0: // empty if its creator died while writing
		var cg cgroups.Cgroup
		if err := json.Unmarshal(record, &cg); err != nil {
			return fmt.Errorf("clean up container %s: %s: %w", id, cgroupRecord, err)
		}
		if err := cg.Kill(ctx); err != nil {
			return fmt.Errorf("clean up container %s: %w", id, err)
		}
		if err := cg.Delete(ctx); err != nil {
			return fmt.Errorf("clean up container %s: %w", id, err)
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("clean up container %s: %w", id, err)
	}
	return nil
}

// checkID refuses ids that are not one plain path element; libcontainer's rule.
func checkID(id string) error {
	const allowed = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_+-."
	if id == "" || id == "." || id == ".." || strings.Trim(id, allowed) != "" {
		return fmt.Errorf("container id %q is not made of letters, digits and the characters _+.-", id)
	}
	return nil
}
