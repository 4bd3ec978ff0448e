package main_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"crunch-oci/arvados"
)

// upgrade asks the controller for a shell, as arvados-client does.
func (e *entered) upgrade(t testing.TB, account, keys string) (net.Conn, *http.Response) {
	t.Helper()
	conn, err := tls.Dial("tcp", e.local.Host(), e.web.Transport.(*http.Transport).TLSClientConfig)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	form := url.Values{"detach_keys": {keys}, "login_username": {account}, "no_forward": {"false"}}.Encode()
	_ = conn.SetDeadline(time.Now().Add(patience))
	fmt.Fprintf(conn, "POST https://%s/arvados/v1/connect/%s/ssh HTTP/1.1\r\nAuthorization: Bearer %s\r\nHost: %s\r\nUpgrade: ssh\r\n"+
		"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: %d\r\n\r\n%s",
		e.local.Host(), e.uuid, e.local.UserToken(), e.local.Host(), len(form), form)
	in := bufio.NewReader(conn)
	resp, err := http.ReadResponse(in, &http.Request{Method: "POST"})
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.SetDeadline(time.Time{})
	return &readerConn{conn, in}, resp
}

// readerConn is a connection of which some has been read.
type readerConn struct {
	net.Conn
	in *bufio.Reader
}

func (r *readerConn) Read(p []byte) (int, error) { return r.in.Read(p) }

// ssh logs in to the container.
func (e *entered) ssh(t testing.TB, account, keys string) *ssh.Client {
	t.Helper()
	conn, resp := e.upgrade(t, account, keys)
	if resp.StatusCode != http.StatusSwitchingProtocols {
		body, _ := io.ReadAll(resp.Body)
		t.Fatalf("shell: %s %s", resp.Status, body)
	}
	c, channels, requests, err := ssh.NewClientConn(conn, "container", &ssh.ClientConfig{User: "x", HostKeyCallback: ssh.InsecureIgnoreHostKey(), Timeout: patience})
	if err != nil {
		t.Fatal(err)
	}
	client := ssh.NewClient(c, channels, requests)
	t.Cleanup(func() { client.Close() })
	return client
}

// inside runs a command and returns what it says and its exit code.
func inside(t testing.TB, client *ssh.Client, command string, stdin io.Reader) (stdout, stderr string, code int) {
	t.Helper()
	s, err := client.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var out, errOut bytes.Buffer
	s.Stdin, s.Stdout, s.Stderr = stdin, &out, &errOut
	if stdin == nil { // never at its end
		if _, err := s.StdinPipe(); err != nil {
			t.Fatal(err)
		}
	}
	err = within(t, command, func() error { return s.Run(command) })
	return out.String(), errOut.String(), exitStatus(t, command, err)
}

func exitStatus(t testing.TB, command string, err error) int {
	t.Helper()
	var exit *ssh.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.ExitStatus()
	}
	t.Errorf("%s: %v", command, err)
	return -1
}

// within returns the error of what must not take for ever.
func within(t testing.TB, what string, do func() error) error {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- do() }()
	select {
	case err := <-done:
		return err
	case <-time.After(patience):
		t.Fatalf("%s has not ended", what)
		return nil
	}
}

// terminal is a session at a terminal, typed into and read by a test.
type terminal struct {
	*ssh.Session
	in  io.WriteCloser
	out watched
}

func openTerminal(t testing.TB, client *ssh.Client, command string) *terminal {
	t.Helper()
	s, err := client.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	term := &terminal{Session: s}
	s.Stdout = &term.out
	if term.in, err = s.StdinPipe(); err == nil {
		err = s.RequestPty("xterm-256color", 33, 101, ssh.TerminalModes{})
	}
	if err == nil && command == "" {
		err = s.Shell()
	} else if err == nil {
		err = s.Start(command)
	}
	if err != nil {
		t.Fatal(err)
	}
	return term
}

func (term *terminal) typed(t testing.TB, keys string) {
	t.Helper()
	if _, err := io.WriteString(term.in, keys); err != nil {
		t.Fatal(err)
	}
}

func (term *terminal) ends(t testing.TB) int {
	t.Helper()
	return exitStatus(t, "terminal", within(t, "terminal", term.Wait))
}

// waiting keeps a container running until it is stopped.
var waiting = []string{"sh", "-c", "export OF_FIRST=secret; exec sleep 100000"}

// What users do with shells in containers, directly and through a tunnel
// (gateway.md section 12).
func TestShell(t *testing.T) {
	t.Parallel()
	d := newDoor(t)
	for how, address := range map[string]string{"tunnel": "", "direct": "localhost:0"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			e := d.run(t, address, waiting, attrs{"environment": attrs{"OF_RECORD": "yes"}})
			t.Run("commands", func(t *testing.T) { testCommands(t, e) })
			t.Run("terminal", func(t *testing.T) { testTerminal(t, e) })
			t.Run("forwarding", func(t *testing.T) { testForwarding(t, e) })
			t.Run("many", func(t *testing.T) { testManyShells(t, e) })
			if !e.container(t, e.uuid).InteractiveSessionStarted {
				t.Error("interactive_session_started is not set")
			}
			record := e.end(t)
			log := e.log(t, record, "crunch-run.txt")
			for _, not := range []string{"tunnel connection", "handshake", "runTunnel", "panic"} {
				if strings.Contains(log, not) {
					t.Errorf("the log complains: %s", log)
				}
			}
		})
	}
}

func testCommands(t *testing.T, e *entered) {
	client := e.ssh(t, "", "")
	for _, c := range []struct {
		command, stdin, stdout, stderr string
		code                           int
	}{
		{"echo ok", "", "ok\n", "", 0},
		{"echo a; echo b", "", "a; echo b\n", "", 0},
		{"sh -c 'exit 3'", "", "", "", 3},
		{"sh -c 'kill -9 $$'", "", "", "", 137},
		{"cat", "some\x00input", "some\x00input", "", 0},
		{"sh -c 'echo o; echo e >&2'", "", "o\n", "e\n", 0},
		{`printf '%s|' a "b c" d\ e '' # comment`, "", "a|b c|d e||", "", 0},
		{"nosuchprogram", "", "", "*", 127},
		{"/etc/passwd", "", "", "*", 126},
		{"echo 'open", "", "", "*", 2},
		{"id -u", "", "0\n", "", 0},
		{"pwd", "", "/out\n", "", 0},
		{`sh -c 'echo "$OF_RECORD $FROM_IMAGE ${OF_FIRST-unset} ${ARVADOS_API_TOKEN-unset} $HOME"'`, "", "yes yes unset unset /root\n", "", 0},
		{"sh -c 'cmp /proc/1/cgroup /proc/self/cgroup && for n in mnt pid net ipc uts cgroup; do [ $(readlink /proc/1/ns/$n) = $(readlink /proc/self/ns/$n) ] || echo $n; done'", "", "", "", 0},
		{"sh -c 'grep -E \"^(CapBnd|Seccomp|NoNewPrivs):\" /proc/1/status >/tmp/1; grep -E \"^(CapBnd|Seccomp|NoNewPrivs):\" /proc/self/status | cmp - /tmp/1'", "", "", "", 0},
		{"ls /proc/self/fd", "", "0\n1\n2\n3\n", "", 0},
	} {
		var in io.Reader
		if c.stdin != "" {
			in = strings.NewReader(c.stdin)
		}
		stdout, stderr, code := inside(t, client, c.command, in)
		if stdout != c.stdout || c.stderr != "*" && stderr != c.stderr || c.stderr == "*" && stderr == "" || code != c.code {
			t.Errorf("%s: %q %q %d, want %q %q %d", c.command, stdout, stderr, code, c.stdout, c.stderr, c.code)
		}
	}
	for account, want := range map[string]string{"1000:100": "1000 100", "root": "0 0", "4242": "4242 0"} {
		if out, _, code := inside(t, e.ssh(t, account, ""), `sh -c 'echo $(id -u) $(id -g)'`, nil); out != want+"\n" || code != 0 {
			t.Errorf("account %s: %q %d", account, out, code)
		}
	}
	if _, text, code := inside(t, e.ssh(t, "nobody-here", ""), "id", nil); code == 0 || !strings.Contains(text, "unable to find user nobody-here: no matching entries in passwd file") {
		t.Errorf("unknown account: %q %d", text, code)
	}
	// The cgroup is the container's, as the host sees it.
	s, err := client.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start("sleep 4243"); err != nil {
		t.Fatal(err)
	}
	find := func() []foundProcess { return e.running("sleep 4243") }
	waitFor(t, "the command's process", func() bool { return len(find()) == 1 })
	if p := find(); len(p) != 1 || !p[0].contained {
		t.Errorf("the command is not in the container's cgroup: %v", p)
	}
	// Without its connection it is killed.
	client.Close()
	waitFor(t, "the end of what nobody is connected to", func() bool { return len(find()) == 0 })
	// A look at the door is no session and no error.
	conn, resp := e.upgrade(t, "", "")
	if resp.StatusCode != http.StatusSwitchingProtocols {
		t.Errorf("probe: %s", resp.Status)
	}
	conn.Close()
}

// running are the node's processes with a command line.
func (e *entered) running(command string) (found []foundProcess) {
	for _, p := range e.node.processes() {
		if p.command == command {
			found = append(found, p)
		}
	}
	return found
}

func testTerminal(t *testing.T, e *entered) {
	client := e.ssh(t, "root", "ctrl-],ctrl-]")
	term := openTerminal(t, client, "sh -c 'tty; stty size; echo $TERM; until stty size | grep \"50 120\"; do sleep 0.1; done; read x; echo said $x'")
	term.out.mustSay(t, "/dev/pts/0\r\n33 101\r\nxterm-256color\r\n")
	// The program asks until it sees the change: an SSH server takes requests
	// and data of a channel from two queues, so what was typed may come first.
	if err := term.WindowChange(50, 120); err != nil {
		t.Fatal(err)
	}
	term.out.mustSay(t, "50 120\r\n")
	term.typed(t, "word\n")
	term.out.mustSay(t, "said word\r\n")
	if code := term.ends(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	term = openTerminal(t, client, "")
	term.typed(t, "echo pid $((6*7))\n")
	term.out.mustSay(t, "pid 42")
	term.typed(t, "sleep 4245\n")
	waitFor(t, "the foreground job", func() bool { return len(e.running("sleep 4245")) == 1 })
	term.typed(t, "\x03") // Ctrl-C
	waitFor(t, "its end", func() bool { return len(e.running("sleep 4245")) == 0 })
	term.typed(t, "exit 7\n")
	if code := term.ends(t); code != 7 {
		t.Errorf("exit code of the shell: %d", code)
	}
	// Detached it goes on, and sees its terminal.
	term = openTerminal(t, client, "sh -c 'echo begun; sleep 1; echo more; touch /tmp/detached; sleep 4244'")
	term.out.mustSay(t, "begun")
	term.typed(t, "\x1d\x1d")
	term.out.mustSay(t, "read escape sequence\r\n")
	if code := term.ends(t); code != 1 {
		t.Errorf("exit code after detaching: %d", code)
	}
	client.Close()
	client = e.ssh(t, "", "")
	waitFor(t, "what goes on without a terminal", func() bool {
		_, _, code := inside(t, client, "test -e /tmp/detached", nil)
		return code == 0
	})
	waitFor(t, "what it does next", func() bool { return len(e.running("sleep 4244")) == 1 })
}

// testForwarding reaches services that listen on the loopback interface of the
// container, and nothing else.
func testForwarding(t *testing.T, e *entered) {
	client := e.ssh(t, "", "")
	s, err := client.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var said watched
	s.Stderr = &said
	if err := s.Start("probe web 9000"); err != nil {
		t.Fatal(err)
	}
	said.mustSay(t, "serving")
	for _, host := range []string{"localhost", "127.0.0.1", "0.0.0.0", "::1", "::"} {
		conn, err := client.Dial("tcp", net.JoinHostPort(host, "9001"))
		if err != nil {
			t.Errorf("%s: %v", host, err)
			continue
		}
		// Half-close: the echo comes after the end of the question.
		if _, err := io.WriteString(conn, "question"); err != nil {
			t.Error(err)
		}
		if err := conn.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
			t.Error(err)
		}
		var answer []byte
		err = within(t, "echo", func() (err error) { answer, err = io.ReadAll(conn); return err })
		if err != nil || string(answer) != "question" {
			t.Errorf("%s: %q %v", host, answer, err)
		}
		conn.Close()
	}
	_, apiPort, _ := net.SplitHostPort(e.local.Host())
	for _, address := range []string{"foo:9001", "10.0.0.1:9001", "localhost:1", "localhost:" + apiPort, "127.0.0.2:9001"} {
		conn, err := client.Dial("tcp", address)
		if err != nil {
			continue
		}
		var got []byte
		_ = within(t, address, func() (err error) { got, err = io.ReadAll(conn); return err })
		if len(got) > 0 {
			t.Errorf("%s is reached: %q", address, got)
		}
		conn.Close()
	}
}

// testManyShells runs fifty commands at once, on connections of their own.
func testManyShells(t *testing.T, e *entered) {
	var wg sync.WaitGroup
	for i := range 50 {
		client := e.ssh(t, "", "")
		wg.Go(func() {
			defer client.Close()
			s, err := client.NewSession()
			if err != nil {
				t.Error(err)
				return
			}
			data := bytes.Repeat([]byte{byte(i)}, 100_000+i)
			s.Stdin = bytes.NewReader(data)
			out, err := s.Output("cat")
			if err != nil || !bytes.Equal(out, data) {
				t.Errorf("session %d: %d bytes, %v", i, len(out), err)
			}
		})
	}
	if err := within(t, "fifty sessions", func() error { wg.Wait(); return nil }); err != nil {
		t.Error(err)
	}
}

// Sessions end with the container, at once, and cost it nothing.
func TestShellEndsWithContainer(t *testing.T) {
	t.Parallel()
	d := newDoor(t)
	e := d.run(t, "", sh("while ! [ -e /tmp/go ]; do sleep 0.05; done; exit 4"), nil)
	client := e.ssh(t, "", "ctrl-a")
	term := openTerminal(t, client, "sh -c 'trap \"\" HUP TERM INT; echo begun; sleep 100000'")
	term.out.mustSay(t, "begun")
	detached := openTerminal(t, client, "sh -c 'echo begun; sleep 100000'")
	detached.out.mustSay(t, "begun")
	detached.typed(t, "\x01")
	if code := detached.ends(t); code != 1 {
		t.Errorf("detached: %d", code)
	}
	s, err := client.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start("sleep 100000"); err != nil {
		t.Fatal(err)
	}
	if _, _, code := inside(t, client, "touch /tmp/go", nil); code != 0 {
		t.Fatalf("exit code %d", code)
	}
	record := e.finished(t, e.node, e.supervisor, e.uuid, 0, arvados.StateComplete)
	if record.ExitCode == nil || *record.ExitCode != 4 {
		t.Errorf("exit code %v", record.ExitCode)
	}
	_ = within(t, "session", s.Wait)
	_ = within(t, "terminal", term.Wait)
	if _, resp := e.upgrade(t, "", ""); resp.StatusCode != http.StatusGone {
		t.Errorf("after the end: %s", resp.Status)
	}
	log := e.log(t, record, "crunch-run.txt")
	if !strings.Contains(log, "session") {
		t.Errorf("sessions are not in the log:\n%s", log)
	}
}

// A supervisor that is killed takes sessions with it, and the next one finds
// nothing in its way.
func TestShellSupervisorKilled(t *testing.T) {
	t.Parallel()
	d := newDoor(t)
	e := d.run(t, "", waiting, nil)
	client := e.ssh(t, "", "")
	term := openTerminal(t, client, "sh -c 'trap \"\" HUP TERM INT; echo begun; sleep 100000'")
	term.out.mustSay(t, "begun")
	s, err := client.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start("sleep 100000"); err != nil {
		t.Fatal(err)
	}
	killed(t, e.node, e.supervisor)
	_ = within(t, "session", s.Wait)
	if err := e.dispatch.UpdateContainer(t.Context(), e.uuid, map[string]any{"state": arvados.StateCancelled}); err != nil {
		t.Fatal(err)
	}
	e.runOne(t, e.node, e.image, sh("true"), nil) // cleans up
}

// Without a secret there is no door; with one, nobody but the supervisor has it.
func TestGatewaySecret(t *testing.T) {
	t.Parallel()
	d := newDoor(t)
	input := withInput(d.store(t, map[string][]byte{"a": []byte("a")}))
	uuid := d.submit(t, d.image, waiting, input)
	p := d.supervise(t, d.node, uuid)
	p.stderr.mustSay(t, "Waiting for container to finish")
	record := d.container(t, uuid)
	if record.GatewayAddress != "" || !strings.Contains(p.stderr.String(), " Not starting a gateway server (GatewayAuthSecret was not provided by dispatcher)\n") {
		t.Errorf("without a secret: address %q", record.GatewayAddress)
	}
	p.signal(t, syscall.SIGTERM)
	d.finished(t, d.node, p, uuid, 0, arvados.StateCancelled)

	// A bad address costs nothing but the gateway.
	uuid = d.submit(t, d.image, sh("true"), nil)
	p = d.node.start(t, run{args: []string{uuid}, env: append(d.supervisorEnv(), "GatewayAuthSecret="+d.local.GatewayAuthSecret(uuid), "GatewayAddress=10.9.8.7:99999")})
	record = d.finished(t, d.node, p, uuid, 0, arvados.StateComplete)
	if log := d.log(t, record, "crunch-run.txt"); record.GatewayAddress != "" || !strings.Contains(log, "error starting gateway server: ") {
		t.Errorf("with a bad address: %q\n%s", record.GatewayAddress, log)
	}

	e := d.run(t, "", waiting, input)
	secret := []byte(d.local.GatewayAuthSecret(e.uuid))
	seen := 0
	for _, p := range e.node.processes() {
		if p.pid == e.supervisor.cmd.Process.Pid {
			continue // its initial environment
		}
		seen++
		for _, name := range []string{"environ", "cmdline"} {
			if text := readProc(p.pid, name); bytes.Contains(text, secret) {
				t.Errorf("%s of %v has the secret", name, p)
			}
		}
	}
	if seen < 2 { // keep-mount and the container
		t.Errorf("%d processes", seen)
	}
	e.end(t)
}

func readProc(pid int, name string) []byte {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, name)) // of what has just ended: nothing
	return text
}
