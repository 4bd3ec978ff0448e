package cgroups

import (
	"io/fs"
	"strconv"
	"strings"
	"time"
)

// Number is a counter or gauge that the kernel may not offer.
type Number struct {
	N     uint64
	Known bool
}

// Memory is what a group has in memory. Sizes are in bytes.
type Memory struct {
	// RSS is v1's total_rss (anonymous memory, page cache not included) and
	// v2's memory.current (page cache included).
	RSS Number
	// Cache is the page cache; v1 only.
	Cache Number
	// Swap is what has been moved to swap.
	Swap Number
	// MajorFaults counts page faults that had to wait for a device.
	MajorFaults Number
	// Limit is the memory limit; unknown if there is none.
	Limit Number
	// Peak is the kernel's own record of the highest use, cache included
	// (memory.max_usage_in_bytes, memory.peak).
	Peak Number
}

// CPU is a group's use of CPU time since it was made.
type CPU struct {
	User, System time.Duration
	// Known is false if the times could not be read (they are zero then).
	Known bool
	// Count is the number of CPUs the group may use: the v2 quota if there is
	// one, else the size of its cpuset, else the number of CPUs of the
	// machine. Zero if unknown.
	Count float64
}

// DeviceIO is the traffic between a group and one block device, in bytes.
type DeviceIO struct {
	Device      string // "major:minor"
	Read, Write uint64
}

// PIDs counts a group's processes and threads.
type PIDs struct {
	Current, Peak Number
}

// Stats is one reading of everything.
type Stats struct {
	Memory Memory
	CPU    CPU
	IO     []DeviceIO
	PIDs   PIDs
}

// Stats reads everything once. What cannot be read is unknown; after the
// group's removal that is all of it.
func (s *Source) Stats() Stats {
	return Stats{Memory: s.Memory(), CPU: s.CPU(), IO: s.IO(), PIDs: s.PIDs()}
}

// noLimit is where v1 limits are taken for "none": the kernel rounds its
// maximum down to a page and says 0x7ffffffffffff000.
const noLimit = 1 << 62

// Memory reads the memory values.
func (s *Source) Memory() Memory {
	var m Memory
	text, _ := s.read(fileMemoryStat)
	if s.memoryV1 {
		m.RSS = keyed(text, "total_rss", "rss")
		m.Cache = keyed(text, "total_cache", "cache")
		m.Swap = keyed(text, "total_swap", "swap")
		m.MajorFaults = keyed(text, "total_pgmajfault", "pgmajfault")
	} else {
		m.RSS = s.number(fileMemoryCurrent)
		m.Swap = s.number(fileSwapCurrent)
		m.MajorFaults = keyed(text, "pgmajfault")
	}
	m.Peak = s.number(fileMemoryPeak)
	if m.Limit = s.number(fileMemoryLimit); m.Limit.N >= noLimit {
		m.Limit = Number{}
	}
	return m
}

// number reads a file that holds one number; "max" and nonsense are unknown.
func (s *Source) number(role statFile) Number {
	text, ok := s.read(role)
	if !ok {
		return Number{}
	}
	n, err := strconv.ParseUint(strings.TrimSpace(text), 10, 64)
	return Number{n, err == nil}
}

// userHZ is the unit of cpuacct.stat, 1/100 s on every Linux architecture Go
// supports (time(7)).
const userHZ = 100

// CPU reads the CPU values.
func (s *Source) CPU() CPU {
	c := CPU{Count: s.cpuCount()}
	if text, ok := s.read(fileCPUAcct); ok {
		user, system := keyed(text, "user"), keyed(text, "system")
		if user.Known && system.Known {
			c.User, c.System, c.Known = ticks(user.N), ticks(system.N), true
		}
	} else if text, ok := s.read(fileCPUStat); ok {
		user, system := keyed(text, "user_usec"), keyed(text, "system_usec")
		if user.Known && system.Known {
			c.User = time.Duration(user.N) * time.Microsecond
			c.System = time.Duration(system.N) * time.Microsecond
			c.Known = true
		}
	}
	return c
}

func ticks(n uint64) time.Duration { return time.Duration(n) * (time.Second / userHZ) }

func (s *Source) cpuCount() float64 {
	if text, ok := s.read(fileCPUMax); ok {
		if f := strings.Fields(text); len(f) == 2 && f[0] != "max" {
			quota, err1 := strconv.ParseFloat(f[0], 64)
			period, err2 := strconv.ParseFloat(f[1], 64)
			if err1 == nil && err2 == nil && period > 0 {
				return quota / period
			}
		}
	}
	if text, ok := s.read(fileCPUSet); ok {
		if list, err := parseList(text); err == nil && len(list) > 0 {
			return float64(len(list))
		}
	}
	b, err := fs.ReadFile(s.fsys, "proc/cpuinfo")
	if err != nil {
		return 0
	}
	n := 0
	for line := range strings.Lines(string(b)) {
		if name, _, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "processor" {
			n++
		}
	}
	return float64(n)
}

// IO reads the traffic per block device, in the kernel's order. Devices for
// which not both directions are known are left out.
func (s *Source) IO() []DeviceIO {
	if text, ok := s.read(fileBlkio); ok {
		return parseBlkio(text)
	}
	if text, ok := s.read(fileIOStat); ok {
		return parseIOStat(text)
	}
	return nil
}

// parseBlkio parses v1's blkio.*.io_service_bytes: "8:0 Read 100".
func parseBlkio(text string) []DeviceIO {
	var t deviceTable
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) != 3 || !isDevice(f[0]) {
			continue
		}
		if n, err := strconv.ParseUint(f[2], 10, 64); err == nil {
			t.add(f[0], f[1] == "Read", f[1] == "Write", n)
		}
	}
	return t.complete()
}

// parseIOStat parses v2's io.stat: "8:0 rbytes=1 wbytes=2 rios=1 ...".
func parseIOStat(text string) []DeviceIO {
	var t deviceTable
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) == 0 || !isDevice(f[0]) {
			continue
		}
		for _, kv := range f[1:] {
			key, value, _ := strings.Cut(kv, "=")
			if n, err := strconv.ParseUint(value, 10, 64); err == nil {
				t.add(f[0], key == "rbytes", key == "wbytes", n)
			}
		}
	}
	return t.complete()
}

// deviceTable collects both directions of each device.
type deviceTable struct {
	order       []string
	read, write map[string]uint64
}

func (t *deviceTable) add(device string, isRead, isWrite bool, n uint64) {
	if !isRead && !isWrite {
		return
	}
	if t.read == nil {
		t.read, t.write = make(map[string]uint64), make(map[string]uint64)
	}
	_, r := t.read[device]
	_, w := t.write[device]
	if !r && !w {
		t.order = append(t.order, device)
	}
	if isRead {
		t.read[device] = n
	} else {
		t.write[device] = n
	}
}

func (t *deviceTable) complete() []DeviceIO {
	var all []DeviceIO
	for _, d := range t.order {
		r, okR := t.read[d]
		w, okW := t.write[d]
		if okR && okW {
			all = append(all, DeviceIO{Device: d, Read: r, Write: w})
		}
	}
	return all
}

func isDevice(s string) bool {
	major, minor, ok := strings.Cut(s, ":")
	return ok && isNumber(major) && isNumber(minor)
}

func isNumber(s string) bool {
	_, err := strconv.ParseUint(s, 10, 32)
	return err == nil
}

// PIDs reads the process counts.
func (s *Source) PIDs() PIDs {
	return PIDs{Current: s.number(filePIDsCurrent), Peak: s.number(filePIDsPeak)}
}

// keyed returns the value of the first of the keys that is present.
func keyed(text string, keys ...string) Number {
	for _, key := range keys {
		if n, ok := flatKeyed(text, key); ok {
			return Number{n, true}
		}
	}
	return Number{}
}

// flatKeyed finds a key in the kernel's "flat keyed" format, "KEY VALUE\n"
// (Documentation/admin-guide/cgroup-v2.rst, "Format").
func flatKeyed(text, key string) (uint64, bool) {
	for line := range strings.Lines(text) {
		rest, ok := strings.CutPrefix(line, key)
		if !ok || !strings.HasPrefix(rest, " ") {
			continue
		}
		n, err := strconv.ParseUint(strings.TrimSpace(rest), 10, 64)
		return n, err == nil
	}
	return 0, false
}
