package sshd

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"crunch-oci/gateway"
)

// Exit codes that no command has returned.
const (
	exitCannotParse = 2
	exitCannotStart = 1
	exitDetached    = 1
)

// run runs the command to its end, and tells whether it has been detached from;
// its place among the channels is then given back when it ends.
func (t *session) run(ctx context.Context, command string) (detached bool) {
	args, err := Split(command)
	c := t.command(args)
	terminal := c.Terminal != nil
	if err != nil {
		t.say("error parsing supplied command: "+err.Error(), terminal)
		t.exit(exitCannotParse)
		return false
	}
	var keys []byte
	if terminal {
		if keys, err = parseKeys(t.options.DetachKeys); err != nil {
			t.say("invalid detach keys ("+clip(err.Error())+"), using "+defaultKeys, terminal)
			keys, _ = parseKeys(defaultKeys)
		}
	}
	p, err := t.target.Exec(ctx, c)
	if err != nil {
		t.refuse(c, err)
		return false
	}
	begin := time.Now()
	t.logf("shell session %d started: %s", t.number, t.describe(c))
	t.setProcess(p, c.Terminal)
	var code int
	if terminal {
		code, detached = t.runTerminal(ctx, p, keys, begin)
	} else {
		code = t.runPlain(ctx, p)
	}
	switch {
	case detached:
		return true
	case terminal && ctx.Err() != nil:
		t.logf("shell session %d hung up after %s", t.number, time.Since(begin).Round(time.Millisecond))
	default:
		t.logEnd(begin, code)
		t.exit(code)
	}
	return false
}

func (t *session) refuse(c gateway.Command, err error) {
	text, code := "the command could not be started; the container's log has the reason", exitCannotStart
	var refused *gateway.ExecError
	if errors.As(err, &refused) {
		text, code = refused.Text, refused.Code
	}
	t.logf("shell session %d refused: %s: %s", t.number, t.describe(c), clip(err.Error()))
	t.say(text, c.Terminal != nil)
	t.exit(code)
}

func (t *session) logEnd(begin time.Time, code int) {
	t.logf("shell session %d ended after %s: exit code %d", t.number, time.Since(begin).Round(time.Millisecond), code)
}

// exitLost stands for a command of which it is not known how it ended.
const exitLost = 255

func (t *session) code(p gateway.Process) int {
	// It has closed its streams: it ends by itself, or with the container.
	code, err := p.Wait(context.Background())
	if err != nil {
		t.logf("shell session %d: %v", t.number, err)
		return exitLost
	}
	return code
}

// runPlain runs a command without a terminal: until nobody has its output open
// any more. A client that goes away takes with it what it has started.
func (t *session) runPlain(ctx context.Context, p gateway.Process) int {
	gone := context.AfterFunc(ctx, func() {
		if err := p.Kill(); err != nil {
			t.logf("shell session %d: %v", t.number, err)
		}
		_ = p.Close() // whoever is left and has it open does not hold us up
	})
	defer gone()
	// Ends with the channel, which is not waited for here: the client need not
	// close its side, and does not know yet that the command has ended.
	t.input.Go(func() {
		_, _ = copyBuffered(p.Stdin(), t.ch)
		_ = p.Stdin().Close()
		_, _ = copyBuffered(io.Discard, t.ch)
	})
	var output sync.WaitGroup
	output.Go(func() { t.deliver(t.ch, p.Stdout()) })
	output.Go(func() { t.deliver(t.ch.Stderr(), p.Stderr()) })
	output.Wait()
	code := t.code(p)
	_ = p.Close()
	return code
}

// deliver copies output. What the client does not take any more is dropped, so
// that the command does not wait for it.
func (t *session) deliver(to io.Writer, from io.Reader) {
	if _, err := copyBuffered(to, from); err != nil {
		_, _ = copyBuffered(io.Discard, from)
	}
}

// runTerminal runs a command with a terminal until it ends, its user goes away,
// which hangs up, or types the detach keys, after which it goes on.
func (t *session) runTerminal(ctx context.Context, p gateway.Process, keys []byte, begin time.Time) (code int, detached bool) {
	screen := &screen{ch: t.ch}
	shown := make(chan struct{})
	go func() {
		defer close(shown)
		// Somebody must read it in any case, or the command would wait.
		_, _ = copyBuffered(screen, p.Stdout())
	}()
	left := make(chan struct{})
	t.input.Go(func() {
		if t.typed(p, &detacher{keys: keys}) {
			close(left)
		}
		_, _ = copyBuffered(io.Discard, t.ch)
	})
	select {
	case <-shown:
	case <-ctx.Done():
		// Hung up: its foreground job gets SIGHUP.
		_ = p.Close()
		screen.turnOff()
		<-shown
	case <-left:
		screen.turnOff()
		if t.keep(p, shown, begin) {
			t.say("read escape sequence", true)
			t.exit(exitDetached)
			return 0, true
		}
		_ = p.Close()
		<-shown
	}
	if ctx.Err() != nil {
		_ = p.Close()
		return exitLost, false
	}
	code = t.code(p)
	_ = p.Close()
	return code, false
}

// typed passes on what the user types, and tells whether it was the detach keys.
// The end of it is nothing the command is told.
func (t *session) typed(p gateway.Process, d *detacher) bool {
	b := make([]byte, 4096)
	for {
		n, err := t.ch.Read(b)
		pass, detach := d.filter(b[:n])
		if len(pass) > 0 {
			if _, err := p.Stdin().Write(pass); err != nil {
				return false
			}
		}
		if detach {
			return true
		}
		if err != nil {
			return false
		}
	}
}

// keep lets a command go on whose user has gone; false: the server is closing.
func (t *session) keep(p gateway.Process, shown <-chan struct{}, begin time.Time) bool {
	s := t.Server
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.detached[p] = struct{}{}
	t.logf("shell session %d detached after %s, its command goes on", t.number, time.Since(begin).Round(time.Millisecond))
	s.drains.Go(func() {
		<-shown
		// Its terminal is gone; the command itself may take longer, or refuse to
		// die, and is the container's then.
		s.mu.Lock()
		closed := s.closed
		delete(s.detached, p)
		s.mu.Unlock()
		if !closed {
			t.logEnd(begin, t.code(p))
		}
		_ = p.Close()
		s.release()
	})
	return true
}

// screen is what a terminal shows, as long as there is somebody to see it.
type screen struct {
	ch  io.Writer
	mu  sync.Mutex
	off bool
}

func (s *screen) turnOff() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.off = true
}

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	off := s.off
	s.mu.Unlock()
	if !off {
		_, _ = s.ch.Write(p) // if it fails, nobody sees it
	}
	return len(p), nil
}
