package stats

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// What crunchstat-summary makes of a line (logs-and-stats.md, section 7).
type summary struct {
	category          string
	current, interval map[string]float64
	ignored           string // why
}

var summaryLine = regexp.MustCompile(`^(?P<timestamp>\S+) (?P<crunchstat>crunchstat: )?(?P<category>\S+) (?P<current>.*?)( -- interval (?P<interval>.*))?\n$`)

// parseSummary fails where crunchstat-summary gives up the whole report.
func parseSummary(line string) (s summary, err error) {
	m := summaryLine.FindStringSubmatch(line)
	if m == nil {
		return summary{ignored: "ignored (no match)"}, nil
	}
	stamp := m[1]
	if len(stamp) < 19 || stamp[10] != 'T' && stamp[10] != '_' {
		return s, fmt.Errorf("no timestamp: %q", line)
	}
	if _, err := time.Parse("2006-01-02T15:04:05", stamp[:10]+"T"+stamp[11:19]); err != nil {
		return s, err
	}
	s.category = m[3]
	if strings.HasSuffix(s.category, ":") {
		return summary{ignored: "ignored (category)"}, nil
	}
	switch s.category {
	case "error", "caught", "read", "open", "cgroup", "CID", "Running":
		return summary{ignored: "ignored (category)"}, nil
	}
	if s.current, err = pairs(m[4]); err != nil {
		return summary{category: s.category, ignored: "warning: log contains message"}, nil
	}
	if m[6] != "" {
		if s.interval, err = pairs(m[6]); err != nil {
			return summary{category: s.category, ignored: "warning: log contains message"}, nil
		}
		if s.interval["seconds"] <= 0 {
			return s, fmt.Errorf("interval without seconds: %q", line)
		}
	}
	return s, nil
}

func pairs(text string) (map[string]float64, error) {
	words := strings.Split(text, " ")
	all := make(map[string]float64)
	for i := 0; i+1 < len(words); i += 2 {
		var v float64
		var err error
		if strings.Contains(words[i], ".") {
			v, err = strconv.ParseFloat(words[i], 64)
		} else {
			var n int64
			n, err = strconv.ParseInt(words[i], 10, 64)
			v = float64(n)
		}
		if err != nil {
			return nil, err
		}
		all[words[i+1]] = v
	}
	return all, nil
}

// The parser below agrees with the vectors, so that it may judge our lines.
func TestSummaryVectors(t *testing.T) {
	data, err := os.ReadFile("../../testdata/spec/logs-and-stats.json")
	if err != nil {
		t.Fatal(err)
	}
	var all struct {
		Lines []struct {
			Line              string
			Category, Result  string
			Current, Interval map[string]float64
		} `json:"crunchstat_summary_parsing"`
	}
	if err := json.Unmarshal(data, &all); err != nil || len(all.Lines) == 0 {
		t.Fatal(err, len(all.Lines))
	}
	for _, v := range all.Lines {
		s, err := parseSummary(v.Line)
		if err != nil {
			t.Error(err)
		}
		if s.category != v.Category || s.ignored != v.Result || fmt.Sprint(s.current) != fmt.Sprint(v.Current) || fmt.Sprint(s.interval) != fmt.Sprint(v.Interval) {
			t.Errorf("%q: %+v", v.Line, s)
		}
	}
}

// Every line of a reporter is understood, and says what was measured.
func TestSummaryReadsReports(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := int64(0)
		r := start(t, Config{Interval: time.Second, Sources: Sources{
			Notices:    []string{"notice: monitoring temp dir /tmp/a b", "error reading cgroup file: open x"},
			Memory:     func() Memory { n++; return Memory{known(n), known(n), known(n), known(n), Value{}, Value{}} },
			CPU:        func() CPU { return CPU{time.Duration(n) * time.Second, time.Second, 1, true} },
			Disks:      func() []DiskIO { return []DiskIO{{"8:0", n, -n}} },
			Networks:   func() []NetIO { return []NetIO{{"eth0", n, 1 << 62}} },
			Filesystem: func() (Filesystem, bool) { return Filesystem{n, 100 - n, 100}, true },
			Processes:  func() ([]Process, error) { return []Process{{"crunch-run", n}}, nil },
		}})
		time.Sleep(3500 * time.Millisecond)
		r.Stop(t.Context())
		rates := make(map[string]int)
		for _, line := range r.take() {
			s, err := parseSummary("2026-01-02T03:04:05.000000000Z " + line + "\n")
			if err != nil {
				t.Error(err)
			}
			if s.ignored != "" && s.ignored != "ignored (category)" {
				t.Errorf("%q is %s", line, s.ignored)
			}
			if s.interval != nil {
				rates[s.category]++
			}
		}
		for _, c := range []string{"cpu", "blkio:8:0", "net:eth0", "statfs"} {
			if rates[c] != 4 {
				t.Errorf("%d rates of %s", rates[c], c)
			}
		}
	})
}

// BenchmarkReport is what each interval costs, sources aside.
func BenchmarkReport(b *testing.B) {
	r := &Reporter{c: Config{Out: new(bytes.Buffer), Sources: Sources{
		Memory:     func() Memory { return Memory{RSS: known(1)} },
		CPU:        func() CPU { return CPU{Known: true} },
		Disks:      func() []DiskIO { return []DiskIO{{"8:0", 1, 2}} },
		Filesystem: func() (Filesystem, bool) { return Filesystem{1, 2, 3}, true },
	}}}
	for b.Loop() {
		r.report("")
		r.c.Out.(*bytes.Buffer).Reset()
	}
}
