package main_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"crunch-oci/cgroups/systemd"
)

// TestSystemdScope is a container on a node with systemd: it lives in a scope of
// its own, in which systemd leaves limits and device rules alone, and nothing
// stays of that.
func TestSystemdScope(t *testing.T) {
	if !systemd.Running() {
		t.Skip("systemd is not PID 1 here; vmtest runs this where it is")
	}
	for _, end := range []string{"stop", "kill -9"} {
		for _, mounts := range []string{"with inputs", "without inputs"} {
			t.Run(end+", "+mounts, func(t *testing.T) { testScope(t, end, mounts == "with inputs") })
		}
	}
}

func testScope(t *testing.T, end string, inputs bool) {
	n := newNode(t)
	args := []string{"local", "--image", n.toolsFile(t), "--ram", "256MiB"}
	if inputs {
		if err := os.Mkdir(filepath.Join(n.dir, "input"), 0o755); err != nil {
			t.Fatal(err)
		}
		writeFile(t, filepath.Join(n.dir, "input/x"), []byte("1"))
		args = append(args, "--input", "in="+filepath.Join(n.dir, "input"))
	}
	// 4:64 is a serial port, which root may open unless it is forbidden.
	script := `mknod /tty c 4 64; i=0
while i=$((i+1)); do if (: </tty) 2>/dev/null; then echo try $i: opened; else echo try $i: denied; fi; sleep 0.2; done`
	p := n.start(t, run{args: append(args, "--", "sh", "-c", script), env: []string{"CRUNCH_RUN_CGROUP_BASE="}})
	p.stdout.mustSay(t, "try 1: ")
	scope := scopes(t)
	if len(scope) != 1 {
		t.Fatalf("scopes %q, want one", scope)
	}
	where, err := exec.Command("systemctl", "show", "--value", "-p", "ControlGroup", scope[0]).Output()
	if err != nil {
		t.Fatal(err)
	}
	group := filepath.Join("/sys/fs/cgroup", strings.TrimSpace(string(where)), "container")
	if !strings.Contains(group, "/crunch-run.slice/") {
		t.Errorf("the scope is at %s", group)
	}
	limits := func() string {
		var out []string
		for _, f := range []string{"memory.max", "memory.swap.max", "pids.max", "cpu.max"} {
			b, err := os.ReadFile(filepath.Join(group, f))
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, f+" "+strings.TrimSpace(string(b)))
		}
		return strings.Join(out, ", ")
	}
	before := limits()
	if !strings.Contains(before, "memory.max 268435456") || !strings.Contains(before, "pids.max 32768") {
		t.Errorf("limits %s", before)
	}
	if out, err := exec.Command("systemctl", "daemon-reload").CombinedOutput(); err != nil {
		t.Fatalf("daemon-reload: %v: %s", err, out)
	}
	if after := limits(); after != before {
		t.Errorf("after daemon-reload %s, before %s", after, before)
	}
	p.stdout.mustSay(t, fmt.Sprintf("try %d: ", strings.Count(p.stdout.String(), "try ")+3))
	if strings.Contains(p.stdout.String(), "opened") {
		t.Errorf("a device that was not given could be opened:\n%s", p.stdout.String())
	}
	if end == "stop" {
		p.signal(t, syscall.SIGTERM)
	} else {
		p.signal(t, syscall.SIGKILL)
	}
	p.wait(t)
	if end != "stop" {
		// The next start cleans up.
		n.run(t, "local", "--image", n.toolsFile(t), "--", "true")
	}
	// systemd is told by the kernel, in its own time.
	for deadline := time.Now().Add(patience); len(scopes(t)) > 0; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("left behind: %q", scopes(t))
		}
	}
}

// scopes lists the scopes of containers.
func scopes(t *testing.T) []string {
	t.Helper()
	out, err := exec.Command("systemctl", "list-units", "--all", "--plain", "--no-legend", "crunch-run-*.scope").Output()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for line := range strings.Lines(string(out)) {
		if f := strings.Fields(line); len(f) > 0 {
			names = append(names, f[0])
		}
	}
	return names
}
