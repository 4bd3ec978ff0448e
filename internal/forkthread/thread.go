package forkthread

import "runtime"

// Thread is an operating-system thread that does nothing but what Do is given.
// The children that are started on it, and those of them that make their parent
// their tracer (ptrace(2), PTRACE_TRACEME), have this one thread for it.
type Thread struct{ work chan func() }

// New starts a thread. End must be called in the end.
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

// End gives the thread back, when no Do is left and no child needs it.
func (t Thread) End() { close(t.work) }

func (t Thread) serve() {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for fn := range t.work {
		fn()
	}
}
