package dispatch

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"sort"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const uuid = "zzzzz-dz642-000000000000001"

// The supervisors of these tests are this program, executed again. What they are
// to do stands in a variable, what they have seen in the file "seen" of the
// directory in another.
const (
	scriptVar = "DISPATCH_TEST_SCRIPT"
	dirVar    = "DISPATCH_TEST_DIR"
)

func TestMain(m *testing.M) {
	if script := os.Getenv(scriptVar); script != "" {
		playSupervisor(script)
		os.Exit(7)
	}
	os.Exit(m.Run())
}

func playSupervisor(script string) {
	in, err := Inherit(uuid)
	if err != nil || in == nil {
		see("inherited", fmt.Sprint(in, err))
		return
	}
	stderr := in.Messages(os.Stderr)
	for _, word := range strings.Fields(script) {
		switch word {
		case "private":
			_ = in.KeepPrivate()
		case "accept":
			in.Accept()
		case "say":
			fmt.Fprintln(stderr, "last words")
		case "read":
			h := sha256.New()
			n, _ := io.Copy(h, os.Stdin)
			see("stdin", fmt.Sprintf("%d %s", n, hex.EncodeToString(h.Sum(nil))))
		case "begin":
			_, _ = io.ReadFull(os.Stdin, make([]byte, 5))
		case "look":
			see("files", openFiles())
			see("group", fmt.Sprint(unix.Getpgrp() == os.Getpid()))
			sid, _ := unix.Getsid(0)
			see("session", fmt.Sprint(sid))
			see("args", strings.Join(os.Args[1:], " "))
		case "kill":
			_ = unix.Kill(os.Getpid(), unix.SIGKILL)
		case "ignore":
			signal.Ignore(unix.SIGTERM)
		case "usr2":
			c := make(chan os.Signal, 1)
			signal.Notify(c, unix.SIGUSR2)
			see("listening", "")
			<-c
			see("usr2", "")
		case "stay":
			see("staying", "")
			for {
				time.Sleep(time.Hour)
			}
		}
	}
}

// see notes what a supervisor has seen, in a file that is there at once.
func see(name, text string) {
	path := filepath.Join(os.Getenv(dirVar), name)
	_ = os.WriteFile(path+"~", []byte(text), 0o600)
	_ = os.Rename(path+"~", path)
}

// openFiles lists where the descriptors lead, without those that Go and the list
// itself need.
func openFiles() string {
	entries, _ := os.ReadDir("/proc/self/fd")
	var files []string
	for _, e := range entries {
		target, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err != nil || strings.Contains(target, "anon_inode") || strings.HasPrefix(target, "/sys/") || strings.HasPrefix(target, "/proc/") {
			continue
		}
		kind, _, _ := strings.Cut(filepath.Base(target), ":")
		files = append(files, e.Name()+" "+kind)
	}
	sort.Strings(files)
	return strings.Join(files, ", ")
}

// started is the result of a Detach.
type started struct {
	code           int
	stdout, stderr string
}

// lockDir makes a directory for locks and one for what supervisors see.
func lockDir(t *testing.T, script string) (d Dir, seen string) {
	t.Helper()
	d, seen = Dir(t.TempDir()), t.TempDir()
	t.Setenv(scriptVar, script)
	t.Setenv(dirVar, seen)
	t.Setenv("PATH", "/nonexistent") // no journal
	t.Cleanup(func() { endSupervisors(t, d) })
	return d, seen
}

// endSupervisors kills what holds a lock in the directory.
func endSupervisors(t *testing.T, d Dir) {
	locks, _ := filepath.Glob(d.RunLock("*"))
	for _, path := range locks {
		f, err := openRegular(path, os.O_RDONLY)
		if err != nil {
			continue
		}
		if p, err := readProcinfo(f); err == nil && p.PID > 0 && p.PID != os.Getpid() {
			if info, err := f.Stat(); err == nil {
				if s := findSupervisor(p.PID, info); s != nil {
					_ = s.signal(unix.SIGKILL)
					s.release()
				}
			}
		}
		_ = f.Close()
	}
}

func detach(t *testing.T, d Dir, stdin io.Reader, args ...string) started {
	t.Helper()
	var stdout, stderr bytes.Buffer
	code := d.Detach(t.Context(), Detached{UUID: uuid, Program: "/proc/self/exe", Args: args, Stdin: stdin, Stdout: &stdout, Stderr: &stderr})
	return started{code, stdout.String(), stderr.String()}
}

// list is what List prints.
func list(t *testing.T, d Dir, found Found) (stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	d.List(t.Context(), found, &out, &errs)
	return out.String(), errs.String()
}

// await waits for a file that another process makes.
func await(t *testing.T, dir, name string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if !pollUntil(ctx, func() bool { _, err := os.Stat(filepath.Join(dir, name)); return err == nil }) {
		t.Fatalf("no supervisor has written %s", name)
	}
	data, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o700); err != nil {
		t.Fatal(err)
	}
}
