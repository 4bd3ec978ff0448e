package main_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"crunch-oci/arvados"
	"crunch-oci/cgroups"
	"crunch-oci/cgroups/systemd"
)

// TestSystemdScope is a container on a node with systemd: it lives in a scope of
// its own, in which systemd leaves limits and device rules alone, and nothing
// stays of that.
func TestSystemdScope(t *testing.T) {
	if !systemd.Running() {
		t.Skip("systemd is not PID 1 here; vmtest runs this where it is")
	}
	for _, end := range []string{"stop", "kill -9", "systemctl stop"} {
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
	group := filepath.Join("/sys/fs/cgroup", controlGroup(t, scope[0]), "container")
	if !strings.Contains(group, "/crunch-run.slice/") {
		t.Errorf("the scope is at %s", group)
	}
	before := limitsOf(t, group)
	if !strings.Contains(before, "memory.max 268435456") || !strings.Contains(before, "pids.max 32768") {
		t.Errorf("limits %s", before)
	}
	systemctl(t, "daemon-reload")
	if after := limitsOf(t, group); after != before {
		t.Errorf("after daemon-reload %s, before %s", after, before)
	}
	p.stdout.mustSay(t, fmt.Sprintf("try %d: ", strings.Count(p.stdout.String(), "try ")+3))
	if strings.Contains(p.stdout.String(), "opened") {
		t.Errorf("a device that was not given could be opened:\n%s", p.stdout.String())
	}
	switch end {
	case "stop":
		p.signal(t, syscall.SIGTERM)
	case "kill -9":
		p.signal(t, syscall.SIGKILL)
	default:
		systemctl(t, "stop", scope[0])
	}
	if code := p.wait(t); code == 0 {
		t.Errorf("exit code 0 although it was stopped:\n%s", p.stderr.String())
	}
	if end == "kill -9" {
		// The next start cleans up.
		n.run(t, "local", "--image", n.toolsFile(t), "--", "true")
	}
	// systemd is told by the kernel, in its own time.
	waitFor(t, "the end of the scope", func() bool { return len(scopes(t)) == 0 })
}

// TestSystemdSession is a supervisor in a scope that systemd has not delegated, as
// a session's is, and is to keep the container in it: the limits hold although
// systemd takes the controllers of such groups to be its own, and the end of the
// session is the end of the container.
func TestSystemdSession(t *testing.T) {
	if !systemd.Running() || !cgroups.Unified() {
		t.Skip("systemd is not PID 1 here, or not on cgroup v2; vmtest runs this where it is")
	}
	for _, delegate := range []string{"no", "yes"} {
		for _, stop := range []bool{false, true} {
			t.Run(fmt.Sprintf("Delegate=%s, stop=%t", delegate, stop), func(t *testing.T) { testSession(t, delegate, stop) })
		}
	}
}

func testSession(t *testing.T, delegate string, stop bool) {
	n := newNode(t)
	c := startCluster(t, n)
	uuid := c.submit(t, c.storeTools(t), sh(untilTold), nil)
	unit := n.cgroup + ".scope"
	n.prefix = []string{"systemd-run", "--quiet", "--scope", "--collect", "--unit", unit, "-p", "Delegate=" + delegate}
	p := c.supervise(t, n, uuid, "-cgroup-parent-subsystem=memory")
	n.prefix = nil
	group := filepath.Join("/sys/fs/cgroup/system.slice", unit, uuid)
	var root string
	waitFor(t, "a program in the container", func() bool {
		text, _ := os.ReadFile(filepath.Join(group, "cgroup.procs"))
		for pid := range strings.FieldsSeq(string(text)) {
			if exe, _ := os.Readlink("/proc/" + pid + "/exe"); filepath.Base(exe) == "busybox" {
				root = "/proc/" + pid + "/root"
			}
		}
		return root != ""
	})
	before := limitsOf(t, group)
	if strings.Contains(before, "memory.max max") || !strings.Contains(before, "pids.max 32768") {
		t.Errorf("limits %s", before)
	}
	systemctl(t, "daemon-reload")
	if after := limitsOf(t, group); after != before {
		t.Errorf("after daemon-reload %s, before %s", after, before)
	}
	var record arvados.Container
	if stop {
		systemctl(t, "stop", unit)
		record = c.finished(t, n, p, uuid, 0, arvados.StateCancelled)
	} else {
		if err := os.WriteFile(root+"/out/go", nil, 0o666); err != nil {
			t.Fatal(err)
		}
		record = c.finished(t, n, p, uuid, 0, arvados.StateComplete)
	}
	if said := strings.Contains(c.log(t, record, "crunch-run.txt"), "systemd has not delegated"); said != (delegate == "no") {
		t.Errorf("warned: %t", said)
	}
	waitFor(t, "the end of the scope", func() bool {
		_, err := os.Stat(filepath.Dir(group))
		return errors.Is(err, os.ErrNotExist)
	})
}

func systemctl(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("systemctl", args...).CombinedOutput(); err != nil {
		t.Fatalf("systemctl %q: %v: %s", args, err, out)
	}
}

// controlGroup is the path of a unit's cgroup below the mount point.
func controlGroup(t *testing.T, unit string) string {
	t.Helper()
	out, err := exec.Command("systemctl", "show", "--value", "-p", "ControlGroup", unit).Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

// limitsOf reads the limits of a cgroup v2.
func limitsOf(t *testing.T, group string) string {
	t.Helper()
	var out []string
	for _, f := range []string{"memory.max", "memory.swap.max", "pids.max", "cpu.max"} {
		out = append(out, f+" "+strings.TrimSpace(readFile(t, filepath.Join(group, f))))
	}
	return strings.Join(out, ", ")
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
