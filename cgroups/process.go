package cgroups

import (
	"fmt"
	"io/fs"
	"strconv"
	"strings"
)

// Interface is the traffic of one network interface, in bytes.
type Interface struct {
	Name   string
	Rx, Tx uint64
}

// Interfaces reads the counters of the network interfaces process pid sees,
// without the loopback interface, in the kernel's order.
func (r Reader) Interfaces(pid int) ([]Interface, error) {
	b, err := fs.ReadFile(r.FS, fmt.Sprintf("proc/%d/net/dev", pid))
	if err != nil {
		return nil, fmt.Errorf("read network counters: %w", err)
	}
	return parseNetDev(string(b)), nil
}

// parseNetDev parses /proc/<pid>/net/dev: a name, a colon, and 16 numbers of
// which the first is bytes received and the ninth bytes sent (proc(5)).
func parseNetDev(text string) []Interface {
	var all []Interface
	for line := range strings.Lines(text) {
		name, numbers, ok := strings.Cut(line, ":")
		name = strings.TrimSpace(name)
		f := strings.Fields(numbers)
		if !ok || name == "lo" || name == "" || len(f) != 16 {
			continue
		}
		rx, err1 := strconv.ParseUint(f[0], 10, 64)
		tx, err2 := strconv.ParseUint(f[8], 10, 64)
		if err1 == nil && err2 == nil {
			all = append(all, Interface{Name: name, Rx: rx, Tx: tx})
		}
	}
	return all
}

// PageSize reads the size of a memory page, in bytes, from
// /proc/self/smaps (KernelPageSize of the first mapping).
func (r Reader) PageSize() (uint64, error) {
	b, err := fs.ReadFile(r.FS, "proc/self/smaps")
	if err != nil {
		return 0, fmt.Errorf("error reading /proc/self/smaps: %w", err)
	}
	for line := range strings.Lines(string(b)) {
		rest, ok := strings.CutPrefix(line, "KernelPageSize:")
		if !ok {
			continue
		}
		kb, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 32)
		if err == nil {
			return kb << 10, nil
		}
	}
	return 0, fmt.Errorf("error reading /proc/self/smaps: no KernelPageSize")
}

// ResidentPages reads the number of resident pages of process pid. The error
// is fs.ErrNotExist if it is gone.
func (r Reader) ResidentPages(pid int) (uint64, error) {
	s, err := parseStat(r.FS, pid)
	return s.rss, err
}

// stat holds what is used of /proc/<pid>/stat.
type stat struct {
	state string // a letter, proc_pid_stat(5)
	rss   uint64 // pages
}

func parseStat(fsys fs.FS, pid int) (stat, error) {
	file := fmt.Sprintf("proc/%d/stat", pid)
	b, err := fs.ReadFile(fsys, file)
	if err != nil {
		return stat{}, err
	}
	// The second field is the name in parentheses, which may itself contain
	// spaces and parentheses.
	text := string(b)
	f := strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
	const state, rss = 3, 24 // numbered from 1, as in the manual page
	if len(f) < rss-2 {
		return stat{}, fmt.Errorf("%s: too few fields", file)
	}
	n, err := strconv.ParseUint(f[rss-state], 10, 64)
	if err != nil {
		return stat{}, fmt.Errorf("%s: resident pages: %w", file, err)
	}
	return stat{state: f[0], rss: n}, nil
}
