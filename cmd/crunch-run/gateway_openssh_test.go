package main_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"crunch-oci/internal/forkthread"
)

// openSSH is ssh(1) with the ProxyCommand of doc/gateway.md.
func (e *entered) openSSH(t testing.TB, account string, args ...string) *exec.Cmd {
	t.Helper()
	base := []string{"-F", "none", "-o", "ProxyCommand=" + program + " connect-ssh " + account + "@%h", "-o", "StrictHostKeyChecking=no",
		"-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"}
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), "ssh", append(base, args...)...)
	cmd.Env = append(cleanEnv(), "ARVADOS_API_HOST="+e.env["ARVADOS_API_HOST"], "ARVADOS_API_TOKEN="+e.env["ARVADOS_API_TOKEN"], "SSL_CERT_FILE="+e.env["SSL_CERT_FILE"])
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// What users do with OpenSSH: commands and their exit codes, much data both
// ways, ports. CRUNCH_RUN_TEST_LONG=1 makes it 1 GB instead of 16 MB.
func TestOpenSSH(t *testing.T) {
	t.Parallel()
	size := 16 << 20
	if os.Getenv("CRUNCH_RUN_TEST_LONG") != "" {
		size = 1 << 30
	}
	d := newDoor(t)
	e := d.run(t, "", []string{"probe", "web", "8000"}, nil)
	account := "root"
	check := func(stdin, want string, code int, args ...string) {
		t.Helper()
		cmd := e.openSSH(t, account, args...)
		cmd.Stdin = strings.NewReader(stdin)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, _ := output(t, cmd) // the code says it
		if code != 255 && stderr.Len() > 0 {
			t.Errorf("ssh %q says %q", args, &stderr)
		}
		if string(out) != want || cmd.ProcessState.ExitCode() != code {
			t.Errorf("ssh %q: %d %q, want %d %q; %s", args, cmd.ProcessState.ExitCode(), out, code, want, &stderr)
		}
	}
	check("", "a; echo b\n", 0, e.uuid, "echo a; echo b")
	check("input", "input", 4, e.uuid, "sh -c 'cat; exit 4'")
	check("", "0\n", 0, "alice@"+e.request, "id -u") // the request's name, and a user that does not matter
	account = "1000"
	check("", "1000\n", 0, e.uuid, "id -u")
	check("", "yes\r\n", 0, "-tt", e.uuid, "sh -c 'test -t 0 && echo yes'")
	check("GET / HTTP/1.0\r\n\r\n", "", 255, "-W", "10.0.0.1:80", e.uuid)
	check("", "", 255, "local-dz642-000000000000000", "id")

	// Much data, both ways at once.
	cmd := e.openSSH(t, account, e.uuid, "cat")
	sent, got := sha256.New(), sha256.New()
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout = got
	forkthread.Do(func() { err = cmd.Start() })
	if err != nil {
		t.Fatal(err)
	}
	block := make([]byte, 1<<20)
	for i := range size / len(block) {
		copy(block, fmt.Appendf(nil, "block %d", i))
		_, _ = sent.Write(block)
		if _, err := in.Write(block); err != nil {
			t.Fatal(err)
		}
	}
	_ = in.Close()
	if err := within(t, "ssh cat", cmd.Wait); err != nil || !bytes.Equal(sent.Sum(nil), got.Sum(nil)) {
		t.Errorf("%d bytes through cat: %v", size, err)
	}

	// A port of this machine that is one of the container.
	dir, err := os.MkdirTemp("/tmp", "ssh")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	socket := filepath.Join(dir, "web")
	forward := e.openSSH(t, account, "-N", "-L", socket+":localhost:8000", e.uuid)
	forkthread.Do(func() { err = forward.Start() })
	if err != nil {
		t.Fatal(err)
	}
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}
	defer tr.CloseIdleConnections()
	web := http.Client{Transport: tr, Timeout: patience}
	waitFor(t, "the forwarded port", func() bool {
		resp, err := web.Get("http://container/")
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		return err == nil && string(body) == "hello from the container\n"
	})
	_ = forward.Process.Kill()
	_ = forward.Wait()
	// What is known of failures is said.
	e.end(t)
	cmd = e.openSSH(t, account, e.uuid, "id")
	out, _ := output2(t, cmd)
	if !strings.Contains(string(out), "410 Gone: container has ended") {
		t.Errorf("after the end: %s", out)
	}
}

// output runs a command that dies with this process.
func output(t testing.TB, cmd *exec.Cmd) ([]byte, error) {
	t.Helper()
	var out bytes.Buffer
	cmd.Stdout = &out
	var err error
	forkthread.Do(func() { err = cmd.Start() })
	if err != nil {
		t.Fatal(err)
	}
	err = within(t, cmd.String(), cmd.Wait)
	return out.Bytes(), err
}

// output2 is output with standard error in it.
func output2(t testing.TB, cmd *exec.Cmd) ([]byte, error) {
	var errOut bytes.Buffer
	cmd.Stderr = &errOut
	out, err := output(t, cmd)
	return append(out, errOut.Bytes()...), err
}
