package sshd_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/crypto/ssh"

	"crunch-oci/cgroups"
	"crunch-oci/cmd/crunch-run/wire"
	"crunch-oci/gateway"
	"crunch-oci/gateway/sshd"
	"crunch-oci/oci"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// watchdog bounds what should end by itself.
func watchdog(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

var ids atomic.Int64

// newContainer starts a container that has nothing but busybox, and runs script.
func newContainer(t testing.TB, script string, edits ...func(*oci.Request)) *oci.Container {
	t.Helper()
	id := fmt.Sprintf("ssh%d-%d", os.Getpid(), ids.Add(1))
	root := filepath.Join(t.TempDir(), "rootfs")
	for _, dir := range []string{"bin", "etc", "tmp", "proc", "sys", "dev", "work"} {
		must(t, os.MkdirAll(filepath.Join(root, dir), 0o755))
	}
	program, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatalf("%v: install Debian's busybox-static", err)
	}
	must(t, os.WriteFile(filepath.Join(root, "bin/busybox"), program, 0o755))
	for _, applet := range strings.Fields("sh cat echo env id ls pwd sleep true false head kill md5sum wc dd stty tty printf readlink nc httpd usleep seq yes vi setsid touch test") {
		must(t, os.Symlink("busybox", filepath.Join(root, "bin", applet)))
	}
	must(t, os.WriteFile(filepath.Join(root, "etc/passwd"), []byte("root:x:0:0:root:/root:/bin/sh\nalice:x:1000:1000::/home/alice:/bin/sh\n"), 0o644))
	must(t, os.WriteFile(filepath.Join(root, "etc/group"), []byte("root:x:0:\nalice:x:1000:\nstaff:x:50:bob,alice\n"), 0o644))
	path, err := cgroups.Placement{Parent: "crunch-oci-test-" + strconv.Itoa(os.Getpid())}.Path(id, "")
	must(t, err)
	req := oci.Request{
		Image: ocispec.ImageConfig{Env: []string{"PATH=/bin"}}, RootfsPath: root,
		Command: []string{"sh", "-c", script}, Hostname: "box", Cwd: "/work", CgroupsPath: path, NoSeccomp: !seccompBuilt,
	}
	for _, edit := range edits {
		edit(&req)
	}
	spec, err := oci.NewSpec(req)
	must(t, err)
	bundle := filepath.Join(t.TempDir(), "bundle")
	must(t, oci.WriteBundle(bundle, spec))
	c, err := (&oci.Runtime{StateDir: t.TempDir()}).Create(watchdog(t), id, bundle, oci.Stdio{})
	must(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		must(t, c.Delete(ctx))
	})
	must(t, c.Start(watchdog(t)))
	return c
}

// idle is what containers do that only their guests are of interest in. It is a
// shell, which reaps what others leave behind.
const idle = "while :; do sleep 600; done"

// logs collects lines.
type logs struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *logs) Printf(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	fmt.Fprintf(&l.text, format+"\n", args...)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// door is a server on a Unix socket, as if an HTTPS server had let everybody in.
type door struct {
	t      testing.TB
	server *sshd.Server
	log    *logs
	path   string
}

func newDoor(t testing.TB, target gateway.Target, o gateway.SSHOptions, limits ...sshd.Limits) *door {
	t.Helper()
	d := &door{t: t, log: new(logs), path: filepath.Join(t.TempDir(), "door")}
	c := sshd.Config{Target: target, Logf: d.log.Printf}
	for _, l := range limits {
		c.Limits = l
	}
	var err error
	d.server, err = sshd.New(c)
	must(t, err)
	d.listen(o)
	return d
}

// listen serves connections with these options until the test's end.
func (d *door) listen(o gateway.SSHOptions) {
	d.t.Helper()
	if o.LoginUser == "" {
		o.LoginUser = "root"
	}
	d.path += "x"
	l, err := net.Listen("unix", d.path)
	must(d.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	var work sync.WaitGroup
	work.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			work.Go(func() { d.server.ServeConn(ctx, c, o) })
		}
	})
	d.t.Cleanup(func() {
		l.Close()
		cancel()
		work.Wait()
		must(d.t, d.server.Close(watchdog(d.t)))
	})
}

func (d *door) conn() net.Conn {
	d.t.Helper()
	c, err := net.Dial("unix", d.path)
	must(d.t, err)
	return c
}

// login returns a client; without methods it logs in with "none".
func (d *door) login(user string, methods ...ssh.AuthMethod) (*ssh.Client, error) {
	d.t.Helper()
	raw := d.conn()
	c, chans, reqs, err := ssh.NewClientConn(raw, "door", &ssh.ClientConfig{
		User: user, Auth: methods, HostKeyCallback: ssh.InsecureIgnoreHostKey(),
	})
	if err != nil {
		raw.Close()
		return nil, err
	}
	return ssh.NewClient(c, chans, reqs), nil
}

func (d *door) client() *ssh.Client {
	d.t.Helper()
	c, err := d.login("x")
	must(d.t, err)
	d.t.Cleanup(func() { c.Close() })
	return c
}

type result struct {
	stdout, stderr string
	code           int // -1 if none came
}

// exec runs a command; stdin nil is left open.
func exec(t testing.TB, c *ssh.Client, command string, stdin io.Reader) result {
	t.Helper()
	s, err := c.NewSession()
	must(t, err)
	defer s.Close()
	if stdin == nil {
		_, err := s.StdinPipe()
		must(t, err)
	} else {
		s.Stdin = stdin
	}
	return collect(t, s, func() error { return s.Run(command) })
}

func collect(t testing.TB, s *ssh.Session, run func() error) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	s.Stdout, s.Stderr = &stdout, &stderr
	done := make(chan error, 1)
	go func() { done <- run() }()
	var err error
	select {
	case err = <-done:
	case <-watchdog(t).Done():
		t.Fatalf("no end")
	}
	r := result{stdout.String(), stderr.String(), 0}
	var exit *ssh.ExitError
	var missing *ssh.ExitMissingError
	switch {
	case errors.As(err, &exit):
		r.code = exit.ExitStatus()
	case errors.As(err, &missing):
		r.code = -1
	case err != nil && err != io.EOF: // not all input was taken
		t.Fatal(err)
	}
	return r
}

func box(t testing.TB) (*oci.Container, *door) {
	t.Helper()
	c := newContainer(t, idle)
	return c, newDoor(t, wire.Inside(c), gateway.SSHOptions{})
}

// vectors reads a member of gateway.json.
func vectors[T any](t testing.TB, name string) T {
	t.Helper()
	b, err := os.ReadFile("../../testdata/spec/gateway.json")
	must(t, err)
	var all map[string]json.RawMessage
	must(t, json.Unmarshal(b, &all))
	var v T
	must(t, json.Unmarshal(all[name], &v))
	return v
}

// waitFor polls what nothing can be waited for.
func waitFor(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for ctx := watchdog(t); !cond(); time.Sleep(2 * time.Millisecond) {
		if ctx.Err() != nil {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// expect reads until the text has come.
func expect(t testing.TB, r io.Reader, text string) string {
	t.Helper()
	var got []byte
	buf := make([]byte, 4096)
	for !bytes.Contains(got, []byte(text)) {
		n, err := r.Read(buf)
		got = append(got, buf[:n]...)
		if err != nil {
			t.Fatalf("%v before %q; got %q", err, text, got)
		}
	}
	return string(got)
}
