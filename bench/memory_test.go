package bench

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// BenchmarkIdleMemory reports the proportional set size (proc(5), smaps_rollup)
// of the supervisor and of its FUSE server while a container with one input
// collection sleeps, and how much of a processor both use meanwhile. The gateway
// is reached through its tunnel. The pages of the program file are
// shared by all supervisors of a node, of which there is one here; what is left
// without them is reported too.
func BenchmarkIdleMemory(b *testing.B) {
	rootfs := b.TempDir()
	copyBusybox(b, rootfs)
	s := newSite(b, rootfs)
	input := s.store(b, map[string][]byte{"data": make([]byte, 32<<20)})
	var supervisor, fuse, own, busy float64
	for b.Loop() {
		uuid := s.submit(b, []string{"/bin/busybox", "sh", "-c", "/bin/busybox cat /in/data > /dev/null; exec /bin/busybox sleep 1000"},
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
		lines := bufio.NewScanner(stderr)
		for lines.Scan() && !strings.Contains(lines.Text(), "Waiting for container") {
		}
		go func() {
			for lines.Scan() {
			}
		}()
		time.Sleep(idleAfter)
		watched := []int{cmd.Process.Pid}
		for _, child := range children(b, cmd.Process.Pid) {
			if args, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", child)); strings.Contains(string(args), "keep-mount") {
				watched = append(watched, child)
			}
		}
		if len(watched) != 2 {
			b.Fatalf("%d FUSE servers", len(watched)-1)
		}
		before, began := cpuTime(b, watched), time.Now()
		time.Sleep(idleFor)
		busy += float64(cpuTime(b, watched)-before) / float64(time.Since(began))
		supervisor += pss(b, watched[0], "Pss:")
		fuse += pss(b, watched[1], "Pss:")
		own += pss(b, watched[0], "Pss_Anon:") + pss(b, watched[1], "Pss_Anon:")
		if err := cmd.Process.Signal(os.Interrupt); err != nil {
			b.Fatal(err)
		}
		_ = cmd.Wait()
	}
	n := float64(b.N)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(supervisor/n, "supervisor-MiB")
	b.ReportMetric(fuse/n, "fuse-MiB")
	b.ReportMetric((supervisor+fuse)/n, "sum-MiB")
	b.ReportMetric(own/n, "without-program-MiB")
	b.ReportMetric(100*busy/n, "%-of-a-CPU")
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
