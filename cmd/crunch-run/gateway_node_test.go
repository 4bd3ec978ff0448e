package main_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"crunch-oci/arvados"
)

// shell runs "crunch-run shell" on the node, without a cluster in its
// environment.
func (e *entered) shell(t testing.TB, stdin string, args ...string) result {
	t.Helper()
	p := e.node.start(t, run{args: append([]string{"shell"}, args...), stdin: strings.NewReader(stdin)})
	return result{p.wait(t), p.stdout.String(), p.stderr.String()}
}

// Root on the node enters without network and token; a supervisor without a
// gateway lets it in as well.
func TestNodeShell(t *testing.T) {
	t.Parallel()
	d := newDoor(t)
	uuid := d.submit(t, d.image, waiting, nil)
	e := &entered{door: d, uuid: uuid, request: d.ledger.requestOf(uuid)}
	e.supervisor = d.supervise(t, d.node, uuid)
	e.supervisor.stderr.mustSay(t, "Waiting for container to finish")
	for _, c := range []struct {
		args           []string
		stdin          string
		stdout, stderr string
		code           int
	}{
		{[]string{uuid, "echo", "it's", "a  b", "", "$HOME", `\`, "#x"}, "", "it's a  b  $HOME \\ #x\n", "", 0},
		{[]string{uuid, "sh", "-c", "cat; echo error >&2; exit 3"}, "in\x00put", "in\x00put", "error\n", 3},
		{[]string{uuid, "--", "echo", "--"}, "", "--\n", "", 0},
		{[]string{uuid}, "echo from a login shell; exit 5\n", "from a login shell\n", "", 5},
		{[]string{"--user", "1000:100", uuid, "sh", "-c", "id -u; id -g; pwd"}, "", "1000\n100\n/out\n", "", 0},
		{[]string{uuid, "sh", "-c", "kill -TERM $$"}, "", "", "", 143},
		{[]string{uuid, "nosuchprogram"}, "", "", "*", 127},
		{[]string{"--user", "nosuchuser", uuid, "id"}, "", "", "unable to find user nosuchuser: no matching entries in passwd file\n", 1},
		{[]string{"local-dz642-000000000000000", "id"}, "", "", "crunch-run shell: local-dz642-000000000000000: no such container on this node (looked in " + d.node.runtime() + "); those on it: " + uuid + "\n", 255},
		{[]string{"../" + uuid}, "", "", "*", 2},
		{[]string{}, "", "", "crunch-run shell: which container? Those on this node: " + uuid + " (try -h)\n", 2},
		{[]string{"--nosuch", uuid}, "", "", "*", 2},
		{[]string{"-h"}, "", "*", "", 0},
	} {
		r := e.shell(t, c.stdin, c.args...)
		same := func(got, want string) bool { return got == want || want == "*" && got != "" }
		if r.code != c.code || !same(r.stdout, c.stdout) || !same(r.stderr, c.stderr) {
			t.Errorf("shell %q: %d %q %q, want %d %q %q", c.args, r.code, r.stdout, r.stderr, c.code, c.stdout, c.stderr)
		}
	}
	// Another user of the node is told why.
	other := exec.Command(program, "shell", uuid, "id")
	other.Env = append(cleanEnv(), d.node.settings()...)
	other.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if err := os.Chmod(filepath.Dir(program), 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := other.CombinedOutput(); err == nil || string(out) != "crunch-run shell: must be run as root\n" {
		t.Errorf("as nobody: %q %v", out, err)
	}
	// A stopped program at the terminal does not keep the container from ending.
	stopped := e.node.start(t, run{args: []string{"shell", uuid, "sh", "-c", "echo begun; sleep 100000"}})
	stopped.stdout.mustSay(t, "begun")
	stopped.signal(t, syscall.SIGSTOP)
	e.supervisor.signal(t, syscall.SIGTERM)
	if got := e.supervisor.wait(t); got != 0 {
		t.Errorf("exit code %d", got)
	}
	stopped.signal(t, syscall.SIGCONT)
	if code := stopped.wait(t); code == 0 {
		t.Error("the session of a container that was killed succeeded")
	}
	e.finished(t, e.node, e.supervisor, uuid, 0, arvados.StateCancelled)
	if r := e.shell(t, "", uuid, "id"); r.code != 255 || !strings.Contains(r.stderr, "no such container on this node") {
		t.Errorf("after the end: %d %s", r.code, r.stderr)
	}
}

// A container of "crunch-run local" can be entered too.
func TestLocalShell(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	p := n.start(t, run{args: []string{"local", "--image", busyboxImage(t), "--", "sh", "-c", "echo begun; while ! [ -e /tmp/go ]; do sleep 0.05; done"}})
	p.stdout.mustSay(t, "begun")
	uuid := ""
	entries, err := os.ReadDir(n.runtime())
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range entries {
		if strings.Contains(d.Name(), "-dz642-") {
			uuid = d.Name()
		}
	}
	if r := n.run(t, "shell", uuid, "sh", "-c", "exit 6"); r.code != 6 {
		t.Errorf("shell: %d %s", r.code, r.stderr)
	}
	n.run(t, "shell", uuid, "touch", "/tmp/go") // may be killed at the container's end
	if code := p.wait(t); code != 0 {
		t.Errorf("local: %d\n%s", code, p.stderr.String())
	}
}

// tmux is a terminal with somebody at it.
type tmux struct {
	t      testing.TB
	socket string
}

func newTmux(t testing.TB, e *entered, command string) *tmux {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "tmux") // the name of a socket must be short
	if err != nil {
		t.Fatal(err)
	}
	m := &tmux{t, filepath.Join(dir, "s")}
	t.Cleanup(func() {
		_ = exec.Command("tmux", "-S", m.socket, "kill-server").Run()
		_ = os.RemoveAll(dir)
	})
	start := exec.Command("tmux", "-S", m.socket, "-f", "/dev/null", "new-session", "-d", "-x", "101", "-y", "33", command)
	start.Env = append(append(cleanEnv(), e.node.settings()...), "TERM=xterm", "LANG=C.UTF-8", "SHELL=/bin/sh")
	if out, err := start.CombinedOutput(); err != nil {
		t.Fatalf("tmux: %v\n%s", err, out)
	}
	m.run("set-option", "-g", "status", "off")
	return m
}

func (m *tmux) run(args ...string) string {
	m.t.Helper()
	out, err := exec.Command("tmux", append([]string{"-S", m.socket}, args...)...).CombinedOutput()
	if err != nil {
		m.t.Fatalf("tmux %q: %v\n%s", args, err, out)
	}
	return string(out)
}

func (m *tmux) types(keys ...string) { m.t.Helper(); m.run(append([]string{"send-keys"}, keys...)...) }

// shows waits until the screen shows words.
func (m *tmux) shows(words string) {
	m.t.Helper()
	var screen string
	defer func() {
		if m.t.Failed() {
			m.t.Logf("screen:\n%s", screen)
		}
	}()
	waitFor(m.t, fmt.Sprintf("%q on the screen", words), func() bool {
		screen = m.run("capture-pane", "-p")
		return strings.Contains(screen, words)
	})
}

// A shell at a real terminal: keys, sizes, a full-screen program, signals to the
// foreground job, detaching; and the terminal is as it was afterwards.
func TestNodeShellTerminal(t *testing.T) {
	t.Parallel()
	d := newDoor(t)
	e := d.run(t, "", waiting, nil)
	m := newTmux(t, e, "sh -i")
	m.types("PS1='host: '; "+program+" shell "+e.uuid, "Enter")
	m.shows("/out #") // ash
	m.types("stty size; echo $TERM; tty", "Enter")
	m.shows("33 101\n")
	m.shows("/dev/pts/0")
	m.run("set-option", "-g", "window-size", "manual")
	m.run("resize-window", "-x", "90", "-y", "20")
	m.types(`clear; while [ "$(stty size)" != "20 90" ]; do sleep 0.1; done; echo re""sized`, "Enter")
	m.shows("resized")
	m.types("vi /tmp/text", "Enter")
	m.shows("/tmp/text 1/1 100%")
	m.types("i")
	m.types("typed in an editor")
	m.shows("typed in an editor")
	m.types("Escape")
	m.shows("- /tmp/text [Modified]")
	m.types(":wq", "Enter")
	m.shows("/out #")
	m.types("clear; sleep 4251", "Enter")
	waitFor(t, "the foreground job", func() bool { return len(e.running("sleep 4251")) == 1 })
	m.types("C-c")
	waitFor(t, "its end", func() bool { return len(e.running("sleep 4251")) == 0 })
	m.types("clear; cat /tmp/text; exit 9", "Enter")
	m.shows("typed in an editor\n")
	m.shows("host:")
	m.types("echo status $?; stty -a | grep -o ' icanon.* echo '", "Enter")
	m.shows("status 9\n")
	m.shows("icanon")
	// Detached; the command goes on, and ends with the container.
	m.types("clear; "+program+" shell --detach-keys ctrl-a,d "+e.uuid+" sleep 4252; echo status $?", "Enter")
	waitFor(t, "the command", func() bool { return len(e.running("sleep 4252")) == 1 })
	m.types("C-a")
	m.types("d")
	m.shows("read escape sequence")
	m.shows("status 1\n")
	if len(e.running("sleep 4252")) != 1 {
		t.Error("the command did not survive")
	}
	m.types("exit", "Enter")
	e.end(t)
}
