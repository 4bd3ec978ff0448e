package main_test

import (
	"fmt"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// callFaults are what can happen at a system call.
var callFaults = []string{"fails once", "fails for ever", "is slow", "kill -9"}

// everyOne are calls of which each is a point of its own. Of the others, those
// of one process to one place are one point.
var everyOne = regexp.MustCompile(`: (fork|mount|umount|unshare|setns|fsmount|open_tree|move_mount)\b`)

// A few cells, for every day.
var someCalls = []faultCell{
	{"supervisor: fork (3)", "fails once"},
	{"supervisor: write STORE/tmp/HASH/fs/...", "fails for ever"},
	{"supervisor: rename UNFINISHED/UUID.json", "fails for ever"},
	{"supervisor: umount SCRATCH/rootfs", "fails for ever"},
	{"keep-mount: open /dev/fuse", "fails for ever"},
	{"init: pivot_root", "fails once"},
	{"supervisor: rename STORE/layers/HASH", "kill -9"},
	{rootMount(), "kill -9"},
	{"init: write RUN/UUID/oci/UUID/exec.fifo", "kill -9"},
}

// rootMount is the call that mounts a container's root directory: by descriptor,
// where the kernel does not know one option per layer (before Linux 6.7).
func rootMount() string {
	var host unix.Utsname
	_ = unix.Uname(&host)
	var major, minor int
	_, _ = fmt.Sscanf(unix.ByteSliceToString(host.Release[:]), "%d.%d", &major, &minor)
	if major < 6 || major == 6 && minor < 7 {
		return "supervisor: mount overlay N"
	}
	return "supervisor: move_mount SCRATCH/rootfs"
}

// callCounter turns names of calls into points.
type callCounter struct {
	mu    sync.Mutex
	count map[string]int
}

func (c *callCounter) point(name string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.count == nil {
		c.count = make(map[string]int)
	}
	c.count[name]++
	if n := c.count[name]; n > 1 && everyOne.MatchString(name) {
		return fmt.Sprintf("%s (%d)", name, n)
	}
	return name
}

// errnoOf is how a call fails when a disk is full or broken, or the node has
// come to its limits.
func errnoOf(point string) syscall.Errno {
	_, call, _ := strings.Cut(point, ": ")
	call, _, _ = strings.Cut(call, " ")
	switch call {
	case "fork":
		return unix.EAGAIN
	case "write", "mkdir":
		return unix.ENOSPC
	case "umount":
		return unix.EBUSY
	}
	return unix.EIO
}

// Every mount, fork and change of a file of a run, as the kernel sees them, in
// the supervisor, its FUSE server and the container's first process until that
// becomes the user's, fails once, fails for ever, is slow, or finds the
// supervisor killed.
func TestFaultsOfSystemCalls(t *testing.T) {
	t.Parallel()
	s := newFaultSweep(t)
	cells := someCalls
	if allFaults {
		s.enumerateCalls(t)
		cells = nil
		for _, point := range s.points {
			for _, fault := range callFaults {
				cells = append(cells, faultCell{point, fault})
			}
		}
	}
	t.Run("cells", func(t *testing.T) {
		for _, cell := range cells {
			s.try(t, cell, func(t *testing.T, n *node) faulted { return s.faultAtCall(t, n, cell) })
		}
	})
	if allFaults {
		s.report(t, "system calls", callFaults)
	}
}

// enumerateCalls lets a run without trouble say what the points are.
func (s *faultSweep) enumerateCalls(t *testing.T) {
	n := newNode(t)
	var counter callCounter
	var mu sync.Mutex
	seen := make(map[string]bool)
	watchCalls(t, n, func(name string) syscall.Errno {
		point := counter.point(name)
		mu.Lock()
		defer mu.Unlock()
		if !seen[point] {
			seen[point] = true
			s.points = append(s.points, point)
		}
		return 0
	})
	uuid := s.submit(t)
	p := s.cluster.supervise(t, n, uuid)
	s.judge(t, n, faulted{uuid: uuid, process: p})
}

func (s *faultSweep) faultAtCall(t *testing.T, n *node, cell faultCell) faulted {
	f := faulted{uuid: s.submit(t)}
	var counter callCounter
	var mu sync.Mutex
	started := make(chan struct{})
	errno := errnoOf(cell.point)
	// For ever: this call and all others of its name.
	name, _, _ := strings.Cut(cell.point, " (")
	watchCalls(t, n, func(got string) syscall.Errno {
		point := counter.point(got)
		mu.Lock()
		first := point == cell.point && !f.reached
		f.reached = f.reached || first
		again := f.reached && got == name
		mu.Unlock()
		switch {
		case first && cell.fault == "fails once", again && cell.fault == "fails for ever":
			return errno
		case first && cell.fault == "is slow":
			time.Sleep(300 * time.Millisecond) // the fault itself
		case first && cell.fault == "kill -9":
			<-started
			mu.Lock()
			defer mu.Unlock()
			f.killed = true
			_ = f.process.cmd.Process.Kill()
		}
		return 0
	})
	f.process = s.cluster.supervise(t, n, f.uuid)
	close(started)
	f.process.wait(t)
	if f.killed {
		n.waitDead(t)
	}
	mu.Lock()
	defer mu.Unlock()
	return f
}
