package libct

import (
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// awaitExit returns when the process pid, a child of this one that has not been
// reaped, has ended. do runs functions on the thread whose child it is.
//
// A process can make its parent its tracer without asking it (ptrace(2),
// PTRACE_TRACEME), as programs do that want no debugger. Then it stops at each
// signal until the tracer lets it go on, wait(2) says so as if that were its end,
// and of its threads those that do the same must be waited for one by one before
// the process itself can be. Whoever does that is detached: we trace nobody.
func awaitExit(pid int, do func(func())) {
	children := make(chan os.Signal, 1)
	signal.Notify(children, unix.SIGCHLD)
	done, swept := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(swept)
		// At most so often: there may be many threads, of somebody who signals.
		const interval = 100 * time.Millisecond
		pause := time.NewTimer(0)
		defer pause.Stop()
		for {
			select {
			case <-done:
				return
			case <-pause.C:
			}
			detachThreads(pid, do)
			select {
			case <-done:
				return
			case <-children:
				pause.Reset(interval)
			}
		}
	}()
	for {
		var info siginfo
		err := waitid(pid, &info, unix.WEXITED|unix.WNOWAIT)
		if err == unix.EINTR {
			continue
		}
		if err != nil || !info.stopped() {
			break
		}
		detach(pid, do)
	}
	signal.Stop(children)
	close(done)
	<-swept
}

// detachThreads lets the threads of a process go on, but for the first, that have
// stopped because this process is their tracer, and reaps those that have ended.
func detachThreads(pid int, do func(func())) {
	dir := fmt.Sprintf("/proc/%d/task", pid)
	d, err := os.Open(dir)
	if err != nil {
		return // it has been reaped
	}
	defer d.Close()
	names, _ := d.Readdirnames(-1)
	for _, name := range names {
		tid, err := strconv.Atoi(name)
		if err != nil || tid == pid {
			continue
		}
		var info siginfo
		if waitid(tid, &info, unix.WEXITED|unix.WSTOPPED|unix.WNOHANG|unix.WNOWAIT) != nil || info.code == 0 {
			continue
		}
		// Not reaped, it still is who it was, if it was not another child already.
		if _, err := os.Stat(dir + "/" + name); err != nil {
			continue
		}
		if info.stopped() {
			detach(tid, do)
		} else {
			_ = waitid(tid, &info, unix.WEXITED|unix.WNOHANG)
		}
	}
}

// detach takes note of a stop and lets the thread go on, with the signal that has
// stopped it but for the one that the kernel sends to tracees that execute a program.
func detach(tid int, do func(func())) {
	var info siginfo
	if waitid(tid, &info, unix.WSTOPPED|unix.WNOHANG) != nil || !info.stopped() {
		return
	}
	sig := uintptr(info.status)
	if unix.Signal(sig) == unix.SIGTRAP {
		sig = 0
	}
	// It may have been killed meanwhile.
	do(func() { _, _, _ = unix.RawSyscall6(unix.SYS_PTRACE, unix.PTRACE_DETACH, uintptr(tid), 0, sig, 0, 0) })
}

// siginfo is what waitid(2) says, as the kernel lays it out on 64 bits.
type siginfo struct {
	signo, errno, code, _ int32
	pid, uid, status      int32
	_                     [100]byte
}

// stopped tells whether it is about a stop (CLD_TRAPPED, CLD_STOPPED).
func (i *siginfo) stopped() bool { return i.code == 4 || i.code == 5 }

func waitid(pid int, info *siginfo, options int) error {
	*info = siginfo{}
	_, _, errno := unix.Syscall6(unix.SYS_WAITID, unix.P_PID, uintptr(pid), uintptr(unsafe.Pointer(info)), uintptr(options), 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}
