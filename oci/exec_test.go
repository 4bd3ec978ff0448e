package oci_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
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
