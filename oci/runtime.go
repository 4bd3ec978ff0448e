package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"crunch-oci/cgroups"
	"crunch-oci/internal/forkthread"
	"crunch-oci/internal/undo"
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
	c := &Container{id: id, command: spec.Process.Args[0], ended: make(chan struct{})}
	c.warnings = dropUnenforceable(spec, features)

	if _, err := os.Lstat(filepath.Join(r.StateDir, id)); err == nil {
		return nil, fmt.Errorf("create container %s: %w", id, ErrExist)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("create container %s: %w", id, errors.Join(err, c.tidy.Run(ctx)))
		}
	}()
	if err := c.prepare(r.StateDir, spec); err != nil {
		return nil, err
	}
	if err := giveTo(stdio.Stderr, spec.Process.User.UID); err != nil {
		return nil, err
	}
	if err := c.startInit(ctx, stdio); err != nil {
		var startErr *StartError
		if err = explain(err, spec.Process); !errors.As(err, &startErr) {
			return nil, err
		}
		c.startErr.Store(startErr)
		close(c.ended)
	}
	return c, nil
}

// prepare makes the container's state directory and cgroup.
func (c *Container) prepare(stateDir string, spec *specs.Spec) error {
	ctr, err := libct.New(stateDir, c.id, spec)
	if err != nil {
		return err
	}
	c.ctr = ctr
	c.tidy.Add("remove container state", func(context.Context) error { return ctr.Destroy() })
	dirs, err := ctr.CgroupDirs()
	if err != nil {
		return err
	}
	if c.cgroup, err = cgroups.New(dirs); err != nil {
		return err
	}
	// On record before it exists: whatever happens, Cleanup will find it.
	record, err := json.Marshal(c.cgroup)
	if err != nil {
		return err
	}
	if err := writeFile(filepath.Join(stateDir, c.id, cgroupRecord), record, 0o600); err != nil {
		return err
	}
	c.tidy.Add("remove cgroup", bounded(c.cgroup.Delete))
	return c.cgroup.Create()
}

// startInit makes the container's first process and the goroutine that waits
// for its end.
func (c *Container) startInit(ctx context.Context, stdio Stdio) error {
	ours, theirs, err := socketPair()
	if err != nil {
		return err
	}
	defer theirs.Close()
	c.lifeline = ours
	c.tidy.Add("close lifeline", func(context.Context) error { return ignoreClosed(ours.Close()) })

	// Closing the lifeline ends an init that is still setting things up, and
	// with it the call below.
	stop := context.AfterFunc(ctx, func() { ours.Close() })
	forkthread.Do(func() { err = c.ctr.Start(stdio.Stdin, stdio.Stdout, stdio.Stderr, theirs) })
	stopped := !stop()
	if err != nil {
		if stopped {
			return context.Cause(ctx)
		}
		return err
	}
	c.pid = c.ctr.PID()
	go func() {
		defer close(c.ended)
		status, err := c.ctr.Wait()
		c.exit, c.waitErr = exitStatus(status), err
	}()
	c.tidy.Add("kill the container's processes", bounded(c.Kill))
	if stopped {
		return context.Cause(ctx)
	}
	return nil
}

// bounded gives a step of the clean-up, which nothing cancels, a time limit.
func bounded(step func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, tidyTimeout)
		defer cancel()
		return step(ctx)
	}
}

func (c *Container) awaitEnd(ctx context.Context) error {
	select {
	case <-c.ended:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
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
		return fmt.Errorf("container id %q is not made of letters, digits and _+-.", id)
	}
	return nil
}

// dropUnenforceable removes limits that this node cannot enforce from spec, and
// says so in one line each.
func dropUnenforceable(spec *specs.Spec, f cgroups.Features) []string {
	r := spec.Linux.Resources
	if r == nil {
		return nil
	}
	var said []string
	drop := func(what, why string) { said = append(said, fmt.Sprintf("%s is not enforced: %s", what, why)) }
	if r.Memory != nil && !f.Memory {
		drop("memory limit", "the memory controller is not available on this node")
		r.Memory = nil
	}
	if r.Memory != nil && r.Memory.Swap != nil && !f.Swap {
		drop("swap limit", "this node's kernel does not account swap (boot option swapaccount=1); RAM is limited")
		r.Memory.Swap = nil
	}
	if r.CPU != nil && r.CPU.Quota != nil && !f.CPUQuota {
		drop("CPU quota", "the cpu controller, or its bandwidth control, is not available on this node")
		r.CPU = nil
	}
	if r.Pids != nil && !f.PIDs {
		drop("limit of processes", "the pids controller is not available on this node")
		r.Pids = nil
	}
	return said
}

// giveTo makes the container's user the owner of a stream, so that it can open
// /dev/stderr by name. libcontainer does so for the three streams it knows of,
// of which standard error is not one (see libct.Init).
func giveTo(f *os.File, uid uint32) error {
	if f == nil {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return fmt.Errorf("standard error: %w", err)
	}
	if st.Uid == uid || st.Mode&unix.S_IFMT == unix.S_IFCHR {
		return nil
	}
	err := unix.Fchown(int(f.Fd()), int(uid), -1)
	if err != nil && !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EROFS) {
		return fmt.Errorf("give standard error to user %d: %w", uid, err)
	}
	return nil
}

// socketPair returns the ends of the lifeline; ours does not block threads.
func socketPair() (ours, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		return nil, nil, errors.Join(os.NewSyscallError("fcntl", err), unix.Close(fds[0]), unix.Close(fds[1]))
	}
	return os.NewFile(uintptr(fds[0]), "lifeline"), os.NewFile(uintptr(fds[1]), "container's lifeline"), nil
}

func ignoreClosed(err error) error {
	if errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}

// Container is a container made by Runtime.Create. Its methods may be called
// from several goroutines.
type Container struct {
	id       string
	command  string
	ctr      *libct.Container
	cgroup   *cgroups.Cgroup
	warnings []string
	tidy     undo.Stack
	lifeline *os.File
	pid      int
	startErr atomic.Pointer[StartError]

	ended   chan struct{} // closed when init has been reaped
	exit    ExitStatus    // valid once ended is closed
	waitErr error         // likewise

	startMu sync.Mutex
	started bool
}

// ID returns the container's id.
func (c *Container) ID() string { return c.id }

// PID returns the process id, in this process's PID namespace, of the
// container's first process; 0 if the command was found not to be executable.
func (c *Container) PID() int { return c.pid }

// Cgroup returns the container's cgroup.
func (c *Container) Cgroup() *cgroups.Cgroup { return c.cgroup }

// Warnings says, in a line each, which limits this node does not enforce.
func (c *Container) Warnings() []string { return c.warnings }

// Start lets the container execute its command, and returns when it does. If
// the command cannot be executed, the error is a *StartError.
func (c *Container) Start() error {
	c.startMu.Lock()
	defer c.startMu.Unlock()
	if err := c.startErr.Load(); err != nil {
		return err
	}
	if c.started {
		return fmt.Errorf("start container %s: it has been started before", c.id)
	}
	c.started = true
	var report []byte
	var readErr error
	err := c.ctr.Release(func() { report, readErr = io.ReadAll(io.LimitReader(c.lifeline, 64<<10)) })
	if text := strings.TrimSpace(string(report)); text != "" {
		c.startErr.Store(&StartError{Command: c.command, Reason: text})
		return c.startErr.Load()
	}
	if err == nil {
		err = ignoreClosed(readErr)
	}
	if err != nil {
		return fmt.Errorf("start container %s: %w", c.id, err)
	}
	// Executed: from here on the parent-death signal alone stands guard.
	if err := ignoreClosed(c.lifeline.Close()); err != nil {
		return fmt.Errorf("start container %s: %w", c.id, err)
	}
	return nil
}

// Wait waits for the container's first process to end. By then every other
// process of its PID namespace is dead as well; who else holds the other ends
// of the standard streams is the caller's matter. The error is ctx's, a
// *StartError if the command could not be executed, or says that the process
// was lost.
func (c *Container) Wait(ctx context.Context) (ExitStatus, error) {
	select {
	case <-c.ended:
	case <-ctx.Done():
		return ExitStatus{}, context.Cause(ctx)
	}
	if err := c.startErr.Load(); err != nil {
		return ExitStatus{}, err
	}
	if c.waitErr != nil {
		return ExitStatus{}, fmt.Errorf("container %s: %w", c.id, c.waitErr)
	}
	return c.exit, nil
}

// Signal sends a signal to the container's first process. As the first process
// of a PID namespace it ignores signals it has no handler for, except SIGKILL
// and SIGSTOP. The error is os.ErrProcessDone if it has ended.
func (c *Container) Signal(sig syscall.Signal) error {
	if c.pid == 0 {
		return os.ErrProcessDone
	}
	return c.ctr.Signal(sig)
}

// Kill kills every process of the container and returns when none is left. The
// error is not nil as long as one lives, which ctx may put an end to.
func (c *Container) Kill(ctx context.Context) error {
	if err := c.cgroup.Kill(ctx); err != nil {
		return fmt.Errorf("container %s: %w", c.id, err)
	}
	if err := c.awaitEnd(ctx); err != nil {
		return fmt.Errorf("kill container %s: its first process is not reaped: %w", c.id, err)
	}
	return nil
}

// Delete kills what is left of the container and removes its cgroup and state.
// Statistics and OOM counts must have been read before. While processes cannot
// be killed nothing is removed, and Delete may be called again; what else could
// not be removed is in the error, and left for Cleanup. A second call does
// nothing.
func (c *Container) Delete(ctx context.Context) error {
	if err := c.cgroup.Kill(ctx); err != nil {
		return fmt.Errorf("delete container %s: %w", c.id, err)
	}
	if err := c.tidy.Run(ctx); err != nil {
		return fmt.Errorf("delete container %s: %w", c.id, err)
	}
	return nil
}
