package cgroups

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
)

// DefaultParent is where containers' cgroups live unless a site says
// otherwise.
const DefaultParent = "/crunch-run"

// Placement says below which cgroup a container's own cgroup is made.
type Placement struct {
	// Parent is an absolute path in every hierarchy, or a relative one, which
	// means below this process's own group in each hierarchy (on v2: beside
	// it, because a group with processes cannot have children with
	// controllers). Empty means DefaultParent.
	Parent string
	// Subsystem, if not empty, wins over Parent: the parent is this process's
	// own group in the v1 hierarchy of that controller, or in v2.
	Subsystem string
}

// Path returns the cgroupsPath (OCI runtime spec, linux.cgroupsPath) of a
// container called name. procSelfCgroup is the text of /proc/self/cgroup; it
// is used only with Subsystem.
func (p Placement) Path(name, procSelfCgroup string) (string, error) {
	if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00\n") {
		return "", fmt.Errorf("cgroup name %q is not a single path element", name)
	}
	parent := p.Parent
	switch {
	case p.Subsystem != "":
		own, err := ParentOf(procSelfCgroup, p.Subsystem)
		if err != nil {
			return "", err
		}
		parent = aboveLeaf(own)
	case parent == "":
		parent = DefaultParent
	}
	if slices.Contains(strings.Split(parent, "/"), "..") {
		return "", fmt.Errorf("cgroup parent %q leaves the hierarchy: name a path without \"..\"", parent)
	}
	return path.Join(parent, name), nil
}

// ParentOf returns the calling process's own cgroup as far as subsystem is
// concerned: the path of the first line of procSelfCgroup, in file order, that
// is a v1 line with subsystem among its controllers, or the v2 line ("0::"),
// whatever the subsystem's name then (lifecycle.md section 12).
//
// The path is everything after the second colon: cgroup names may contain
// colons (cgroups(7)).
func ParentOf(procSelfCgroup, subsystem string) (string, error) {
	for line := range strings.Lines(procSelfCgroup) {
		id, controllers, group, err := parseCgroupLine(strings.TrimSuffix(line, "\n"))
		if err != nil {
			continue
		}
		if id == "0" && controllers == "" {
			return group, nil
		}
		if subsystem != "" && slices.Contains(strings.Split(controllers, ","), subsystem) {
			return group, nil
		}
	}
	return "", fmt.Errorf("subsystem %q not found in /proc/self/cgroup", subsystem)
}

var errCgroupLine = errors.New("not of the form id:controllers:path")

// parseCgroupLine splits a line of /proc/<pid>/cgroup.
func parseCgroupLine(line string) (id, controllers, group string, err error) {
	f := strings.SplitN(line, ":", 3)
	if len(f) != 3 || !strings.HasPrefix(f[2], "/") {
		return "", "", "", errCgroupLine
	}
	return f[0], f[1], f[2], nil
}

// groupsOf maps each controller named in the text of /proc/<pid>/cgroup to the
// process's group in that controller's hierarchy; "" is the v2 hierarchy.
func groupsOf(procCgroup string) map[string]string {
	groups := make(map[string]string)
	for line := range strings.Lines(procCgroup) {
		_, controllers, group, err := parseCgroupLine(strings.TrimSuffix(line, "\n"))
		if err != nil {
			continue
		}
		for c := range strings.SplitSeq(controllers, ",") {
			groups[c] = group
		}
	}
	return groups
}
