// Package keepmount runs the FUSE server of a run, "crunch-run keep-mount", as
// a child process. A process that serves FUSE must not be the one that forks
// containers (hanwen/go-fuse, fs/api.go, "Deadlocks"), and the supervisor never
// looks below the mount point: a dead server would hang it.
package keepmount

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"crunch-oci/internal/forkthread"
)

// limits bound what Start and Stop wait for.
type limits struct {
	ready  time.Duration // for the mount
	stop   time.Duration // for a server asked politely to end
	kill   time.Duration // for a killed one, which the kernel may delay
	output time.Duration // for what a server wrote last to be read and taken
}

var defaultLimits = limits{ready: 2 * time.Minute, stop: 8 * time.Second, kill: 2 * time.Second, output: time.Second}

// Config says how to start a server. All fields but ReadyVar and Inherit are
// required.
type Config struct {
	// Program and Args are the command line, Args without the program's name.
	Program string
	Args    []string
	// Env is the whole environment, "KEY=value" each.
	Env []string
	// ReadyVar is the environment variable that tells this program, as the
	// server, the number of the descriptor on which to write one line when the
	// mount is there. It is empty for programs that know nothing of that, such
	// as arv-mount; their mount is awaited in the table of mounts.
	ReadyVar string
	// Mountpoint is the directory named in Args.
	Mountpoint string
	// Stdout and Stderr get what the server writes, each from a goroutine of its
	// own. A Write may block, even for longer than the server lives.
	Stdout, Stderr io.Writer
	// Inherit are files the server keeps open for as long as it lives.
	Inherit []*os.File

	limits limits // defaultLimits but in tests
}

// Server is a running FUSE server. Its end is always collected; Stop must be
// called once, also after the server ended by itself.
type Server struct {
	cmd        *exec.Cmd
	mountpoint string
	limits     limits
	output     *output
	exited     chan struct{}
	err        error // valid when exited is closed
}

// Start starts a server and returns when its mount is there. It fails if the
// server ends before, if ctx does, or if the mount is not there after two
// minutes; nothing is left then.
func Start(ctx context.Context, c Config) (*Server, error) {
	s, ready, err := launch(c)
	if err != nil {
		return nil, fmt.Errorf("start FUSE server: %w", err)
	}
	waiting, cancel := context.WithTimeoutCause(ctx, s.limits.ready, fmt.Errorf("no mount on %s after %v", c.Mountpoint, s.limits.ready))
	defer cancel()
	if err := s.waitReady(waiting, ready); err != nil {
		return nil, errors.Join(fmt.Errorf("while trying to start arv-mount: %w", err), s.Stop(ctx))
	}
	return s, nil
}

// launch starts the process, and returns what will tell that its mount is there.
func launch(c Config) (_ *Server, _ waiter, err error) {
	cmd := exec.Command(c.Program, c.Args...)
	cmd.Env = append([]string(nil), c.Env...)
	cmd.Dir = "/"
	// An own process group: Ctrl-C at a terminal is the supervisor's to handle.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	var theirs []*os.File // ends of pipes
	defer func() {
		for _, f := range theirs {
			_ = f.Close()
		}
	}()
	var ready waiter
	if c.ReadyVar == "" {
		ready, err = newMountWaiter(c.Mountpoint)
	} else {
		var w *os.File
		ready, w, err = newLineWaiter()
		theirs = append(theirs, w)
		cmd.Args[0] = "crunch-run" // not the "exe" of /proc/self/exe
		cmd.Env = append(cmd.Env, c.ReadyVar+"="+strconv.Itoa(3))
		cmd.ExtraFiles = append(cmd.ExtraFiles, w)
	}
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			ready.close()
		}
	}()
	cmd.ExtraFiles = append(cmd.ExtraFiles, c.Inherit...)
	out := newOutput()
	stdout, err := out.pipe(c.Stdout)
	if err != nil {
		return nil, nil, err
	}
	theirs = append(theirs, stdout)
	stderr, err := out.pipe(c.Stderr)
	if err != nil {
		return nil, nil, err // what has been begun ends with its pipe
	}
	theirs = append(theirs, stderr)
	// Files, not writers: Wait is then about the process and nothing else.
	cmd.Stdout, cmd.Stderr = stdout, stderr
	forkthread.Do(func() { err = cmd.Start() })
	if err != nil {
		return nil, nil, err
	}
	s := &Server{cmd: cmd, mountpoint: c.Mountpoint, limits: c.limits, output: out, exited: make(chan struct{})}
	if s.limits == (limits{}) {
		s.limits = defaultLimits
	}
	go func() {
		defer close(s.exited)
		s.err = cmd.Wait()
	}()
	return s, ready, nil
}

// waitReady returns nil when the mount is there and the server is, too.
func (s *Server) waitReady(ctx context.Context, ready waiter) error {
	defer ready.close()
	waiting, cancel := context.WithCancel(ctx)
	defer cancel()
	mounted := make(chan error, 1)
	go func() { mounted <- ready.wait(waiting) }()
	select {
	case err := <-mounted:
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if !errors.Is(err, io.EOF) {
			return err
		}
		// The server is gone, or going.
	case <-s.exited:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	select {
	case <-s.exited:
		if err := s.Err(); err != nil {
			return err
		}
		return errors.New("exit status 0") // a server has no reason to end now
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Exited is closed when the server process has ended, whoever ended it.
func (s *Server) Exited() <-chan struct{} { return s.exited }

// Err is how the server ended ("exit status 1"), nil for status 0. It is only
// valid after Exited is closed.
func (s *Server) Err() error { return s.err }

// PID is the server's process id.
func (s *Server) PID() int { return s.cmd.Process.Pid }

// Stop unmounts and ends the server, within about ten seconds whatever state it
// is in: lazily, because nobody needs the mount any more and a process in the
// middle of a read must not delay it; then by SIGTERM, then by SIGKILL, which
// closes /dev/fuse and so fails every request that is still waiting. What it has
// written is with the writers then, unless the error says otherwise.
func (s *Server) Stop(context.Context) error {
	var errs []error
	if err := detach(s.mountpoint); err != nil {
		errs = append(errs, err)
	}
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	if !closedWithin(s.exited, s.limits.stop) {
		errs = append(errs, errors.New("Timed out waiting for unmount"))
		_ = s.cmd.Process.Kill()
		if !closedWithin(s.exited, s.limits.kill) {
			errs = append(errs, fmt.Errorf("FUSE server (process %d) is still there after SIGKILL: the kernel does not let it end (see /proc/%[1]d/stack)", s.PID()))
		}
	}
	// Once more: a server killed while it was starting may have mounted since.
	if err := detach(s.mountpoint); err != nil {
		errs = append(errs, err)
	}
	if !s.output.finish(s.limits.output) {
		errs = append(errs, errors.New("the last lines of the FUSE server could not be logged in time"))
	}
	return errors.Join(errs...)
}

// closedWithin waits until c is closed, for d at most, and says whether it is.
func closedWithin(c <-chan struct{}, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-c:
		return true
	case <-timer.C:
		return false
	}
}

// detach removes all mounts from path. UMOUNT_NOFOLLOW and MNT_DETACH never ask
// the FUSE server anything.
func detach(path string) error {
	for {
		switch err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err {
		case nil:
		case unix.EINVAL, unix.ENOENT: // nothing mounted, or no directory
			return nil
		default:
			return fmt.Errorf("unmount %s: %w", path, err)
		}
	}
}
