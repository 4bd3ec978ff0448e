package cgroups

import (
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
)

// Features tells which limits this node can enforce.
type Features struct {
	Memory   bool // RAM
	Swap     bool // memory and swap together; without it, swap comes on top
	CPUQuota bool // CFS bandwidth
	PIDs     bool // number of processes and threads
}

// Features looks at the mounted hierarchies. The controllers of v1 hierarchies
// count whatever v2 has, and the other way round.
func (r Reader) Features() (Features, error) {
	mounts, err := fs.ReadFile(r.FS, "proc/mounts")
	if err != nil {
		return Features{}, fmt.Errorf("find cgroup controllers: %w", err)
	}
	hierarchies := parseMounts(string(mounts))
	has := func(controller, file string) bool {
		dir, ok := hierarchies[controller]
		if !ok {
			return false
		}
		_, err := fs.Stat(r.FS, path.Join(dir, file))
		return err == nil
	}
	f := Features{
		Memory:   has("memory", "memory.limit_in_bytes"),
		Swap:     has("memory", "memory.memsw.limit_in_bytes"),
		CPUQuota: has("cpu", "cpu.cfs_quota_us"),
		PIDs:     has("pids", ""),
	}
	if root, ok := hierarchies[""]; ok {
		text, _ := fs.ReadFile(r.FS, path.Join(root, "cgroup.controllers"))
		controllers := strings.Fields(string(text))
		f.CPUQuota = f.CPUQuota || slices.Contains(controllers, "cpu")
		f.PIDs = f.PIDs || slices.Contains(controllers, "pids")
		if slices.Contains(controllers, "memory") {
			f.Memory = true
			f.Swap = r.swapAccounting(root)
		}
	}
	return f, nil
}

// swapAccounting looks for memory.swap.max in this process's group, since the
// root group has no limits. Without a group to look at it is taken for granted,
// as the kernel's default is.
func (r Reader) swapAccounting(root string) bool {
	self, err := fs.ReadFile(r.FS, "proc/self/cgroup")
	group := path.Clean("/" + groupsOf(string(self))[""])
	if err != nil || group == "/" {
		return true
	}
	dir := path.Join(root, group)
	if _, err := fs.Stat(r.FS, path.Join(dir, "memory.max")); err != nil {
		return true
	}
	_, err = fs.Stat(r.FS, path.Join(dir, "memory.swap.max"))
	return err == nil
}
