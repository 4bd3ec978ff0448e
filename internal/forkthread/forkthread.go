// Package forkthread starts child processes from one operating-system thread
// that lives as long as the process.
//
// The kernel sends a child its parent-death signal when the *thread* that
// forked it ends (prctl(2), PR_SET_PDEATHSIG), and Go ends threads as it likes.
// A child that must die with this process, and not before, is therefore
// started through Do.
package forkthread

import (
	"runtime"
	"sync"
)

var forever = sync.OnceValue(func() Thread {
	t := Thread{make(chan func())}
	go serve(t)
	return t
})

// serve has no end on purpose: the thread must outlive every child.
func serve(t Thread) {
	runtime.LockOSThread()
	t.serve()
}

// Do runs fn on the long-lived thread and returns when fn has returned. Calls
// are run one after the other; fn must not call Do.
func Do(fn func()) { forever().Do(fn) }
