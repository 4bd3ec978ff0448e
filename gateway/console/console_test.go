package console

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"crunch-oci/gateway"
	"crunch-oci/internal/leaktest"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv("CONSOLE_TEST_DIR"); dir != "" { // the program of another user
		_, err := Dial(context.Background(), dir, Hello{})
		fmt.Print(err)
		return
	}
	leaktest.Main(m)
}

// echo is a server that repeats what it is told, until the context ends.
type echo struct{ options chan gateway.SSHOptions }

func (e echo) ServeConn(ctx context.Context, c net.Conn, o gateway.SSHOptions) {
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	e.options <- o
	_, _ = io.Copy(c, c)
}

// longDir is a directory whose name is longer than a socket's may be.
func longDir(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), strings.Repeat("long", 40), "run")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestConsole(t *testing.T) {
	dir := longDir(t)
	if _, err := Dial(t.Context(), dir, Hello{}); !errors.Is(err, ErrNotReady) {
		t.Errorf("before it listens: %v", err)
	}
	if _, err := Dial(t.Context(), dir+"/nosuch", Hello{}); !errors.Is(err, ErrNoRun) {
		t.Errorf("no such directory: %v", err)
	}
	e := echo{make(chan gateway.SSHOptions, 10)}
	s, err := Listen(dir, e, t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(filepath.Join(dir, socketName)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v %v", info, err)
	}
	for hello, want := range map[Hello]gateway.SSHOptions{
		{}: {LoginUser: "root"},
		{LoginUser: "1000:\n", DetachKeys: "ctrl-a"}: {LoginUser: "1000:\n", DetachKeys: "ctrl-a"},
	} {
		c, err := Dial(t.Context(), dir, hello)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(c, "SSH"); err != nil {
			t.Fatal(err)
		}
		if got := <-e.options; got != want {
			t.Errorf("%+v: %+v", hello, got)
		}
		got := make([]byte, 3)
		if _, err := io.ReadFull(c, got); err != nil || string(got) != "SSH" {
			t.Errorf("%q %v", got, err)
		}
		defer c.Close()
	}
	// What says something else is not let in.
	d, name, err := socket(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for _, words := range []string{"SSH-2.0-x\r\n", strings.Repeat("x", 2*helloSize)} {
		c, err := net.Dial("unix", name)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_, _ = io.WriteString(c, words)
		_ = c.SetReadDeadline(time.Now().Add(time.Minute))
		if n, err := c.Read(make([]byte, 1)); n > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%.10q: %d %v", words, n, err)
		}
	}
	if len(e.options) > 0 {
		t.Error("served somebody who did not say hello")
	}
	// Sessions that are open end with it, and the socket is gone.
	if err := s.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := Dial(t.Context(), dir, Hello{}); !errors.Is(err, ErrNotReady) {
		t.Errorf("after the end: %v", err)
	}
}

// A socket that a dead process has left leads nowhere.
func TestDead(t *testing.T) {
	dir := longDir(t)
	s, err := Listen(dir, echo{}, t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	s.listener.SetUnlinkOnClose(false)
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := Dial(t.Context(), dir, Hello{}); !errors.Is(err, ErrDead) {
		t.Errorf("%v", err)
	}
}

// Another user gets nowhere, even if the directory were open.
func TestOtherUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("needs root")
	}
	dir, err := os.MkdirTemp("/tmp", "console") // which others can enter
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	e := echo{make(chan gateway.SSHOptions, 10)}
	refused := make(chan string, 10)
	s, err := Listen(dir, e, func(format string, args ...any) { refused <- fmt.Sprintf(format, args...) })
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close(t.Context())
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	place, err := os.MkdirTemp("/tmp", "console")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(place)
	if err := os.Chmod(place, 0o755); err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(place, "program")
	text, err := os.ReadFile(self)
	if err == nil {
		err = os.WriteFile(program, text, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	ask := func(words string) {
		t.Helper()
		cmd := exec.Command(program)
		cmd.Env = []string{"CONSOLE_TEST_DIR=" + dir}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), words) {
			t.Errorf("%q %v, want %q", out, err, words)
		}
	}
	ask("permission denied") // the directory
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	ask("permission denied") // the socket
	if err := os.Chmod(filepath.Join(dir, socketName), 0o666); err != nil {
		t.Fatal(err)
	}
	ask("") // let in, and out again
	if got := <-refused; !strings.Contains(got, "refused a connection of user 65534") || len(e.options) > 0 {
		t.Errorf("%q", got)
	}
}
