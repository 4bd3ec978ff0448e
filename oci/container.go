package oci

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"crunch-oci/cgroups"
	"crunch-oci/internal/idmap"
	"crunch-oci/internal/undo"
	"crunch-oci/oci/internal/libct"
)

// Container is a container made by Runtime.Create. Its methods may be called
// from several goroutines.
type Container struct {
	id       string
	command  string
	ctr      *libct.Container
	cgroup   *cgroups.Cgroup
	ids      idmap.Range // of its user namespace
	init     bool        // the first process is not the command, but its parent
	warnings []string
	tidy     undo.Stack
	lifeline *os.File
	pid      int
	startErr atomic.Pointer[StartError]
	running  *runningContainer // nil if the command was found not to be executable

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

// Warnings says, in a line each, which limits this node does not enforce, or are
// not those asked for.
func (c *Container) Warnings() []string { return c.warnings }

// Start lets the container execute its command, and returns when it does. If
// the command cannot be executed, the error is a *StartError.
//
// That can take for ever: execve(2) reads the file, which may lie on a file
// system that does not answer, such as a FUSE mount. When ctx is done first, the
// container is killed and the error is ctx's cause. A process that waits in the
// kernel ends only when it is answered; Start does not wait for that, Kill does.
func (c *Container) Start(ctx context.Context) error {
	c.startMu.Lock()
	defer c.startMu.Unlock()
	if err := c.startErr.Load(); err != nil {
		return err
	}
	if c.started {
		return fmt.Errorf("start container %s: it has been started before", c.id)
	}
	if ctx.Err() != nil {
		return fmt.Errorf("start container %s: %w", c.id, context.Cause(ctx))
	}
	c.started = true
	// The first process is the init of a PID namespace: with it all others die.
	// The lifeline is closed as well, which ends the read below at once.
	var cut atomic.Bool
	interrupt := context.AfterFunc(ctx, func() {
		if c.executing() {
			return // too late to say that it never began
		}
		cut.Store(true)
		_ = c.Signal(syscall.SIGKILL) // it may have ended by itself
		_ = c.lifeline.Close()
	})
	var report []byte
	var readErr error
	err := c.ctr.Release(func() { report, readErr = io.ReadAll(io.LimitReader(c.lifeline, 64<<10)) })
	interrupted := !interrupt() && cut.Load()
	if text := strings.TrimSpace(string(report)); text != "" {
		c.startErr.Store(&StartError{Command: c.command, Reason: text})
		return c.startErr.Load()
	}
	if interrupted {
		return fmt.Errorf("start container %s: %w", c.id, context.Cause(ctx))
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

// executing tells whether the first process executes, or has executed, the
// command: the kernel then knows it by another name than that of runc's init
// (nsexec.c sets it, execve(2) replaces it).
func (c *Container) executing() bool {
	name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", c.PID()))
	return err != nil || strings.TrimSpace(string(name)) != "runc:[2:INIT]"
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
