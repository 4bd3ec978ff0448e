package main_test

import (
	"bytes"
	"crypto/md5"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"crunch-oci/arvados"
	"crunch-oci/internal/forkthread"
)

// sshNode is a node that is reached as the cloud dispatcher reaches it: through
// an OpenSSH server, without a terminal and without variables. Between client
// and server there is a line that can hang and break.
type sshNode struct {
	*node
	dir    string
	port   string
	runner string // path of the program

	mu   sync.Mutex
	next fault
}

// fault is what happens to a line.
type fault struct {
	// after is the number of bytes from the client that pass; 0: all of them.
	after int64
	// reached is closed when they have.
	reached chan struct{}
	// cut ends the line when it is closed, nil: at once.
	cut chan struct{}
}

// newSSHNode starts a server on a free port of the loopback.
func newSSHNode(t testing.TB) *sshNode {
	t.Helper()
	s := &sshNode{node: newNode(t), runner: program}
	s.dir = filepath.Join(s.node.dir, "ssh")
	if err := os.Mkdir(s.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"host", "user"} {
		if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(s.dir, key)).CombinedOutput(); err != nil {
			t.Fatalf("ssh-keygen: %v\n%s", err, out)
		}
	}
	writeFile(t, filepath.Join(s.dir, "sshd_config"), fmt.Appendf(nil,
		"HostKey %[1]s/host\nAuthorizedKeysFile %[1]s/user.pub\nStrictModes no\nUsePAM no\nPidFile none\nPermitRootLogin prohibit-password\nPasswordAuthentication no\nSetEnv %s\n",
		s.dir, strings.Join(s.settings(), " ")))
	// Where the server wants to be locked up. It is part of the package, made at
	// boot.
	if err := os.MkdirAll("/run/sshd", 0o755); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, s.port, _ = net.SplitHostPort(l.Addr().String())
	var lines sync.WaitGroup
	t.Cleanup(func() {
		_ = l.Close()
		lines.Wait()
	})
	lines.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			lines.Go(func() { s.serve(t, conn) })
		}
	})
	return s
}

// serve runs a server for one connection.
func (s *sshNode) serve(t testing.TB, conn net.Conn) {
	s.mu.Lock()
	f := s.next
	s.next = fault{}
	s.mu.Unlock()
	defer conn.Close()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Error(err)
		return
	}
	theirs, ours := os.NewFile(uintptr(fds[0]), "sshd"), os.NewFile(uintptr(fds[1]), "line")
	line, err := net.FileConn(ours)
	_ = ours.Close()
	if err != nil {
		t.Error(err)
		return
	}
	defer line.Close()
	var log bytes.Buffer
	cmd := exec.Command("/usr/sbin/sshd", "-i", "-e", "-f", filepath.Join(s.dir, "sshd_config"))
	cmd.Stdin, cmd.Stdout, cmd.Stderr = theirs, theirs, &log
	cmd.Env = cleanEnv()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = patience
	forkthread.Do(func() { err = cmd.Start() })
	_ = theirs.Close()
	if err != nil {
		t.Error(err)
		return
	}
	back := make(chan struct{})
	go func() {
		defer close(back)
		_, _ = io.Copy(conn, line)
		_ = conn.Close()
	}()
	if f.after == 0 {
		_, _ = io.Copy(line, conn)
	} else {
		_, _ = io.CopyN(line, conn, f.after)
		close(f.reached)
		if f.cut != nil {
			<-f.cut
		}
		_ = conn.Close()
	}
	_ = line.Close()
	<-back
	_ = cmd.Wait()
	if t.Failed() {
		t.Logf("sshd: %s", tail(log.String(), 1000))
	}
}

// command is an SSH client that runs a command on the node.
func (s *sshNode) command(stdin io.Reader, command string, options ...string) (*exec.Cmd, *watched, *watched) {
	args := append([]string{
		"-F", "/dev/null", "-T", "-i", filepath.Join(s.dir, "user"), "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", "-o", "LogLevel=ERROR",
		"-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-p", s.port,
	}, options...)
	cmd := exec.Command("ssh", append(args, "root@127.0.0.1", command)...)
	stdout, stderr := new(watched), new(watched)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, stdout, stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd, stdout, stderr
}

// ssh runs a command on the node. The client returns when nobody has the
// session's stdout and stderr any more.
func (s *sshNode) ssh(t testing.TB, stdin, command string, options ...string) result {
	t.Helper()
	cmd, stdout, stderr := s.command(strings.NewReader(stdin), command, options...)
	cmd.WaitDelay = patience
	var err error
	forkthread.Do(func() { err = cmd.Start() })
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(ended)
	}()
	waitFor(t, "the end of the session of: "+command, func() bool {
		select {
		case <-ended:
			return true
		default:
			return false
		}
	})
	return result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// deploy copies the program to the node, by the commands of the dispatcher, and
// checks that it has arrived.
func (s *sshNode) deploy(t testing.TB) {
	t.Helper()
	binary, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	sum := md5.Sum(binary)
	dir := filepath.Join(s.node.dir, "deployed")
	s.runner = filepath.Join(dir, "crunch-run~"+hex.EncodeToString(sum[:]))
	want := result{0, hex.EncodeToString(sum[:]) + "  " + s.runner + "\n", ""}
	if got := s.ssh(t, "", "md5sum "+s.runner); got == want {
		t.Fatal("it is there already")
	}
	install := fmt.Sprintf(`set -e; dstdir="%s/"; dstfile="%s"; mkdir -p "$dstdir"; touch "$dstfile"; chmod 0755 "$dstdir" "$dstfile"; cat >"$dstfile"`, dir, s.runner)
	if got := s.ssh(t, string(binary), install); got != (result{}) {
		t.Fatalf("deploy: %+v", got)
	}
	if got := s.ssh(t, "", "md5sum "+s.runner); got != want {
		t.Fatalf("md5sum: %+v, want %+v", got, want)
	}
}

func (s *sshNode) start(uuid string) string {
	return s.runner + " --detach --stdin-config '--runtime-engine=docker' '" + uuid + "'"
}

// probe is what the dispatcher's probe shows.
func (s *sshNode) probe(t testing.TB) string {
	t.Helper()
	got := s.ssh(t, "", s.runner+" --list")
	if got.code != 0 || got.stderr != "" {
		t.Fatalf("--list: %+v", got)
	}
	return got.stdout
}

// stop stops a run as the dispatcher does.
func (s *sshNode) stop(t testing.TB, uuid string) {
	t.Helper()
	waitFor(t, "the end of "+uuid, func() bool { return s.ssh(t, "", s.runner+" --kill 15 "+uuid).code == 0 })
}

// TestCloudDispatcher goes through what arvados-dispatch-cloud does to a node.
func TestCloudDispatcher(t *testing.T) {
	t.Parallel()
	s := newSSHNode(t)
	s.killAtEnd(t)
	c := startCluster(t, s.node)
	image := c.storeTools(t)
	s.deploy(t)
	if out := s.probe(t); out != "" {
		t.Errorf("listed %q", out)
	}

	in := withInput(c.store(t, map[string][]byte{"a.txt": []byte("A")}))
	first := c.submit(t, image, sh("cat /in/a.txt; touch begun; "+untilTold+"echo done"), in)
	got := s.ssh(t, c.message(t, nil), s.start(first))
	if want := fmt.Sprintf("{\"UUID\":%q,\"PID\":", first); got.code != 0 || got.stderr != "" || !strings.HasPrefix(got.stdout, want) {
		t.Fatalf("start: %+v", got)
	}
	// The session has ended, and the run goes on without it.
	awaitFile(t, s.node, "out/begun")
	const prices = `[{"StartTime":"2024-05-01T12:00:00Z","Price":0.0732}]`
	if got := s.ssh(t, prices, s.runner+" --list --stdin-prices"); got != (result{0, first + "\n", ""}) {
		t.Errorf("--list --stdin-prices: %+v", got)
	}
	if got := readFile(t, filepath.Join(s.locks(), "crunch-run-prices.json")); got != prices {
		t.Errorf("prices %q", got)
	}
	second := c.submit(t, image, sh("sleep 1000"), nil)
	if got := s.ssh(t, c.message(t, nil), s.start(second)); got.code != 0 {
		t.Fatalf("start: %+v", got)
	}
	if out := s.probe(t); out != first+"\n"+second+"\n" && out != second+"\n"+first+"\n" {
		t.Errorf("listed %q", out)
	}
	s.stop(t, second)
	if out := s.probe(t); out != first+"\n" {
		t.Errorf("listed %q", out)
	}
	// The node is free again for the same container, at once.
	if got := s.ssh(t, c.message(t, nil), s.start(second)); got.code != 0 {
		t.Errorf("start again: %+v", got)
	}
	release(t, s.node)
	s.gone(t)
	if out := s.probe(t); out != "" {
		t.Errorf("listed %q", out)
	}
	record := c.container(t, first)
	if record.State != arvados.StateComplete {
		t.Fatalf("state %s", record.State)
	}
	if out := stamped(t, c.log(t, record, "stdout.txt")); out != "Adone\n" {
		t.Errorf("stdout %q", out)
	}
	// Stopped before Running, it would wait in the queue; after, it is cancelled.
	if state := c.container(t, second).State; state != arvados.StateQueued && state != arvados.StateCancelled {
		t.Errorf("state of the stopped container: %s", state)
	}
	if err := os.Remove(filepath.Join(s.locks(), "crunch-run-prices.json")); err != nil {
		t.Fatal(err)
	}
}

// TestOneConnection runs the commands as channels of one connection, which ends
// in the middle of a run.
func TestOneConnection(t *testing.T) {
	t.Parallel()
	s := newSSHNode(t)
	s.killAtEnd(t)
	c := startCluster(t, s.node)
	uuid := c.submit(t, c.storeTools(t), sh("touch begun; "+untilTold+"echo done"), nil)
	path := filepath.Join(s.dir, "master")
	master, _, _ := s.command(nil, "", "-M", "-N", "-S", path)
	var err error
	forkthread.Do(func() { err = master.Start() })
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = master.Process.Kill(); _ = master.Wait() }()
	waitFor(t, "the connection", func() bool { _, err := os.Stat(path); return err == nil })
	if got := s.ssh(t, c.message(t, nil), s.start(uuid), "-S", path); got.code != 0 {
		t.Fatalf("start: %+v", got)
	}
	if got := s.ssh(t, "", s.runner+" --list", "-S", path); got.stdout != uuid+"\n" {
		t.Errorf("list: %+v", got)
	}
	awaitFile(t, s.node, "out/begun")
	_ = master.Process.Kill()
	_ = master.Wait()
	if out := s.probe(t); out != uuid+"\n" {
		t.Errorf("after the end of the connection, listed %q", out)
	}
	release(t, s.node)
	s.gone(t)
	if state := c.container(t, uuid).State; state != arvados.StateComplete {
		t.Errorf("state %s", state)
	}
}

// TestLineBreaks cuts the line, or lets it hang first, in the middle of the
// message, and after it: then there is no supervisor, or one that is listed.
func TestLineBreaks(t *testing.T) {
	t.Parallel()
	s := newSSHNode(t)
	s.killAtEnd(t)
	c := startCluster(t, s.node)
	image := c.storeTools(t)
	padded := c.message(t, map[string]any{"Padding": strings.Repeat("x", 1<<20)})
	for name, line := range map[string]struct {
		after int64
		hang  bool
	}{
		"cut in the message": {600_000, false}, "hanging in the message": {600_000, true}, "hanging before the message": {8_000, true},
	} {
		t.Run(name, func(t *testing.T) {
			uuid := c.submit(t, image, sh("true"), nil)
			f := fault{after: line.after, reached: make(chan struct{})}
			if line.hang {
				f.cut = make(chan struct{})
			}
			s.mu.Lock()
			s.next = f
			s.mu.Unlock()
			done := make(chan result, 1)
			go func() { done <- s.ssh(t, padded, s.start(uuid)) }()
			<-f.reached
			if line.hang {
				// Others are not held up.
				if out := s.probe(t); out != "" && out != uuid+"\n" {
					t.Errorf("listed %q", out)
				}
				if got := s.ssh(t, "", s.runner+" --kill 0 zzzzz-dz642-00000000000000x"); got.code != 0 {
					t.Errorf("--kill: %+v", got)
				}
				close(f.cut)
			}
			if got := <-done; got.code == 0 {
				t.Errorf("start: %+v", got)
			}
			waitFor(t, "an empty list", func() bool { return s.list(t) == "" && !s.supervised(uuid) })
			s.removeEmptyLock(t, uuid)
			if state := c.container(t, uuid).State; state != arvados.StateLocked {
				t.Errorf("state %s", state)
			}
		})
	}
	t.Run("cut after the message", func(t *testing.T) {
		uuid := c.submit(t, image, sh("touch begun; "+untilTold+"true"), nil)
		// The client is ended when the supervisor is there; its line with it. Up
		// to then it does not say that the message is complete.
		stdin, message := io.Pipe()
		defer message.Close()
		go func() { _, _ = io.WriteString(message, padded) }()
		cmd, stdout, _ := s.command(stdin, s.start(uuid)+"; cat")
		var err error
		forkthread.Do(func() { err = cmd.Start() })
		if err != nil {
			t.Fatal(err)
		}
		stdout.mustSay(t, "PID")
		_ = cmd.Process.Kill()
		_ = message.Close()
		_ = cmd.Wait()
		awaitFile(t, s.node, "out/begun")
		if out := s.probe(t); out != uuid+"\n" {
			t.Errorf("listed %q", out)
		}
		release(t, s.node)
		s.gone(t)
		if state := c.container(t, uuid).State; state != arvados.StateComplete {
			t.Errorf("state %s", state)
		}
	})
}
