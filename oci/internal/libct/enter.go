package libct

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Guest is a container that exists, as its state directory describes it.
//
// libcontainer holds a lock of its Container for as long as it starts a process,
// which is for ever if the program lies on a file system that does not answer.
// So each process gets a Guest of its own, and none shares the Container with
// which the container is started and removed.
type Guest struct {
	ctr *libcontainer.Container
}

// ErrGone is returned by Load if there is no such container any more.
var ErrGone = errors.New("there is no such container")

// Load finds a container by its state.
func Load(stateDir, id string) (*Guest, error) {
	redirectLog()
	ctr, err := libcontainer.Load(stateDir, id)
	if errors.Is(err, libcontainer.ErrNotExist) || errors.Is(err, os.ErrNotExist) {
		return nil, ErrGone
	}
	if err != nil {
		return nil, fmt.Errorf("read the container's state: %w", err)
	}
	if lacksProfile(ctr.Config()) {
		return nil, errors.New("read the container's state: its system call filter has not been loaded yet")
	}
	return &Guest{ctr}, nil
}

// Status of a container.
type Status int

// A container waits for its command to be executed, runs, or has ended.
const (
	Waiting Status = iota
	Runs
	Ended
)

// Status returns what the container does now.
func (g *Guest) Status() (Status, error) {
	s, err := g.ctr.Status()
	switch {
	case err != nil:
		return 0, fmt.Errorf("look at the container's state: %w", err)
	case s == libcontainer.Created:
		return Waiting, nil
	case s == libcontainer.Stopped:
		return Ended, nil
	}
	return Runs, nil
}

// EnterFiles are what a process that enters a container is given. They stay the
// caller's to close.
type EnterFiles struct {
	// Streams are standard input, output and error; nil is /dev/null.
	Streams [3]*os.File
	// Console, if not nil, is a socket on which the master of a new terminal is
	// received as a file (unix(7), SCM_RIGHTS); it replaces the streams.
	Console *os.File
	// Lifeline is the process's end of a connected pair of sockets; see Init.
	Lifeline *os.File
}

// Enter makes a process in the container. It returns when that process has
// found its program and is about to execute it; what it has to say after that,
// it says on the lifeline. The process is a child of this one, and Wait must be
// called as soon as Enter returns: the kernel does not let a container end as
// long as one of its processes is not reaped.
//
// Enter must be called on a thread that lives until Wait returns.
func (g *Guest) Enter(p *specs.Process, files EnterFiles) (*Entered, error) {
	process, err := newProcess(p)
	if err != nil {
		return nil, err
	}
	if files.Console != nil {
		process.ConsoleSocket = files.Console
		if s := p.ConsoleSize; s != nil {
			process.ConsoleWidth, process.ConsoleHeight = uint16(s.Width), uint16(s.Height)
		}
	} else {
		// A nil *os.File in these interfaces would not be nil.
		if f := files.Streams[0]; f != nil {
			process.Stdin = f
		}
		if f := files.Streams[1]; f != nil {
			process.Stdout = f
		}
		if f := files.Streams[2]; f != nil {
			process.Stderr = f
		}
	}
	process.ExtraFiles = []*os.File{files.Lifeline} // becomes lifelineFd
	if err := g.ctr.Start(process); err != nil {
		return nil, err
	}
	pid, err := process.Pid()
	if err != nil {
		return nil, err
	}
	return &Entered{process: process, PID: pid}, nil
}

// Entered is a process in a container beside its first one. It leads a session
// and process group of its own.
type Entered struct {
	process *libcontainer.Process
	PID     int
}

// Wait waits for the process to end and reaps it. It must be called once, on the
// thread that called Enter, which must have no other children.
func (e *Entered) Wait() (syscall.WaitStatus, error) { return wait(e.process) }

// Signal sends a signal to the process; os.ErrProcessDone if it has ended.
func (e *Entered) Signal(sig syscall.Signal) error { return e.process.Signal(sig) }

// ready and admitted are what the two ends of a lifeline say to each other
// before a process that has entered a container goes on.
const (
	ready    = 'r'
	admitted = 'a'
)

// Admit waits until a process that is being made by Enter has entered the
// container's namespaces, and lets it go on if check agrees. It reads from and
// writes to the creator's end of the lifeline.
//
// The namespaces are found by the process id of the container's first process.
// check must find that this process has not been reaped: then its number cannot
// have been given to another before, whose namespaces, perhaps the host's, would
// have been entered instead.
func Admit(lifeline *os.File, check func() error) error {
	var b [1]byte
	if _, err := lifeline.Read(b[:]); err != nil {
		return fmt.Errorf("enter the container: %w", err)
	}
	if b[0] != ready {
		return fmt.Errorf("enter the container: unexpected answer %q", b[0])
	}
	if err := check(); err != nil {
		return err
	}
	if _, err := lifeline.Write([]byte{admitted}); err != nil {
		return fmt.Errorf("enter the container: %w", err)
	}
	return nil
}

// awaitAdmission is the other side of Admit.
func awaitAdmission() error {
	if _, err := unix.Write(lifelineFd, []byte{ready}); err != nil {
		return os.NewSyscallError("write to the lifeline", err)
	}
	var b [1]byte
	for {
		n, err := unix.Read(lifelineFd, b[:])
		if err == unix.EINTR {
			continue
		}
		if n != 1 || b[0] != admitted {
			return errors.New("not admitted to the container")
		}
		return nil
	}
}
