package oci

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"crunch-oci/internal/forkthread"
	"crunch-oci/oci/internal/libct"
)

// run brings the process into the container and returns when it executes its
// program. On error nothing of it is left.
func (e *entering) run(size *TerminalSize) (_ *Session, err error) {
	var s *Session
	defer func() {
		_ = e.lifeline.Close()
		_ = closeAll(e.console)
		if err == nil {
			return
		}
		_ = e.closeTheirs()
		if s != nil {
			_ = s.entered.Signal(syscall.SIGKILL)
			_ = s.Close()
			<-s.ended
		}
		_ = closeAll(e.ours[:]...)
		err = e.explain(err)
	}()
	guest, err := libct.Load(e.r.stateDir, e.r.id)
	if err != nil {
		return nil, err
	}
	if err := refuse(guest); err != nil {
		return nil, err
	}
	if err := e.r.checkRoom(); err != nil {
		return nil, err
	}
	e.refusals = e.r.refusals()
	reported := e.admit()
	// Not the thread of forkthread.Do: Enter may wait for a file system of the
	// container that does not answer, and nobody else could start a process
	// meanwhile.
	//
	// Enter makes several processes, each from the one before. If it fails early,
	// usually because the container is ending, it does not wait for all of them.
	thread := forkthread.New()
	var entered *libct.Entered
	thread.Do(func() { entered, err = guest.Enter(e.process, e.theirs) })
	_ = e.closeTheirs() // so that what we read ends with the process
	if err != nil {
		reapRest(thread)
		_ = e.lifeline.Close()
		if r := <-reported; r.err != nil && e.r.ending() {
			return nil, errEnded
		}
		return nil, err
	}
	s = &Session{entered: entered, cgroup: e.r.cgroup, terminal: size != nil, ended: make(chan struct{}),
		stdin: e.ours[0], stdout: e.ours[1], stderr: e.ours[2]}
	e.ours = [3]*os.File{}
	if stat, err := readProcStat(entered.PID); err == nil {
		s.start = stat.start // before it is reaped, so it is this process's
	}
	go s.reap(thread)
	if size != nil {
		master, err := receiveTerminal(e.console)
		if err != nil {
			return nil, err
		}
		s.stdin, s.stdout = master, master
		if err := resize(master, *size); err != nil {
			return nil, err
		}
	}
	if err := (<-reported).failure(); err != nil {
		return nil, err
	}
	return s, nil
}

// report is what a process has said on the lifeline by the time it executes its
// program or ends: nothing, or why it could not.
type report struct {
	text string
	err  error // of reading it
}

// admit lets the process go on once it is in the container, and sends its report.
func (e *entering) admit() <-chan report {
	reported := make(chan report, 1)
	go func() {
		if err := libct.Admit(e.lifeline, e.r.alive); err != nil {
			_ = e.lifeline.Close() // which ends the process
			reported <- report{err: err}
			return
		}
		text, err := io.ReadAll(io.LimitReader(e.lifeline, 64<<10))
		reported <- report{strings.TrimSpace(string(text)), err}
	}()
	return reported
}

// failure returns nil if the process executes its program.
func (r report) failure() error {
	switch {
	case crashed(r.text):
		return errNoRoom
	case r.text != "":
		return &ExecError{Code: (&StartError{Reason: r.text}).ExitCode(), Text: printable(r.text)}
	}
	return r.err
}

// explain returns the error to report for err: an *ExecError if the reason lies in
// the command, the account or the container.
func (e *entering) explain(err error) error {
	var refused *ExecError
	if errors.As(err, &refused) {
		return refused
	}
	if errors.Is(err, libct.ErrGone) || e.r.ending() {
		return errEnded
	}
	explained := explain(err, e.process)
	var start *StartError
	if errors.As(explained, &start) {
		return &ExecError{Code: start.ExitCode(), Text: printable(start.Reason)}
	}
	if errors.Is(explained, ErrRequest) {
		return &ExecError{1, fmt.Sprintf("working directory %q cannot be used", e.process.Cwd)}
	}
	if e.r.endsSoon() {
		return errEnded
	}
	if e.r.refusals() > e.refusals {
		return errNoRoom
	}
	return fmt.Errorf("start a command in container %s: %w", e.r.id, err)
}

// endsSoon tells whether the container is ending, and waits half a second for signs
// of it: when all its processes are killed, the one that was entering may be hit
// before the first process is.
func (r *runningContainer) endsSoon() bool {
	const patience, interval = 500 * time.Millisecond, 10 * time.Millisecond
	ticks := time.NewTicker(interval)
	defer ticks.Stop()
	for range patience / interval {
		if r.ending() {
			return true
		}
		<-ticks.C
	}
	return false
}

// ending tells whether the first process ends or has ended.
func (r *runningContainer) ending() bool {
	s, err := readProcStat(r.pid)
	return err != nil || s.exiting || r.alive() != nil
}

// receiveTerminal receives the master of a terminal (unix(7), SCM_RIGHTS).
func receiveTerminal(console *os.File) (*os.File, error) {
	oob := make([]byte, unix.CmsgSpace(4))
	var data [256]byte
	var n int
	var err error
	raw, rawErr := console.SyscallConn()
	if rawErr != nil {
		return nil, fmt.Errorf("receive the terminal: %w", rawErr)
	}
	rawErr = raw.Read(func(fd uintptr) bool {
		_, n, _, _, err = unix.Recvmsg(int(fd), data[:], oob, unix.MSG_CMSG_CLOEXEC)
		return err != unix.EAGAIN
	})
	if err = errors.Join(rawErr, err); err != nil {
		return nil, fmt.Errorf("receive the terminal: %w", err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(messages) != 1 {
		return nil, fmt.Errorf("receive the terminal: it was not sent (%d messages): %w", len(messages), err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return nil, fmt.Errorf("receive the terminal: %d files: %w", len(fds), err)
	}
	// Non-blocking: reads and writes then wait without a thread, and end when it
	// is closed.
	if err := unix.SetNonblock(fds[0], true); err != nil {
		_ = unix.Close(fds[0])
		return nil, fmt.Errorf("receive the terminal: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "terminal"), nil
}
