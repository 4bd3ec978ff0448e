package forkthread

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// Thread is an operating-system thread that runs only what Do is given.
//
// To the kernel the thread, not the process, is the parent of the children that are
// started on it: their parent-death signal comes when it ends, and it is their
// tracer if they ask for one (ptrace(2), PTRACE_TRACEME). They can also give it
// further children (clone(2), CLONE_PARENT).
type Thread struct{ work chan func() }

// New starts a thread without children, which lives until End.
func New() Thread {
	t := Thread{make(chan func())}
	found := make(chan struct{})
	defer close(found)
	for {
		mayServe := make(chan bool)
		go func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			if !childless() { // those of somebody who has used it before
				mayServe <- false
				<-found // keep it, so that the next one is another
				return
			}
			mayServe <- true
			t.serve()
		}()
		if <-mayServe {
			return t
		}
	}
}

// childless tells whether the calling thread has no child, not even one to be reaped.
func childless() bool {
	for {
		err := unix.Waitid(unix.P_ALL, 0, nil, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT|unix.WALL|unix.WNOTHREAD, nil)
		if err != unix.EINTR {
			return err == unix.ECHILD
		}
	}
}

// Do runs fn on the thread and returns when fn has returned. Calls are run one
// after the other; fn must not call Do.
func (t Thread) Do(fn func()) {
	done := make(chan struct{})
	t.work <- func() { defer close(done); fn() }
	<-done
}

// End ends the thread. No Do may be running, and none may follow.
func (t Thread) End() { close(t.work) }

func (t Thread) serve() {
	for fn := range t.work {
		fn()
	}
}
