package kernel

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"testing/synctest"
	"time"

	"crunch-oci/supervisor/stats"
)

// The vectors, through a whole reporter: files in, lines out.
func TestCrunchstatVectors(t *testing.T) {
	data, err := os.ReadFile("../../../testdata/spec/logs-and-stats.json")
	if err != nil {
		t.Fatal(err)
	}
	var all struct {
		Crunchstat []struct {
			Name          string
			PID           int
			Files         map[string]string
			Changes       map[string]string `json:"second_sample_changes"`
			ReportPIDs    map[string]int    `json:"report_pids"`
			RAM           int64             `json:"ram_limit"`
			First         []string          `json:"first_sample_lines"`
			Second        []string          `json:"second_sample_lines"`
			Thresholds    []string          `json:"threshold_lines"`
			Maxima        []string          `json:"maxima_lines"`
			ProcessMaxima []string          `json:"process_maxima_lines"`
		}
	}
	if err := json.Unmarshal(data, &all); err != nil {
		t.Fatal(err)
	}
	if len(all.Crunchstat) == 0 {
		t.Fatal("no vectors")
	}
	for _, v := range all.Crunchstat {
		t.Run(v.Name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				fsys := newFiles(v.Files)
				var out output
				var messages []string
				r := stats.Start(t.Context(), stats.Config{
					Sources: Sources(Options{FS: fsys, PID: v.PID, Processes: func() map[string]int { return v.ReportPIDs }}),
					Out:     &out,
					RAM:     v.RAM,
					Printf:  func(f string, a ...any) { messages = append(messages, fmt.Sprintf(f, a...)) },
				})
				synctest.Wait()
				// How a missing cgroup file is reported at the start is not
				// part of these vectors.
				first := slices.DeleteFunc(lines(&out), func(s string) bool { return strings.HasPrefix(s, "error reading cgroup file: ") })
				compare(t, "first sample", first, v.First)
				fsys.set(v.Changes)
				time.Sleep(10 * time.Second)
				synctest.Wait()
				compare(t, "second sample", lines(&out), v.Second)
				if err := r.Stop(t.Context()); err != nil {
					t.Error(err)
				}
				compare(t, "thresholds", messages, v.Thresholds)
				compare(t, "maxima", r.Maxima(), v.Maxima)
				compare(t, "process maxima", r.ProcessMaxima(), v.ProcessMaxima)
			})
		})
	}
}

// files is a machine's root whose files can be changed.
type files struct {
	mu  sync.Mutex
	mem fstest.MapFS
}

func newFiles(text map[string]string) *files {
	f := &files{mem: make(fstest.MapFS)}
	f.set(text)
	return f
}

func (f *files) set(text map[string]string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for name, s := range text {
		f.mem[name] = &fstest.MapFile{Data: []byte(s)}
	}
}

func (f *files) Open(name string) (fs.File, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.mem.Open(name)
}

// output may be emptied while a reporter writes to it.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

// lines empties the output.
func lines(o *output) []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	text := o.buf.String()
	o.buf.Reset()
	if text == "" {
		return nil
	}
	return strings.Split(strings.TrimSuffix(text, "\n"), "\n")
}

func compare(t *testing.T, what string, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) && len(got)+len(want) > 0 {
		t.Errorf("%s:\n got %s\nwant %s", what, strings.Join(got, "\n     "), strings.Join(want, "\n     "))
	}
}

// On cgroup v2 the kernel records the peak of what is reported as rss. On v1 it
// records something else.
func TestPeak(t *testing.T) {
	for _, c := range []struct {
		name  string
		files map[string]string
		want  []string
	}{
		{"v2", map[string]string{
			"proc/mounts":                      "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n",
			"proc/7/cgroup":                    "0::/x\n",
			"sys/fs/cgroup/x/memory.stat":      "pgmajfault 0\n",
			"sys/fs/cgroup/x/memory.current":   "1000\n",
			"sys/fs/cgroup/x/memory.peak":      "5000\n",
			"sys/fs/cgroup/x/memory.max":       "max\n",
			"sys/fs/cgroup/memory.peak":        "9000\n",
			"sys/fs/cgroup/memory.swap.unused": "",
		}, []string{"Maximum container memory rss usage was 5000 bytes"}},
		{"v1", map[string]string{
			"proc/mounts":                        "cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\n",
			"proc/7/cgroup":                      "4:memory:/x\n",
			"sys/fs/cgroup/memory/x/memory.stat": "total_rss 1000\ntotal_cache 0\n",
			"sys/fs/cgroup/memory/x/memory.max_usage_in_bytes": "5000\n",
		}, []string{"Maximum container memory rss usage was 1000 bytes"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			fsys := newFiles(c.files)
			var out bytes.Buffer
			r := stats.Start(t.Context(), stats.Config{Sources: Sources(Options{FS: fsys, PID: 7}), Out: &out})
			if err := r.Stop(t.Context()); err != nil {
				t.Fatal(err)
			}
			compare(t, "maxima", r.Maxima(), c.want)
		})
	}
}

// This process, on this kernel: everything is there, in the right order.
func TestThisMachine(t *testing.T) {
	dir := t.TempDir()
	s := Sources(Options{
		PID:       os.Getpid(),
		Processes: func() map[string]int { return map[string]int{"crunch-run": os.Getpid(), "gone": 1 << 30} },
		TempDir:   dir,
	})
	var out bytes.Buffer
	r := stats.Start(t.Context(), stats.Config{Sources: s, Out: &out})
	if err := r.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	text := out.String()
	at := 0
	for _, want := range []string{
		"notice: reading stats from /",
		fmt.Sprintf("using /proc/%d/net/dev\n", os.Getpid()),
		"notice: monitoring temp dir " + dir + "\n",
		"\nmem ",
		"\nprocmem ",
		"\ncpu ",
		"\nstatfs ",
	} {
		i := strings.Index(text[at:], want)
		if i < 0 {
			t.Fatalf("no %q behind byte %d of\n%s", want, at, text)
		}
		at += i
	}
	if strings.Contains(text, " gone") {
		t.Errorf("a process that does not exist is reported:\n%s", text)
	}
	if f, ok := s.Filesystem(); !ok || f.Total <= 0 || f.Used < 0 || f.Used > f.Total || f.Available > f.Total {
		t.Errorf("file system %+v, %v", f, ok)
	}
	if list, err := s.Processes(); err != nil || len(list) != 1 || list[0].RSS < 1<<20 {
		t.Errorf("processes %+v, %v", list, err)
	}
}

func TestGoneBeforeItWasRead(t *testing.T) {
	s := Sources(Options{PID: 1 << 30, TempDir: "/"})
	want := []string{
		"error reading cgroup file: open proc/1073741824/cgroup: no such file or directory",
		"notice: monitoring temp dir /",
	}
	compare(t, "notices", s.Notices, want)
}
