package main_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"crunch-oci/arvados"
	"crunch-oci/cgroups/systemd"
)

func TestMaxRunTime(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	c := startCluster(t, n)
	image := c.storeTools(t)
	var record arvados.Container
	// On a busy machine the program may not have got that far when its time is over,
	// and has more of it then.
	for limit := 1; limit < 300; limit *= 6 {
		uuid := c.submit(t, image, sh("echo partial > part.txt; trap 'echo asked >&2; exit 9' TERM; sleep 1000 & wait"), attrs{
			"scheduling_parameters": attrs{"max_run_time": limit},
		})
		record = c.finished(t, n, c.supervise(t, n, uuid), uuid, 0, arvados.StateCancelled)
		if record.ExitCode != nil && *record.ExitCode == 9 {
			break
		}
	}
	if record.ExitCode == nil || *record.ExitCode != 9 || record.Output != "" {
		t.Errorf("exit code %v, output %q; want 9 and none", record.ExitCode, record.Output)
	}
	if stderr := stamped(t, c.log(t, record, "stderr.txt")); stderr != "asked\n" {
		t.Errorf("stderr %q", stderr)
	}
	log := stamped(t, c.log(t, record, "crunch-run.txt"))
	mustSayInOrder(t, log, "maximum run time exceeded. Stopping container.\n", "stopping container\n", "Container exited with status code 9\n", "copying \"part.txt\"", "\nCancelled\n")
	if strings.Contains(log, "caught signal") {
		t.Errorf("nobody sent a signal:\n%s", log)
	}
}

// Workflow runners try again with more memory when they read the words "out of
// memory", so they must be there exactly when memory ran out.
func TestOutOfMemory(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	c := startCluster(t, n)
	image := c.storeTools(t)
	small := attrs{"runtime_constraints": attrs{"vcpus": 1, "ram": 64 << 20}}
	for name, tt := range map[string]struct {
		command []string
		code    int
		oom     bool
	}{
		"first process": {[]string{"probe", "eat", "200"}, 137, true},
		"a child":       {sh("probe eat 200; echo child ended with $?; exit 5"), 5, true},
		"enough":        {[]string{"probe", "eat", "20"}, 0, false},
		// The limit is met, and the page cache gives way.
		"large files": {sh("dd if=/dev/zero of=/tmp/f bs=1M count=150 2>&1 && cat /tmp/f | wc -c"), 0, false},
		"says 137":    {sh("exit 137"), 137, false},
		"killed":      {sh("sh -c 'kill -9 $$'; exit $?"), 137, false},
	} {
		t.Run(name, func(t *testing.T) {
			record := c.runOne(t, n, image, tt.command, small)
			if record.ExitCode == nil || *record.ExitCode != tt.code {
				t.Errorf("exit code %v, want %d", record.ExitCode, tt.code)
			}
			log := c.log(t, record, "crunch-run.txt")
			if strings.Contains(strings.ToLower(log), "out of memory") != tt.oom {
				t.Errorf("out of memory: want %v in\n%s", tt.oom, log)
			}
		})
	}
}

// A supervisor whose working directory has been removed does its work.
func TestWorkingDirectoryIsGone(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	c := startCluster(t, n)
	n.prefix = []string{"sh", "-ec", `d=$(mktemp -d); cd "$d"; rmdir "$d"; exec "$@"`, "sh"}
	record := c.runOne(t, n, c.storeTools(t), sh("pwd; echo data >f"), nil)
	if out := stamped(t, c.log(t, record, "stdout.txt")); out != "/out\n" {
		t.Errorf("stdout %q", out)
	}
}

// Without API access there is no network but the loopback interface.
func TestNoNetwork(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	c := startCluster(t, n)
	record := c.runOne(t, n, c.storeTools(t), sh("ls /sys/class/net; hostname; cat /proc/net/route | wc -l"), nil)
	want := "lo\n" + record.UUID[len(record.UUID)-12:] + "\n1\n"
	if got := stamped(t, c.log(t, record, "stdout.txt")); got != want {
		t.Errorf("the container saw %q, want %q", got, want)
	}
}

// Limits of CPU, memory and processes are those of the record and the site.
func TestLimits(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	c := startCluster(t, n)
	uuid := c.submit(t, c.storeTools(t), sh(untilTold), attrs{"runtime_constraints": attrs{"vcpus": 2, "ram": 100 << 20}})
	p := c.supervise(t, n, uuid, "-pids-limit=77")
	pid, err := strconv.Atoi(strings.Split(insideContainer(t, n), "/")[2])
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"memory/memory.limit_in_bytes": fmt.Sprint(100 << 20), "pids/pids.max": "77",
		"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000",
	}
	if groupsText := readFile(t, fmt.Sprintf("/proc/%d/cgroup", pid)); !strings.Contains(groupsText, ":memory:") {
		t.Log("no cgroup v1 memory controller; the limits are not looked at here")
	} else {
		for file, value := range want {
			controller, name, _ := strings.Cut(file, "/")
			for line := range strings.Lines(groupsText) {
				f := strings.SplitN(strings.TrimSpace(line), ":", 3)
				if !slices.Contains(strings.Split(f[1], ","), controller) {
					continue
				}
				if got := strings.TrimSpace(readFile(t, filepath.Join("/sys/fs/cgroup", controller, f[2], name))); got != value {
					t.Errorf("%s is %s, want %s", file, got, value)
				}
			}
		}
	}
	release(t, n)
	c.finished(t, n, p, uuid, 0, arvados.StateComplete)
}

// The container's cgroup lies where the site, or the scheduler, wants it, and is
// gone after the run.
func TestCgroupPlacement(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	c := startCluster(t, n)
	image := c.storeTools(t)
	own := ""
	for line := range strings.Lines(readFile(t, "/proc/self/cgroup")) {
		if f := strings.SplitN(strings.TrimSpace(line), ":", 3); slices.Contains(strings.Split(f[1], ","), "memory") || f[0] == "0" && own == "" {
			own = f[2]
		}
	}
	for name, tt := range map[string]struct {
		base   string
		flags  []string
		parent string
	}{
		"default":            {"", nil, "/crunch-run"},
		"site":               {"/e2e-" + strconv.Itoa(os.Getpid()) + "/jobs", nil, "/e2e-" + strconv.Itoa(os.Getpid()) + "/jobs"},
		"scheduler's memory": {"", []string{"-cgroup-parent-subsystem=memory"}, own},
	} {
		t.Run(name, func(t *testing.T) {
			uuid := c.submit(t, image, sh(untilTold), nil)
			p := n.start(t, run{args: append(tt.flags, uuid), env: append(c.supervisorEnv(), "CRUNCH_RUN_CGROUP_BASE="+tt.base)})
			want := filepath.Join(tt.parent, uuid)
			if name == "default" && systemd.Running() {
				want = "/crunch.slice/crunch-run.slice/crunch-run-" + uuid + ".scope/container"
			}
			pid := ""
			waitFor(t, "a program in the container", func() bool {
				found, _ := filepath.Glob("/proc/[0-9]*/cgroup")
				for _, path := range found {
					text, _ := os.ReadFile(path)
					if exe, _ := os.Readlink(filepath.Dir(path) + "/exe"); strings.Contains(string(text), ":"+want+"\n") && filepath.Base(exe) == "busybox" {
						pid = filepath.Base(filepath.Dir(path))
						return true
					}
				}
				return false
			})
			if err := os.WriteFile("/proc/"+pid+"/root/out/go", nil, 0o666); err != nil {
				t.Fatal(err)
			}
			c.finished(t, n, p, uuid, 0, arvados.StateComplete)
			for _, pattern := range []string{"/sys/fs/cgroup/*", "/sys/fs/cgroup"} {
				left, err := filepath.Glob(pattern + want)
				if err != nil || len(left) > 0 {
					t.Errorf("cgroups left: %v %v", left, err)
				}
			}
		})
	}
}
