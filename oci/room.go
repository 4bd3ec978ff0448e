package oci

import (
	"fmt"
	"strings"
)

// startPIDs is how many processes and threads there may be of a command for the
// moment in which it is started: the programs that bring it into the container.
const startPIDs = 6

// crowded returns an *ExecError if the container's processes leave no room for
// one more. Without this question the program that is to become the command
// would end somewhere on its way, with words that nobody understands.
func (r *inhabited) crowded() error {
	if r.cgroup == nil {
		return nil
	}
	if current, limit, limited := r.cgroup.PIDLimit(); limited && current+startPIDs > limit {
		return &ExecError{1, fmt.Sprintf("the container has %d processes and threads and may have %d: there is no room for another command", current, limit)}
	}
	return nil
}

// refusals is how often the limit has kept the container's processes, or those
// on their way into it, from making another.
func (r *inhabited) refusals() uint64 {
	if r.cgroup == nil {
		return 0
	}
	return r.cgroup.PIDRefusals()
}

// errNoRoom refuses a command for which the room was gone when it was being
// started.
var errNoRoom = &ExecError{1, "the container has no room for another command: too many processes, or no memory"}

// gaveUp tells whether what a starting program has said is that the Go runtime
// has given up, as it does where it gets no thread and no memory, rather than why
// the command cannot be executed.
func gaveUp(report string) bool {
	return strings.HasPrefix(report, "SIG") || strings.Contains(report, "fatal error: ")
}
