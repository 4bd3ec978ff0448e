package cgroups

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// PIDLimit returns how many processes and threads the group has, and how many it
// may have; false if they are not counted here, or not limited. Limits of the
// groups above it are not looked at.
func (c *Cgroup) PIDLimit() (current, limit uint64, limited bool) {
	var numbers [2]uint64
	for i, name := range []string{"pids.current", "pids.max"} {
		text, err := c.readPIDs(name)
		if err != nil {
			return 0, 0, false
		}
		if numbers[i], err = strconv.ParseUint(strings.TrimSpace(text), 10, 64); err != nil {
			return 0, 0, false // "max"
		}
	}
	return numbers[0], numbers[1], true
}

// PIDRefusals returns how often a process or thread could not be made because of
// the limit; 0 also where the kernel does not count it.
func (c *Cgroup) PIDRefusals() uint64 {
	text, err := c.readPIDs("pids.events")
	if err != nil {
		return 0
	}
	n, _ := flatKeyed(text, "max")
	return n
}

func (c *Cgroup) readPIDs(name string) (string, error) {
	dir, ok := c.Dirs["pids"]
	if !ok {
		dir, ok = c.Dirs[""]
	}
	if !ok {
		return "", ErrNotSupported
	}
	b, err := os.ReadFile(filepath.Join(dir, name))
	return string(b), err
}
