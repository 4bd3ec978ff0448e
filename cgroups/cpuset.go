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

// KeepCPUs keeps the group, after Create and before a process is in it, to the CPUs
// and memory nodes that this process may use: below a parent that is somebody
// else's, a batch system's job would otherwise get out of its cpuset. A group below
// this process's own is kept to them by the kernel.
func (c *Cgroup) KeepCPUs() error {
	status, err := os.ReadFile("/proc/thread-self/status")
	if err != nil {
		return fmt.Errorf("keep to this process's CPUs: %w", err)
	}
	keep, dir := keepTo, c.Dirs["cpuset"]
	if dir == "" { // v2, if it has the controller
		keep, dir = keepUnifiedTo, c.Dirs[""]
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
		if err := keep(dir, file, own); err != nil {
			return fmt.Errorf("keep to this process's CPUs: %w", err)
		}
	}
	return nil
}

// keepUnifiedTo is keepTo for v2, where a group without a list of its own has its
// parent's, and has the files only if its parents pass the controller on. It does
// nothing where the group could not use more anyway.
func keepUnifiedTo(dir, file, own string) error {
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
	return os.WriteFile(filepath.Join(dir, file), []byte(showList(both)), 0)
}

// passCPUSetOn makes the v2 groups from one that has the controller down to another
// give it to their children.
func passCPUSetOn(from, to string) error {
	if to != from {
		if err := passCPUSetOn(from, filepath.Dir(to)); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(to, "cgroup.subtree_control"), []byte("+cpuset"), 0)
}

// keepTo sets file of the group dir to what both its parent and own have. Groups
// on the way that have nothing yet, as new ones have, get what their parents have.
func keepTo(dir, file, own string) error {
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
	return os.WriteFile(filepath.Join(dir, file), []byte(showList(both)), 0)
}

// inheritedList is what dir has in file, or gets from the groups above. It ends
// above the root of the hierarchy, where there is no such file.
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
	return list, os.WriteFile(filepath.Join(dir, file), []byte(showList(list)), 0)
}

// parseList reads a list of numbers as cpuset(7) writes it: "0-3,8".
func parseList(text string) (list []int, err error) {
	const most = 1 << 16
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
		if err1 != nil || err2 != nil || a < 0 || b < a || b > most {
			return nil, fmt.Errorf("%q is not a list of numbers", text)
		}
		for n := a; n <= b; n++ {
			list = append(list, n)
		}
	}
	return list, nil
}

func showList(list []int) string {
	words := make([]string, len(list))
	for i, n := range list {
		words[i] = strconv.Itoa(n)
	}
	return strings.Join(words, ",")
}
