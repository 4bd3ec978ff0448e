package sshd

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"syscall"

	"golang.org/x/crypto/ssh"

	"crunch-oci/gateway"
)

// terminalRequest is the payload of pty-req (RFC 4254 section 6.2).
type terminalRequest struct {
	Term                         string
	Columns, Rows, Width, Height uint32
	Modes                        string
}

// sizeRequest is the payload of window-change (RFC 4254 section 6.7).
type sizeRequest struct{ Columns, Rows, Width, Height uint32 }

func (q sizeRequest) size() gateway.WindowSize {
	return gateway.WindowSize{Columns: dots(q.Columns), Rows: dots(q.Rows), Width: dots(q.Width), Height: dots(q.Height)}
}

// dots fits a number into what the kernel has for sizes of terminals.
func dots(n uint32) uint16 { return uint16(min(n, math.MaxUint16)) }

func parseTerminal(payload []byte) (term string, size gateway.WindowSize, err error) {
	var q terminalRequest
	if err := ssh.Unmarshal(payload, &q); err != nil {
		return "", size, err
	}
	// What programs make of it: a file name, mostly.
	if len(q.Term) > maxTerm || strings.ContainsFunc(q.Term, func(c rune) bool { return c <= ' ' || c > '~' || c == '/' }) {
		return "", size, fmt.Errorf("terminal type %q", clip(q.Term))
	}
	if q.Term == "" {
		q.Term = "xterm" // as Docker has it
	}
	return q.Term, sizeRequest{q.Columns, q.Rows, q.Width, q.Height}.size(), nil
}

const maxTerm = 64

func parseSize(payload []byte) (gateway.WindowSize, error) {
	var q sizeRequest
	err := ssh.Unmarshal(payload, &q)
	return q.size(), err
}

var errVariable = errors.New("variable is not accepted")

// parseEnv accepts variables that tell programs how to talk to their user, and no
// others (gateway.md section 14, item 21).
func parseEnv(payload []byte) (name, value string, err error) {
	const longest = 1024
	var q struct{ Name, Value string }
	if err := ssh.Unmarshal(payload, &q); err != nil {
		return "", "", err
	}
	known := q.Name == "LANG" || q.Name == "TERM" || q.Name == "COLORTERM" || strings.HasPrefix(q.Name, "LC_")
	plain := !strings.ContainsFunc(q.Name, func(c rune) bool { return (c < 'A' || c > 'Z') && c != '_' })
	printable := !strings.ContainsFunc(q.Value, func(c rune) bool { return c < ' ' || c > '~' })
	if !known || !plain || !printable || len(q.Name) > maxTerm || len(q.Value) > longest {
		return "", "", errVariable
	}
	return q.Name, q.Value, nil
}

// signals are those of RFC 4254 section 6.10, and others that POSIX knows.
var signals = map[string]syscall.Signal{
	"ABRT": syscall.SIGABRT, "ALRM": syscall.SIGALRM, "FPE": syscall.SIGFPE, "HUP": syscall.SIGHUP,
	"ILL": syscall.SIGILL, "INT": syscall.SIGINT, "KILL": syscall.SIGKILL, "PIPE": syscall.SIGPIPE,
	"QUIT": syscall.SIGQUIT, "SEGV": syscall.SIGSEGV, "TERM": syscall.SIGTERM, "USR1": syscall.SIGUSR1,
	"USR2": syscall.SIGUSR2, "CONT": syscall.SIGCONT, "STOP": syscall.SIGSTOP, "TSTP": syscall.SIGTSTP,
	"TTIN": syscall.SIGTTIN, "TTOU": syscall.SIGTTOU, "WINCH": syscall.SIGWINCH,
}

func parseSignal(payload []byte) (syscall.Signal, error) {
	var q struct{ Name string }
	if err := ssh.Unmarshal(payload, &q); err != nil {
		return 0, err
	}
	sig, ok := signals[q.Name]
	if !ok {
		return 0, fmt.Errorf("signal %q is not known", clip(q.Name))
	}
	return sig, nil
}

func parseCommand(payload []byte) (string, error) {
	var q struct{ Command string }
	err := ssh.Unmarshal(payload, &q)
	return q.Command, err
}
