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
	const hierarchy = "/sys/fs/cgroup/cpuset"
	if _, err := os.Stat(hierarchy + "/cpuset.cpus"); err != nil {
		t.Skip("no cgroup v1 cpusets: on v2 the container's group is below one that is limited")
	}
	job := filepath.Join(hierarchy, "crunch-oci-job-"+strconv.Itoa(os.Getpid()))
	must(t, os.Mkdir(job, 0o755))
	defer func() { waitFor(t, "the job's end", func() bool { return os.Remove(job) == nil }) }()
	must(t, os.WriteFile(job+"/cpuset.cpus", []byte("1"), 0))
	must(t, os.WriteFile(job+"/cpuset.mems", []byte("0"), 0))

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
	if got, _ := os.ReadFile(out + "/cpus"); string(got) != "Cpus_allowed_list:\t1\n" {
		t.Errorf("the container has %q", got)
	}
	must(t, cmd.Process.Signal(unix.SIGKILL))
	s.waitForDeath(t, "the container")
	s.cleanUp(t)
}
