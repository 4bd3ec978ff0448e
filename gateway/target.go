package gateway

import (
	"context"
	"errors"
	"io"
	"net"
	"syscall"
)

// ErrNoAddress says that nothing can be reached in the container by TCP: it
// shares the host's network, has not been started, or has ended. Errors of
// Target.Dial that wrap it say why (gateway.md section 6).
var ErrNoAddress = errors.New("container has no IP address")

// Target is the container behind the door.
type Target interface {
	// Dial connects to a TCP port inside the container's network namespace:
	// 127.0.0.1 first, then the container's own address. Never to the host's.
	Dial(ctx context.Context, port int) (net.Conn, error)
	// Exec starts a command in the container, in its namespaces and cgroup and
	// with no more rights than its first process. The error is an *ExecError if
	// the reason lies in the command, the account or the container.
	Exec(ctx context.Context, c Command) (Process, error)
}

// Command is what a session runs.
type Command struct {
	// Args are the program and its arguments; none: a login shell, which is
	// /bin/bash, or without it the account's, or /bin/sh.
	Args []string
	// Env is set on top of the container's environment: "NAME=value".
	Env []string
	// User is "name", "uid", "name:group" or "uid:gid"; "" is root.
	User string
	// Terminal, if not nil, gives the command a controlling terminal of this
	// size; its type is in Env.
	Terminal *WindowSize
}

// WindowSize of a terminal, in characters and in pixels (0: unknown).
type WindowSize struct{ Columns, Rows, Width, Height uint16 }

// Process is a command that runs in the container beside its first process. It
// ends with the container.
type Process interface {
	// Stdin is the command's standard input, or its terminal, whose Close hangs
	// up.
	Stdin() io.WriteCloser
	// Stdout and Stderr are read to their end. With a terminal Stdout is what it
	// shows and Stderr is nil.
	Stdout() io.Reader
	Stderr() io.Reader
	Resize(WindowSize) error
	// Signal is sent to the command, with a terminal to its foreground job.
	Signal(syscall.Signal) error
	// Wait returns the exit code, 128+n after a signal n.
	Wait(ctx context.Context) (int, error)
	// Kill ends the command and everything it has started.
	Kill() error
	// Close gives up the streams, as must be done in the end: a terminal is hung
	// up. It does not end the command.
	Close() error
}

// ExecError says why a command was not started, and the exit code that stands
// for it: 127 not found, 126 not executable, else 1.
type ExecError struct {
	Code int
	Text string // a line for the user, without a line break
}

func (e *ExecError) Error() string { return e.Text }
