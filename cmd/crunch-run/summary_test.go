package main_test

import (
	"bytes"
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// summaryLine is the expression of Arvados' crunchstat-summary (spec:
// logs-and-stats section 7).
var summaryLine = regexp.MustCompile(`^(?P<timestamp>\S+) (?P<crunchstat>crunchstat: )?(?P<category>\S+) (?P<current>.*?)( -- interval (?P<interval>.*))?\n$`)

// statistics are what crunchstat-summary makes of a file.
type statistics struct {
	first, last time.Time
	max, latest map[string]float64 // by "category name"
	rates       map[string]float64 // the highest, per second
}

// summarise reads a file as crunchstat-summary does; what makes that give up
// fails the test.
func summarise(t *testing.T, text string) statistics {
	t.Helper()
	s := statistics{max: map[string]float64{}, latest: map[string]float64{}, rates: map[string]float64{}}
	for line := range strings.Lines(text) {
		m := summaryLine.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		if len(m[1]) < 19 || m[1][10] != 'T' {
			t.Fatalf("no timestamp, the report is aborted: %q", line)
		}
		at, err := time.Parse("2006-01-02T15:04:05", m[1][:19])
		if err != nil {
			t.Fatal(err)
		}
		if s.first.IsZero() {
			s.first = at
		}
		s.last = at
		switch category := m[3]; {
		case strings.HasSuffix(category, ":"), strings.Contains(" error caught read open cgroup CID Running ", " "+category+" "):
			continue
		}
		current, ok := statPairs(m[4])
		if !ok {
			t.Logf("a warning, and the line is dropped: %q", line)
			continue
		}
		interval, ok := statPairs(m[6])
		if !ok {
			t.Errorf("bad interval: %q", line)
		}
		for name, v := range current {
			key := m[3] + " " + name
			s.latest[key] = v
			s.max[key] = math.Max(s.max[key], v)
			if seconds := interval["seconds"]; seconds > 0 {
				s.rates[key] = math.Max(s.rates[key], interval[name]/seconds)
			}
		}
	}
	return s
}

func statPairs(text string) (map[string]float64, bool) {
	all := map[string]float64{}
	words := strings.Split(text, " ")
	for i := 0; i+1 < len(words); i += 2 {
		v, err := strconv.ParseFloat(words[i], 64)
		if err != nil {
			return nil, false
		}
		all[words[i+1]] = v
	}
	return all, true
}

// The statistics of a run say what it used, to the program that reports them to
// users.
func TestStatisticsOfARun(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	c := startCluster(t, n)
	const read, eaten, ram = 8 << 20, 100 << 20, 256 << 20
	in := withInput(c.store(t, map[string][]byte{"a.bin": bytes.Repeat([]byte("A"), read)}))
	uuid := c.submit(t, c.storeTools(t), sh("cat /in/a.bin >/dev/null; head -c 20000000 /dev/zero >/out/zero; probe eat 100 3"), in)
	record := c.finished(t, n, c.supervise(t, n, uuid, "-crunchstat-interval=1s"), uuid, 0, "Complete")

	stats := summarise(t, c.log(t, record, "crunchstat.txt"))
	if elapsed := stats.last.Sub(stats.first); elapsed < 2*time.Second || elapsed > patience {
		t.Errorf("elapsed time %v", elapsed)
	}
	rss := stats.max["mem rss"]
	if rss < eaten || rss > ram {
		t.Errorf("maximum memory %v, of which %v were eaten", rss, eaten)
	}
	log := c.log(t, record, "crunch-run.txt")
	var user, sys, cpus float64
	var percent int
	var peak, limit float64
	for line := range strings.Lines(log) {
		_, message, _ := strings.Cut(line, " ")
		_, _ = fmt.Sscanf(message, "Total CPU usage was %f user and %f sys on %f CPUs", &user, &sys, &cpus)
		_, _ = fmt.Sscanf(message, "Maximum container memory rss usage was %d%%, %f/%f bytes", &percent, &peak, &limit)
	}
	if math.Abs(user-stats.latest["cpu user"]) > 0.001 || math.Abs(sys-stats.latest["cpu sys"]) > 0.001 || user+sys <= 0 {
		t.Errorf("CPU %v user %v sys in the messages, %v and %v in the statistics", user, sys, stats.latest["cpu user"], stats.latest["cpu sys"])
	}
	if peak < rss || limit != ram || percent != int(peak*100/limit) {
		t.Errorf("maximum memory %v of %v (%d %%) in the messages, %v in the statistics", peak, limit, percent, rss)
	}
	for _, key := range []string{"cpu user", "statfs used"} {
		if _, ok := stats.rates[key]; !ok {
			t.Errorf("no rate of %q", key)
		}
	}
	if stats.latest["statfs total"] == 0 || stats.latest["cpu cpus"] != cpus {
		t.Errorf("statfs total %v, cpus %v and %v", stats.latest["statfs total"], stats.latest["cpu cpus"], cpus)
	}

	mount := summarise(t, c.log(t, record, "arv-mount.txt"))
	for key, least := range map[string]float64{"net:keep0 rx": read, "blkio:0:0 read": read, "keepcalls get": 1, "keepcache miss": 1, "fuseops read": 1} {
		if mount.max[key] < least {
			t.Errorf("%s is %v, at least %v happened", key, mount.max[key], least)
		}
	}
	host := summarise(t, c.log(t, record, "hoststat.txt"))
	for _, key := range []string{"procmem crunch-run", "procmem arv-mount", "mem rss", "statfs total"} {
		if host.max[key] <= 0 {
			t.Errorf("hoststat.txt has no %q", key)
		}
	}
}
