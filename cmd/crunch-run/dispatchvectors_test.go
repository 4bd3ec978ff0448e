package main_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"crunch-oci/internal/forkthread"
)

// dispatchVectors reads a part of testdata/spec/cli-and-dispatch.json.
func dispatchVectors(t testing.TB, key string, dst any) {
	t.Helper()
	data, err := os.ReadFile("../../testdata/spec/cli-and-dispatch.json")
	if err != nil {
		t.Fatal(err)
	}
	var all map[string]json.RawMessage
	if err := json.Unmarshal(data, &all); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(all[key], dst); err != nil {
		t.Fatalf("%s: %v", key, err)
	}
}

// call runs the program as somebody who calls it by its name, with no variable
// but the node's settings.
func (n *node) call(t testing.TB, stdin string, args ...string) result {
	t.Helper()
	var stdout, stderr strings.Builder
	cmd := exec.Command(program, args...)
	cmd.Args[0] = "crunch-run"
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH")}, n.settings()...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = patience
	var err error
	forkthread.Do(func() { err = cmd.Start() })
	if err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // the state says it better
	return result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// changedArguments are vectors with another outcome here (doc/differences.md).
var changedArguments = map[string]result{
	"XXXXXXXXXXXXXXXXXXXXXXXXXXX": {1, "", "\"XXXXXXXXXXXXXXXXXXXXXXXXXXX\" is not the UUID of a container (xxxxx-dz642-xxxxxxxxxxxxxxx)\n"},
}

func TestArgumentVectors(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	var vectors []struct {
		Args           []string
		Stdin          string
		ExitCode       int `json:"exit_code"`
		Stdout, Stderr string
	}
	dispatchVectors(t, "arguments", &vectors)
	changed := maps.Clone(changedArguments)
	for _, v := range vectors {
		want := result{v.ExitCode, v.Stdout, v.Stderr}
		if c, ok := changed[strings.Join(v.Args, " ")]; ok {
			want = c
			delete(changed, strings.Join(v.Args, " "))
		}
		got := n.call(t, v.Stdin, v.Args...)
		version := testVersion + " (" + runtime.Version() + ")"
		want.stdout = strings.ReplaceAll(want.stdout, "VERSION", version)
		want.stderr = strings.ReplaceAll(want.stderr, "VERSION", version)
		if want.stderr == "(usage text)" {
			if !strings.HasPrefix(got.stderr, "Usage: crunch-run [options] container-uuid\n  -") {
				t.Errorf("%q: %q", v.Args, got.stderr)
			}
			want.stderr = got.stderr
		}
		if got != want {
			t.Errorf("%q:\ngot  %+v\nwant %+v", v.Args, got, want)
		}
	}
	if len(changed) > 0 {
		t.Errorf("these are no vectors: %v", changed)
	}
}

// holder is a process that holds lock files as a supervisor does: it survives
// TERM and counts USR2.
type holder struct {
	cmd   *exec.Cmd
	said  *bufio.Reader
	asked io.WriteCloser
}

// hold starts a process that opens and locks the files. Without any it is just
// somebody.
func hold(t testing.TB, paths ...string) *holder {
	t.Helper()
	// A trap is run when the line that read waits for has come.
	script := `trap "" TERM; trap 'usr2=$((usr2+1))' USR2; usr2=0; fd=3
		for f; do eval "exec $fd<>\"\$f\""; flock -x $fd; fd=$((fd+1)); done
		echo ready; while :; do if read word; then echo $usr2; fi; done`
	h := &holder{cmd: exec.Command("bash", append([]string{"-c", script, "holder"}, paths...)...)}
	h.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	h.cmd.Stderr = os.Stderr
	out, err := h.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if h.asked, err = h.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	forkthread.Do(func() { err = h.cmd.Start() })
	if err != nil {
		t.Fatal(err)
	}
	h.said = bufio.NewReader(out)
	t.Cleanup(func() {
		_ = h.cmd.Process.Kill()
		_ = h.cmd.Wait()
	})
	if line, err := h.said.ReadString('\n'); line != "ready\n" {
		t.Fatalf("holder: %q %v", line, err)
	}
	return h
}

// usr2 is how often the process got SIGUSR2.
func (h *holder) usr2(t testing.TB) int {
	t.Helper()
	if _, err := io.WriteString(h.asked, "?\n"); err != nil {
		t.Fatal(err)
	}
	line, err := h.said.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// changedLockdir are vectors with another stderr here (doc/differences.md).
var changedLockdir = map[string]string{
	"held, empty procinfo": "/var/lock/crunch-run-zzzzz-dz642-000000000000001.lock: bogus procinfo: {UUID: PID:0}\n",
}

func TestLockdirVectors(t *testing.T) {
	t.Parallel()
	var vectors []struct {
		Name           string
		Files          map[string]string
		Locked, Args   []string
		Stdin          string
		ExitCode       int `json:"exit_code"`
		Stdout, Stderr string
		FilesAfter     map[string]string `json:"files_after"`
		Sigusr2Sent    int               `json:"sigusr2_sent"`
	}
	dispatchVectors(t, "lockdir", &vectors)
	dead := exec.Command("true")
	if err := dead.Run(); err != nil {
		t.Fatal(err)
	}
	changed := maps.Clone(changedLockdir)
	for _, v := range vectors {
		t.Run(v.Name, func(t *testing.T) {
			n, err := makeNode(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			var locked []string
			for _, name := range v.Locked {
				locked = append(locked, filepath.Join(n.locks(), name))
				writeFile(t, filepath.Join(n.locks(), name), nil)
			}
			// Where nobody holds a lock, LIVE is somebody who has nothing to do
			// with it.
			live := hold(t, locked...)
			real := func(s string) string {
				s = strings.ReplaceAll(s, "LIVE", fmt.Sprint(live.cmd.Process.Pid))
				s = strings.ReplaceAll(s, "DEAD", fmt.Sprint(dead.Process.Pid))
				return strings.ReplaceAll(s, "/var/lock", n.locks())
			}
			for name, content := range v.Files {
				writeFile(t, filepath.Join(n.locks(), name), []byte(real(content)))
			}
			if stderr, ok := changed[v.Name]; ok {
				v.Stderr = stderr
				delete(changed, v.Name)
			}
			want := result{v.ExitCode, real(v.Stdout), real(v.Stderr)}
			if got := n.call(t, v.Stdin, v.Args...); got != want {
				t.Errorf("got  %+v\nwant %+v", got, want)
			}
			after := map[string]string{}
			entries, err := os.ReadDir(n.locks())
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range entries {
				after[e.Name()] = readFile(t, filepath.Join(n.locks(), e.Name()))
			}
			for name, content := range v.FilesAfter {
				v.FilesAfter[name] = real(content)
			}
			if !maps.Equal(after, v.FilesAfter) {
				t.Errorf("files after it: %q\nwant %q", after, v.FilesAfter)
			}
			// Two signals that come at once may be one.
			if got := live.usr2(t); (got > 0) != (v.Sigusr2Sent > 0) || got > v.Sigusr2Sent {
				t.Errorf("SIGUSR2 came %d times, want %d", got, v.Sigusr2Sent)
			}
		})
	}
	for name := range changed {
		t.Errorf("no such vector: %s", name)
	}
}
