package bench

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// BenchmarkIdleMemory reports the proportional set size (proc(5), smaps_rollup)
// of supervisors with their FUSE servers while containers with one input
// collection each sleep, and how much of a processor both use meanwhile. The
// gateway is reached through its tunnel. There is one supervisor, or as many as
// BENCH_SUPERVISORS says (numbers separated by commas): half of them
// share an image, the others have one of their own. The pages of the program file
// are shared by all; what is left without them is reported too. All figures are
// per supervisor; where there are several, the mean, and the largest of the sums.
func BenchmarkIdleMemory(b *testing.B) {
	numbers := os.Getenv("BENCH_SUPERVISORS")
	if numbers == "" {
		numbers = "1"
	}
	for number := range strings.SplitSeq(numbers, ",") {
		n, err := strconv.Atoi(number)
		if err != nil || n < 1 {
			b.Fatalf("BENCH_SUPERVISORS: %q is not a number of supervisors", number)
		}
		b.Run(number, func(b *testing.B) { idleMemory(b, n) })
	}
}

func idleMemory(b *testing.B, n int) {
	rootfs := b.TempDir()
	copyBusybox(b, rootfs)
	s := newSite(b, rootfs)
	input := s.store(b, map[string][]byte{"data": make([]byte, 32<<20)})
	images := make([]string, n)
	for i := range images {
		if images[i] = s.image; i%2 == 1 {
			if err := os.WriteFile(filepath.Join(rootfs, "etc/number"), []byte(strconv.Itoa(i)), 0o644); err != nil {
				b.Fatal(err)
			}
			images[i] = s.storeImage(b, rootfs)
		}
	}
	var supervisor, fuse, own, busy, largest float64
	for b.Loop() {
		crew := make([]idler, n)
		for i := range crew {
			crew[i] = s.startIdler(b, images[i], input)
		}
		time.Sleep(idleAfter)
		for i := range crew {
			crew[i].findFUSE(b)
		}
		began, before := time.Now(), time.Duration(0)
		for _, c := range crew {
			before += cpuTime(b, c.watched)
		}
		time.Sleep(idleFor)
		after := time.Duration(0)
		for _, c := range crew {
			after += cpuTime(b, c.watched)
		}
		busy += float64(after-before) / float64(time.Since(began))
		for _, c := range crew {
			of, its := pss(b, c.watched[0], "Pss:"), pss(b, c.watched[1], "Pss:")
			supervisor, fuse, largest = supervisor+of, fuse+its, max(largest, of+its)
			own += pss(b, c.watched[0], "Pss_Anon:") + pss(b, c.watched[1], "Pss_Anon:")
		}
		for _, c := range crew {
			if err := c.cmd.Process.Signal(os.Interrupt); err != nil {
				b.Fatal(err)
			}
		}
		for _, c := range crew {
			_ = c.cmd.Wait()
		}
	}
	all := float64(b.N * n)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(supervisor/all, "supervisor-MiB")
	b.ReportMetric(fuse/all, "fuse-MiB")
	b.ReportMetric((supervisor+fuse)/all, "sum-MiB")
	b.ReportMetric(largest, "largest-MiB")
	b.ReportMetric(own/all, "without-program-MiB")
	b.ReportMetric(100*busy/all, "%-of-a-CPU")
}

// idler is a supervisor whose container sleeps.
type idler struct {
	cmd     *exec.Cmd
	watched []int // the supervisor and, once found, its FUSE server
}

// startIdler returns when the container has been started.
func (s *site) startIdler(b *testing.B, image, input string) idler {
	b.Helper()
	uuid := s.submitImage(b, image, []string{"/bin/busybox", "sh", "-c", "/bin/busybox cat /in/data > /dev/null; exec /bin/busybox sleep 1000"},
		map[string]any{"/in": map[string]any{"kind": "collection", "portable_data_hash": input}})
	cmd := s.crunchRun(uuid)
	cmd.Env = append(cmd.Env, "GatewayAuthSecret="+s.cluster.GatewayAuthSecret(uuid), "GatewayAddress=")
	stderr, err := cmd.StderrPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	said := ""
	lines := bufio.NewScanner(stderr)
	for !strings.Contains(said, "Waiting for container") {
		if !lines.Scan() {
			b.Fatalf("the supervisor has ended:\n%s", said)
		}
		said += lines.Text() + "\n"
	}
	go func() {
		for lines.Scan() {
		}
	}()
	return idler{cmd: cmd, watched: []int{cmd.Process.Pid}}
}

// findFUSE finds the FUSE server.
func (i *idler) findFUSE(b *testing.B) {
	b.Helper()
	for _, child := range children(b, i.cmd.Process.Pid) {
		if args, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", child)); strings.Contains(string(args), "keep-mount") {
			i.watched = append(i.watched, child)
		}
	}
	if len(i.watched) != 2 {
		b.Fatalf("%d FUSE servers", len(i.watched)-1)
	}
}

const (
	// idleAfter is when caches are expected to have been given back.
	idleAfter = 45 * time.Second
	// idleFor is how long processor time is measured: several of every periodic
	// job of the supervisor but those of minutes.
	idleFor = 60 * time.Second
)

// cpuTime is what processes have used, user and system, without their children
// (Linux, Documentation/scheduler/sched-stats.rst: nanoseconds per thread).
func cpuTime(b *testing.B, pids []int) (total time.Duration) {
	b.Helper()
	for _, pid := range pids {
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
		if err != nil || len(threads) == 0 {
			b.Fatalf("process %d: no threads, %v", pid, err)
		}
		for _, t := range threads {
			text, err := os.ReadFile(t)
			if err != nil {
				b.Fatal(err)
			}
			ns, err := strconv.ParseInt(strings.Fields(string(text))[0], 10, 64)
			if err != nil {
				b.Fatal(err)
			}
			total += time.Duration(ns)
		}
	}
	return total
}

func copyBusybox(b *testing.B, rootfs string) {
	b.Helper()
	for _, d := range []string{"bin", "proc", "sys", "dev", "etc", "out", "in"} {
		if err := os.MkdirAll(filepath.Join(rootfs, d), 0o755); err != nil {
			b.Fatal(err)
		}
	}
	data, err := os.ReadFile("/bin/busybox")
	if err != nil {
		b.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(rootfs, "bin/busybox"), data, 0o755); err != nil {
		b.Fatal(err)
	}
}

// pss is a process's proportional set size, or a part of it, in MiB.
func pss(b *testing.B, pid int, which string) float64 {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == which {
			kb, err := strconv.ParseFloat(f[1], 64)
			if err != nil {
				b.Fatal(err)
			}
			return kb / 1024
		}
	}
	b.Fatal("no ", which)
	return 0
}

func children(b *testing.B, pid int) (pids []int) {
	b.Helper()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		b.Fatal(err)
	}
	for _, t := range tasks {
		text, _ := os.ReadFile(t)
		for _, f := range strings.Fields(string(text)) {
			n, err := strconv.Atoi(f)
			if err != nil {
				b.Fatal(err)
			}
			pids = append(pids, n)
		}
	}
	return pids
}
