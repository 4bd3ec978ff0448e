package cgroups

import (
	"fmt"
	"io/fs"
	"path"
	"strings"
)

// Reader reads statistics below the root of a machine: os.DirFS("/") for this
// one, a directory of sample files in tests.
type Reader struct {
	FS fs.FS
}

// Source is where the statistics of one group are read from. The files are
// looked for once, when the Source is made: a group that disappears later
// yields nothing any more, and never a parent's numbers.
type Source struct {
	fsys     fs.FS
	files    map[statFile]string // paths as in fs.FS
	memoryV1 bool                // the memory controller is mounted as v1
}

// statFile names one of the files crunchstat reads, by its role.
type statFile int

const (
	fileCPUMax statFile = iota
	fileCPUSet
	fileCPUAcct
	fileCPUStat
	fileBlkio
	fileIOStat
	fileMemoryStat
	fileMemoryCurrent
	fileSwapCurrent
	fileMemoryLimit
	fileMemoryPeak
	filePIDsCurrent
	filePIDsPeak
	numStatFiles

	// lastNoticed is the last of the files named in log notices.
	lastNoticed = fileSwapCurrent
)

// candidate is one way to find a file: in the hierarchy of controller ("" for
// v2), under one of these names, the first that has content.
type candidate struct {
	role       statFile
	controller string
	names      []string
}

// candidates lists where each value is found on v1 and v2 (the table in
// logs-and-stats.md section 5). A controller mounted as v1 is read there, even
// if v2 is mounted beside it without controllers.
var candidates = []candidate{
	{fileCPUSet, "cpuset", []string{"cpuset.cpus.effective", "cpuset.effective_cpus", "cpuset.cpus"}},
	{fileCPUAcct, "cpuacct", []string{"cpuacct.stat"}},
	{fileBlkio, "blkio", []string{"blkio.throttle.io_service_bytes", "blkio.io_service_bytes"}},
	{fileMemoryStat, "memory", []string{"memory.stat"}},
	{fileMemoryLimit, "memory", []string{"memory.limit_in_bytes"}},
	{fileMemoryPeak, "memory", []string{"memory.max_usage_in_bytes"}},
	{filePIDsCurrent, "pids", []string{"pids.current"}},
	{filePIDsPeak, "pids", []string{"pids.peak"}},
}

var unifiedCandidates = []struct {
	candidate
	v1 string // not read if this controller is mounted as v1
}{
	{candidate{fileCPUMax, "", []string{"cpu.max"}}, "cpu"},
	{candidate{fileCPUSet, "", []string{"cpuset.cpus.effective", "cpuset.cpus"}}, "cpuset"},
	{candidate{fileCPUStat, "", []string{"cpu.stat"}}, "cpuacct"},
	{candidate{fileIOStat, "", []string{"io.stat"}}, "blkio"},
	{candidate{fileMemoryStat, "", []string{"memory.stat"}}, "memory"},
	{candidate{fileMemoryCurrent, "", []string{"memory.current"}}, "memory"},
	{candidate{fileSwapCurrent, "", []string{"memory.swap.current"}}, "memory"},
	{candidate{fileMemoryLimit, "", []string{"memory.max"}}, "memory"},
	{candidate{fileMemoryPeak, "", []string{"memory.peak"}}, "memory"},
	{candidate{filePIDsCurrent, "", []string{"pids.current"}}, "pids"},
	{candidate{filePIDsPeak, "", []string{"pids.peak"}}, "pids"},
}

// Process returns the Source of the groups process pid is in. A file is
// searched in the process's group and then upwards to the root of the
// hierarchy, so that numbers may cover a parent (logs-and-stats.md section 5).
func (r Reader) Process(pid int) (*Source, error) {
	mounts, err := fs.ReadFile(r.FS, "proc/mounts")
	if err != nil {
		return nil, fmt.Errorf("error reading /proc/mounts: %w", err)
	}
	hierarchies := parseMounts(string(mounts))
	b, err := fs.ReadFile(r.FS, fmt.Sprintf("proc/%d/cgroup", pid))
	if err != nil {
		return nil, fmt.Errorf("error reading cgroup file: %w", err)
	}
	groups := groupsOf(string(b))
	// On v2 the nearest group with a cpuset is named here.
	cpuset, _ := fs.ReadFile(r.FS, fmt.Sprintf("proc/%d/cpuset", pid))
	return r.source(hierarchies, func(mount, controller string, role statFile) []string {
		group := aboveLeaf(groups[controller])
		if role == fileCPUSet && controller == "" && strings.HasPrefix(string(cpuset), "/") {
			group = aboveLeaf(strings.TrimSuffix(string(cpuset), "\n"))
		}
		if group == "" {
			return nil
		}
		return upwards(mount, group)
	}), nil
}

// Cgroup returns the Source of c, which must exist. Only its own files are
// read, except that the number of CPUs may come from a parent's cpuset.
//
// Of a group of our own more is known than of any: that it has had no traffic
// yet, if io.stat is empty, and that the v2 group beside v1 controllers is for
// the same processes, whose CPU time it has in microseconds instead of ticks.
func (r Reader) Cgroup(c *Cgroup) *Source {
	dirs := make(map[string]string, len(c.Dirs))
	for controller, dir := range c.Dirs {
		dirs[controller] = strings.TrimPrefix(dir, "/")
	}
	s := r.source(dirs, func(dir, _ string, role statFile) []string {
		if role == fileCPUSet {
			return upwards("", "/"+dir)
		}
		return []string{dir}
	})
	unified, ok := dirs[""]
	if !ok {
		return s
	}
	if _, v1 := dirs["blkio"]; !v1 {
		if file := path.Join(unified, "io.stat"); s.files[fileIOStat] == "" && exists(r.FS, file) {
			s.files[fileIOStat] = file
		}
	}
	// Zero: the processes are in the v1 groups only.
	file := path.Join(unified, "cpu.stat")
	if b, err := fs.ReadFile(r.FS, file); err == nil && keyed(string(b), "usage_usec").N > 0 {
		s.files[fileCPUStat] = file
		delete(s.files, fileCPUAcct)
	}
	return s
}

func exists(fsys fs.FS, name string) bool {
	_, err := fs.Stat(fsys, name)
	return err == nil
}

// source finds the files. hierarchies maps a controller to a directory, of
// which search makes the list of directories to look into.
func (r Reader) source(hierarchies map[string]string, search func(dir, controller string, role statFile) []string) *Source {
	s := &Source{fsys: r.FS, files: make(map[statFile]string)}
	_, s.memoryV1 = hierarchies["memory"]
	find := func(c candidate) {
		dir, ok := hierarchies[c.controller]
		if !ok || s.files[c.role] != "" {
			return
		}
		for _, d := range search(dir, c.controller, c.role) {
			for _, name := range c.names {
				file := path.Join(d, name)
				if b, err := fs.ReadFile(r.FS, file); err == nil && len(b) > 0 && string(b) != "\n" {
					s.files[c.role] = file
					return
				}
			}
		}
	}
	for _, c := range candidates {
		find(c)
	}
	for _, c := range unifiedCandidates {
		if _, v1 := hierarchies[c.v1]; !v1 {
			find(c.candidate)
		}
	}
	return s
}

// Files returns the files from which the values of crunchstat are read, as
// absolute paths, in the order in which crunchstat announces them.
func (s *Source) Files() []string {
	var files []string
	for role := range lastNoticed + 1 {
		if f := s.files[role]; f != "" {
			files = append(files, "/"+f)
		}
	}
	return files
}

// read returns a file's text; ok is false if there is none, or no more.
func (s *Source) read(role statFile) (text string, ok bool) {
	file := s.files[role]
	if file == "" {
		return "", false
	}
	b, err := fs.ReadFile(s.fsys, file)
	return string(b), err == nil
}

// parseMounts finds the cgroup hierarchies in the text of /proc/mounts: each
// controller's mount point, without the leading slash; "" is v2. The first
// mount of a controller counts.
func parseMounts(text string) map[string]string {
	found := make(map[string]string)
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 4 {
			continue
		}
		dir := strings.TrimPrefix(path.Clean(unescapeMount(f[1])), "/")
		switch f[2] {
		case "cgroup2":
			if _, ok := found[""]; !ok {
				found[""] = dir
			}
		case "cgroup":
			for option := range strings.SplitSeq(f[3], ",") {
				if _, ok := found[option]; !ok {
					found[option] = dir
				}
			}
		}
	}
	return found
}

// unescapeMount undoes the octal escapes of /proc/mounts (fstab(5)).
var unescapeMount = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace

// upwards returns the directories from group up to the root of the hierarchy
// mounted at mount, the deepest first. A group outside what is visible here
// ("/../x", from another cgroup namespace) is looked for in the root only.
func upwards(mount, group string) []string {
	var dirs []string
	for g := path.Clean("/" + group); ; g = path.Dir(g) {
		dirs = append(dirs, strings.TrimPrefix(path.Join("/", mount, g), "/"))
		if g == "/" {
			return dirs
		}
	}
}
