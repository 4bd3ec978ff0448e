package oci_test

import (
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"crunch-oci/oci"
)

func TestExecTerminal(t *testing.T) {
	b := newBox(t)
	size := &oci.TerminalSize{Columns: 101, Rows: 33, Width: 808, Height: 528}
	q := oci.ExecRequest{User: "alice", Args: []string{"sh", "-c", "tty; busybox stty size; ls -l $(tty); echo e >&2; cat </dev/tty; exit 7"}, Terminal: size}
	r := execIn(t, b.ctr, q, "typed\n\x04")
	for _, want := range []string{"/dev/pts/0\r\n33 101\r\n", " alice ", "e\r\n", "typed\r\n"} {
		if !strings.Contains(r.stdout, want) && !(want == " alice " && strings.Contains(r.stdout, " 1000 ")) {
			t.Errorf("%q lacks %q", r.stdout, want)
		}
	}
	if r.code != 7 {
		t.Errorf("exit code %d", r.code)
	}
	// All that was written before the end comes.
	many := execIn(t, b.ctr, oci.ExecRequest{Args: []string{"sh", "-c", "busybox seq 1 20000"}, Terminal: size}, "").stdout
	if !strings.HasSuffix(many, "\r\n20000\r\n") {
		t.Errorf("output ends with %q", many[max(0, len(many)-100):])
	}
}

// expect reads until the text has come.
func expect(t testing.TB, r io.Reader, text string) {
	t.Helper()
	var got []byte
	buf := make([]byte, 4096)
	for !strings.Contains(string(got), text) {
		n, err := r.Read(buf)
		got = append(got, buf[:n]...)
		if err != nil {
			t.Fatalf("%v before %q; got %q", err, text, got)
		}
	}
}

func TestExecTerminalIsControlled(t *testing.T) {
	b := newBox(t)
	size := &oci.TerminalSize{Columns: 80, Rows: 25}
	start := func(script string) *oci.Session {
		s, err := b.ctr.Exec(t.Context(), oci.ExecRequest{Args: []string{"sh", "-c", script}, Terminal: size})
		must(t, err)
		t.Cleanup(func() { _ = s.Kill(); _ = s.Close() })
		expect(t, s.Stdout(), "ready")
		return s
	}
	wait := func(s *oci.Session) int {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		go func() { _, _ = io.Copy(io.Discard, s.Stdout()) }()
		status, err := s.Wait(ctx)
		must(t, err)
		return status.Code
	}
	s := start(`trap 'busybox stty size; exit 5' WINCH; echo ready; while :; do busybox usleep 1000; done`)
	must(t, s.Resize(oci.TerminalSize{Columns: 132, Rows: 43}))
	expect(t, s.Stdout(), "43 132")
	if code := wait(s); code != 5 {
		t.Errorf("resized: exit code %d", code)
	}
	s = start("echo ready; sleep 600")
	_, err := s.Stdin().Write([]byte{3}) // Ctrl-C
	must(t, err)
	if code := wait(s); code != 130 {
		t.Errorf("interrupted: exit code %d", code)
	}
	s = start("trap 'exit 6' USR1; echo ready; while :; do busybox usleep 1000; done")
	must(t, s.Signal(syscall.SIGUSR1))
	if code := wait(s); code != 6 {
		t.Errorf("signalled: exit code %d", code)
	}
	if err := s.Signal(syscall.SIGTERM); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("signal after the end: %v", err)
	}
	s = start("trap 'exit 9' HUP; echo ready; while :; do busybox usleep 1000; done")
	must(t, s.Stdin().Close())
	if code := wait(s); code != 9 {
		t.Errorf("hung up: exit code %d", code)
	}
}
