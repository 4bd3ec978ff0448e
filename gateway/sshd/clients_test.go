package sshd_test

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	osexec "os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"crunch-oci/cmd/crunch-run/wire"
	"crunch-oci/gateway"
	"crunch-oci/oci"
)

func endedContainer(t testing.TB) *oci.Container {
	t.Helper()
	c := newContainer(t, "exit 0")
	_, err := c.Wait(watchdog(t))
	must(t, err)
	return c
}

// paramiko runs testdata/client.py with Debian's Python.
func paramiko(t testing.TB, d *door, args ...string) error {
	t.Helper()
	out, err := osexec.CommandContext(watchdog(t), "/usr/bin/python3", append([]string{"testdata/client.py", d.path}, args...)...).CombinedOutput()
	if bytes.Contains(out, []byte("No module named")) {
		t.Fatalf("install Debian's python3-paramiko: %s", out)
	}
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// openssh prepares OpenSSH's client to talk to a door.
func openssh(t testing.TB, d *door, args ...string) *osexec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	must(t, err)
	cmd := osexec.CommandContext(watchdog(t), "/usr/bin/ssh", append([]string{"-F", "none", "-o", "StrictHostKeyChecking=no",
		"-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR", "-o", "ProxyCommand=env " + proxyEnv + "=" + d.path + " " + exe}, args...)...)
	if cmd.Err != nil {
		t.Fatalf("%v: install Debian's openssh-client", cmd.Err)
	}
	return cmd
}

const services = `nc -ll -p 7000 -e cat & busybox httpd -p 127.0.0.1:8000 -h /work & ` + idle

// serving waits for the services to listen.
func serving(t testing.TB, c *oci.Container, ports ...int) {
	t.Helper()
	for _, port := range ports {
		waitFor(t, fmt.Sprintf("port %d", port), func() bool {
			conn, err := c.Dial(watchdog(t), port)
			if err == nil {
				conn.Close()
			}
			return err == nil
		})
	}
}

func TestParamiko(t *testing.T) {
	c := newContainer(t, services)
	serving(t, c, 7000)
	must(t, paramiko(t, newDoor(t, wire.Inside(c), gateway.SSHOptions{}), "session"))
}

func TestOpenSSH(t *testing.T) {
	c := newContainer(t, services)
	must(t, os.WriteFile(fmt.Sprintf("/proc/%d/root/work/page", c.PID()), []byte("a page"), 0o644))
	d := newDoor(t, wire.Inside(c), gateway.SSHOptions{})
	for _, tc := range []struct {
		args  []string
		stdin string
		want  result
	}{
		{[]string{"x", "echo", "ok"}, "", result{"ok\n", "", 0}},
		{[]string{"x", "sh -c 'cat; echo e >&2; exit 3'"}, "in", result{"in", "e\n", 3}},
		{[]string{"x", "nosuch"}, "", result{"", `exec: "nosuch": executable file not found in $PATH` + "\n", 127}},
		{[]string{"-tt", "x", "sh -c 'tty; echo $TERM'"}, "", result{"/dev/pts/0\r\nxterm-test\r\n", "", 0}},
		{[]string{"x"}, "echo shell $((6*7)); exit 5\n", result{"shell 42\n", "", 5}},
		{[]string{"-W", "localhost:7000", "x"}, "hello", result{"hello", "", 0}},
		{[]string{"-o", "SetEnv=LC_ALL=C.UTF-8 OTHER=x", "x", "sh -c 'echo $LC_ALL $OTHER'"}, "", result{"C.UTF-8\n", "", 0}},
	} {
		cmd := openssh(t, d, tc.args...)
		var stdout, stderr bytes.Buffer
		cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(tc.stdin), &stdout, &stderr
		cmd.Env = append(os.Environ(), "TERM=xterm-test")
		_ = cmd.Run()
		if got := (result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}); got != tc.want {
			t.Errorf("%q: %+v, want %+v", tc.args, got, tc.want)
		}
	}
	// ssh -L, and a web server that listens on nothing but loopback.
	socket := filepath.Join(t.TempDir(), "forward")
	cmd := openssh(t, d, "-N", "-L", socket+":localhost:8000", "x")
	must(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}
	defer client.CloseIdleConnections()
	serving(t, c, 8000)
	waitFor(t, "ssh to listen", func() bool { // which it does a moment after the socket has a name
		conn, err := net.Dial("unix", socket)
		if err == nil {
			_ = conn.Close()
		}
		return err == nil
	})
	reply, err := client.Get("http://container/page")
	must(t, err)
	body, err := io.ReadAll(reply.Body)
	reply.Body.Close()
	if err != nil || string(body) != "a page" {
		t.Errorf("%q, %v", body, err)
	}
}

// A full-screen program in a terminal of tmux, which is made larger.
func TestResizeUnderTmux(t *testing.T) {
	_, d := box(t)
	exe, err := os.Executable()
	must(t, err)
	socket := filepath.Join(t.TempDir(), "tmux")
	tmux := func(args ...string) string {
		t.Helper()
		cmd := osexec.CommandContext(watchdog(t), "tmux", append([]string{"-S", socket, "-f", "/dev/null"}, args...)...)
		cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("tmux %q (Debian's tmux): %v: %s", args, err, out)
		}
		return string(out)
	}
	ssh := fmt.Sprintf("ssh -F none -tt -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -o 'ProxyCommand=env %s=%s %s' x vi /work/file", proxyEnv, d.path, exe)
	tmux("new-session", "-d", "-x", "80", "-y", "24", ssh)
	t.Cleanup(func() { _ = osexec.Command("tmux", "-S", socket, "kill-server").Run() })
	// vi fills the lines below the text with tildes, and has its status on the last.
	lines := func() int { return strings.Count(tmux("capture-pane", "-p"), "\n~") }
	waitFor(t, "vi to fill 24 lines", func() bool { return lines() == 22 })
	tmux("resize-window", "-x", "100", "-y", "40")
	waitFor(t, "vi to fill 40 lines", func() bool { return lines() == 38 })
	tmux("send-keys", ":q!", "Enter")
	waitFor(t, "the end", func() bool {
		return osexec.Command("tmux", "-S", socket, "has-session").Run() != nil
	})
}

// bulk is how much goes through a session, in bytes: with SSHD_TEST_LONG a
// gigabyte.
func bulk() int64 {
	if os.Getenv("SSHD_TEST_LONG") != "" {
		return 1 << 30
	}
	return 64 << 20
}

// Both ways at once, every byte in its place.
func TestBulk(t *testing.T) {
	_, d := box(t)
	for name, cat := range map[string]func(in io.Reader, out io.Writer) error{
		"OpenSSH": func(in io.Reader, out io.Writer) error {
			cmd := openssh(t, d, "x", "cat")
			cmd.Stdin, cmd.Stdout, cmd.Stderr = in, out, os.Stderr
			return cmd.Run()
		},
		"Go": func(in io.Reader, out io.Writer) error {
			s, err := d.client().NewSession()
			if err != nil {
				return err
			}
			s.Stdin, s.Stdout = in, out
			return s.Run("cat")
		},
	} {
		sent, got := md5.New(), md5.New()
		random := io.LimitReader(rand.NewChaCha8([32]byte{1}), bulk())
		if err := cat(io.TeeReader(random, sent), got); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if a, b := hex.EncodeToString(sent.Sum(nil)), hex.EncodeToString(got.Sum(nil)); a != b {
			t.Errorf("%s: sent %s, got %s", name, a, b)
		}
	}
}

func TestManySessionsAtOnce(t *testing.T) {
	_, d := box(t)
	const connections, each = 20, 5
	var wg sync.WaitGroup
	for i := range connections {
		c := d.client()
		for j := range each {
			wg.Go(func() {
				in := fmt.Sprintf("%d-%d", i, j)
				if r := exec(t, c, "sh -c 'cat; exit 9'", strings.NewReader(in)); r != (result{in, "", 9}) {
					t.Errorf("%s: %+v", in, r)
				}
			})
		}
	}
	wg.Wait()
}
