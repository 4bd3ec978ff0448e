package nodecheck

import (
	"os"
	"strings"

	"crunch-oci/cgroups"
)

func fields(text string) []string { return strings.Fields(text) }

// controlGroups says which limits can be enforced. Whether groups can be made
// shows when a container is run.
func controlGroups(c *checker) {
	mounts, err := os.ReadFile("/proc/mounts")
	if err != nil {
		c.fail("mount /proc", "%v", err)
		return
	}
	v1, v2 := 0, 0
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 2 {
			switch f[2] {
			case "cgroup":
				v1++
			case "cgroup2":
				v2++
			}
		}
	}
	version := "v2"
	switch {
	case v1 == 0 && v2 == 0:
		c.fail("mount -t cgroup2 cgroup2 /sys/fs/cgroup", "no cgroup file system is mounted: containers can neither be limited nor be ended reliably")
		return
	case v1 > 0 && v2 > 0:
		version = "v1 and v2 (hybrid)"
	case v1 > 0:
		version = "v1"
	}
	features, err := cgroups.Reader{FS: os.DirFS("/")}.Features()
	if err != nil {
		c.fail("", "%v", err)
		return
	}
	c.ok("%s", version)
	for _, f := range []struct {
		there        bool
		what, advice string
	}{
		{features.Memory, "memory is not limited: a container can take all of this node's", "boot with cgroup_enable=memory; on v2 see /sys/fs/cgroup/cgroup.controllers"},
		{features.CPUQuota, "CPU use is not limited", "use a kernel with CONFIG_CFS_BANDWIDTH, and mount the cpu controller"},
		{features.PIDs, "the number of processes is not limited: a fork bomb takes the node down", "use a kernel with CONFIG_CGROUP_PIDS, and mount the pids controller"},
		{features.Swap || !features.Memory || !hasSwap(), "swap is not limited: containers may use it on top of their memory", "boot with swapaccount=1, or switch swap off"},
	} {
		if !f.there {
			c.warn(f.advice, "%s", f.what)
		}
	}
}

// hasSwap tells whether the node has any.
func hasSwap() bool {
	text, err := os.ReadFile("/proc/swaps")
	return err == nil && strings.Count(string(text), "\n") > 1
}
