package shell

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/crypto/ssh"
	"golang.org/x/term"
)

// terminalWanted decides whether the command gets a terminal.
func terminalWanted(e Env, yes, no bool) bool {
	return yes || !no && term.IsTerminal(int(e.Stdin.Fd())) && term.IsTerminal(int(e.Stdout.Fd()))
}

// session runs the command, "" for a login shell, and returns its exit code.
func (e Env) session(s *ssh.Session, command string, terminal bool) (int, error) {
	s.Stdout, s.Stderr = e.Stdout, e.Stderr
	in, err := s.StdinPipe()
	if err != nil {
		return 0, err
	}
	signals := make(chan os.Signal, 16)
	defer signal.Stop(signals)
	if terminal {
		restore, err := e.openTerminal(s)
		if err != nil {
			return 0, err
		}
		defer restore()
		signal.Notify(signals, syscall.SIGWINCH, syscall.SIGTERM, syscall.SIGHUP)
	} else {
		signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
	}
	if command == "" {
		err = s.Shell()
	} else {
		err = s.Start(command)
	}
	if err != nil {
		return 0, fmt.Errorf("start the command: %w", err)
	}
	go func() { // ends with the program: nothing else ends a read from a terminal
		_, _ = io.Copy(in, e.Stdin)
		_ = in.Close()
	}()
	ended := make(chan error, 1)
	go func() { ended <- s.Wait() }()
	asked := false
	for {
		select {
		case err := <-ended:
			return exitCode(err)
		case sig := <-signals:
			if sig == syscall.SIGWINCH {
				e.resize(s)
				continue
			}
			if terminal || asked {
				return 128 + int(sig.(syscall.Signal)), nil // hangs up
			}
			// Like a program in the foreground the command gets it too. It need not
			// mind; a second one we do not wait for.
			asked = true
			_ = s.Signal(signalNames[sig])
		}
	}
}

var signalNames = map[os.Signal]ssh.Signal{
	syscall.SIGINT: ssh.SIGINT, syscall.SIGTERM: ssh.SIGTERM, syscall.SIGHUP: ssh.SIGHUP, syscall.SIGQUIT: ssh.SIGQUIT,
}

// exitCode reads how a session ended.
func exitCode(err error) (int, error) {
	var exit *ssh.ExitError
	var missing *ssh.ExitMissingError
	switch {
	case err == nil:
		return 0, nil
	case errors.As(err, &exit):
		return exit.ExitStatus(), nil
	case errors.As(err, &missing):
		return 0, errors.New("the session was cut: its container or supervisor has ended")
	}
	return 0, err
}

// openTerminal asks for a terminal like the one we are at, which from then on
// passes every key on. restore makes it what it was.
func (e Env) openTerminal(s *ssh.Session) (restore func(), err error) {
	kind := os.Getenv("TERM")
	if kind == "" {
		kind = "xterm"
	}
	width, height := e.size()
	if err := s.RequestPty(kind, height, width, ssh.TerminalModes{}); err != nil {
		return nil, fmt.Errorf("get a terminal: %w", err)
	}
	fd := int(e.Stdin.Fd())
	if !term.IsTerminal(fd) { // --tty in a pipe
		return func() {}, nil
	}
	state, err := term.MakeRaw(fd)
	if err != nil {
		return nil, fmt.Errorf("set up the terminal: %w", err)
	}
	return func() { _ = term.Restore(fd, state) }, nil
}

// size is that of the terminal, or the customary one.
func (e Env) size() (width, height int) {
	for _, f := range []*os.File{e.Stdout, e.Stdin} {
		if width, height, err := term.GetSize(int(f.Fd())); err == nil && width > 0 && height > 0 {
			return width, height
		}
	}
	return 80, 24
}

func (e Env) resize(s *ssh.Session) {
	width, height := e.size()
	_ = s.WindowChange(height, width) // if it fails the session is about to end
}
