package keepmount

import (
	"bytes"
	"context"
	"errors"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// buffer is a bytes.Buffer for two goroutines.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// The servers of these tests are shell scripts that mount a tmpfs, or fail to.
func start(t *testing.T, ctx context.Context, script string, inherit ...*os.File) (*Server, *buffer, string, error) {
	t.Helper()
	dir, log := t.TempDir(), new(buffer)
	s, err := Start(ctx, Config{
		Program: "/bin/sh", Args: []string{"-c", script, "server", dir}, Env: []string{"PATH=" + os.Getenv("PATH")},
		Mountpoint: dir, Stdout: log, Stderr: log, Inherit: inherit,
	})
	return s, log, dir, err
}

func mounted(t *testing.T, dir string) bool {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Contains(string(mounts), " "+dir+" ")
}

func TestStartStop(t *testing.T) {
	s, log, dir, err := start(t, context.Background(), `mount -t tmpfs tmpfs "$1"; echo up >&2; echo ready >&3; exec 3>&-; exec sleep 1000`)
	if err != nil {
		t.Fatal(err)
	}
	if !mounted(t, dir) {
		t.Error("Start returned before the mount was there")
	}
	select {
	case <-s.Exited():
		t.Fatalf("ended: %v %s", s.Err(), log)
	default:
	}
	if err := s.Stop(context.Background()); err != nil {
		t.Error(err)
	}
	if mounted(t, dir) {
		t.Error("still mounted")
	}
	if log.String() != "up\n" {
		t.Errorf("log %q", log)
	}
}

func TestServerThatFails(t *testing.T) {
	for name, c := range map[string]struct{ script, want string }{
		"with a status":      {`echo no such cluster >&2; exit 3`, "while trying to start arv-mount: exit status 3"},
		"with success":       {`exit 0`, "while trying to start arv-mount: exit status 0"},
		"after mounting":     {`mount -t tmpfs tmpfs "$1"; exit 4`, "while trying to start arv-mount: exit status 4"},
		"closing the pipe":   {`exec 3>&-; exit 5`, "while trying to start arv-mount: exit status 5"},
		"killed by a signal": {`kill -9 $$`, "while trying to start arv-mount: signal: killed"},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, dir, err := start(t, context.Background(), c.script)
			if err == nil || err.Error() != c.want {
				t.Errorf("error %v, want %s", err, c.want)
			}
			if mounted(t, dir) {
				t.Error("left mounted")
			}
		})
	}
}

func TestStartIsCancelled(t *testing.T) {
	ctx, cancel := context.WithCancelCause(context.Background())
	why := errors.New("stop signal")
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		_, _ = r.Read(make([]byte, 1)) // the server is up, and silent
		cancel(why)
	}()
	s, _, _, err := start(t, ctx, `echo x >&4; exec sleep 1000`, w)
	if s != nil || !errors.Is(err, why) {
		t.Errorf("%v, want the cause of the cancellation", err)
	}
}

func TestServerThatDiesLater(t *testing.T) {
	s, _, dir, err := start(t, context.Background(), `mount -t tmpfs tmpfs "$1"; echo ready >&3; exec sleep 1000`)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(s.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-s.Exited()
	if s.Err().Error() != "signal: killed" {
		t.Errorf("ended by %v", s.Err())
	}
	if err := s.Stop(context.Background()); err != nil {
		t.Error(err)
	}
	if mounted(t, dir) {
		t.Error("still mounted")
	}
}
