package dispatch

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crunch-oci/internal/regular"
)

func TestDetach(t *testing.T) {
	d, seen := lockDir(t, "private look read accept stay")
	// What this process has inherited by mistake must not go on.
	stray, err := os.Open("/etc/passwd")
	if err != nil {
		t.Fatal(err)
	}
	defer stray.Close()
	if _, err := unix.FcntlInt(stray.Fd(), unix.F_SETFD, 0); err != nil {
		t.Fatal(err)
	}
	message := bytes.Repeat([]byte("0123456789abcde\n"), 100_000)
	got := detach(t, d, bytes.NewReader(message), "--detach", "--stdin-config", uuid)
	sum := sha256.Sum256(message)
	if want := fmt.Sprintf("%d %s", len(message), hex.EncodeToString(sum[:])); await(t, seen, "stdin") != want {
		t.Errorf("stdin %s, want %s", await(t, seen, "stdin"), want)
	}
	p, err := readProcinfo(strings.NewReader(got.stdout))
	if err != nil || got.code != 0 || got.stderr != "" {
		t.Fatalf("%+v %v", got, err)
	}
	if want := fmt.Sprintf("{\"UUID\":%q,\"PID\":%d}\n", uuid, p.PID); got.stdout != want || read(t, d.RunLock(uuid)) != want {
		t.Errorf("stdout %q, file %q, want %q", got.stdout, read(t, d.RunLock(uuid)), want)
	}
	if got, want := await(t, seen, "files"), "0 pipe, 1 null, 2 null, 3 crunch-run-"+uuid+".lock, 4 pipe"; got != want {
		t.Errorf("the supervisor has open: %s, want %s", got, want)
	}
	sid, _ := unix.Getsid(0)
	if await(t, seen, "group") != "true" || await(t, seen, "session") != fmt.Sprint(sid) {
		t.Error("no process group of its own, or a session")
	}
	if got, want := await(t, seen, "args"), "-no-detach --detach --stdin-config "+uuid; got != want {
		t.Errorf("arguments %q, want %q", got, want)
	}
	if out, errs := list(t, d, Found{}); out != uuid+"\n" || errs != "" {
		t.Errorf("list: %q %q", out, errs)
	}
	// A second one changes nothing.
	again := detach(t, d, strings.NewReader(""))
	if want := "lock " + d.RunLock(uuid) + ": resource temporarily unavailable\n"; again.code != 1 || again.stdout != "" || again.stderr != want {
		t.Errorf("the second time: %+v, want %q", again, want)
	}
	if read(t, d.RunLock(uuid)) != got.stdout {
		t.Error("the second one has written to the lock file")
	}
}

func TestSupervisorThatEndsAtOnce(t *testing.T) {
	endless, w := io.Pipe() // a session that hangs
	defer w.Close()
	for script, want := range map[string]string{
		"say":             "exit status 7\nlast words\n",
		"die":             "exit status 7\n",
		"kill":            "signal: killed\n",
		"read say":        "exit status 7\nlast words\n",
		"begin say":       "exit status 7\nlast words\n",
		"say accept kill": "", // too late
	} {
		for name, stdin := range map[string]io.Reader{
			"none": nil, "small": strings.NewReader("{}"), "larger than a pipe": io.LimitReader(zeros{}, 1<<20), "endless": endless,
		} {
			if name == "endless" && strings.HasPrefix(script, "read") || name == "endless" && strings.HasPrefix(script, "begin") {
				continue // it does not end at once
			}
			t.Run(script+", stdin "+name, func(t *testing.T) {
				d, _ := lockDir(t, script)
				got := detach(t, d, stdin)
				if want == "" {
					if got.code != 0 {
						t.Errorf("%+v", got)
					}
				} else if got.code != 1 || got.stdout != "" || !strings.HasPrefix(got.stderr, uuid+": the supervisor (process ") || !strings.HasSuffix(got.stderr, ") has ended at once: "+want) {
					t.Errorf("%+v, want %q", got, want)
				}
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				if !pollUntil(ctx, func() bool { out, _ := list(t, d, Found{}); return out == "" }) {
					t.Error("still listed")
				}
			})
		}
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// A session that hangs after the message, or half way through it.
func TestStdinThatDoesNotEnd(t *testing.T) {
	d, seen := lockDir(t, "begin accept stay")
	r, w := io.Pipe()
	defer w.Close()
	go func() { _, _ = io.WriteString(w, "12345 and more") }()
	if got := detach(t, d, r); got.code != 0 {
		t.Errorf("%+v", got)
	}
	await(t, seen, "staying")
}

// A list may signal a supervisor before that can do anything about it.
func TestSignalsOfListsAreIgnoredFromTheStart(t *testing.T) {
	d, seen := lockDir(t, "")
	t.Setenv("PATH", "/usr/bin:/bin")
	program := seen + "/program"
	write(t, program, "#!/bin/sh\ngrep SigIgn /proc/self/status >"+seen+"/status~; mv "+seen+"/status~ "+seen+"/status\n")
	var b bytes.Buffer
	d.Detach(t.Context(), Detached{UUID: uuid, Program: program, Stdout: &b, Stderr: &b})
	mask, err := strconv.ParseUint(strings.TrimSpace(strings.TrimPrefix(await(t, seen, "status"), "SigIgn:")), 16, 64)
	if want := uint64(1<<(unix.SIGUSR1-1) | 1<<(unix.SIGUSR2-1)); err != nil || mask&want != want {
		t.Errorf("ignored signals %x %v, want %x among them", mask, err, want)
	}
}

// Who starts a supervisor may be killed before he has told anybody: the
// supervisor says itself that it is there.
func TestStarterKilled(t *testing.T) {
	d, seen := lockDir(t, "stay")
	lock, err := d.takeRunLock(t.Context(), uuid)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.ExtraFiles = []*os.File{lock}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	_ = lock.Close()
	await(t, seen, "staying")
	if out, errs := list(t, d, Found{}); out != uuid+"\n" {
		t.Errorf("list: %q %q", out, errs)
	}
	if want := string(procinfo{uuid, cmd.Process.Pid}.line()); read(t, d.RunLock(uuid)) != want {
		t.Errorf("file %q, want %q", read(t, d.RunLock(uuid)), want)
	}
}

// Of many starts at the same moment one succeeds, while lists come and go.
func TestManyAtOnce(t *testing.T) {
	d, _ := lockDir(t, "accept stay")
	write(t, d.RunLock(uuid), "what a dead one has left, and this is longer than what will stand there\n")
	var wg sync.WaitGroup
	codes := make(chan started, 20)
	for range cap(codes) {
		wg.Go(func() { codes <- detach(t, d, nil) })
		wg.Go(func() { list(t, d, Found{}) })
	}
	wg.Wait()
	close(codes)
	var winner started
	for s := range codes {
		if s.code == 0 {
			if winner.stdout != "" {
				t.Errorf("two have started: %+v and %+v", winner, s)
			}
			winner = s
		}
	}
	if winner.stdout == "" || read(t, d.RunLock(uuid)) != winner.stdout {
		t.Errorf("started %+v, file %q", winner, read(t, d.RunLock(uuid)))
	}
	if out, errs := list(t, d, Found{}); out != uuid+"\n" || errs != "" {
		t.Errorf("list: %q %q", out, errs)
	}
}

// The lock file may be anything, and so may its directory.
func TestDetachIntoStrangeDirectories(t *testing.T) {
	for name, prepare := range map[string]func(d Dir) error{
		"a link as lock file":           func(d Dir) error { return os.Symlink(string(d)+"/target", d.RunLock(uuid)) },
		"a pipe as lock file":           func(d Dir) error { return unix.Mkfifo(d.RunLock(uuid), 0o700) },
		"a directory as lock file":      func(d Dir) error { return os.Mkdir(d.RunLock(uuid), 0o700) },
		"a link as lock of the whole":   func(d Dir) error { return os.Symlink("target", string(d)+"/"+allName) },
		"no directory but a file":       func(d Dir) error { return os.WriteFile(string(d)+"/x", nil, 0o600) },
		"no directory but a stale link": func(d Dir) error { return os.Symlink("nowhere", string(d)+"/x") },
	} {
		t.Run(name, func(t *testing.T) {
			d, seen := lockDir(t, "accept stay")
			if err := prepare(d); err != nil {
				t.Fatal(err)
			}
			if strings.HasPrefix(name, "no directory") {
				d += "/x"
			}
			if got := detach(t, d, nil); got.code != 1 || got.stdout != "" || !strings.Contains(got.stderr, string(d)) {
				t.Errorf("%+v", got)
			}
			if _, err := os.Stat(seen + "/staying"); err == nil {
				t.Error("a supervisor has been started")
			}
			if _, err := os.Stat(string(d) + "/target"); err == nil {
				t.Error("a link has been followed")
			}
		})
	}
}

// Where everybody can make files, somebody may have made these, and hold their
// locks.
func TestDetachReplacesForeignFiles(t *testing.T) {
	d, _ := lockDir(t, "accept stay")
	for _, path := range []string{string(d) + "/" + allName, d.RunLock(uuid)} {
		held(t, path, "x")
		if err := os.Chown(path, 65534, 65534); err != nil {
			t.Fatal(err)
		}
	}
	if got := detach(t, d, nil); got.code != 0 || got.stderr != "" {
		t.Errorf("%+v", got)
	}
	if out, errs := list(t, d, Found{}); out != uuid+"\n" || errs != "" {
		t.Errorf("list: %q %q", out, errs)
	}
	if info, err := os.Stat(d.RunLock(uuid)); err != nil || !regular.Ours(info) {
		t.Error("the lock file still belongs to somebody else")
	}
}

// A directory that is not there is made.
func TestDetachMakesTheDirectory(t *testing.T) {
	d, _ := lockDir(t, "accept stay")
	d += "/lock"
	t.Cleanup(func() { endSupervisors(t, d) })
	if got := detach(t, d, nil); got.code != 0 {
		t.Errorf("%+v", got)
	}
}

// Somebody who sits on the lock of the directory holds nobody up for ever.
func TestDirectoryLockTaken(t *testing.T) {
	d, _ := lockDir(t, "accept stay")
	if got := detach(t, d, nil); got.code != 0 {
		t.Fatal(got)
	}
	const ended = "zzzzz-dz642-000000000000002"
	write(t, d.RunLock(ended), string(procinfo{ended, 1}.line()))
	all, err := d.lockAll(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer all.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	var out, errs bytes.Buffer
	d.List(ctx, Found{}, &out, &errs)
	if out.String() != uuid+"\n" || strings.Count(errs.String(), "\n") != 1 || !strings.Contains(errs.String(), "not removed") {
		t.Errorf("list: %q %q", &out, &errs)
	}
	if _, err := os.Stat(d.RunLock(ended)); err != nil {
		t.Error("removed without the lock")
	}
	if code := d.Detach(ctx, Detached{UUID: ended, Program: "/proc/self/exe", Stdout: &out, Stderr: &errs}); code != 1 {
		t.Errorf("exit status %d", code)
	}
}
