package libct

import (
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// awaitExit returns when pid, a child of this process, has ended. It does not reap
// it. do runs functions on the thread that started the child, which is the only one
// that ptrace(2) obeys.
//
// A child can make its parent its tracer without asking (ptrace(2), PTRACE_TRACEME),
// as programs do that want no debugger. From then on it stops at each signal until
// the tracer lets it go on. wait(2) reports each stop, which would be taken for the
// child's end. A single thread of the child can do so as well, and must then be
// reaped by itself, before the child can be. We trace nobody, so whatever stops is
// detached.
func awaitExit(pid int, do func(func())) {
	done := make(chan struct{})
	var threads sync.WaitGroup
	threads.Go(func() { watchThreads(pid, do, done) })
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
	close(done)
	threads.Wait()
}

// watchThreads calls detachThreads until done is closed: at once, and whenever the
// kernel says that a child has changed (SIGCHLD, which it also sends for threads).
func watchThreads(pid int, do func(func()), done <-chan struct{}) {
	// There may be thousands of threads, and a container can cause signals at will.
	const interval = 100 * time.Millisecond
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, unix.SIGCHLD)
	defer signal.Stop(changed)
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
		case <-changed:
			pause.Reset(interval)
		}
	}
}

// detachThreads looks at all threads of a process but the first, which awaitExit
// waits for. Those that we trace are detached if they have stopped, and reaped if
// they have ended.
func detachThreads(pid int, do func(func())) {
	dir := fmt.Sprintf("/proc/%d/task", pid)
	d, err := os.Open(dir)
	if err != nil {
		return // the process has been reaped
	}
	defer d.Close()
	names, _ := d.Readdirnames(-1)
	for _, name := range names {
		tid, err := strconv.Atoi(name)
		if err != nil || tid == pid {
			continue
		}
		var info siginfo
		// An error (ECHILD) means that we do not trace the thread.
		if waitid(tid, &info, unix.WEXITED|unix.WSTOPPED|unix.WNOHANG|unix.WNOWAIT) != nil || info.code == 0 {
			continue
		}
		// The number may have been given to another child since the list was read.
		// It cannot from here on: only this function reaps the thread.
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

// detach ends the tracing of a thread that has stopped, and lets it go on. The
// signal that stopped it is passed on, except for SIGTRAP, which the kernel makes
// up when a tracee executes a program.
func detach(tid int, do func(func())) {
	var info siginfo
	if waitid(tid, &info, unix.WSTOPPED|unix.WNOHANG) != nil || !info.stopped() {
		return
	}
	sig := uintptr(info.status)
	if unix.Signal(sig) == unix.SIGTRAP {
		sig = 0
	}
	// The error says that the thread has been killed meanwhile.
	do(func() { _, _, _ = unix.RawSyscall6(unix.SYS_PTRACE, unix.PTRACE_DETACH, uintptr(tid), 0, sig, 0, 0) })
}

// siginfo is the result of waitid(2), as the kernel lays it out on 64 bits.
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

func waitid(pid int, info *siginfo, options int) error {
	*info = siginfo{}
	_, _, errno := unix.Syscall6(unix.SYS_WAITID, unix.P_PID, uintptr(pid), uintptr(unsafe.Pointer(info)), uintptr(options), 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}
