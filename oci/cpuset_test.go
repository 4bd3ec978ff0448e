package oci_test

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"crunch-oci/cgroups"
	"crunch-oci/oci"
)

// A supervisor that a batch system keeps to some CPUs keeps its container to them,
// also where the container's group is not below its own.
func TestCPUsAreInherited(t *testing.T) {
	hierarchy := "/sys/fs/cgroup/cpuset"
	if cgroups.Unified() {
		hierarchy = "/sys/fs/cgroup"
		must(t, os.WriteFile(hierarchy+"/cgroup.subtree_control", []byte("+cpuset"), 0))
	}
	job := filepath.Join(hierarchy, "crunch-oci-job-"+strconv.Itoa(os.Getpid()))
	must(t, os.Mkdir(job, 0o755))
	defer func() { waitFor(t, "the job's end", func() bool { return os.Remove(job) == nil }) }()
	// One of those that this process may use itself.
	cpu := last(procField(t, "Cpus_allowed_list"))
	must(t, os.WriteFile(job+"/cpuset.cpus", []byte(cpu), 0))
	must(t, os.WriteFile(job+"/cpuset.mems", []byte(procField(t, "Mems_allowed_list")), 0))

	out := t.TempDir()
	must(t, os.Chmod(out, 0o777))
	req := newRequest(t, newID(), "grep Cpus_allowed_list /proc/self/status >/out/cpus; sleep 600")
	path, err := cgroups.Placement{Parent: "/" + cgroupParent}.Path(newID(), "")
	must(t, err)
	req.CgroupsPath = path
	req.Mounts = []oci.Mount{{Source: out, Target: "/out"}}
	s := newSupervision(t, req)
	cmd, lines := s.startIn(t, job)
	for _, want := range []string{"created\n", "started\n"} {
		if line, err := lines.ReadString('\n'); line != want {
			t.Fatalf("got %q, %v; want %q", line, err, want)
		}
	}
	waitFor(t, "the command", func() bool { b, _ := os.ReadFile(out + "/cpus"); return strings.HasSuffix(string(b), "\n") })
	if got, _ := os.ReadFile(out + "/cpus"); string(got) != "Cpus_allowed_list:\t"+cpu+"\n" {
		t.Errorf("the container has %q, and should have CPU %s", got, cpu)
	}
	must(t, cmd.Process.Signal(unix.SIGKILL))
	s.waitForDeath(t, "the container")
	s.cleanUp(t)
}

// procField reads a field of this process's /proc/self/status (proc(5)).
func procField(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile("/proc/self/status")
	must(t, err)
	for line := range strings.Lines(string(text)) {
		if v, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.TrimSpace(v)
		}
	}
	t.Fatalf("/proc/self/status has no %s", name)
	return ""
}

// last is the last number of a list such as "0-3,8".
func last(list string) string { return list[strings.LastIndexAny(list, ",-")+1:] }
