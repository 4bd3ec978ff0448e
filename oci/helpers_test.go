package oci_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"crunch-oci/cgroups"
	"crunch-oci/oci"
)

// busybox is Debian's static busybox, which is all the test containers have.
const busybox = "/bin/busybox"

// makeRootfs makes a root directory with busybox in it, and account files.
func makeRootfs(t testing.TB) string {
	t.Helper()
	root := filepath.Join(t.TempDir(), "rootfs")
	for _, dir := range []string{"bin", "etc", "tmp", "proc", "sys", "dev", "work"} {
		must(t, os.MkdirAll(filepath.Join(root, dir), 0o755))
	}
	must(t, os.Chmod(filepath.Join(root, "tmp"), 0o777))
	program, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatalf("%v: install Debian's busybox-static", err)
	}
	must(t, os.WriteFile(filepath.Join(root, "bin/busybox"), program, 0o755))
	for _, applet := range strings.Fields("sh cat echo env id ls pwd sleep true false head tail kill hostname stat touch mount readlink dd ip ulimit grep sort nc wc ps mknod sed") {
		must(t, os.Symlink("busybox", filepath.Join(root, "bin", applet)))
	}
	write(t, filepath.Join(root, "etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nalice:x:1000:1000::/home/alice:/bin/sh\n")
	write(t, filepath.Join(root, "etc/group"), "root:x:0:\nalice:x:1000:\nstaff:x:50:bob,alice\nvideo:x:44:alice\n")
	return root
}

var ids atomic.Int64

// cgroupParent is below this process's own groups, where it may make some.
var cgroupParent = "crunch-oci-test-" + strconv.Itoa(os.Getpid())

func newID() string { return fmt.Sprintf("t%d-%d", os.Getpid(), ids.Add(1)) }

// newRequest returns a request for a shell script.
func newRequest(t testing.TB, id, script string) oci.Request {
	t.Helper()
	path, err := cgroups.Placement{Parent: cgroupParent}.Path(id, "")
	must(t, err)
	return oci.Request{
		Image:       ocispec.ImageConfig{Env: []string{"PATH=/bin"}},
		RootfsPath:  makeRootfs(t),
		Command:     []string{"sh", "-c", script},
		Hostname:    "box",
		CgroupsPath: path,
		NoSeccomp:   !seccompBuilt,
	}
}

// box is a container under test.
type box struct {
	t              testing.TB
	runtime        *oci.Runtime
	id, bundle     string
	ctr            *oci.Container
	stdout, stderr *bytes.Buffer
	drained        chan struct{}
}

// create makes a container with its streams connected to buffers; stdin may be
// nil. It is deleted at the end of the test, and must then be gone altogether.
func create(t testing.TB, req oci.Request, stdin io.Reader) (*box, error) {
	t.Helper()
	return createIn(t, t.TempDir(), filepath.Base(req.CgroupsPath), req, stdin)
}

// createEdited is create with edits to the specification.
func createEdited(t testing.TB, req oci.Request, edits ...oci.Edit) (*box, error) {
	t.Helper()
	return createIn(t, t.TempDir(), filepath.Base(req.CgroupsPath), req, nil, edits...)
}

func createIn(t testing.TB, stateDir, id string, req oci.Request, stdin io.Reader, edits ...oci.Edit) (*box, error) {
	t.Helper()
	spec, err := oci.NewSpec(req)
	if err != nil {
		return nil, err
	}
	must(t, oci.Apply(spec, edits...))
	b := &box{t: t, runtime: &oci.Runtime{StateDir: stateDir}, id: id, bundle: filepath.Join(t.TempDir(), "bundle"),
		stdout: new(bytes.Buffer), stderr: new(bytes.Buffer), drained: make(chan struct{})}
	must(t, oci.WriteBundle(b.bundle, spec))
	inR, inW := pipe(t)
	outR, outW := pipe(t)
	errR, errW := pipe(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	b.ctr, err = b.runtime.Create(ctx, b.id, b.bundle, oci.Stdio{Stdin: inR, Stdout: outW, Stderr: errW})
	for _, f := range []*os.File{inR, outW, errW} {
		f.Close()
	}
	go func() {
		if stdin != nil {
			_, _ = io.Copy(inW, stdin)
		}
		inW.Close()
	}()
	go func() {
		defer close(b.drained)
		done := make(chan struct{})
		go func() { defer close(done); _, _ = io.Copy(b.stderr, errR); errR.Close() }()
		_, _ = io.Copy(b.stdout, outR)
		outR.Close()
		<-done
	}()
	if err != nil {
		<-b.drained
		if _, statErr := os.Stat(filepath.Join(stateDir, id)); statErr == nil {
			t.Errorf("a failed Create left state behind")
		}
		return nil, err
	}
	t.Cleanup(b.delete)
	return b, nil
}

func (b *box) delete() {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	must(b.t, b.ctr.Delete(ctx))
	if b.ctr.Cgroup().Exists() {
		b.t.Errorf("cgroup left behind: %v", b.ctr.Cgroup().Dirs)
	}
	if _, err := os.Stat(filepath.Join(b.runtime.StateDir, b.id)); err == nil {
		b.t.Errorf("state directory left behind")
	}
	if b.ctr.PID() != 0 {
		if _, err := os.Stat(fmt.Sprintf("/proc/%d", b.ctr.PID())); err == nil {
			b.t.Errorf("init is still there")
		}
	}
}

// wait waits for the end and for the streams to be drained.
func (b *box) wait() oci.ExitStatus {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	status, err := b.ctr.Wait(ctx)
	must(b.t, err)
	<-b.drained
	return status
}

// run runs a request to its end.
func run(t testing.TB, req oci.Request, stdin io.Reader) (*box, oci.ExitStatus) {
	t.Helper()
	b, err := create(t, req, stdin)
	must(t, err)
	must(t, b.ctr.Start(t.Context()))
	return b, b.wait()
}

// runScript runs a script that must succeed, and returns what it printed.
func runScript(t testing.TB, script string, edits ...func(*oci.Request)) string {
	t.Helper()
	req := newRequest(t, newID(), script)
	for _, edit := range edits {
		edit(&req)
	}
	b, status := run(t, req, nil)
	if status.Code != 0 {
		t.Fatalf("exit %v, stderr %q", status, b.stderr)
	}
	return b.stdout.String()
}

func pipe(t testing.TB) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	must(t, err)
	return r, w
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func write(t testing.TB, name, text string) {
	t.Helper()
	must(t, os.WriteFile(name, []byte(text), 0o644))
}

func waitFor(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !cond(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

var errTest = errors.New("test")

// testCgroupDirs returns the directories below which the tests' cgroups are.
func testCgroupDirs(t testing.TB) []string {
	t.Helper()
	dirs, err := filepath.Glob("/sys/fs/cgroup/*/" + cgroupParent)
	must(t, err)
	var all []string
	for _, d := range append(dirs, "/sys/fs/cgroup/"+cgroupParent) {
		if _, err := os.Stat(d); !errors.Is(err, os.ErrNotExist) {
			all = append(all, d)
		}
	}
	self, err := os.ReadFile("/proc/self/cgroup")
	must(t, err)
	for line := range strings.Lines(string(self)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) == 3 && f[2] != "/" {
			more, err := filepath.Glob("/sys/fs/cgroup/*" + f[2] + "/" + cgroupParent)
			must(t, err)
			all = append(all, more...)
		}
	}
	return all
}
