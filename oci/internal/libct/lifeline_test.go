package libct

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	_ "github.com/opencontainers/cgroups/devices"
	_ "github.com/opencontainers/runc/libcontainer/nsenter"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"crunch-oci/cgroups"
	"crunch-oci/internal/forkthread"
)

func TestMain(m *testing.M) {
	if IsInit(os.Args) {
		Init()
	}
	os.Exit(m.Run())
}

// started is a container and the thread on which Wait must be called.
type started struct {
	*Container
	thread forkthread.Thread
}

func (s started) Wait() (status syscall.WaitStatus, err error) {
	s.thread.Do(func() { status, err = s.Container.Wait() })
	return status, err
}

// newTestContainer makes a container with nothing but busybox, up to the point
// where its init waits, and returns our end of its lifeline.
func newTestContainer(t *testing.T, args ...string) (started, int) {
	t.Helper()
	return newFilteredContainer(t, nil, args...)
}

func newFilteredContainer(t *testing.T, filter *specs.LinuxSeccomp, args ...string) (started, int) {
	t.Helper()
	id := fmt.Sprintf("libct-%d", os.Getpid())
	root := t.TempDir()
	program, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatalf("%v: install Debian's busybox-static", err)
	}
	for _, dir := range []string{"proc", "bin"} {
		if err := os.Mkdir(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "bin/busybox"), program, 0o755); err != nil {
		t.Fatal(err)
	}
	c, err := New(t.TempDir(), id, t.TempDir(), &specs.Spec{
		Root:    &specs.Root{Path: root},
		Process: &specs.Process{Args: args, Cwd: "/", Env: []string{"PATH=/bin"}, User: specs.User{UID: 1000, GID: 1000}},
		Mounts:  []specs.Mount{{Destination: "/proc", Type: "proc", Source: "proc"}},
		Linux: &specs.Linux{
			CgroupsPath: "crunch-oci-test-" + id,
			Resources:   &specs.LinuxResources{},
			Seccomp:     filter,
			Namespaces:  []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	dirs, err := c.CgroupDirs()
	if err != nil {
		t.Fatal(err)
	}
	cg, err := cgroups.New(dirs)
	if err == nil {
		err = cg.Create()
	}
	if err != nil {
		t.Fatal(err)
	}
	thread := forkthread.New()
	t.Cleanup(func() {
		defer thread.End()
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		killed := cg.Kill(ctx)
		thread.Do(EndChildren)
		for _, err := range []error{killed, c.Destroy(), cg.Delete(ctx)} {
			if err != nil {
				t.Error(err)
			}
		}
	})
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	theirs := os.NewFile(uintptr(fds[1]), "theirs")
	defer theirs.Close()
	thread.Do(func() { err = c.Start(nil, nil, nil, theirs, nil, false) })
	if err != nil {
		t.Fatal(err)
	}
	return started{c, thread}, fds[0]
}

// An init that waits notices the end of its creator by the lifeline alone:
// here the creator lives, so there is no parent-death signal.
func TestInitEndsWithItsLifeline(t *testing.T) {
	c, lifeline := newTestContainer(t, "busybox", "true")
	unix.Close(lifeline)
	status, err := c.Wait()
	if err != nil || !status.Exited() || status.ExitStatus() != 128+int(unix.SIGKILL) {
		t.Errorf("status %v, %v", status, err)
	}
}

func TestInitIsNotMistaken(t *testing.T) {
	for _, args := range [][]string{{"crunch-run"}, {"crunch-run", "init"}, {"crunch-run", "init", "x"}, {"init"}} {
		if IsInit(args) {
			t.Errorf("%s taken for a container's init", strings.Join(args, " "))
		}
	}
}
