// Package kernel reads statistics from the kernel: control groups, /proc and
// file systems as a source for package stats. Which file holds what is the
// business of package cgroups.
package kernel

import (
	"fmt"
	"io/fs"
	"math"
	"os"

	"crunch-oci/cgroups"
	"crunch-oci/supervisor/stats"

	"golang.org/x/sys/unix"
)

// Options say what is looked at.
type Options struct {
	// FS is the root of the machine; nil means that of this one.
	FS fs.FS
	// PID is a process in the group; its network interfaces are reported. 0
	// means no process.
	PID int
	// Cgroup is the group, if it is known; it must exist. Otherwise it is
	// where process PID is, and numbers may cover a parent.
	Cgroup *cgroups.Cgroup
	// Processes are reported by name, as they are when it is called; a
	// process that is not there any more is left out. Nil means none.
	Processes func() map[string]int
	// TempDir is a directory whose file system is reported; "" means none.
	TempDir string
}

// Sources returns where the numbers come from. What is missing is named in
// their notices, or simply not reported.
func Sources(o Options) stats.Sources {
	if o.FS == nil {
		o.FS = os.DirFS("/")
	}
	r := &reader{Options: o, files: cgroups.Reader{FS: o.FS}}
	s := stats.Sources{
		Memory:    r.memory,
		CPU:       r.cpu,
		Disks:     r.disks,
		Networks:  r.networks,
		Processes: r.processes,
	}
	notice := func(format string, args ...any) { s.Notices = append(s.Notices, fmt.Sprintf(format, args...)) }
	if o.Cgroup != nil {
		r.group = r.files.Cgroup(o.Cgroup)
	} else if group, err := r.files.Process(o.PID); err != nil {
		notice("%v", err)
	} else {
		r.group = group
	}
	if r.group != nil {
		for _, file := range r.group.Files() {
			notice("notice: reading stats from %s", file)
		}
	}
	if o.PID > 0 {
		if _, err := r.files.Interfaces(o.PID); err == nil {
			notice("using /proc/%d/net/dev", o.PID)
		}
	}
	if o.TempDir != "" {
		s.Filesystem = r.filesystem
		notice("notice: monitoring temp dir %s", o.TempDir)
	}
	return s
}

type reader struct {
	Options
	files    cgroups.Reader
	group    *cgroups.Source // nil if it was not found
	pageSize uint64          // once it has been needed
}

func (r *reader) memory() stats.Memory {
	if r.group == nil {
		return stats.Memory{}
	}
	g := r.group.Memory()
	m := stats.Memory{
		Cache:      value(g.Cache),
		Swap:       value(g.Swap),
		RSS:        value(g.RSS),
		PgMajFault: value(g.MajorFaults),
	}
	// v1's peak counts the page cache, which v1's RSS does not: it would not
	// be a maximum of the same thing.
	if !m.Cache.Known {
		m.PeakRSS = value(g.Peak)
	}
	return m
}

func (r *reader) cpu() stats.CPU {
	if r.group == nil {
		return stats.CPU{}
	}
	c := r.group.CPU()
	return stats.CPU{User: c.User, System: c.System, CPUs: c.Count, Known: c.Known}
}

func (r *reader) disks() (list []stats.DiskIO) {
	if r.group == nil {
		return nil
	}
	for _, d := range r.group.IO() {
		list = append(list, stats.DiskIO{Device: d.Device, Written: int64(d.Write), Read: int64(d.Read)})
	}
	return list
}

func (r *reader) networks() (list []stats.NetIO) {
	if r.PID <= 0 {
		return nil
	}
	// The error is that of a process that has gone.
	all, _ := r.files.Interfaces(r.PID)
	for _, i := range all {
		list = append(list, stats.NetIO{Interface: i.Name, Sent: int64(i.Tx), Received: int64(i.Rx)})
	}
	return list
}

func (r *reader) processes() (list []stats.Process, err error) {
	if r.pageSize == 0 {
		if r.pageSize, err = r.files.PageSize(); err != nil {
			return nil, err
		}
	}
	if r.Processes == nil {
		return nil, nil
	}
	for name, pid := range r.Processes() {
		pages, err := r.files.ResidentPages(pid)
		if err != nil || pages == 0 { // gone, or waited for in vain
			continue
		}
		list = append(list, stats.Process{Name: name, RSS: int64(pages * r.pageSize)})
	}
	return list, nil
}

func (r *reader) filesystem() (stats.Filesystem, bool) {
	var s unix.Statfs_t
	if err := unix.Statfs(r.TempDir, &s); err != nil {
		return stats.Filesystem{}, false
	}
	size := uint64(s.Bsize)
	if s.Frsize > 0 {
		size = uint64(s.Frsize) // the unit of the block counts, statfs(2)
	}
	return stats.Filesystem{
		Available: int64(s.Bavail * size),
		Used:      int64((s.Blocks - s.Bfree) * size),
		Total:     int64(s.Blocks * size),
	}, true
}

func value(n cgroups.Number) stats.Value {
	if n.N > math.MaxInt64 {
		return stats.Value{}
	}
	return stats.Value{N: int64(n.N), Known: n.Known}
}
