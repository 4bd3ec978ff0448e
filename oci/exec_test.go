package oci_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"crunch-oci/oci"
)

// newBox starts a container that waits to be killed.
func newBox(t testing.TB, edits ...func(*oci.Request)) *box {
	t.Helper()
	req := newRequest(t, newID(), "exec sleep 600")
	for _, edit := range edits {
		edit(&req)
	}
	b, err := create(t, req, nil)
	must(t, err)
	must(t, b.ctr.Start(t.Context()))
	return b
}

type execResult struct {
	stdout, stderr string
	code           int
}

// finish sends input and collects what comes.
func finish(t testing.TB, s *oci.Session, input string) execResult {
	t.Helper()
	var r execResult
	var wg sync.WaitGroup
	read := func(to *string, from io.Reader) {
		wg.Go(func() {
			b, err := io.ReadAll(from)
			if err != nil {
				t.Errorf("read output: %v", err)
			}
			*to = string(b)
		})
	}
	read(&r.stdout, s.Stdout())
	if e := s.Stderr(); e != nil {
		read(&r.stderr, e)
	}
	_, _ = io.WriteString(s.Stdin(), input) // it need not be read
	if s.Stderr() != nil {
		_ = s.Stdin().Close()
	}
	wg.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	status, err := s.Wait(ctx)
	must(t, err)
	must(t, s.Close())
	r.code = status.Code
	return r
}

func execIn(t testing.TB, c *oci.Container, q oci.ExecRequest, input string) execResult {
	t.Helper()
	s, err := c.Exec(t.Context(), q)
	must(t, err)
	return finish(t, s, input)
}

func sh(script string) oci.ExecRequest { return oci.ExecRequest{Args: []string{"sh", "-c", script}} }

func TestExec(t *testing.T) {
	b := newBox(t)
	for _, tc := range []struct {
		name  string
		q     oci.ExecRequest
		input string
		want  execResult
	}{
		{"streams", sh("cat; echo o; echo e >&2"), "in\n", execResult{"in\no\n", "e\n", 0}},
		{"exit code", sh("exit 3"), "", execResult{code: 3}},
		{"greatest exit code", sh("exit 255"), "", execResult{code: 255}},
		{"signal", sh("kill -9 $$"), "", execResult{code: 137}},
		{"arguments", oci.ExecRequest{Args: []string{"echo", "a b", "", "$HOME"}}, "", execResult{stdout: "a b  $HOME\n"}},
		{"absolute program", oci.ExecRequest{Args: []string{"/bin/echo", "x"}}, "", execResult{stdout: "x\n"}},
		{"streams by name", oci.ExecRequest{User: "alice", Args: []string{"sh", "-c", "cat /dev/stdin >/dev/stdout; echo e >/dev/stderr"}}, "x", execResult{"x", "e\n", 0}},
		{"login shell", oci.ExecRequest{}, "echo $0 here", execResult{stdout: "/bin/sh here\n"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := execIn(t, b.ctr, tc.q, tc.input); got != tc.want {
				t.Errorf("got %+v, want %+v", got, tc.want)
			}
		})
	}
}

func TestExecWhatCannotBeStarted(t *testing.T) {
	b := newBox(t)
	root := fmt.Sprintf("/proc/%d/root", b.ctr.PID())
	write(t, root+"/work/text", "hello\n")
	must(t, os.WriteFile(root+"/work/orphan", []byte("#!/no/such/interpreter\n"), 0o755))
	must(t, os.WriteFile(root+"/work/garbage", []byte("\x00\x01"), 0o755))
	for _, tc := range []struct {
		q    oci.ExecRequest
		code int
		text string
	}{
		{oci.ExecRequest{Args: []string{"nosuch"}}, 127, `exec: "nosuch": executable file not found in $PATH`},
		{oci.ExecRequest{Args: []string{"/no/such"}}, 127, "no such file"},
		{oci.ExecRequest{Args: []string{"/work/text"}}, 126, "permission denied"},
		{oci.ExecRequest{Args: []string{"/work"}}, 126, "is a directory"},
		{oci.ExecRequest{Args: []string{"/work/orphan"}}, 127, "no such file"},
		{oci.ExecRequest{Args: []string{"/work/garbage"}}, 126, "exec format error"},
		{oci.ExecRequest{Args: []string{""}}, 126, ""},
		{oci.ExecRequest{Args: []string{"true\x00"}}, 1, "NUL"},
		{oci.ExecRequest{Args: []string{"true"}, User: "bob"}, 1, "unable to find user bob: no matching entries in passwd file"},
		{oci.ExecRequest{Args: []string{"true"}, User: "alice:nobody"}, 1, "unable to find group nobody: no matching entries in group file"},
		{oci.ExecRequest{Args: []string{"true"}, User: "../etc/passwd"}, 1, "unable to find user ../etc/passwd: no"},
		{oci.ExecRequest{Args: []string{"true"}, User: "a\nb"}, 1, `unable to find user "a\nb": no`},
		{oci.ExecRequest{Args: []string{"true"}, User: "-1"}, 1, "unable to find user -1: no"},
		{oci.ExecRequest{Args: []string{"true"}, Env: []string{"=x"}}, 1, "environment"},
	} {
		s, err := b.ctr.Exec(t.Context(), tc.q)
		var refused *oci.ExecError
		if !errors.As(err, &refused) || refused.Code != tc.code && tc.q.Args[0] != "" || !strings.Contains(refused.Text, tc.text) || strings.Contains(refused.Text, "\n") {
			t.Errorf("%q as %q: %v, %+v; want code %d, %q", tc.q.Args, tc.q.User, s, err, tc.code, tc.text)
		}
	}
}

// A command has what the first process has, and nothing of this process.
func TestExecIsInTheContainer(t *testing.T) {
	t.Setenv("SUPERVISOR_SECRET", "x")
	b := newBox(t, func(q *oci.Request) {
		q.Image.Env = []string{"PATH=/bin", "FROM=image", "TERM=dumb"}
		q.Env = map[string]string{"RECORD": "a b"}
		q.Cwd, q.NoNewPrivileges = "/work", true
	})
	const script = `pwd; for n in cgroup ipc mnt net pid uts user; do readlink /proc/%[1]s/ns/$n; done; cat /proc/%[1]s/cgroup;
		grep -E "^(Cap|NoNewPrivs|Seccomp:|Uid|Gid|Groups)" /proc/%[1]s/status; cat /proc/%[1]s/limits /proc/%[1]s/oom_score_adj`
	outside := execIn(t, b.ctr, sh(fmt.Sprintf(script, "1")), "").stdout
	inside := execIn(t, b.ctr, sh(fmt.Sprintf(script, "self")), "").stdout
	if inside != outside || !strings.HasPrefix(inside, "/work\n") || !strings.Contains(inside, "NoNewPrivs:\t1") {
		t.Errorf("session:\n%s\nfirst process:\n%s", inside, outside)
	}
	got := execIn(t, b.ctr, oci.ExecRequest{Args: []string{"env"}, Env: []string{"TERM=xterm", "LANG=C"}}, "").stdout
	want := []string{"PATH=/bin", "HOSTNAME=box", "FROM=image", "TERM=xterm", "RECORD=a b", "HOME=/root", "LANG=C"}
	slices.Sort(want)
	lines := strings.Split(strings.TrimSpace(got), "\n")
	slices.Sort(lines)
	if !slices.Equal(lines, want) {
		t.Errorf("environment %q, want %q", lines, want)
	}
	if got := execIn(t, b.ctr, oci.ExecRequest{Args: []string{"ls", "-l", "/proc/self/fd"}}, "").stdout; strings.Count(got, " 0 -> pipe")+strings.Count(got, " 1 -> pipe")+strings.Count(got, " 2 -> pipe") != 3 || strings.Count(got, "\n") != 5 {
		t.Errorf("descriptors beside the streams:\n%s", got)
	}
}

func TestExecAccounts(t *testing.T) {
	b := newBox(t, func(q *oci.Request) { q.User = "alice" })
	const script = "id -u; id -g; id -G; echo $HOME; grep -E 'Cap(Prm|Eff|Bnd|Inh)' /proc/self/status"
	const (
		some  = "CapInh:\t0000000000000000\nCapPrm:\t00000000a80425fb\nCapEff:\t00000000a80425fb\nCapBnd:\t00000000a80425fb\n"
		none  = "CapInh:\t0000000000000000\nCapPrm:\t0000000000000000\nCapEff:\t0000000000000000\nCapBnd:\t00000000a80425fb\n"
		alice = "1000\n1000\n1000 44 50\n/home/alice\n"
	)
	for user, want := range map[string]string{
		"":            "0\n0\n0\n/root\n" + some,
		"root":        "0\n0\n0\n/root\n" + some,
		"alice":       alice + none,
		"1000":        alice + none,
		"alice:staff": "1000\n50\n50\n/home/alice\n" + none,
		"4711":        "4711\n0\n0\n/\n" + none,
		"4711:4712":   "4711\n4712\n4712\n/\n" + none,
	} {
		q := sh(script)
		q.User = user
		if got := execIn(t, b.ctr, q, ""); got.stdout != want {
			t.Errorf("%q: got\n%swant\n%s", user, got.stdout, want)
		}
	}
}

// Account files are those that the container's processes see, and never the
// host's, whatever they have been made.
func TestExecHostileAccountFiles(t *testing.T) {
	for name, tc := range map[string]struct{ setup, user, want string }{
		"none":              {"rm /etc/passwd /etc/group", "root", "0 /"},
		"none, with group":  {"rm /etc/passwd", "root:staff", "0 /"},
		"none, other":       {"rm /etc/passwd", "alice", "unable to find user alice: no matching entries in passwd file"},
		"host's by link":    {"ln -sf /../../../../../../etc/passwd /etc/passwd", "daemon", "unable to find user daemon: "},
		"host's by proc":    {"ln -sf /proc/1/root/etc/passwd /etc/passwd", "daemon", "unable to find user daemon: "},
		"loop":              {"ln -sf passwd /etc/passwd", "alice", "unable to find user alice: "},
		"loop, root":        {"ln -sf passwd /etc/passwd", "root", "0 /"},
		"directory":         {"rm /etc/passwd; busybox mkdir /etc/passwd", "alice", "unable to find user alice: "},
		"pipe":              {"rm /etc/passwd; busybox mkfifo /etc/passwd", "alice", "unable to find user alice: "},
		"device":            {"rm /etc/passwd; ln -s /dev/zero /etc/passwd", "alice", "unable to find user alice: "},
		"huge":              {"busybox truncate -s 100G /etc/passwd", "alice", "unable to find user alice: "},
		"huge, root":        {"busybox truncate -s 100G /etc/passwd", "root", "0 /"},
		"etc is a link":     {"busybox mv /etc /etc2; ln -s /etc2 /etc", "alice", "1000 /home/alice"},
		"changed meanwhile": {"echo carl:x:7:7::/home/carl:/bin/sh >>/etc/passwd", "carl", "7 /home/carl"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBox(t)
			setup := strings.ReplaceAll(tc.setup, "rm ", "busybox rm ")
			setup = strings.ReplaceAll(setup, "ln ", "busybox ln ")
			if r := execIn(t, b.ctr, sh(setup), ""); r.code != 0 {
				t.Fatalf("%+v", r)
			}
			q := sh("echo $(id -u) $HOME")
			q.User = tc.user
			s, err := b.ctr.Exec(t.Context(), q)
			var refused *oci.ExecError
			switch {
			case errors.As(err, &refused):
				if refused.Code != 1 || !strings.HasPrefix(refused.Text, tc.want) {
					t.Errorf("%+v, want %q", refused, tc.want)
				}
			case err != nil:
				t.Error(err)
			default:
				if r := finish(t, s, ""); r.stdout != tc.want+"\n" {
					t.Errorf("%+v, want %q", r, tc.want)
				}
			}
		})
	}
}

func TestExecTerminal(t *testing.T) {
	b := newBox(t)
	size := &oci.TerminalSize{Columns: 101, Rows: 33, Width: 808, Height: 528}
	q := oci.ExecRequest{User: "alice", Args: []string{"sh", "-c", "tty; busybox stty size; ls -l $(tty); echo e >&2; cat </dev/tty; exit 7"}, Terminal: size}
	r := execIn(t, b.ctr, q, "typed\n\x04")
	for _, want := range []string{"/dev/pts/0\r\n33 101\r\n", " alice ", "e\r\n", "typed\r\n"} {
		if !strings.Contains(r.stdout, want) && !(want == " alice " && strings.Contains(r.stdout, " 1000 ")) {
			t.Errorf("%q lacks %q", r.stdout, want)
		}
	}
	if r.code != 7 {
		t.Errorf("exit code %d", r.code)
	}
	// All that was written before the end comes.
	many := execIn(t, b.ctr, oci.ExecRequest{Args: []string{"sh", "-c", "busybox seq 1 20000"}, Terminal: size}, "").stdout
	if !strings.HasSuffix(many, "\r\n20000\r\n") {
		t.Errorf("output ends with %q", many[max(0, len(many)-100):])
	}
}

// expect reads until the text has come.
func expect(t testing.TB, r io.Reader, text string) {
	t.Helper()
	var got []byte
	buf := make([]byte, 4096)
	for !strings.Contains(string(got), text) {
		n, err := r.Read(buf)
		got = append(got, buf[:n]...)
		if err != nil {
			t.Fatalf("%v before %q; got %q", err, text, got)
		}
	}
}

func TestExecTerminalIsControlled(t *testing.T) {
	b := newBox(t)
	size := &oci.TerminalSize{Columns: 80, Rows: 25}
	start := func(script string) *oci.Session {
		s, err := b.ctr.Exec(t.Context(), oci.ExecRequest{Args: []string{"sh", "-c", script}, Terminal: size})
		must(t, err)
		t.Cleanup(func() { _ = s.Kill(); _ = s.Close() })
		expect(t, s.Stdout(), "ready")
		return s
	}
	wait := func(s *oci.Session) int {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		go func() { _, _ = io.Copy(io.Discard, s.Stdout()) }()
		status, err := s.Wait(ctx)
		must(t, err)
		return status.Code
	}
	s := start(`trap 'busybox stty size; exit 5' WINCH; echo ready; while :; do busybox usleep 1000; done`)
	must(t, s.Resize(oci.TerminalSize{Columns: 132, Rows: 43}))
	expect(t, s.Stdout(), "43 132")
	if code := wait(s); code != 5 {
		t.Errorf("resized: exit code %d", code)
	}
	s = start("echo ready; sleep 600")
	_, err := s.Stdin().Write([]byte{3}) // Ctrl-C
	must(t, err)
	if code := wait(s); code != 130 {
		t.Errorf("interrupted: exit code %d", code)
	}
	s = start("trap 'exit 6' USR1; echo ready; while :; do busybox usleep 1000; done")
	must(t, s.Signal(syscall.SIGUSR1))
	if code := wait(s); code != 6 {
		t.Errorf("signalled: exit code %d", code)
	}
	if err := s.Signal(syscall.SIGTERM); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("signal after the end: %v", err)
	}
	s = start("trap 'exit 9' HUP; echo ready; while :; do busybox usleep 1000; done")
	must(t, s.Stdin().Close())
	if code := wait(s); code != 9 {
		t.Errorf("hung up: exit code %d", code)
	}
}

func TestExecSignalsTheGroup(t *testing.T) {
	b := newBox(t)
	s, err := b.ctr.Exec(t.Context(), sh("echo ready; sleep 600; true"))
	must(t, err)
	expect(t, s.Stdout(), "ready")
	must(t, s.Signal(syscall.SIGTERM))
	if r := finish(t, s, ""); r.code != 143 {
		t.Errorf("%+v", r)
	}
}

// living returns the container's processes without those that are dead but not
// reaped: its first process does not do that.
func living(t testing.TB, b *box) []int {
	t.Helper()
	p, err := b.ctr.Cgroup().Procs()
	must(t, err)
	return slices.DeleteFunc(p, func(pid int) bool {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		return err != nil || strings.Contains(string(stat), ") Z ")
	})
}

// Kill leaves no process of the session, however it is disguised, except for
// daemons, and touches no other.
func TestExecKill(t *testing.T) {
	b := newBox(t)
	other, err := b.ctr.Exec(t.Context(), sh("echo ready; cat"))
	must(t, err)
	expect(t, other.Stdout(), "ready")
	for name, script := range map[string]string{
		"children":            "sleep 601 & sleep 602 & echo ready; wait",
		"grandchildren":       "(sleep 601 & sleep 602) & echo ready; wait",
		"orphans":             "(sleep 601 &); echo ready; sleep 602",
		"own session":         "busybox setsid sleep 601 & sleep 602 & busybox usleep 20000; echo ready; wait",
		"deaf":                "trap '' TERM HUP INT; echo ready; while :; do sleep 600; done",
		"breeding":            "f() { while :; do sleep 0.01 & wait; done; }; f & f & f & echo ready; f",
		"leader has gone":     "sleep 601 & sleep 602 & echo ready",
		"own groups, stopped": "sleep 601 & busybox kill -STOP $!; echo ready; sleep 602",
	} {
		t.Run(name, func(t *testing.T) {
			s, err := b.ctr.Exec(t.Context(), sh(script))
			must(t, err)
			expect(t, s.Stdout(), "ready")
			if name == "leader has gone" {
				_, err := s.Wait(t.Context())
				must(t, err)
			}
			must(t, s.Kill())
			_, err = io.Copy(io.Discard, s.Stdout()) // until the last has gone
			must(t, err)
			_, err = s.Wait(t.Context())
			must(t, err)
			must(t, s.Close())
			waitFor(t, "the others to end", func() bool { return len(living(t, b)) == 2 }) // init and the other session's cat
			must(t, s.Kill())                                                              // nobody left is no error
		})
	}
	if r := finish(t, other, "still here"); r.stdout != "still here" || r.code != 0 {
		t.Errorf("the other session: %+v", r)
	}
}

// Sessions end with the container, keep it from nothing, and refuse to begin
// before and after its life.
func TestExecDuringTheContainersLife(t *testing.T) {
	req := newRequest(t, newID(), "read x; exit 5")
	in, feed := io.Pipe()
	b, err := create(t, req, in)
	must(t, err)
	refused := func(when, text string) {
		t.Helper()
		_, err := b.ctr.Exec(t.Context(), sh("true"))
		var e *oci.ExecError
		if !errors.As(err, &e) || e.Code != 1 || e.Text != text {
			t.Errorf("%s: %v, want %q", when, err, text)
		}
	}
	refused("before the start", "the container has not been started yet")
	must(t, b.ctr.Start(t.Context()))
	plain, err := b.ctr.Exec(t.Context(), sh("trap '' TERM HUP; echo ready; while :; do sleep 600; done"))
	must(t, err)
	expect(t, plain.Stdout(), "ready")
	tty, err := b.ctr.Exec(t.Context(), oci.ExecRequest{Args: []string{"sleep", "600"}, Terminal: &oci.TerminalSize{}})
	must(t, err)
	must(t, feed.Close())
	if status := b.wait(); status.Code != 5 {
		t.Errorf("the container's exit status: %v", status)
	}
	for _, s := range []*oci.Session{plain, tty} {
		if r := finish(t, s, ""); r.code != 137 {
			t.Errorf("session: %+v", r)
		}
	}
	refused("after the end", "the container has ended")
	must(t, b.ctr.Delete(t.Context()))
	refused("after the removal", "the container has ended")
}

// What began while the container was ending either ran or says so.
func TestExecRacesWithTheEnd(t *testing.T) {
	for i := range 12 {
		req := newRequest(t, newID(), "read x; exit 5")
		in, feed := io.Pipe()
		b, err := create(t, req, in)
		must(t, err)
		must(t, b.ctr.Start(t.Context()))
		var wg sync.WaitGroup
		for n := range 4 {
			wg.Go(func() {
				for {
					q := sh("true")
					if n%2 == 0 {
						q.Terminal = &oci.TerminalSize{Columns: 80, Rows: 25}
					}
					s, err := b.ctr.Exec(t.Context(), q)
					var refused *oci.ExecError
					if errors.As(err, &refused) {
						if refused.Text != "the container has ended" {
							t.Errorf("round %d: %q", i, refused.Text)
						}
						return
					}
					if err != nil {
						t.Errorf("round %d: %v", i, err)
						return
					}
					if r := finish(t, s, ""); r.code != 0 && r.code != 137 {
						t.Errorf("round %d: %+v", i, r)
					}
				}
			})
		}
		time.AfterFunc(time.Duration(i*4)*time.Millisecond, func() { feed.Close() })
		if status := b.wait(); status.Code != 5 {
			t.Errorf("round %d: the container's exit status: %v", i, status)
		}
		wg.Wait()
	}
}

func TestExecIsBoundedByItsContext(t *testing.T) {
	b := newBox(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errTest)
	if _, err := b.ctr.Exec(ctx, sh("true")); !errors.Is(err, errTest) {
		t.Errorf("%v", err)
	}
	// At any moment: it runs, or nothing of it is left.
	for i := range 20 {
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Duration(i)*4*time.Millisecond, errTest)
		s, err := b.ctr.Exec(ctx, sh("echo x"))
		cancel()
		if err == nil {
			if r := finish(t, s, ""); r.stdout != "x\n" {
				t.Errorf("%+v", r)
			}
		} else if !errors.Is(err, errTest) {
			t.Errorf("%v", err)
		}
	}
	waitFor(t, "the rest to be gone", func() bool { return len(living(t, b)) == 1 })
}

// Where the container has all the processes it may have, the user is told so, in
// one line, and can come in when there is room again.
func TestExecInCrowdedContainer(t *testing.T) {
	b := newBox(t, func(q *oci.Request) { q.Limits.PIDs = 40 })
	dirs := b.ctr.Cgroup().Dirs
	dir, ok := dirs["pids"]
	if !ok {
		dir = dirs[""]
	}
	for limit := 1; limit <= 12; limit++ {
		must(t, os.WriteFile(filepath.Join(dir, "pids.max"), []byte(strconv.Itoa(limit)), 0))
		s, err := b.ctr.Exec(t.Context(), oci.ExecRequest{Args: []string{"echo", "in"}})
		if err == nil {
			if got := finish(t, s, ""); got != (execResult{stdout: "in\n"}) {
				t.Errorf("of %d: %+v", limit, got)
			}
			continue
		}
		var refused *oci.ExecError
		if !errors.As(err, &refused) || limit > 10 || refused.Code != 1 || !strings.Contains(refused.Text, "no room") || strings.Contains(refused.Text, "\n") {
			t.Errorf("of %d: %v", limit, err)
		}
	}
	// Whose room others take meanwhile.
	must(t, os.WriteFile(filepath.Join(dir, "pids.max"), []byte("10"), 0))
	var all sync.WaitGroup
	for range 6 {
		all.Go(func() {
			s, err := b.ctr.Exec(t.Context(), oci.ExecRequest{Args: []string{"echo", "in"}})
			if err == nil {
				if got := finish(t, s, ""); got != (execResult{stdout: "in\n"}) {
					t.Errorf("%+v", got)
				}
				return
			}
			var refused *oci.ExecError
			if !errors.As(err, &refused) || strings.Contains(refused.Text, "\n") {
				t.Errorf("%v", err)
			}
		})
	}
	all.Wait()
}
