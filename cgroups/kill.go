package cgroups

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// killBatch bounds the number of pidfds open at a time: a group may hold more
// processes than this process may open files.
const killBatch = 256

// pidfdOpen is pidfd_open(2); tests take it away.
var pidfdOpen = unix.PidfdOpen

// Kill sends SIGKILL to every process in the group and in groups below it and
// returns when none is left. While one lives it does not return nil: when ctx
// ends first, the error says how many are left.
//
// Linux 5.14 kills a v2 group atomically (cgroup.kill), also where v2 is
// mounted beside v1. Elsewhere the group is frozen while it is being killed,
// so that it cannot fork faster than it dies.
func (c *Cgroup) Kill(ctx context.Context) error {
	const shortest, longest = time.Millisecond, 50 * time.Millisecond
	wait := shortest
	for first := true; ; first = false {
		pids, err := c.Procs()
		if err != nil {
			return fmt.Errorf("kill cgroup: %w", err)
		}
		if len(pids) == 0 {
			return nil
		}
		// Should the first way leave some alive, then the second: a process
		// may be in another hierarchy only.
		if !first || !c.killUnified() {
			if err := c.killFrozen(ctx); err != nil {
				return fmt.Errorf("kill cgroup: %w", err)
			}
		}
		timer := time.NewTimer(wait)
		wait = min(2*wait, longest)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("kill cgroup: %d processes still alive (first: pid %d, %s): %w",
				len(pids), pids[0], processState(pids[0]), context.Cause(ctx))
		}
	}
}

// killUnified uses cgroup.kill, and tells whether there is one.
func (c *Cgroup) killUnified() bool {
	dir, ok := c.Dirs[""]
	return ok && os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0) == nil
}

// killFrozen freezes the group, kills its processes one by one, and thaws it.
func (c *Cgroup) killFrozen(ctx context.Context) error {
	thaw := c.freeze(ctx)
	defer thaw()
	pids, err := c.Procs()
	if err != nil {
		return err
	}
	for batch := range slices.Chunk(pids, killBatch) {
		if err := c.killPids(batch); err != nil {
			return err
		}
	}
	return nil
}

// killPids kills those of the processes that are still in the group. A number
// read from cgroup.procs may have been given to another process since; so a
// handle is taken first, and then looked whether the number is still listed.
// Before Linux 5.3, or where a system call filter forbids handles, it goes by
// numbers.
func (c *Cgroup) killPids(pids []int) error {
	fds := make(map[int]int, len(pids))
	defer func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}()
	for _, pid := range pids {
		fd, err := pidfdOpen(pid, 0)
		if errors.Is(err, unix.ESRCH) {
			continue
		}
		if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) {
			return c.killNumbers(pids)
		}
		if err != nil {
			return os.NewSyscallError(fmt.Sprintf("pidfd_open %d", pid), err)
		}
		fds[pid] = fd
	}
	listed, err := c.Procs()
	if err != nil {
		return err
	}
	for _, pid := range listed {
		fd, ok := fds[pid]
		if !ok {
			continue
		}
		err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
		if err != nil && !errors.Is(err, unix.ESRCH) {
			return os.NewSyscallError(fmt.Sprintf("pidfd_send_signal %d", pid), err)
		}
	}
	return nil
}

// killNumbers kills those of the processes that are still in the group. The time
// between looking and killing is short, and in a frozen group nobody ends in it.
func (c *Cgroup) killNumbers(pids []int) error {
	listed, err := c.Procs()
	if err != nil {
		return err
	}
	for _, pid := range listed {
		if !slices.Contains(pids, pid) {
			continue
		}
		if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			return os.NewSyscallError(fmt.Sprintf("kill %d", pid), err)
		}
	}
	return nil
}

// freeze stops the group's processes, as far as the kernel can, and returns
// what lets them go on. Processes killed while frozen die when thawed (v1) or
// at once (v2). A group that does not freeze in time is killed all the same,
// only with more rounds.
func (c *Cgroup) freeze(ctx context.Context) (thaw func()) {
	var file, on, off, stateFile, frozen string
	if dir, ok := c.Dirs["freezer"]; ok {
		file, on, off = filepath.Join(dir, "freezer.state"), "FROZEN", "THAWED"
		stateFile, frozen = file, "FROZEN\n"
	} else if dir, ok := c.Dirs[""]; ok {
		file, on, off = filepath.Join(dir, "cgroup.freeze"), "1", "0"
		stateFile, frozen = filepath.Join(dir, "cgroup.events"), "frozen 1\n"
	} else {
		return func() {}
	}
	if os.WriteFile(file, []byte(on), 0) != nil {
		return func() {}
	}
	ctx, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for ctx.Err() == nil {
		b, err := os.ReadFile(stateFile)
		if err != nil || len(b) >= len(frozen) && string(b[len(b)-len(frozen):]) == frozen {
			break
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
	return func() { _ = os.WriteFile(file, []byte(off), 0) }
}

// processState returns the state of a process in words, for messages.
func processState(pid int) string {
	stat, err := parseStat(os.DirFS("/"), pid)
	if err != nil {
		return "gone"
	}
	if stat.state == "D" {
		return "state D, waiting for a device or file system that does not answer"
	}
	return "state " + stat.state
}
