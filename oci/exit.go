package oci

import (
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// ExitStatus is how a container's first process ended.
type ExitStatus struct {
	// Code is the exit code, 0 to 255; 128+n if a signal n ended it.
	Code int
	// Signal is that signal, or 0.
	Signal syscall.Signal
}

func exitStatus(ws syscall.WaitStatus) ExitStatus {
	if ws.Signaled() {
		return ExitStatus{Code: 128 + int(ws.Signal()), Signal: ws.Signal()}
	}
	return ExitStatus{Code: ws.ExitStatus()}
}

// String returns the code, followed by the signal that a code above 128
// usually stands for, whoever produced it: "137 (signal 9, SIGKILL)". Nothing
// is added to 128 and 255, which stand for none (lifecycle.md sections 11 and
// 16).
func (s ExitStatus) String() string {
	const most = 126 // 255 is what programs exit with for -1
	n := s.Code - 128
	if n <= 0 || n > most {
		return fmt.Sprint(s.Code)
	}
	if name := unix.SignalName(syscall.Signal(n)); name != "" {
		return fmt.Sprintf("%d (signal %d, %s)", s.Code, n, name)
	}
	return fmt.Sprintf("%d (signal %d)", s.Code, n)
}
