package forkthread

import "runtime"

// Thread is an operating-system thread that runs only what Do is given.
//
// To the kernel the thread, not the process, is the parent of the children that are
// started on it: their parent-death signal comes when it ends, and it is their
// tracer if they ask for one (ptrace(2), PTRACE_TRACEME).
type Thread struct{ work chan func() }

// New starts a thread, which lives until End.
func New() Thread {
	t := Thread{make(chan func())}
	go t.serve()
	return t
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
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for fn := range t.work {
		fn()
	}
}
