package sshd

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"golang.org/x/crypto/ssh"

	"crunch-oci/gateway"
)

// session is a session channel: what was asked for, and then the command.
type session struct {
	*Server
	options gateway.SSHOptions
	ch      ssh.Channel
	number  int64
	input   sync.WaitGroup // who reads the channel

	mu       sync.Mutex
	started  bool // a command was asked for; what follows comes too late
	env      []string
	term     string
	terminal *gateway.WindowSize
	process  gateway.Process // nil before it runs
}

// maxVariables bounds the environment that a client may send.
const maxVariables = 64

// serveSession answers the channel's requests. The channel ends when the command
// does, or when the client closes it.
func (s *Server) serveSession(ctx context.Context, c ssh.NewChannel, o gateway.SSHOptions) {
	kept := false // its place in Server.channels is another's to give back
	defer func() {
		if !kept {
			s.release()
		}
	}()
	ch, requests, err := c.Accept()
	if err != nil {
		return
	}
	t := &session{Server: s, options: o, ch: ch, number: s.sessions.Add(1)}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var run sync.WaitGroup
	for q := range requests {
		command, start := "", false
		ok := true
		switch q.Type {
		case "shell":
			start = true
		case "exec":
			command, err = parseCommand(q.Payload)
			start, ok = err == nil, err == nil
		default:
			ok = t.handle(q)
		}
		if start {
			ok = t.begin()
		}
		if q.WantReply {
			_ = q.Reply(ok, nil)
		}
		if start && ok {
			run.Go(func() { kept = t.run(ctx, command) })
		}
	}
	// The client has closed the channel, or the connection has ended.
	cancel()
	run.Wait()
	_ = ch.Close()
	t.input.Wait()
}

// begin tells whether this is the first request for a command.
func (t *session) begin() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	first := !t.started
	t.started = true
	return first
}

// handle answers requests other than for a command. Forwarding of X11 and agents,
// subsystems (sftp), and what is not known are refused.
func (t *session) handle(q *ssh.Request) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch q.Type {
	case "pty-req":
		term, size, err := parseTerminal(q.Payload)
		if err != nil || t.started {
			return false
		}
		t.term, t.terminal = term, &size
		return true
	case "window-change":
		size, err := parseSize(q.Payload)
		if err != nil || t.terminal == nil {
			return false
		}
		*t.terminal = size // and it is that when the command starts
		return t.process == nil || t.process.Resize(size) == nil
	case "env":
		name, value, err := parseEnv(q.Payload)
		if err != nil || t.started || len(t.env) == maxVariables {
			return false
		}
		t.env = append(t.env, name+"="+value)
		return true
	case "signal":
		sig, err := parseSignal(q.Payload)
		return err == nil && t.process != nil && t.process.Signal(sig) == nil
	}
	return false
}

// command returns what to run.
func (t *session) command(args []string) gateway.Command {
	t.mu.Lock()
	defer t.mu.Unlock()
	c := gateway.Command{Args: args, Env: slices.Clone(t.env), User: t.options.LoginUser}
	if t.terminal != nil {
		size := *t.terminal
		c.Terminal = &size
		c.Env = append(c.Env, "TERM="+t.term)
	}
	return c
}

// setProcess makes the command known to requests, which may have changed the size
// of the terminal since it was asked for.
func (t *session) setProcess(p gateway.Process, asked *gateway.WindowSize) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.process = p
	if asked != nil && *asked != *t.terminal {
		_ = p.Resize(*t.terminal)
	}
}

// say writes a line of our own to the user.
func (t *session) say(text string, terminal bool) {
	if terminal {
		_, _ = fmt.Fprintf(t.ch, "%s\r\n", text)
		return
	}
	_, _ = fmt.Fprintf(t.ch.Stderr(), "%s\n", text)
}

// exit ends the channel as RFC 4254 section 6.10 has it.
func (t *session) exit(code int) {
	_ = t.ch.CloseWrite()
	_, _ = t.ch.SendRequest("exit-status", false, ssh.Marshal(struct{ Status uint32 }{uint32(code)}))
	_ = t.ch.Close()
}

// describe says for the log what is run, for whom, and never with what arguments.
func (t *session) describe(c gateway.Command) string {
	what := "login shell"
	if len(c.Args) > 0 {
		what = fmt.Sprintf("command of %d words", len(c.Args))
	}
	if c.Terminal != nil {
		what += " with a terminal"
	}
	return fmt.Sprintf("account %q, %s", clip(strings.ToValidUTF8(c.User, "?")), what)
}
