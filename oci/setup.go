package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"crunch-oci/cgroups"
	"crunch-oci/internal/forkthread"
	"crunch-oci/internal/idmap"
	"crunch-oci/oci/internal/libct"
	"crunch-oci/oci/internal/reaper"
)

// prepare makes the container's state directory and cgroup.
func (c *Container) prepare(stateDir, bundle string, spec *specs.Spec) error {
	bundle, err := filepath.Abs(bundle)
	if err != nil {
		return err
	}
	ctr, err := libct.New(stateDir, c.id, bundle, spec)
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
	if err := writeProcessRecord(filepath.Join(stateDir, c.id), spec); err != nil {
		return err
	}
	c.tidy.Add("remove cgroup", bounded(c.cgroup.Delete))
	if err := c.cgroup.Create(); err != nil {
		return err
	}
	if err := c.cgroup.InheritCPUs(); err != nil {
		c.warnings = append(c.warnings, fmt.Sprintf("the container may use CPUs that this process may not: %v", err))
	}
	return nil
}

// startInit makes the container's first process and the goroutine that waits
// for its end.
func (c *Container) startInit(ctx context.Context, stateDir string, stdio Stdio, spec *specs.Spec) error {
	ours, theirs, err := socketPair()
	if err != nil {
		return err
	}
	defer theirs.Close()
	c.lifeline = ours
	c.tidy.Add("close lifeline", func(context.Context) error { return ignoreClosed(ours.Close()) })

	var first *os.File
	if c.init || relabels(spec) {
		if first, err = reaper.Open(spec.Linux.MountLabel); err != nil {
			return err
		}
		defer first.Close()
		if _, err := ours.Write([]byte{libct.WithReaper}); err != nil {
			return fmt.Errorf("write to the lifeline: %w", err)
		}
	}
	// Closing the lifeline ends an init that is still setting things up, and
	// with it the call below.
	stop := context.AfterFunc(ctx, func() { ours.Close() })
	thread := forkthread.New()
	thread.Do(func() { err = c.ctr.Start(stdio.Stdin, stdio.Stdout, stdio.Stderr, theirs, first, c.init) })
	if err != nil {
		go reapRest(thread)
		if !stop() {
			return context.Cause(ctx)
		}
		return err
	}
	c.pid = c.ctr.PID()
	c.running = newRunningContainer(c, stateDir)
	go func() {
		defer reapRest(thread)
		defer close(c.ended)
		thread.Do(func() {
			status, err := c.ctr.Wait()
			c.exit, c.waitErr = exitStatus(status), err
		})
	}()
	c.tidy.Add("kill the container's processes", bounded(c.Kill))
	// So that its end is noticed when init, which has the other copy, ends.
	if err := theirs.Close(); err != nil {
		return err
	}
	err = c.ctr.LoadFilter(ours)
	if !stop() {
		return context.Cause(ctx)
	}
	return err
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

// giveStreams makes the container's user the owner of the streams, as far as
// libcontainer does not: its init is in the user namespace then, and has no power
// over files of the host.
func giveStreams(streams [3]*os.File, uid uint32, ids idmap.Range) error {
	if ids.IsZero() {
		return giveTo(streams[2], uid)
	}
	host, _ := ids.Host(uid)
	for _, f := range streams {
		if err := giveTo(f, host); err != nil {
			return err
		}
	}
	return nil
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
		return fmt.Errorf("standard streams: %w", err)
	}
	if st.Uid == uid || st.Mode&unix.S_IFMT == unix.S_IFCHR {
		return nil
	}
	err := unix.Fchown(int(f.Fd()), int(uid), -1)
	if err != nil && !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EROFS) {
		return fmt.Errorf("give a standard stream to user %d: %w", uid, err)
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
