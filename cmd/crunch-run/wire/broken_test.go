package wire

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"crunch-oci/supervisor/config"
)

// memoryLog keeps messages and lines.
type memoryLog struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *memoryLog) Printf(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	fmt.Fprintf(&l.text, format+"\n", args...)
}

func (l *memoryLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *memoryLog) Close() error          { return nil }
func (l *memoryLog) Lines() io.WriteCloser { return l }

func (l *memoryLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func script(t *testing.T, body string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "hook")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+body), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestBrokenNode(t *testing.T) {
	locks := t.TempDir()
	marker := filepath.Join(locks, "crunch-run-broken")

	hook := script(t, "echo draining; exit 3\n")
	var log memoryLog
	j := Job{Site: config.Site{LockDir: locks}, Flags: config.Flags{BrokenNodeHook: hook}}
	j.markBroken(&log)(context.Background(), nil)
	for _, want := range []string{fmt.Sprintf("Running broken node hook %q", hook), "draining", "Error running broken node hook: exit status 3"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("log %q lacks %q", log.String(), want)
		}
	}
	if _, err := os.Stat(marker); !os.IsNotExist(err) {
		t.Errorf("the marker beside a hook: %v", err)
	}

	j.Flags.BrokenNodeHook = ""
	j.markBroken(&log)(context.Background(), nil)
	if fi, err := os.Stat(marker); err != nil || fi.Mode() != 0o700 {
		t.Errorf("marker: %v %v", fi, err)
	}
}

// A hook that hangs, or leaves something behind that keeps its output open, must
// not hold up the end of the container.
func TestHookIsBounded(t *testing.T) {
	var log memoryLog
	if err := runHook(context.Background(), script(t, "exec sleep 1000\n"), 50*time.Millisecond, &log); err == nil {
		t.Error("a hook that never ends succeeded")
	}
	child := filepath.Join(t.TempDir(), "child")
	if err := runHook(context.Background(), script(t, "sleep 1000 & echo $! > "+child+"\n"), time.Minute, &log); err != nil {
		t.Errorf("a hook that left something in the background: %v", err)
	}
	pid, err := os.ReadFile(child)
	if err != nil {
		t.Fatal(err)
	}
	var n int
	if _, err := fmt.Sscan(string(pid), &n); err != nil {
		t.Fatal(err)
	}
	if p, err := os.FindProcess(n); err == nil {
		_ = p.Kill()
	}
}

// A host that cannot even prepare a run is broken; a run that is there already
// says nothing about it.
func TestBlameHost(t *testing.T) {
	for err, broken := range map[error]bool{
		fmt.Errorf("open image store: %w", &os.PathError{Op: "mkdir", Path: "/var/lib/crunch-run", Err: syscall.EROFS}): true,
		fmt.Errorf("run directory: another supervisor is running this container"):                                       false,
	} {
		locks := t.TempDir()
		var log memoryLog
		Job{Site: config.Site{LockDir: locks}}.blameHost(t.Context(), &log, err)
		if _, statErr := os.Stat(filepath.Join(locks, "crunch-run-broken")); (statErr == nil) != broken {
			t.Errorf("%v: marker %v", err, statErr)
		}
		if strings.Contains(log.String(), "Error suggests node is unable to run containers: ") != broken {
			t.Errorf("%v: log %q", err, log.String())
		}
	}
}
