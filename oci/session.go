package oci

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"crunch-oci/cgroups"
	"crunch-oci/internal/forkthread"
	"crunch-oci/oci/internal/libct"
)

// Session is a command that Exec has started in a container.
type Session struct {
	entered *libct.Entered
	start   uint64 // start time of the command (proc(5)), in case its number is reused
	cgroup  *cgroups.Cgroup

	stdin          *os.File // with a terminal its master, which is stdout as well
	stdout, stderr *os.File
	terminal       bool

	signals sync.Mutex // held while a signal is sent: its number must not be reused meanwhile
	reaped  bool
	ended   chan struct{} // closed when the command has been reaped
	exit    ExitStatus    // valid once ended is closed
	waitErr error         // likewise
}

// PID returns the command's process id in this process's PID namespace.
func (s *Session) PID() int { return s.entered.PID }

// Stdin is the command's standard input, or the terminal, which Close hangs up:
// its foreground job gets SIGHUP.
func (s *Session) Stdin() io.WriteCloser { return s.stdin }

// Stdout is the command's standard output, or what its terminal shows.
func (s *Session) Stdout() io.Reader {
	if s.terminal {
		return terminalReader{s.stdout}
	}
	return s.stdout
}

// Stderr is the command's standard error; nil with a terminal.
func (s *Session) Stderr() io.Reader {
	if s.terminal {
		return nil
	}
	return s.stderr
}

// terminalReader reports the end of the file when nobody has the terminal open any
// more: Linux makes reading its master fail with EIO then.
type terminalReader struct{ f *os.File }

func (t terminalReader) Read(p []byte) (int, error) {
	n, err := t.f.Read(p)
	if errors.Is(err, unix.EIO) {
		err = io.EOF
	}
	return n, err
}

// Resize changes the size of the terminal, whose foreground job is told so.
func (s *Session) Resize(size TerminalSize) error {
	if !s.terminal {
		return errors.New("the command has no terminal")
	}
	return resize(s.stdin, size)
}

func resize(master *os.File, size TerminalSize) error {
	err := control(master, func(fd int) error {
		return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{
			Row: size.Rows, Col: size.Columns, Xpixel: size.Width, Ypixel: size.Height,
		})
	})
	if err != nil {
		return fmt.Errorf("resize terminal: %w", err)
	}
	return nil
}

// control uses a file's descriptor without making it a blocking one.
func control(f *os.File, use func(fd int) error) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var useErr error
	if err := raw.Control(func(fd uintptr) { useErr = use(int(fd)) }); err != nil {
		return err
	}
	return useErr
}

// Signal sends a signal to the command's process group, as shells and sshd do;
// with a terminal to its foreground job. The error is os.ErrProcessDone if the
// command has ended.
func (s *Session) Signal(sig syscall.Signal) error {
	s.signals.Lock()
	defer s.signals.Unlock()
	if s.reaped {
		return os.ErrProcessDone
	}
	group := s.entered.PID
	if s.terminal {
		err := control(s.stdin, func(fd int) error {
			foreground, err := unix.IoctlGetInt(fd, unix.TIOCGPGRP)
			// 0 is a group that cannot be seen from here; there is none if the
			// terminal has been hung up.
			if err == nil && foreground > 1 {
				group = foreground
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("signal the terminal's foreground job: %w", err)
		}
	}
	if err := unix.Kill(-group, sig); err != nil {
		return fmt.Errorf("signal process group %d: %w", group, err)
	}
	return nil
}

// Wait waits for the command to end. Processes that it has left in the background
// may keep the streams open. The error is ctx's cause, or says that the command's
// status could not be learnt.
func (s *Session) Wait(ctx context.Context) (ExitStatus, error) {
	select {
	case <-s.ended:
		return s.exit, s.waitErr
	case <-ctx.Done():
		return ExitStatus{}, context.Cause(ctx)
	}
}

// Kill kills the command with its descendants, and the processes of its login session
// and process groups. A daemon, which has left all of these, lives until the
// container ends.
func (s *Session) Kill() error {
	return killTree(s.cgroup, s.entered.PID, s.start)
}

// Close closes the streams, which ends reads and writes of them. A terminal is hung
// up; a process that writes to standard output gets SIGPIPE. The command goes on.
func (s *Session) Close() error {
	var errs []error
	for _, f := range []*os.File{s.stdin, s.stdout, s.stderr} {
		if f != nil {
			errs = append(errs, ignoreClosed(f.Close()))
		}
	}
	return errors.Join(errs...)
}

// reap waits for the command. A process that is not reaped keeps the container from
// ending.
func (s *Session) reap(thread forkthread.Thread) {
	defer reapRest(thread)
	defer close(s.ended)
	thread.Do(func() {
		status, err := s.entered.Wait()
		s.exit, s.waitErr = exitStatus(status), err
	})
	s.signals.Lock()
	s.reaped = true
	s.signals.Unlock()
}

// reapRest ends the thread of a process that has ended or was not made. First it
// kills and reaps what else is a child of the thread: processes that were to become
// it, and siblings that it has made (clone(2), CLONE_PARENT). Unless they are reaped,
// the container cannot end.
func reapRest(thread forkthread.Thread) {
	thread.Do(libct.EndChildren)
	thread.End()
}

// enter starts a process in the container and returns when it executes its
// program.
func (r *runningContainer) enter(ctx context.Context, p *specs.Process, size *TerminalSize) (*Session, error) {
	select {
	case r.starts <- struct{}{}:
	case <-ctx.Done():
		return nil, fmt.Errorf("start a command: %w", context.Cause(ctx))
	}
	release := func() { <-r.starts }
	if ctx.Err() != nil {
		release()
		return nil, fmt.Errorf("start a command: %w", context.Cause(ctx))
	}
	type result struct {
		s   *Session
		err error
	}
	started := make(chan result)
	e := &entering{r: r, process: p}
	if err := e.open(size); err != nil {
		release()
		return nil, errors.Join(err, e.close())
	}
	// A process that is still setting things up ends with the lifeline.
	stop := context.AfterFunc(ctx, func() { _ = e.lifeline.Close() })
	go func() {
		s, err := e.run(size)
		release()
		stop()
		select {
		case started <- result{s, err}:
		case <-ctx.Done():
			// enter has returned without the session, so it is nobody's.
			if s != nil {
				_ = s.Kill()
				_ = s.Close()
			}
		}
	}()
	select {
	case got := <-started:
		if got.err != nil && ctx.Err() != nil {
			return nil, fmt.Errorf("start a command: %w", context.Cause(ctx))
		}
		return got.s, got.err
	case <-ctx.Done():
		return nil, fmt.Errorf("start a command: %w", context.Cause(ctx))
	}
}

// entering is a process that is being started in the container, with both ends of
// its streams and sockets.
type entering struct {
	r                 *runningContainer
	process           *specs.Process
	ours              [3]*os.File // streams
	theirs            libct.EnterFiles
	lifeline, console *os.File
	refusals          uint64 // before it was started; see runningContainer.refusals
}

func (e *entering) open(size *TerminalSize) (err error) {
	if e.lifeline, e.theirs.Lifeline, err = socketPair(); err != nil {
		return err
	}
	if size != nil {
		e.console, e.theirs.Console, err = socketPair()
		return err
	}
	if e.theirs.Streams[0], e.ours[0], err = os.Pipe(); err != nil {
		return err
	}
	for i := 1; i < len(e.ours); i++ {
		if e.ours[i], e.theirs.Streams[i], err = os.Pipe(); err != nil {
			return err
		}
	}
	return giveStreams(e.theirs.Streams, e.process.User.UID, e.r.ids)
}

func (e *entering) close() error {
	return errors.Join(closeAll(e.ours[:]...), closeAll(e.lifeline, e.console), e.closeTheirs())
}

func (e *entering) closeTheirs() error {
	return errors.Join(closeAll(e.theirs.Streams[:]...), closeAll(e.theirs.Console, e.theirs.Lifeline))
}

func closeAll(files ...*os.File) error {
	var errs []error
	for _, f := range files {
		if f != nil {
			errs = append(errs, ignoreClosed(f.Close()))
		}
	}
	return errors.Join(errs...)
}
