// Package keepmount runs the FUSE server of a run, "crunch-run keep-mount", as
// a child process. A process that serves FUSE must not be the one that forks
// containers (hanwen/go-fuse, fs/api.go, "Deadlocks"), and the supervisor never
// looks below the mount point: a dead server would hang it.
package keepmount

import (
	"bufio"
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

// ReadyFD is the environment variable that tells the server the number of the
// descriptor on which to write one line when the mount is there.
const ReadyFD = "CRUNCH_RUN_READY_FD"

// stopTimeout bounds how long a server may take to end when asked politely.
const stopTimeout = 8 * time.Second

// Config says how to start a server. All fields but Inherit are required.
type Config struct {
	// Program and Args are the command line, Args without the program's name.
	Program string
	Args    []string
	// Env is the whole environment, "KEY=value" each.
	Env []string
	// Mountpoint is the directory named in Args.
	Mountpoint string
	// Stdout and Stderr get what the server writes; each from a goroutine of
	// its own unless they are equal.
	Stdout, Stderr io.Writer
	// Inherit are files the server keeps open for as long as it lives.
	Inherit []*os.File
}

// Server is a running FUSE server. Its end is always collected; Stop must be
// called once, also after the server ended by itself.
type Server struct {
	cmd        *exec.Cmd
	mountpoint string
	exited     chan struct{}
	err        error // valid when exited is closed
}

// Start starts a server and returns when its mount is there. It fails if the
// server ends before, or ctx does; nothing is left then.
func Start(ctx context.Context, c Config) (*Server, error) {
	ready, readyW, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start FUSE server: %w", err)
	}
	defer ready.Close()
	cmd := exec.Command(c.Program, c.Args...)
	cmd.Args[0] = "crunch-run"
	cmd.Env = append(append([]string(nil), c.Env...), ReadyFD+"="+strconv.Itoa(3))
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = c.Stdout, c.Stderr
	cmd.ExtraFiles = append([]*os.File{readyW}, c.Inherit...)
	// An own process group: Ctrl-C at a terminal is the supervisor's to handle.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	cmd.WaitDelay = time.Second
	forkthread.Do(func() { err = cmd.Start() })
	_ = readyW.Close()
	if err != nil {
		return nil, fmt.Errorf("start FUSE server: %w", err)
	}
	s := &Server{cmd: cmd, mountpoint: c.Mountpoint, exited: make(chan struct{})}
	go func() {
		defer close(s.exited)
		s.err = cmd.Wait()
	}()
	if err := s.waitReady(ctx, ready); err != nil {
		return nil, errors.Join(err, s.Stop(ctx))
	}
	return s, nil
}

func (s *Server) waitReady(ctx context.Context, ready *os.File) error {
	stop := context.AfterFunc(ctx, func() { _ = ready.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	_, err := bufio.NewReader(ready).ReadString('\n')
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return fmt.Errorf("while trying to start arv-mount: %w", context.Cause(ctx))
	}
	// End of file: the server is gone, or going.
	select {
	case <-s.exited:
		err := s.Err()
		if err == nil { // a server has no reason to end now
			err = errors.New("exit status 0")
		}
		return fmt.Errorf("while trying to start arv-mount: %w", err)
	case <-ctx.Done():
		return fmt.Errorf("while trying to start arv-mount: %w", context.Cause(ctx))
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
// closes /dev/fuse and so fails every request that is still waiting.
func (s *Server) Stop(ctx context.Context) error {
	var errs []error
	if err := detach(s.mountpoint); err != nil {
		errs = append(errs, err)
	}
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	timer := time.NewTimer(stopTimeout)
	defer timer.Stop()
	select {
	case <-s.exited:
	case <-timer.C:
		errs = append(errs, errors.New("Timed out waiting for unmount"))
		_ = s.cmd.Process.Kill()
		<-s.exited
	}
	// Once more: a server killed while it was starting may have mounted since.
	if err := detach(s.mountpoint); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
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
