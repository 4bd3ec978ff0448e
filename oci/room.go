package oci

import (
	"fmt"
	"strings"
)

// startPIDs is how many processes and threads it takes to start a command: runc's
// init, which is a Go program, has several until it executes the command.
const startPIDs = 6

// checkRoom returns an *ExecError if the container's processes leave no room for
// one more. runc's init would fail somewhere on its way then, with a message of the
// Go runtime that users cannot make sense of.
func (r *runningContainer) checkRoom() error {
	if r.cgroup == nil {
		return nil
	}
	if current, limit, limited := r.cgroup.PIDLimit(); limited && current+startPIDs > limit {
		return &ExecError{1, fmt.Sprintf("the container has %d processes and threads and may have %d: there is no room for another command", current, limit)}
	}
	return nil
}

// refusals is how often the limit of processes has been hit so far, by the
// container's processes or by commands that were being started.
func (r *runningContainer) refusals() uint64 {
	if r.cgroup == nil {
		return 0
	}
	return r.cgroup.PIDRefusals()
}

// errNoRoom is the error of a command that hit the limits while it was being started,
// although checkRoom had found room.
var errNoRoom = &ExecError{1, "the container has no room for another command: too many processes, or no memory"}

// crashed tells whether a report is the Go runtime's, which aborts where it gets no
// thread or no memory, and not about the command.
func crashed(report string) bool {
	return strings.HasPrefix(report, "SIG") || strings.Contains(report, "fatal error: ")
}
