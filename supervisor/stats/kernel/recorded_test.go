package kernel

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"crunch-oci/supervisor/stats"
)

// The files of a real kernel with cgroup v2 only (testdata/v2.json says which),
// before and after its process did something: the lines were made from the files
// by hand (spec: logs-and-stats section 5). Processor and memory are the group's
// own, the disk's are its parent's, which alone has that controller, and so is the
// number of processors where no quota limits it.
func TestRecordedOnV2(t *testing.T) {
	text, err := os.ReadFile("testdata/v2.json")
	if err != nil {
		t.Fatal(err)
	}
	var v struct {
		PID            int
		Files, Changes map[string]string
	}
	if err := json.Unmarshal(text, &v); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		fsys := newFiles(v.Files)
		var out output
		var messages []string
		r := stats.Start(t.Context(), stats.Config{
			Sources: Sources(Options{FS: fsys, PID: v.PID, Processes: func() map[string]int { return map[string]int{"crunch-run": v.PID} }}),
			Out:     &out,
			RAM:     100_000_000,
			Printf:  func(f string, a ...any) { messages = append(messages, fmt.Sprintf(f, a...)) },
		})
		synctest.Wait()
		compare(t, "first sample", lines(&out), []string{
			"notice: reading stats from /sys/fs/cgroup/job/tests/cpu.max",
			"notice: reading stats from /sys/fs/cgroup/job/cpuset.cpus.effective",
			"notice: reading stats from /sys/fs/cgroup/job/tests/cpu.stat",
			"notice: reading stats from /sys/fs/cgroup/job/io.stat",
			"notice: reading stats from /sys/fs/cgroup/job/tests/memory.stat",
			"notice: reading stats from /sys/fs/cgroup/job/tests/memory.current",
			"notice: reading stats from /sys/fs/cgroup/job/tests/memory.swap.current",
			fmt.Sprintf("using /proc/%d/net/dev", v.PID),
			"mem 0 swap 32 pgmajfault 6340608 rss",
			"procmem 5439488 crunch-run",
			"cpu 0.2886 user 0.3522 sys 1.50 cpus",
			"blkio:254:0 0 write 6705152 read",
			"blkio:254:16 0 write 3538944 read",
		})
		fsys.set(v.Changes)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		compare(t, "second sample", lines(&out), []string{
			"mem 0 swap 33 pgmajfault 94912512 rss",
			"procmem 81518592 crunch-run",
			"cpu 2.4841 user 2.6333 sys 1.50 cpus -- interval 10.0000 seconds 2.1955 user 2.2811 sys",
			"blkio:254:0 90112 write 10702848 read -- interval 10.0000 seconds 90112 write 3997696 read",
			"blkio:254:16 0 write 3543040 read -- interval 10.0000 seconds 0 write 4096 read",
		})
		if err := r.Stop(t.Context()); err != nil {
			t.Error(err)
		}
		compare(t, "thresholds", messages, []string{"Container using over 90% of memory (rss 94912512/100000000 bytes)"})
		compare(t, "maxima", r.Maxima(), []string{
			"Total CPU usage was 2.484120 user and 2.633282 sys on 1.50 CPUs",
			"Total disk I/O on 254:0 was 90112 bytes written and 10702848 bytes read",
			"Total disk I/O on 254:16 was 0 bytes written and 3543040 bytes read",
			"Maximum container memory pgmajfault usage was 33 faults",
			"Maximum container memory rss usage was 94%, 94912512/100000000 bytes",
		})
		for _, l := range []string{"lo", "eth0"} {
			if strings.Contains(out.buf.String(), "net:"+l) {
				t.Errorf("a line for %s", l)
			}
		}
	})
}
