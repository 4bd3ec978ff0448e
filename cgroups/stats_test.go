package cgroups

import (
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"
)

type crunchstatVector struct {
	Name    string            `json:"name"`
	PID     int               `json:"pid"`
	Files   map[string]string `json:"files"`
	Changes map[string]string `json:"second_sample_changes"`
	PIDs    map[string]int    `json:"report_pids"`
	First   []string          `json:"first_sample_lines"`
	Second  []string          `json:"second_sample_lines"`
}

// The vectors are the lines of crunchstat; what they say about the numbers is
// compared here with what this package reads. (The lines themselves are
// somebody else's, so the form is written down once more, in this test only.)
func TestCrunchstatVectors(t *testing.T) {
	var vectors struct {
		Crunchstat []crunchstatVector `json:"crunchstat"`
	}
	readJSON(t, "../testdata/spec/logs-and-stats.json", &vectors)
	if len(vectors.Crunchstat) == 0 {
		t.Fatal("no vectors")
	}
	for _, v := range vectors.Crunchstat {
		t.Run(v.Name, func(t *testing.T) {
			fsys := fstest.MapFS{}
			for name, text := range v.Files {
				fsys[name] = &fstest.MapFile{Data: []byte(text)}
			}
			r := Reader{FS: fsys}
			source, err := r.Process(v.PID)
			if err != nil {
				source = &Source{fsys: fstest.MapFS{}}
			}
			compareLines(t, "first", append(notices(source, v.PID, fsys), lines(r, source, v)...), v.First, true)
			for name, text := range v.Changes {
				fsys[name] = &fstest.MapFile{Data: []byte(text)}
			}
			compareLines(t, "second", lines(r, source, v), v.Second, false)
		})
	}
}

func notices(s *Source, pid int, fsys fstest.MapFS) []string {
	var out []string
	for _, f := range s.Files() {
		out = append(out, "notice: reading stats from "+f)
	}
	if name := fmt.Sprintf("proc/%d/net/dev", pid); fsys[name] != nil {
		out = append(out, "using /"+name)
	}
	return out
}

func lines(r Reader, s *Source, v crunchstatVector) []string {
	var out []string
	st := s.Stats()
	mem := "mem"
	for _, f := range []struct {
		name string
		n    Number
	}{{"cache", st.Memory.Cache}, {"swap", st.Memory.Swap}, {"pgmajfault", st.Memory.MajorFaults}, {"rss", st.Memory.RSS}} {
		if f.n.Known {
			mem += fmt.Sprintf(" %d %s", f.n.N, f.name)
		}
	}
	out = append(out, mem)
	if size, err := r.PageSize(); err != nil {
		out = append(out, err.Error())
	} else {
		procmem := "procmem"
		for _, name := range slices.Sorted(mapKeys(v.PIDs)) {
			if pages, err := r.ResidentPages(v.PIDs[name]); err == nil {
				procmem += fmt.Sprintf(" %d %s", pages*size, name)
			}
		}
		if procmem != "procmem" {
			out = append(out, procmem)
		}
	}
	out = append(out, fmt.Sprintf("cpu %.4f user %.4f sys %.2f cpus", st.CPU.User.Seconds(), st.CPU.System.Seconds(), st.CPU.Count))
	for _, d := range st.IO {
		out = append(out, fmt.Sprintf("blkio:%s %d write %d read", d.Device, d.Write, d.Read))
	}
	interfaces, _ := r.Interfaces(v.PID)
	for _, i := range interfaces {
		out = append(out, fmt.Sprintf("net:%s %d tx %d rx", i.Name, i.Tx, i.Rx))
	}
	return out
}

func mapKeys(m map[string]int) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// compareLines ignores intervals, which this package does not know, and, after
// the first sample, messages that are printed once.
func compareLines(t *testing.T, which string, got, want []string, messages bool) {
	t.Helper()
	cut := func(in []string) (out []string) {
		for _, l := range in {
			l, _, _ = strings.Cut(l, " -- interval")
			if !messages && strings.HasPrefix(l, "error ") {
				continue
			}
			out = append(out, l)
		}
		return out
	}
	if got, want := cut(got), cut(want); !slices.Equal(got, want) {
		t.Errorf("%s sample:\n%s\nwant:\n%s", which, strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestReaderOfCgroup(t *testing.T) {
	v1 := fstest.MapFS{
		"cg/memory/a/memory.stat":                  file("cache 1\nrss 2\n"),
		"cg/memory/a/memory.limit_in_bytes":        file("1000\n"),
		"cg/memory/a/memory.max_usage_in_bytes":    file("900\n"),
		"cg/pids/a/pids.current":                   file("3\n"),
		"cg/cpuset/cpuset.cpus":                    file("0-1\n"),
		"cg/blkio/blkio.throttle.io_service_bytes": file("8:0 Read 9\n8:0 Write 9\n"),
		"cg/unified/a/cpu.stat":                    file("usage_usec 11\nuser_usec 5\nsystem_usec 6\n"),
		"cg/idle/cpu.stat":                         file("usage_usec 0\nuser_usec 0\nsystem_usec 0\n"),
		"cg/cpuacct/a/cpuacct.stat":                file("user 100\nsystem 50\n"),
		"cg/nolimit/memory/memory.limit_in_bytes":  file("9223372036854771712\n"),
		"cg/nolimit/memory/memory.stat":            file("total_rss 1\n"),
		"cg/v2/memory.current":                     file("77\n"),
		"cg/v2/memory.max":                         file("max\n"),
		"cg/v2/memory.peak":                        file("99\n"),
		"cg/v2/io.stat":                            file("8:0 rbytes=1 wbytes=2\n"),
		"cg/v2/cpu.max":                            file("50000 100000\n"),
		"cg/v2/cpu.stat":                           file("user_usec 1500000\nsystem_usec 1\n"),
		"cg/v2/pids.current":                       file("1\n"),
		"cg/v2/pids.peak":                          file("8\n"),
		"cg/nomemstat/memory.current":              file("5\n"),
		"cg/garbage/memory.stat":                   file("rss x\nrss\n\x00"),
		"cg/garbage/cpuacct.stat":                  file("user -1\nsystem 1\n"),
		"cg/garbage/cpuset.cpus":                   file("4-1,x\n"),
		"cg/garbage/blkio.io_service_bytes":        file("8:0\n8:x Read 1\n8:0 Read 18446744073709551616\nTotal 3\n"),
		"cg/garbage/memory.limit_in_bytes":         file("lots"),
		"cg/huge/cpuset.cpus":                      file(strings.Repeat("0-65535,", 9) + "1"),
		"proc/cpuinfo":                             file("processor\t: 0\nprocessor\t: 1\nprocessor\t: 2\n"),
		"cg/empty/placeholder":                     file(""),
		"cg/unified/a/memory.current":              file("4\n"),
		"cg/unified/a/io.stat":                     file("8:0 rbytes=1 wbytes=2\n"),
		"cg/cpuset/a/cpuset.cpus":                  file("\n"),
	}
	for _, tc := range []struct {
		name string
		dirs map[string]string
		want Stats
	}{
		{
			"hybrid: v1 controllers win except for the CPU time, parents' numbers are not taken, except the cpuset",
			map[string]string{"memory": "/cg/memory/a", "pids": "/cg/pids/a", "cpuset": "/cg/cpuset/a", "blkio": "/cg/blkio/a", "cpuacct": "/cg/cpuacct/a", "": "/cg/unified/a"},
			Stats{
				Memory: Memory{RSS: known(2), Cache: known(1), Limit: known(1000), Peak: known(900)},
				CPU:    CPU{User: 5 * time.Microsecond, System: 6 * time.Microsecond, Known: true, Count: 2},
				PIDs:   PIDs{Current: known(3)},
			},
		},
		{
			"hybrid, and nobody is in the v2 group",
			map[string]string{"cpuset": "/cg/cpuset/a", "cpuacct": "/cg/cpuacct/a", "": "/cg/idle"},
			Stats{CPU: CPU{User: time.Second, System: time.Second / 2, Known: true, Count: 2}},
		},
		{
			"v1 without limit",
			map[string]string{"memory": "/cg/nolimit/memory"},
			Stats{Memory: Memory{RSS: known(1)}, CPU: CPU{Count: 3}},
		},
		{
			"v2",
			map[string]string{"": "/cg/v2"},
			Stats{
				Memory: Memory{RSS: known(77), Peak: known(99)},
				CPU:    CPU{User: 1500 * time.Millisecond, System: time.Microsecond, Known: true, Count: 0.5},
				IO:     []DeviceIO{{"8:0", 1, 2}},
				PIDs:   PIDs{Current: known(1), Peak: known(8)},
			},
		},
		{
			"v2 without memory.stat still reports memory",
			map[string]string{"": "/cg/nomemstat"},
			Stats{Memory: Memory{RSS: known(5)}, CPU: CPU{Count: 3}},
		},
		{
			"nonsense is unknown",
			map[string]string{"memory": "/cg/garbage", "cpuacct": "/cg/garbage", "cpuset": "/cg/garbage", "blkio": "/cg/garbage"},
			Stats{CPU: CPU{Count: 3}},
		},
		{
			"impossible cpuset",
			map[string]string{"cpuset": "/cg/huge"},
			Stats{CPU: CPU{Count: 3}},
		},
		{"nothing there", map[string]string{"memory": "/cg/empty", "": "/cg/empty"}, Stats{CPU: CPU{Count: 3}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := Reader{FS: v1}.Cgroup(&Cgroup{Dirs: tc.dirs}).Stats()
			if fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", tc.want) {
				t.Errorf("got  %+v\nwant %+v", got, tc.want)
			}
		})
	}
}

// io.stat is empty until the group's first traffic.
func TestTrafficBeginsLater(t *testing.T) {
	fsys := fstest.MapFS{"cg/a/io.stat": file(""), "cg/io.stat": file("8:0 rbytes=9 wbytes=9\n")}
	s := Reader{FS: fsys}.Cgroup(&Cgroup{Dirs: map[string]string{"": "/cg/a"}})
	if got := s.IO(); len(got) != 0 {
		t.Errorf("%+v", got)
	}
	if got := s.Files(); !slices.Equal(got, []string{"/cg/a/io.stat"}) {
		t.Errorf("files %v", got)
	}
	fsys["cg/a/io.stat"] = file("8:0 rbytes=1 wbytes=2\n")
	if got := s.IO(); !slices.Equal(got, []DeviceIO{{"8:0", 1, 2}}) {
		t.Errorf("%+v", got)
	}
}

// When a container is gone, its parent's numbers must not pass for its own.
func TestSourceOfRemovedGroup(t *testing.T) {
	fsys := fstest.MapFS{
		"proc/mounts":                file("cgroup2 /cg cgroup2 rw 0 0\n"),
		"proc/5/cgroup":              file("0::/a/b\n"),
		"cg/a/b/memory.current":      file("1\n"),
		"cg/a/memory.current":        file("1000\n"),
		"cg/a/b/cpu.stat":            file("user_usec 1\nsystem_usec 1\n"),
		"cg/a/cpu.stat":              file("user_usec 1000\nsystem_usec 1000\n"),
		"cg/a/b/memory.swap.current": file("0\n"),
	}
	s, err := Reader{FS: fsys}.Process(5)
	if err != nil {
		t.Fatal(err)
	}
	if got := s.Memory().RSS; got != known(1) {
		t.Fatalf("rss %+v", got)
	}
	delete(fsys, "cg/a/b/memory.current")
	delete(fsys, "cg/a/b/cpu.stat")
	if got := s.Memory().RSS; got.Known {
		t.Errorf("rss of a removed group: %+v", got)
	}
	if got := s.CPU(); got.Known {
		t.Errorf("cpu of a removed group: %+v", got)
	}
}

func TestMountPointsWithSpaces(t *testing.T) {
	fsys := fstest.MapFS{
		"proc/mounts":               file("x /my\\040cg cgroup2 rw 0 0\n"),
		"proc/5/cgroup":             file("0::/a\n"),
		"my cg/a/memory.current":    file("1\n"),
		"proc/5/net/dev":            file("h\n eth0:5 0 0 0 0 0 0 0 6 0 0 0 0 0 0 0\n lo: 5 0 0 0 0 0 0 0 6 0 0 0 0 0 0 0\n bad: 1\n"),
		"proc/6/cgroup":             file("0::/../../elsewhere\n"),
		"my cg/memory.current":      file("9\n"),
		"my cg/memory.swap.current": file("9\n"),
	}
	r := Reader{FS: fsys}
	s, err := r.Process(5)
	if err != nil || s.Memory().RSS != known(1) {
		t.Errorf("%v, %+v", err, s.Memory())
	}
	if got, err := r.Interfaces(5); err != nil || !slices.Equal(got, []Interface{{"eth0", 5, 6}}) {
		t.Errorf("interfaces %v, %v", got, err)
	}
	// A process of another cgroup namespace: the nearest that is visible.
	if s, err := r.Process(6); err != nil || s.Memory().RSS != known(9) {
		t.Errorf("%v, %+v", err, s.Memory())
	}
}

func FuzzStats(f *testing.F) {
	f.Add("rss 1\n", "0-3\n", "8:0 Read 1\n8:0 Write 2\n", "8:0 rbytes=1 wbytes=2\n", "1 (a) b) S "+strings.Repeat("1 ", 30), " eth0: 1 2\n")
	f.Fuzz(func(t *testing.T, flat, cpus, blkio, io, stat, net string) {
		fsys := fstest.MapFS{
			"proc/mounts":   file("c /cg cgroup rw,memory,cpuset,blkio,cpuacct 0 0\nc /cg2 cgroup2 rw 0 0\n"),
			"proc/1/cgroup": file("1:memory,cpuset,blkio,cpuacct:/\n0::/\n"),
			"proc/1/stat":   file(stat), "proc/1/net/dev": file(net), "proc/self/smaps": file(flat),
			"cg/memory.stat": file(flat), "cg/cpuset.cpus": file(cpus), "cg/blkio.io_service_bytes": file(blkio),
			"cg/cpuacct.stat": file(flat), "cg2/io.stat": file(io), "cg2/cpu.max": file(cpus), "cg2/cpu.stat": file(flat),
		}
		r := Reader{FS: fsys}
		s, err := r.Process(1)
		if err != nil {
			t.Fatal(err)
		}
		s.Stats()
		parseIOStat(io)
		_, _ = r.ResidentPages(1)
		_, _ = r.PageSize()
		_, _ = r.Interfaces(1)
	})
}

func file(text string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(text), Mode: fs.ModePerm} }
func known(n uint64) Number            { return Number{n, true} }
