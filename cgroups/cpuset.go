package cgroups

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// InheritCPUs restricts the group to the CPUs and memory nodes that this process may
// use. It is for a group that is not below this process's own, where the kernel sees
// to it: the job of a batch system would otherwise get out of its cpuset. It must be
// called after Create and before a process is in the group.
func (c *Cgroup) InheritCPUs() error {
	status, err := os.ReadFile("/proc/thread-self/status")
	if err != nil {
		return fmt.Errorf("restrict to this process's CPUs: %w", err)
	}
	restrict, dir := restrictV1, c.Dirs["cpuset"]
	if dir == "" { // v2, if it has the controller
		restrict, dir = restrictV2, c.Dirs[""]
	}
	if dir == "" {
		return nil
	}
	for file, field := range map[string]string{"cpuset.cpus": "Cpus_allowed_list:", "cpuset.mems": "Mems_allowed_list:"} {
		own := ""
		for line := range strings.Lines(string(status)) {
			if v, ok := strings.CutPrefix(line, field); ok {
				own = strings.TrimSpace(v)
			}
		}
		if err := restrict(dir, file, own); err != nil {
			return fmt.Errorf("restrict to this process's CPUs: %w", err)
		}
	}
	return nil
}

// restrictV2 is restrictV1 for cgroup v2. There a group without a list of its own has
// its parent's, and has the files only if all groups above it enable the controller
// in cgroup.subtree_control. Nothing is changed if the parent has no more than own.
func restrictV2(dir, file, own string) error {
	above := filepath.Dir(dir)
	text, err := os.ReadFile(filepath.Join(above, file+".effective"))
	for errors.Is(err, fs.ErrNotExist) && above != filepath.Dir(above) {
		above = filepath.Dir(above)
		text, err = os.ReadFile(filepath.Join(above, file+".effective"))
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil // a hierarchy, or a kernel, without the controller
	}
	if err != nil {
		return err
	}
	effective, err := parseList(string(text))
	if err != nil {
		return fmt.Errorf("%s.effective: %w", file, err)
	}
	mine, err := parseList(own)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	both := slices.DeleteFunc(slices.Clone(effective), func(n int) bool { return !slices.Contains(mine, n) })
	if len(both) == 0 || len(both) == len(effective) {
		return nil
	}
	if err := passCPUSetOn(above, filepath.Dir(dir)); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, file), []byte(formatList(both)), 0)
}

// passCPUSetOn enables the cpuset controller for the children of the v2 group from,
// which has it, and of all groups on the way down to the group to.
func passCPUSetOn(from, to string) error {
	if to != from {
		if err := passCPUSetOn(from, filepath.Dir(to)); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(to, "cgroup.subtree_control"), []byte("+cpuset"), 0)
}

// restrictV1 sets file (cpuset.cpus or cpuset.mems) of the group dir to what is both
// in its parent's and in own. On v1 a new group's file is empty; groups above dir
// with an empty one get their parent's.
func restrictV1(dir, file, own string) error {
	parent, err := inheritedList(filepath.Dir(dir), file)
	if err != nil {
		return err
	}
	mine, err := parseList(own)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	both := slices.DeleteFunc(slices.Clone(parent), func(n int) bool { return !slices.Contains(mine, n) })
	if len(both) == 0 {
		both = parent
	}
	return os.WriteFile(filepath.Join(dir, file), []byte(formatList(both)), 0)
}

// inheritedList returns the list that dir has in file. An empty file is filled first,
// from the groups above: the root of the hierarchy always has a list.
func inheritedList(dir, file string) ([]int, error) {
	text, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		return nil, err
	}
	if list, err := parseList(string(text)); err != nil || len(list) > 0 {
		return list, err
	}
	list, err := inheritedList(filepath.Dir(dir), file)
	if err != nil {
		return nil, err
	}
	return list, os.WriteFile(filepath.Join(dir, file), []byte(formatList(list)), 0)
}

// parseList parses a list of numbers in the format of cpuset(7): "0-3,8".
func parseList(text string) (list []int, err error) {
	const most = 1 << 16 // numbers; more is nonsense, and must not take memory
	for part := range strings.SplitSeq(strings.TrimSpace(text), ",") {
		if part == "" {
			continue
		}
		from, to, isRange := strings.Cut(part, "-")
		if !isRange {
			to = from
		}
		a, err1 := strconv.Atoi(from)
		b, err2 := strconv.Atoi(to)
		if err1 != nil || err2 != nil || a < 0 || b < a || b-a >= most-len(list) {
			return nil, fmt.Errorf("%q is not a list of numbers", text)
		}
		for n := a; n <= b; n++ {
			list = append(list, n)
		}
	}
	return list, nil
}

// formatList is the inverse of parseList.
func formatList(list []int) string {
	words := make([]string, len(list))
	for i, n := range list {
		words[i] = strconv.Itoa(n)
	}
	return strings.Join(words, ",")
}
