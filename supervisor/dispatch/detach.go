package dispatch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// noDetach is the first argument of a supervisor started in the background.
const noDetach = "-no-detach"

// Descriptors that a supervisor started in the background inherits, besides its
// stdin.
const (
	lockFd   = 3 // the locked lock file
	reportFd = 4 // a pipe, see Inherited
)

// accepted is the last byte a supervisor reports when it has all it needs.
const accepted = 0

const (
	// reportPatience bounds the wait for a supervisor to come up. That of a busy
	// node may take longer; it is listed then all the same.
	reportPatience = 10 * time.Second
	// stdinPatience bounds the wait for the end of a message that the supervisor
	// has understood already.
	stdinPatience = time.Second
)

// Detached is a run to be started in the background.
type Detached struct {
	UUID string
	// Program is this program's path, Args its arguments without -no-detach.
	Program string
	Args    []string
	// Stdin is handed on to the supervisor; nil means that it needs none.
	Stdin          io.Reader
	Stdout, Stderr io.Writer
}

// Detach starts a supervisor that lives on, and returns when it is in the list
// and has understood its arguments and its stdin, with the exit status: 0 means
// that it runs. What a supervisor that ends at once has to say goes to stderr.
//
// It changes what this process does about signals and inherited files; there is
// nothing else for it to do. The supervisor inherits neither stdout nor stderr: a session of SSH ends only
// when nobody has them.
func (d Dir) Detach(ctx context.Context, r Detached) int {
	fail := func(format string, args ...any) int {
		fmt.Fprintf(r.Stderr, format+"\n", args...)
		return 1
	}
	if err := closeOnExec(); err != nil {
		return fail("%v", err)
	}
	// A list may send SIGUSR2 to the new process as soon as it has a number,
	// whatever program it is at the moment. What is ignored here is ignored
	// there, until that installs a handler.
	signal.Ignore(unix.SIGUSR1, unix.SIGUSR2)
	lock, err := d.takeRunLock(ctx, r.UUID)
	if err != nil {
		return fail("%v", err)
	}
	defer lock.Close()
	c, err := r.start(lock)
	if err != nil {
		return fail("%v", err)
	}
	info := procinfo{r.UUID, c.cmd.Process.Pid}
	if err := info.record(lock); err != nil {
		// Nobody would know of it.
		c.kill()
		return fail("%v", err)
	}
	if err := c.handOver(r.Stdin); err != nil {
		return fail("%s", strings.TrimRight(fmt.Sprintf("%s: %v", r.UUID, err), "\n"))
	}
	_, _ = r.Stdout.Write(info.line())
	return 0
}

// child is a supervisor just started.
type child struct {
	cmd   *exec.Cmd
	stdin *os.File // the end of a pipe; nil: it needs none
	ready chan error
}

// start starts the supervisor with the lock.
func (r Detached) start(lock *os.File) (_ *child, err error) {
	command := append([]string{r.Program, noDetach}, r.Args...)
	if line, ok := throughJournal(command); ok {
		command = line
	}
	cmd := exec.Command(command[0], command[1:]...)
	c := &child{cmd: cmd, ready: make(chan error, 1)}
	var theirs []*os.File
	defer func() {
		// Also the reading end of its stdin: if it dies, nobody waits for it.
		for _, f := range theirs {
			_ = f.Close()
		}
	}()
	if r.Stdin != nil {
		read, write, err := os.Pipe()
		if err != nil {
			return nil, err
		}
		theirs = append(theirs, read)
		cmd.Stdin, c.stdin = read, write
	}
	report, write, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	theirs = append(theirs, write)
	cmd.ExtraFiles = []*os.File{lockFd - 3: lock, reportFd - 3: write}
	// Stdout and stderr stay nil, which is /dev/null.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		_ = report.Close()
		if c.stdin != nil {
			_ = c.stdin.Close()
		}
		return nil, fmt.Errorf("exec %s: %w", command[0], errors.Unwrap(err))
	}
	go c.awaitReady(report)
	return c, nil
}

func (c *child) kill() {
	_ = c.cmd.Process.Kill()
	_ = c.cmd.Wait()
}

// awaitReady waits until the supervisor has reported, and says how it did.
func (c *child) awaitReady(report *os.File) {
	defer report.Close()
	_ = report.SetReadDeadline(time.Now().Add(reportPatience)) // pipes have them
	const longest = 64 << 10
	text, err := io.ReadAll(io.LimitReader(report, longest))
	switch {
	case len(text) > 0 && text[len(text)-1] == accepted:
		c.ready <- nil
	case err != nil || len(text) == longest:
		c.ready <- nil // it is slow, or has much to say; it has not ended
	default:
		state := "it has said nothing"
		if err := c.cmd.Wait(); err != nil {
			state = err.Error()
		}
		c.ready <- fmt.Errorf("the supervisor (process %d) has ended at once: %s\n%s", c.cmd.Process.Pid, state, bytes.TrimSpace(text))
	}
}

// handOver gives the supervisor its message, and waits until it is content.
func (c *child) handOver(stdin io.Reader) error {
	copied := make(chan error, 1)
	if stdin == nil {
		copied <- nil
	} else {
		go func() { copied <- feed(c.stdin, stdin) }()
	}
	var readErr error
	select {
	case readErr = <-copied:
		if err := <-c.ready; err != nil {
			return err
		}
	case err := <-c.ready:
		if err != nil {
			return err
		}
		// It has its message. Whoever sends it has perhaps not closed yet.
		timer := time.NewTimer(stdinPatience)
		defer timer.Stop()
		select {
		case <-copied:
		case <-timer.C:
		}
	}
	return readErr
}

// feed copies everything from r to the pipe w and closes it. If nobody reads the
// pipe any more, the rest is read all the same, for the sake of the sender.
func feed(w *os.File, r io.Reader) error {
	_, err := io.Copy(w, r)
	_ = w.Close()
	if errors.Is(err, unix.EPIPE) {
		_, err = io.Copy(io.Discard, r)
	}
	return err
}
