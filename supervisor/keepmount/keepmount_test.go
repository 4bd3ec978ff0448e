package keepmount

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"crunch-oci/internal/syncbuf"

	"golang.org/x/sys/unix"
)

// The servers of these tests are shell scripts that mount a tmpfs, or fail to.
func start(t *testing.T, ctx context.Context, script string, inherit ...*os.File) (*Server, *syncbuf.Buffer, string, error) {
	t.Helper()
	dir, log := t.TempDir(), new(syncbuf.Buffer)
	s, err := Start(ctx, Config{
		Program: "/bin/sh", Args: []string{"-c", script, "server", dir}, Env: []string{"PATH=" + os.Getenv("PATH")},
		ReadyVar: "READY_FD", Mountpoint: dir, Stdout: log, Stderr: log, Inherit: inherit,
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

// A site's own arv-mount says nothing: its mount is seen in the table of mounts.
func TestForeignServer(t *testing.T) {
	// The blank, as the table of mounts shows it.
	parent, link, log := t.TempDir(), filepath.Join(t.TempDir(), "link"), new(syncbuf.Buffer)
	dir := filepath.Join(parent, "a b")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(parent, link); err != nil {
		t.Fatal(err)
	}
	link = filepath.Join(link, "a b")
	s, err := Start(t.Context(), Config{
		Program: "/bin/bash", Args: []string{"-c", `
			tr '\0' '\n' </proc/$$/cmdline | head -n 1
			sleep .3; mount -t tmpfs tmpfs "$0"; exec sleep 1000`, link},
		Env: []string{"PATH=" + os.Getenv("PATH")}, Mountpoint: link, Stdout: log, Stderr: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	if !mounted(t, strings.ReplaceAll(dir, " ", `\040`)) {
		t.Error("Start returned before the mount was there")
	}
	if err := s.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	if got := log.String(); got != "/bin/bash\n" {
		t.Errorf("command name %q", got)
	}
}

func TestForeignServerThatFails(t *testing.T) {
	for name, c := range map[string]struct {
		script, want string
		limits       limits
	}{
		"ends":   {"exit 3", "while trying to start arv-mount: exit status 3", defaultLimits},
		"idles":  {"exec sleep 1000", " after 1ms", limits{ready: time.Millisecond, stop: defaultLimits.stop, kill: defaultLimits.kill, output: defaultLimits.output}},
		"absent": {"", "start FUSE server: ", defaultLimits},
	} {
		t.Run(name, func(t *testing.T) {
			program := "/bin/sh"
			if c.script == "" {
				program = "/nonexistent/arv-mount"
			}
			_, err := Start(t.Context(), Config{
				Program: program, Args: []string{"-c", c.script}, Env: []string{"PATH=" + os.Getenv("PATH")},
				Mountpoint: t.TempDir(), Stdout: new(syncbuf.Buffer), Stderr: new(syncbuf.Buffer), limits: c.limits,
			})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %s", err, c.want)
			}
		})
	}
}

// A server of ours that never says that it is ready is given up as well.
func TestServerThatNeverGetsReady(t *testing.T) {
	quick := defaultLimits
	quick.ready = time.Millisecond
	_, err := Start(t.Context(), Config{
		Program: "/bin/sh", Args: []string{"-c", "exec sleep 1000"}, ReadyVar: "READY_FD",
		Mountpoint: t.TempDir(), Stdout: new(syncbuf.Buffer), Stderr: new(syncbuf.Buffer), limits: quick,
	})
	if err == nil || !strings.Contains(err.Error(), "after 1ms") {
		t.Errorf("error %v", err)
	}
}

// stuckWriter takes nothing before it is closed.
type stuckWriter chan struct{}

func (w stuckWriter) Write(p []byte) (int, error) { <-w; return len(p), nil }

// A log that cannot be written hides the server's end from nobody.
func TestStopWithStuckLog(t *testing.T) {
	dir, stuck := t.TempDir(), make(stuckWriter)
	quick := defaultLimits
	quick.output = time.Millisecond
	s, err := Start(t.Context(), Config{
		Program: "/bin/sh", Args: []string{"-c", `echo x; echo y >&2; echo ready >&3; exec sleep 1000`}, Env: []string{"PATH=" + os.Getenv("PATH")},
		ReadyVar: "READY_FD", Mountpoint: dir, Stdout: stuck, Stderr: stuck, limits: quick,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(s.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-s.Exited()
	if err := s.Stop(t.Context()); err == nil || !strings.Contains(err.Error(), "could not be logged") {
		t.Errorf("error %v", err)
	}
	close(stuck)
	s.output.copies.Wait()
}

// A process that the server leaves behind, holding its output open, is not
// waited for.
func TestStopWithOutputHeldOpen(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	log := new(syncbuf.Buffer)
	s, err := Start(t.Context(), Config{
		Program: "/bin/sh", Args: []string{"-c", `(read x <&4) & echo up >&2; echo ready >&3; exec sleep 1000`}, Env: []string{"PATH=" + os.Getenv("PATH")},
		ReadyVar: "READY_FD", Mountpoint: t.TempDir(), Stdout: log, Stderr: log, Inherit: []*os.File{r},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	if log.String() != "up\n" {
		t.Errorf("log %q", log)
	}
	w.Close() // and the process ends
	s.output.copies.Wait()
}

// Not even a server that SIGKILL does not end is waited for without an end.
func TestStopOfUnkillableServer(t *testing.T) {
	s, _, _, err := start(t, t.Context(), `echo ready >&3; exec sleep 1000`)
	if err != nil {
		t.Fatal(err)
	}
	unkillable := *s
	unkillable.exited = make(chan struct{})
	unkillable.limits = limits{stop: time.Millisecond, kill: time.Millisecond, output: time.Minute}
	if err := unkillable.Stop(t.Context()); err == nil || !strings.Contains(err.Error(), "still there after SIGKILL") {
		t.Errorf("error %v", err)
	}
	<-s.Exited()
}
