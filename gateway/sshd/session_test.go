package sshd_test

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"crunch-oci/cmd/crunch-run/wire"
	"crunch-oci/gateway"
	"crunch-oci/gateway/sshd"
	"crunch-oci/oci"
)

// living returns the container's processes, less those that are dead but not
// reaped.
func living(t testing.TB, c *oci.Container) (names []string) {
	t.Helper()
	pids, err := c.Cgroup().Procs()
	must(t, err)
	for _, pid := range pids {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err == nil && !strings.Contains(string(stat), ") Z ") {
			names = append(names, string(stat[bytes.IndexByte(stat, '('):bytes.LastIndexByte(stat, ')')+1]))
		}
	}
	return names
}

func TestLoginUser(t *testing.T) {
	c := newContainer(t, idle, func(q *oci.Request) { q.User = "alice" })
	d := newDoor(t, wire.Inside(c), gateway.SSHOptions{})
	for user, want := range map[string]result{
		"root":          {"0 0 /root\n", "", 0},
		"alice":         {"1000 1000 /home/alice\n", "", 0},
		"alice:staff":   {"1000 50 /home/alice\n", "", 0},
		"4711":          {"4711 0 /\n", "", 0},
		"bob":           {"", "unable to find user bob: no matching entries in passwd file\n", 1},
		"../../root":    {"", "unable to find user ../../root: no matching entries in passwd file\n", 1},
		"root\nalice":   {"", "unable to find user \"root\\nalice\": no matching entries in passwd file\n", 1},
		"\x1b[2Jx\x00":  {"", "the command, its environment or its account contains a NUL byte\n", 1},
		"alice:x:0:0::": {"", "unable to find group x: no matching entries in group file\n", 1},
	} {
		d.listen(gateway.SSHOptions{LoginUser: user})
		if r := exec(t, d.client(), "sh -c 'echo $(id -u) $(id -g) $HOME'", nil); r != want {
			t.Errorf("%q: %+v, want %+v", user, r, want)
		}
	}
	// One line each for the log, whatever the name.
	log := d.log.String()
	for line := range strings.Lines(log) {
		if !strings.HasPrefix(line, "shell session ") || strings.ContainsAny(strings.TrimSuffix(line, "\n"), "\n\x1b\x00") {
			t.Errorf("log line %q", line)
		}
	}
	if strings.Count(log, "started") != 4 || strings.Count(log, "ended after") != 4 || strings.Count(log, "refused") != 5 ||
		!strings.Contains(log, `account "alice", command of 3 words`) || strings.Contains(log, "echo") {
		t.Errorf("log:\n%s", log)
	}
}

func TestEnvironment(t *testing.T) {
	t.Setenv("SUPERVISOR_SECRET", "x")
	c := newContainer(t, idle, func(q *oci.Request) { q.Env = map[string]string{"RECORD": "1"} })
	client := newDoor(t, wire.Inside(c), gateway.SSHOptions{}).client()
	s, err := client.NewSession()
	must(t, err)
	for name, want := range map[string]bool{
		"LANG": true, "LC_ALL": true, "COLORTERM": true, "TERM": true,
		"PATH": false, "LD_PRELOAD": false, "LC_ALL=x": false, "LC_": true, "": false, "LANGUAGE": false, "LC_a b": false,
	} {
		if err := s.Setenv(name, "C"); (err == nil) != want {
			t.Errorf("env %q: %v", name, err)
		}
	}
	if err := s.Setenv("LC_TIME", "a\nb"); err == nil {
		t.Error("a line break was accepted")
	}
	r := collect(t, s, func() error { return s.Run("env") })
	for _, line := range []string{"PATH=/bin", "HOSTNAME=box", "RECORD=1", "HOME=/root", "LANG=C", "LC_ALL=C", "LC_=C", "COLORTERM=C", "TERM=C"} {
		if !strings.Contains("\n"+r.stdout, "\n"+line+"\n") {
			t.Errorf("lacks %s", line)
		}
	}
	if strings.Count(r.stdout, "\n") != 9 {
		t.Errorf("environment:\n%s", r.stdout)
	}
}

// terminal opens a session with one and runs a command in it.
func terminal(t testing.TB, c *ssh.Client, command string) (s *ssh.Session, in io.WriteCloser, out io.Reader) {
	t.Helper()
	s, err := c.NewSession()
	must(t, err)
	must(t, s.RequestPty("xterm", 24, 80, nil))
	in, err = s.StdinPipe()
	must(t, err)
	out, err = s.StdoutPipe()
	must(t, err)
	if command == "" {
		must(t, s.Shell())
	} else {
		must(t, s.Start(command))
	}
	return s, in, out
}

func exitCode(err error) int {
	switch e := err.(type) {
	case nil:
		return 0
	case *ssh.ExitError:
		return e.ExitStatus()
	}
	return -1
}

func TestTerminal(t *testing.T) {
	_, d := box(t)
	c := d.client()
	t.Run("shell", func(t *testing.T) {
		s, in, out := terminal(t, c, "")
		_, err := io.WriteString(in, "exit 7\r")
		must(t, err)
		_, _ = io.Copy(io.Discard, out)
		if code := exitCode(s.Wait()); code != 7 {
			t.Errorf("exit status %d", code)
		}
	})
	t.Run("resize and signals", func(t *testing.T) {
		s, _, out := terminal(t, c, `sh -c 'trap "stty size" WINCH; trap "echo usr" USR1; trap "exit 3" TERM; echo ready; while :; do usleep 1000; done'`)
		expect(t, out, "ready")
		must(t, s.WindowChange(50, 120))
		expect(t, out, "50 120\r\n")
		must(t, s.Signal(ssh.SIGUSR1))
		expect(t, out, "usr\r\n")
		must(t, s.Signal(ssh.SIGTERM))
		_, _ = io.Copy(io.Discard, out)
		if code := exitCode(s.Wait()); code != 3 {
			t.Errorf("exit status %d", code)
		}
	})
	t.Run("end of input is not Ctrl-D", func(t *testing.T) {
		s, in, out := terminal(t, c, "sh -c 'echo ready; cat; exit 2'")
		expect(t, out, "ready")
		_, err := io.WriteString(in, "x\n")
		must(t, err)
		expect(t, out, "x\r\nx\r\n")
		must(t, in.Close())
		must(t, s.Signal(ssh.SIGINT)) // so it is alive
		_, _ = io.Copy(io.Discard, out)
		if code := exitCode(s.Wait()); code != 2 && code != 130 {
			t.Errorf("exit status %d", code)
		}
	})
	t.Run("our own messages", func(t *testing.T) {
		s, _, out := terminal(t, c, "nosuch")
		b, _ := io.ReadAll(out)
		if want := "exec: \"nosuch\": executable file not found in $PATH\r\n"; string(b) != want {
			t.Errorf("%q", b)
		}
		if code := exitCode(s.Wait()); code != 127 {
			t.Errorf("exit status %d", code)
		}
	})
	t.Run("all output comes before the end", func(t *testing.T) {
		s, _, out := terminal(t, c, "seq 1 50000")
		b, _ := io.ReadAll(out)
		if !bytes.HasSuffix(b, []byte("\r\n50000\r\n")) || exitCode(s.Wait()) != 0 {
			t.Errorf("%q", b[max(0, len(b)-100):])
		}
	})
}

// Closing hangs up a terminal, and kills what has none.
func TestClientGoesAway(t *testing.T) {
	ctr, d := box(t)
	waitFor(t, "the container's own", func() bool { return len(living(t, ctr)) == 2 })
	const before = 2
	gone := func(what string) {
		t.Helper()
		waitFor(t, what, func() bool { return len(living(t, ctr)) == before })
	}
	leave := func(tree string, whole bool) {
		t.Helper()
		c := d.client()
		s, err := c.NewSession()
		must(t, err)
		must(t, s.Start(tree))
		waitFor(t, "the session", func() bool { return len(living(t, ctr)) > before })
		if whole {
			c.Close()
		} else {
			s.Close()
		}
	}
	for _, tree := range []string{"sleep 601", `sh -c 'trap "" HUP TERM; sleep 601; sleep 602'`} {
		for _, whole := range []bool{false, true} {
			leave(tree, whole)
			gone("the end of " + tree)
		}
	}
	// What left its session before can stay, and is the container's.
	for _, whole := range []bool{false, true} {
		leave("sh -c 'sleep 601 & sleep 602 & (setsid sleep 603 &) ; sleep 604'", whole)
	}
	waitFor(t, "the daemons alone", func() bool {
		for _, name := range living(t, ctr)[before:] {
			if name != "(sleep)" {
				return false
			}
		}
		return len(living(t, ctr)) <= before+2
	})
	exec(t, d.client(), "busybox killall sleep", nil)
	waitFor(t, "the end of the daemons", func() bool { return len(living(t, ctr)) <= before })
	c := d.client()
	s, _, out := terminal(t, c, `sh -c 'trap "touch /work/hup; exit" HUP; echo ready; while :; do usleep 1000; done'`)
	expect(t, out, "ready")
	s.Close()
	gone("the terminal's command to hang up")
	if r := exec(t, c, "test -e /work/hup", nil); r.code != 0 {
		t.Error("no SIGHUP")
	}
	waitFor(t, "the log", func() bool { return strings.Contains(d.log.String(), "hung up after") })
}

// Commands end though their users never say that there is no more input, and
// though the background goes on; not before it has closed the output.
func TestEndOfCommands(t *testing.T) {
	_, d := box(t)
	c := d.client()
	if r := exec(t, c, "true", nil); r.code != 0 {
		t.Errorf("%+v", r)
	}
	if r := exec(t, c, "sh -c 'sleep 600 >/dev/null 2>&1 & echo x'", nil); r != (result{"x\n", "", 0}) {
		t.Errorf("%+v", r)
	}
	if r := exec(t, c, "sh -c '(usleep 300000; echo late) & echo x'", nil); r != (result{"x\nlate\n", "", 0}) {
		t.Errorf("%+v", r)
	}
	if r := exec(t, c, "head -c 3", strings.NewReader(strings.Repeat("abc", 1<<20))); r != (result{"abc", "", 0}) {
		t.Errorf("%+v", r)
	}
	if r := exec(t, c, "sh -c 'exec <&-; usleep 300000; echo x'", strings.NewReader(strings.Repeat("abc", 1<<20))); r != (result{"x\n", "", 0}) {
		t.Errorf("%+v", r)
	}
}

func TestSessionsEndWithTheContainer(t *testing.T) {
	ctr, d := box(t)
	c := d.client()
	plain, err := c.NewSession()
	must(t, err)
	_, err = plain.StdinPipe()
	must(t, err)
	said, err := plain.StdoutPipe()
	must(t, err)
	must(t, plain.Start(`sh -c 'trap "" TERM; echo ready; sleep 600; sleep 600'`))
	expect(t, said, "ready") // the reply to Start says only that it will be tried
	tty, _, out := terminal(t, c, "sh -c 'echo ready; sleep 600; sleep 600'")
	expect(t, out, "ready")
	must(t, ctr.Signal(syscall.SIGKILL))
	if status, err := ctr.Wait(watchdog(t)); err != nil || status.Code != 137 {
		t.Errorf("container: %v, %v", status, err)
	}
	_, _ = io.Copy(io.Discard, out)
	for _, s := range []*ssh.Session{plain, tty} {
		if code := exitCode(s.Wait()); code != 137 {
			t.Errorf("exit status %d", code)
		}
	}
	if r := exec(t, c, "true", nil); r != (result{"", "the container has ended\n", 1}) {
		t.Errorf("%+v", r)
	}
}

func TestDetachVectors(t *testing.T) {
	ctr, d := box(t)
	for _, v := range vectors[[]struct {
		DetachKeys   string `json:"detach_keys"`
		InputHex     string `json:"input_hex"`
		ForwardedHex string `json:"forwarded_hex"`
		Detached     bool
	}](t, "detach_keys_stream") {
		d.listen(gateway.SSHOptions{DetachKeys: v.DetachKeys})
		must(t, os.RemoveAll(fmt.Sprintf("/proc/%d/root/work/typed", ctr.PID())))
		before := len(living(t, ctr))
		// It notes every byte, and goes on for longer than its terminal's buffer
		// would let it if nobody read that.
		s, in, out := terminal(t, d.client(), `sh -c 'trap "" HUP; stty raw -echo; dd bs=1 of=/work/typed 2>/dev/null </dev/tty & echo ready; seq 1 100000 >/dev/null; until test -e /work/flood; do usleep 1000; done; seq 1 100000; touch /work/flooded; sleep 600; sleep 600'`)
		expect(t, out, "ready")
		input, err := hex.DecodeString(v.InputHex)
		must(t, err)
		for _, b := range input { // byte by byte
			_, err := in.Write([]byte{b})
			must(t, err)
		}
		typed := func() string {
			b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/root/work/typed", ctr.PID()))
			return hex.EncodeToString(b)
		}
		if v.Detached {
			rest, _ := io.ReadAll(out)
			if string(rest) != "read escape sequence\r\n" || exitCode(s.Wait()) != 1 {
				t.Errorf("%q: %q", v.DetachKeys, rest)
			}
			must(t, os.WriteFile(fmt.Sprintf("/proc/%d/root/work/flood", ctr.PID()), nil, 0o644))
			waitFor(t, "the command to go on", func() bool {
				_, err := os.Stat(fmt.Sprintf("/proc/%d/root/work/flooded", ctr.PID()))
				return err == nil
			})
			if len(living(t, ctr)) <= before {
				t.Error("the command has ended")
			}
			for _, name := range []string{"flood", "flooded"} {
				must(t, os.Remove(fmt.Sprintf("/proc/%d/root/work/%s", ctr.PID(), name)))
			}
		}
		waitFor(t, "what was typed", func() bool { return typed() == v.ForwardedHex })
		if !v.Detached {
			hungUp := strings.Count(d.log.String(), "hung up after")
			s.Close()
			waitFor(t, "the end of the session", func() bool { return strings.Count(d.log.String(), "hung up after") > hungUp })
		}
	}
	if n := strings.Count(d.log.String(), "its command goes on"); n != 2 {
		t.Errorf("log:\n%s", d.log)
	}
	// With the container, what goes on ends as well.
	must(t, ctr.Kill(watchdog(t)))
	waitFor(t, "the log", func() bool { return strings.Count(d.log.String(), "exit code 137") == 2 })
}

func TestInvalidDetachKeys(t *testing.T) {
	ctr := newContainer(t, idle)
	d := newDoor(t, wire.Inside(ctr), gateway.SSHOptions{DetachKeys: "ctrl-A"})
	s, in, out := terminal(t, d.client(), "sh -c 'stty raw; echo ready; sleep 600; sleep 600'")
	if said := expect(t, out, "ready"); !strings.HasPrefix(said, "invalid detach keys (") || !strings.Contains(said, "using ctrl-p,ctrl-q\r\n") {
		t.Errorf("%q", said)
	}
	_, err := in.Write([]byte{16, 17})
	must(t, err)
	_, _ = io.Copy(io.Discard, out)
	if code := exitCode(s.Wait()); code != 1 {
		t.Errorf("exit status %d", code)
	}
	must(t, d.server.Close(watchdog(t))) // hangs up
	waitFor(t, "the end", func() bool { return !strings.Contains(strings.Join(living(t, ctr)[2:], ""), "sh") })
}

// Without a terminal the keys are bytes like others.
func TestNoDetachWithoutTerminal(t *testing.T) {
	_, d := box(t)
	if r := exec(t, d.client(), "cat", strings.NewReader("\x10\x11")); r != (result{"\x10\x11", "", 0}) {
		t.Errorf("%+v", r)
	}
}

// A client that looks whether there is a server, or talks nonsense, or nothing.
func TestHandshake(t *testing.T) {
	_, d := box(t)
	for range 3 {
		d.conn().Close()
	}
	c := d.conn()
	if line := expect(t, c, "\r\n"); !strings.HasPrefix(line, "SSH-2.0-") {
		t.Errorf("%q", line)
	}
	c.Close()
	exec(t, d.client(), "true", nil)
	if log := d.log.String(); strings.Count(log, "\n") != 2 {
		t.Errorf("log:\n%s", log)
	}
	for _, nonsense := range []string{"GET / HTTP/1.1\r\n\r\n", strings.Repeat("x", 1<<16), "SSH-1.5-x\r\n", "SSH-2.0-x\r\n" + strings.Repeat("\xff", 64), "SSH-2.0-x\r\n\x00\x00\x00\x0c\x0a\x14" + strings.Repeat("\x00", 10), "\x1b[2J\r\n\n\n\n"} {
		c := d.conn()
		_, _ = io.WriteString(c, nonsense)
		_ = c.(*net.UnixConn).CloseWrite()
		_, _ = io.Copy(io.Discard, c)
		c.Close()
	}
	exec(t, d.client(), "true", nil)
	if strings.Contains(d.log.String(), "\x1b") {
		t.Errorf("log: %q", d.log)
	}
	slow := newDoor(t, new(gateway.Deferred), gateway.SSHOptions{}, sshd.Limits{Handshake: 50 * time.Millisecond})
	// Who is too slow even to begin is not worth a message.
	waitFor(t, "the log", func() bool {
		c := slow.conn()
		defer c.Close()
		_, _ = io.WriteString(c, "SSH-2.0-slow\r\n")
		_, _ = io.Copy(io.Discard, c) // until it is closed
		return strings.Contains(slow.log.String(), "it took too long")
	})
}

func TestSessionFlood(t *testing.T) {
	ctr := newContainer(t, idle)
	d := newDoor(t, wire.Inside(ctr), gateway.SSHOptions{}, sshd.Limits{Channels: 5})
	c := d.client()
	for range 5 {
		ch, reqs, err := c.OpenChannel("session", nil)
		must(t, err)
		go ssh.DiscardRequests(reqs)
		defer ch.Close()
	}
	other := d.client()
	for _, kind := range []string{"session", "direct-tcpip"} {
		_, _, err := other.OpenChannel(kind, nil)
		if e, ok := err.(*ssh.OpenChannelError); !ok || e.Reason != ssh.ResourceShortage {
			t.Errorf("%s: %v", kind, err)
		}
	}
	c.Close()
	waitFor(t, "room", func() bool {
		s, err := other.NewSession()
		if err != nil {
			return false
		}
		defer s.Close()
		return s.Run("true") == nil
	})
}
