package stats

import (
	"fmt"
	"maps"
	"slices"
)

// thresholds are the percentages of the RAM constraint that are reported when
// they are reached. The workflow runner looks for these lines when it decides
// whether to try again with more memory.
var thresholds = []int64{90, 95, 99}

// maxima are the highest values seen.
type maxima struct {
	cache, swap, pgmajfault, rss int64
	disk                         Filesystem // when most was used
	process                      map[string]int64
	gpus                         table[GPU] // when most memory was used
	crossed                      int        // thresholds reported
}

// memory takes in a sample and returns the lines due for it. ram is the
// constraint in bytes, 0 for none.
func (x *maxima) memory(m Memory, ram int64) (lines []string) {
	x.cache = max(x.cache, m.Cache.N)
	x.swap = max(x.swap, m.Swap.N, m.PeakSwap.N)
	x.pgmajfault = max(x.pgmajfault, m.PgMajFault.N)
	x.rss = max(x.rss, m.RSS.N, m.PeakRSS.N)
	if ram <= 0 || !m.RSS.Known {
		return nil
	}
	for x.crossed < len(thresholds) && m.RSS.N >= ram*thresholds[x.crossed]/100 {
		lines = append(lines, fmt.Sprintf("Container using over %d%% of memory (rss %d/%d bytes)", thresholds[x.crossed], m.RSS.N, ram))
		x.crossed++
	}
	return lines
}

func (x *maxima) processes(list []Process) {
	if x.process == nil {
		x.process = make(map[string]int64)
	}
	for _, p := range list {
		x.process[p.Name] = max(x.process[p.Name], p.RSS)
	}
}

func (x *maxima) filesystem(f Filesystem) {
	if f.Used > x.disk.Used || x.disk.Total == 0 {
		x.disk = f
	}
}

func (x *maxima) gpu(v GPU) {
	row := x.gpus.row(v.Name)
	if v.Used > row.v.Used || row.v.Total == 0 {
		row.v = v
	}
}

// lines are the messages for the end of the container.
func (x *maxima) lines(c *counters, ram int64) (lines []string) {
	add := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
	if cpu := c.cpu.v; cpu.User != 0 || cpu.System != 0 {
		add("Total CPU usage was %f user and %f sys on %.2f CPUs", cpu.User.Seconds(), cpu.System.Seconds(), cpu.CPUs)
	}
	for _, name := range c.disks.names {
		d := c.disks.rows[name].v
		add("Total disk I/O on %s was %d bytes written and %d bytes read", name, d.Written, d.Read)
	}
	if d := x.disk; d.Total > 0 {
		add("Maximum disk usage was %d%%, %d/%d bytes", percent(d.Used, d.Total), d.Used, d.Total)
	}
	if x.cache > 0 {
		add("Maximum container memory cache usage was %d bytes", x.cache)
	}
	if x.swap > 0 {
		add("Maximum container memory swap usage was %d bytes", x.swap)
	}
	if x.pgmajfault > 0 {
		add("Maximum container memory pgmajfault usage was %d faults", x.pgmajfault)
	}
	switch {
	case x.rss <= 0:
	case ram > 0:
		add("Maximum container memory rss usage was %d%%, %d/%d bytes", percent(x.rss, ram), x.rss, ram)
	default:
		add("Maximum container memory rss usage was %d bytes", x.rss)
	}
	for _, name := range c.nets.names {
		n := c.nets.rows[name].v
		add("Total network I/O on %s was %d bytes written and %d bytes read", name, n.Sent, n.Received)
	}
	for _, name := range x.gpus.names {
		if g := x.gpus.rows[name].v; g.Total > 0 && g.Used >= 0 {
			add("Maximum GPU %s memory usage was %d%%, %d/%d bytes", name, percent(g.Used, g.Total), g.Used, g.Total)
		}
	}
	return lines
}

func (x *maxima) processLines() (lines []string) {
	for _, name := range slices.Sorted(maps.Keys(x.process)) {
		lines = append(lines, fmt.Sprintf("Maximum %s memory rss usage was %d bytes", name, x.process[name]))
	}
	return lines
}

// percent rounds down, and does not overflow before 2^63 bytes do.
func percent(n, of int64) int64 {
	if n > 1<<55 {
		return n / max(of/100, 1)
	}
	return n * 100 / of
}
