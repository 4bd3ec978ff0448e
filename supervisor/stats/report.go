package stats

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// counters keeps the latest state of every category, and formats reports.
type counters struct {
	mem     Memory
	cpu     last[CPU]
	disks   table[DiskIO]
	nets    table[NetIO]
	fs      last[Filesystem]
	trouble string // with processes, reported already
}

// last is a category's latest sample and its time.
type last[T any] struct {
	v  T
	at time.Time // zero: there was none
}

// next stores a sample and returns the one before, and the seconds since then;
// none if there was none, or too little time to calculate with.
func (l *last[T]) next(v T, at time.Time) (before T, seconds float64) {
	before = l.v
	if !l.at.IsZero() {
		seconds = at.Sub(l.at).Seconds()
	}
	l.v, l.at = v, at
	return before, seconds
}

// table is a category with several devices, in order of appearance.
type table[T any] struct {
	names []string
	rows  map[string]*last[T]
}

func (t *table[T]) row(name string) *last[T] {
	r := t.rows[name]
	if r == nil {
		if t.rows == nil {
			t.rows = make(map[string]*last[T])
		}
		r = new(last[T])
		t.rows[name] = r
		t.names = append(t.names, name)
	}
	return r
}

// interval begins the second part of a line; it is empty where there is
// nothing to compare with. Readers divide by the seconds they find.
func interval(seconds float64) string {
	if s := fmt.Sprintf("%.4f", seconds); seconds > 0 && s != "0.0000" {
		return " -- interval " + s + " seconds"
	}
	return ""
}

func (c *counters) memory(m Memory) string {
	if !m.known() && c.mem.known() {
		return "" // the group has gone
	}
	c.mem = m
	var b strings.Builder
	b.WriteString("mem")
	for _, f := range []struct {
		v    Value
		name string
	}{{m.Cache, "cache"}, {m.Swap, "swap"}, {m.PgMajFault, "pgmajfault"}, {m.RSS, "rss"}} {
		if f.v.Known {
			fmt.Fprintf(&b, " %d %s", f.v.N, f.name)
		}
	}
	return b.String() + "\n"
}

func (c *counters) processes(list []Process, err error) string {
	if err != nil {
		if c.trouble != err.Error() {
			c.trouble = err.Error()
			return c.trouble + "\n"
		}
		return ""
	}
	if len(list) == 0 {
		return ""
	}
	list = slices.Clone(list)
	slices.SortFunc(list, func(a, b Process) int { return strings.Compare(a.Name, b.Name) })
	var b strings.Builder
	b.WriteString("procmem")
	for _, p := range list {
		fmt.Fprintf(&b, " %d %s", p.RSS, p.Name)
	}
	return b.String() + "\n"
}

func (c *counters) processor(v CPU, at time.Time) string {
	if !v.Known {
		if c.cpu.v.Known {
			return ""
		}
		v = CPU{}
	}
	line := fmt.Sprintf("cpu %.4f user %.4f sys %.2f cpus", v.User.Seconds(), v.System.Seconds(), v.CPUs)
	if v.Known {
		before, seconds := c.cpu.next(v, at)
		if i := interval(seconds); i != "" {
			line += fmt.Sprintf("%s %.4f user %.4f sys", i, (v.User - before.User).Seconds(), (v.System - before.System).Seconds())
		}
	}
	return line + "\n"
}

func (c *counters) disk(v DiskIO, at time.Time) string {
	line := fmt.Sprintf("blkio:%s %d write %d read", v.Device, v.Written, v.Read)
	before, seconds := c.disks.row(v.Device).next(v, at)
	if i := interval(seconds); i != "" {
		line += fmt.Sprintf("%s %d write %d read", i, v.Written-before.Written, v.Read-before.Read)
	}
	return line + "\n"
}

func (c *counters) network(v NetIO, at time.Time) string {
	line := fmt.Sprintf("net:%s %d tx %d rx", v.Interface, v.Sent, v.Received)
	before, seconds := c.nets.row(v.Interface).next(v, at)
	if i := interval(seconds); i != "" {
		line += fmt.Sprintf("%s %d tx %d rx", i, v.Sent-before.Sent, v.Received-before.Received)
	}
	return line + "\n"
}

func (c *counters) filesystem(v Filesystem, at time.Time) string {
	line := fmt.Sprintf("statfs %d available %d used %d total", v.Available, v.Used, v.Total)
	before, seconds := c.fs.next(v, at)
	if i := interval(seconds); i != "" {
		line += fmt.Sprintf("%s %d used", i, v.Used-before.Used)
	}
	return line + "\n"
}

// gpuLine is "gpu:0 40 util 1073741824 mem 42949672960 total 250.000 watts", of
// what is known. All of these are states: there is no interval.
func gpuLine(v GPU) string {
	var b strings.Builder
	if v.Utilisation >= 0 {
		fmt.Fprintf(&b, " %d util", v.Utilisation)
	}
	if v.Used >= 0 {
		fmt.Fprintf(&b, " %d mem", v.Used)
	}
	if v.Total >= 0 {
		fmt.Fprintf(&b, " %d total", v.Total)
	}
	if v.Milliwatts >= 0 {
		fmt.Fprintf(&b, " %.3f watts", float64(v.Milliwatts)/1000)
	}
	if b.Len() == 0 {
		return "" // a category without values would not be understood
	}
	return "gpu:" + v.Name + b.String() + "\n"
}
