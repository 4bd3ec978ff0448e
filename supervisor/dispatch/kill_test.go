package dispatch

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func kill(t *testing.T, d Dir, signal int) (code int, stderr string) {
	t.Helper()
	var b strings.Builder
	code = d.Kill(t.Context(), uuid, signal, &b)
	return code, b.String()
}

func TestKill(t *testing.T) {
	d, seen := lockDir(t, "accept stay")
	started := detach(t, d, nil)
	if started.code != 0 {
		t.Fatal(started)
	}
	await(t, seen, "staying")
	pid := started.stdout[strings.LastIndex(started.stdout, ":")+1 : len(started.stdout)-2]
	if code, stderr := kill(t, d, 200); code != 1 || stderr != uuid+": pid "+pid+": invalid argument\n" {
		t.Errorf("signal 200: %d %q", code, stderr)
	}
	if code, stderr := kill(t, d, 0); code != 1 || !strings.HasSuffix(stderr, "sent signal 0 (signal 0) but process is still alive\n") {
		t.Errorf("signal 0: %d %q", code, stderr)
	}
	// It is this process's child and stays a zombie, as with a first process that
	// does not care: it is gone all the same. A busy machine may take longer than
	// a second for it, and callers try again.
	code, stderr := kill(t, d, 15)
	for deadline := time.Now().Add(2 * time.Minute); code == 1 && strings.HasSuffix(stderr, "is still alive\n") && time.Now().Before(deadline); {
		code, stderr = kill(t, d, 15)
	}
	if code != 0 || stderr != uuid+": pid "+pid+": os: process already finished\n" {
		t.Errorf("signal 15: %d %q", code, stderr)
	}
	if code, stderr := kill(t, d, 15); code != 0 || stderr == "" {
		t.Errorf("once more: %d %q", code, stderr)
	}
	if out, errs := list(t, d, Found{}); out+errs != "" {
		t.Errorf("list: %q %q", out, errs)
	}
	if code, stderr := kill(t, d, 15); code != 0 || stderr != "" {
		t.Errorf("without a file: %d %q", code, stderr)
	}
}

func TestKillNeedsPatience(t *testing.T) {
	d, seen := lockDir(t, "ignore accept stay")
	if got := detach(t, d, nil); got.code != 0 {
		t.Fatal(got)
	}
	await(t, seen, "staying")
	if code, stderr := kill(t, d, 15); code != 1 || !strings.Contains(stderr, "sent signal 15 (terminated) but process is still alive") {
		t.Errorf("%d %q", code, stderr)
	}
}

// A number that belongs to somebody else now is not signalled.
func TestKillSparesStrangers(t *testing.T) {
	d := Dir(t.TempDir())
	stranger := exec.Command("sleep", "1000")
	if err := stranger.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stranger.Process.Kill(); _ = stranger.Wait() }()
	held(t, d.RunLock(uuid), string(procinfo{uuid, stranger.Process.Pid}.line()))
	code, stderr := kill(t, d, 9)
	if want := fmt.Sprintf("%s: pid %d: os: process already finished\n", uuid, stranger.Process.Pid); code != 0 || stderr != want {
		t.Errorf("%d %q, want %q", code, stderr, want)
	}
	if out, _ := list(t, d, Found{}); out != uuid+" stale\n" {
		t.Errorf("list: %q", out)
	}
	if err := stranger.Process.Signal(unix.Signal(0)); err != nil || zombie(stranger.Process.Pid) {
		t.Error("the stranger is dead")
	}
}

func TestKillStrangeFiles(t *testing.T) {
	for content, want := range map[string]string{
		"":                          "decode %s: EOF\n",
		"garbage":                   "decode %s: invalid character 'g' looking for beginning of value\n",
		`{"UUID":"","PID":1}`:       "%s: bogus procinfo: {UUID: PID:1}\n",
		`{"UUID":"a\nb","PID":1}`:   "%s: bogus procinfo: {UUID:\"a\\nb\" PID:1}\n",
		uuidAnd("-1"):               "%s: bogus procinfo: {UUID:" + uuid + " PID:-1}\n",
		uuidAnd("0"):                "%s: bogus procinfo: {UUID:" + uuid + " PID:0}\n",
		strings.Repeat(" ", 10<<20): "decode %s: EOF\n",
	} {
		d := Dir(t.TempDir())
		held(t, d.RunLock(uuid), content)
		if code, stderr := kill(t, d, 15); code != 1 || stderr != fmt.Sprintf(want, d.RunLock(uuid)) {
			t.Errorf("%.60q: %d %q", content, code, stderr)
		}
	}
	d := Dir(t.TempDir())
	if err := os.Symlink("/etc/passwd", d.RunLock(uuid)); err != nil {
		t.Fatal(err)
	}
	if code, stderr := kill(t, d, 15); code != 1 || !strings.Contains(stderr, "not a regular file") {
		t.Errorf("a link: %d %q", code, stderr)
	}
	if code, stderr := kill(t, Dir("/nonexistent"), 15); code != 0 || stderr != "" {
		t.Errorf("no directory: %d %q", code, stderr)
	}
}

func uuidAnd(pid string) string { return `{"UUID":"` + uuid + `","PID":` + pid + `}` }
