package libct

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The thread that has started a process of the container gets more to wait for than
// that process:
//
// A process can make its parent its tracer without asking (ptrace(2),
// PTRACE_TRACEME), as programs do that want no debugger. From then on it stops at
// each signal until the tracer lets it go on. wait(2) reports each stop, which would
// be taken for the process's end. A single thread of it can do so as well, and must
// then be reaped by itself, before the process can be. We trace nobody, so whatever
// stops is detached.
//
// A process can give its parent further children (clone(2), CLONE_PARENT), unless it
// is the first of its PID namespace. Unless they are reaped, the namespace does not
// end.

// awaitExit returns when pid, a child of the calling thread, has ended. It does not
// reap it, but whatever else the thread has got from it.
func awaitExit(pid int) {
	for {
		child, err := awaitChild(0)
		if err != nil || child == pid {
			return
		}
		reap(child)
	}
}

// EndChildren kills and reaps all children of the calling thread.
func EndChildren() {
	for {
		// All that have ended before the rest is looked at, which takes its time.
		child, err := awaitChild(unix.WNOHANG)
		if err == nil && child == 0 {
			for _, pid := range threadChildren() {
				_ = unix.Kill(pid, unix.SIGKILL)
			}
			child, err = awaitChild(0)
		}
		if err != nil {
			return
		}
		reap(child)
	}
}

// awaitChild waits until a child or a traced thread of the calling thread has ended,
// and returns its number without reaping it. With the option WNOHANG it does not wait,
// and returns 0 if none has. What has stopped is let go meanwhile. The error is ECHILD
// if there is nothing to wait for.
func awaitChild(option int) (int, error) {
	for {
		var info siginfo
		err := waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOWAIT|option)
		switch {
		case err == unix.EINTR:
		case err != nil || !info.stopped():
			return int(info.pid), err
		default:
			detach(int(info.pid), unix.Signal(info.status))
		}
	}
}

// detach ends the tracing of a thread that has stopped, and lets it go on. The
// signal that stopped it is passed on, except for SIGTRAP, which the kernel makes
// up when a tracee executes a program.
func detach(tid int, sig unix.Signal) {
	if sig == unix.SIGTRAP {
		sig = 0
	}
	// The error says that the thread has been killed meanwhile.
	_, _, _ = unix.RawSyscall6(unix.SYS_PTRACE, unix.PTRACE_DETACH, uintptr(tid), 0, uintptr(sig), 0, 0)
	// A container can do this again and again, on CPU time that is not its own.
	time.Sleep(200 * time.Microsecond)
}

func reap(pid int) {
	var info siginfo
	for waitid(unix.P_PID, pid, &info, unix.WEXITED) == unix.EINTR {
	}
}

// threadChildren returns the processes whose parent is the calling thread and that
// have not been reaped.
func threadChildren() (all []int) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/children", unix.Gettid()))
	if err != nil {
		return nil // a kernel without CONFIG_PROC_CHILDREN
	}
	for _, f := range strings.Fields(string(b)) {
		if pid, err := strconv.Atoi(f); err == nil {
			all = append(all, pid)
		}
	}
	return all
}

// siginfo is what waitid(2) says, as the kernel lays it out on 64 bits.
type siginfo struct {
	signo, errno, code, _ int32
	pid, uid, status      int32
	_                     [100]byte
}

// stopped tells whether the thread has stopped, and not ended.
func (i *siginfo) stopped() bool {
	const trapped, stopped = 4, 5 // CLD_TRAPPED, CLD_STOPPED of asm-generic/siginfo.h
	return i.code == trapped || i.code == stopped
}

// waitid looks at children and tracees of the calling thread only.
func waitid(kind, id int, info *siginfo, options int) error {
	*info = siginfo{}
	options |= unix.WALL | unix.WNOTHREAD
	_, _, errno := unix.Syscall6(unix.SYS_WAITID, uintptr(kind), uintptr(id), uintptr(unsafe.Pointer(info)), uintptr(options), 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}
