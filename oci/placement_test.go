package oci_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"crunch-oci/cgroups"
)

// Below the supervisor's own group of one hierarchy, as under Slurm: where the
// path does not exist in another hierarchy it is made, and removed after.
func TestBelowOwnGroupOfOneHierarchy(t *testing.T) {
	self, err := os.ReadFile("/proc/self/cgroup")
	must(t, err)
	own, err := cgroups.ParentOf(string(self), "memory")
	must(t, err)
	leave, err := cgroups.Vacate(own) // does nothing but on v2
	must(t, err)
	defer func() { must(t, leave()) }()
	id := newID()
	req := newRequest(t, id, "cat /proc/self/cgroup")
	req.CgroupsPath, err = cgroups.Placement{Subsystem: "memory"}.Path(id, string(self))
	must(t, err)
	existed := make(map[string]bool)
	roots, err := filepath.Glob("/sys/fs/cgroup/*")
	must(t, err)
	for _, root := range roots {
		_, err := os.Stat(root + own)
		existed[root] = err == nil
	}
	b, status := run(t, req, nil)
	if status.Code != 0 {
		t.Fatalf("exit %v, %q", status, b.stderr)
	}
	for line := range strings.Lines(b.stdout.String()) {
		if f := strings.SplitN(strings.TrimSpace(line), ":", 3); f[2] != filepath.Join(own, id) && !cgroups.Unified() {
			t.Errorf("container is in %q, want %s everywhere", line, filepath.Join(own, id))
		}
	}
	b.delete()
	for root, existed := range existed {
		if existed { // as ours does, or while somebody else's container uses it
			continue
		}
		waitFor(t, "the removal of "+root+own, func() bool { _, err := os.Stat(root + own); return err != nil })
	}
}
