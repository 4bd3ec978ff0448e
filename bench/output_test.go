package bench

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"crunch-oci/keep"
)

// floodProgram writes its first argument's bytes to standard output, in numbered
// lines of its second argument's bytes, 64 KiB at a time as most programs' output
// libraries do, or more if lines are longer, and says on standard error how many
// nanoseconds that took. The text repeats itself after a million bytes or one line.
const floodProgram = `package main

import ("fmt"; "os"; "strconv"; "strings"; "time")

func main() {
	total, _ := strconv.Atoi(os.Args[1])
	length, _ := strconv.Atoi(os.Args[2])
	var text strings.Builder
	for n := 0; text.Len() < 1000000; n++ {
		text.WriteString((strconv.Itoa(n) + strings.Repeat("x", length))[:length-1] + "\n")
	}
	began := time.Now()
	for total > 0 {
		rest := text.String()
		rest = rest[:min(len(rest), total)]
		total -= len(rest)
		for len(rest) > 0 {
			n, err := os.Stdout.WriteString(rest[:min(len(rest), 64<<10)])
			if err != nil { panic(err) }
			rest = rest[n:]
		}
	}
	fmt.Fprintln(os.Stderr, time.Since(began).Nanoseconds())
}
`

// BenchmarkOutput runs a container that writes as fast as it can, with API and
// Keep on the same processors. MB/s are of the container's bytes, as it sees it;
// "offered" is the same program's speed when nobody does anything with what it
// writes (cat > /dev/null), "log" the speed at which the log grows, which has a
// time stamp of 31 bytes for each line. The log is read back: no line is missing,
// or another one. peak-MiB is the supervisor's largest resident set.
func BenchmarkOutput(b *testing.B) {
	rootfs := b.TempDir()
	src := filepath.Join(b.TempDir(), "flood.go")
	if err := os.WriteFile(src, []byte(floodProgram), 0o644); err != nil {
		b.Fatal(err)
	}
	build := exec.Command("go", "build", "-ldflags=-s -w", "-o", filepath.Join(rootfs, "flood"), src)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		b.Fatalf("%v: %s", err, out)
	}
	for _, d := range []string{"proc", "sys", "dev", "etc", "out"} {
		if err := os.Mkdir(filepath.Join(rootfs, d), 0o755); err != nil {
			b.Fatal(err)
		}
	}
	s := newSite(b, rootfs)
	for _, c := range []struct{ length, total int }{{2, 32 << 20}, {10, 96 << 20}, {100, 512 << 20}, {1000, 768 << 20}, {10 << 20, 800 << 20}} {
		b.Run(fmt.Sprintf("line=%d", c.length), func(b *testing.B) {
			total, length := strconv.Itoa(c.total), strconv.Itoa(c.length)
			var ours, offered, whole time.Duration
			var peak int64
			for b.Loop() {
				idle := exec.Command("sh", "-c", `"$0" "$@" | cat >/dev/null`, filepath.Join(rootfs, "flood"), total, length)
				ns, err := idle.StderrPipe()
				if err != nil {
					b.Fatal(err)
				}
				if err := idle.Start(); err != nil {
					b.Fatal(err)
				}
				offered += nanoseconds(b, bufio.NewScanner(ns))
				_ = idle.Wait()
				uuid := s.submit(b, []string{"/flood", total, length}, nil)
				cmd := s.crunchRun(uuid)
				var stderr bytes.Buffer
				cmd.Stderr = &stderr
				began := time.Now()
				if err := cmd.Start(); err != nil {
					b.Fatal(err)
				}
				watched := make(chan int64, 1)
				go func() { watched <- watchPeak(cmd.Process.Pid) }()
				if err := cmd.Wait(); err != nil {
					b.Fatalf("%v: %s", err, stderr.String())
				}
				whole += time.Since(began)
				peak = max(peak, <-watched)
				_, took, _ := strings.Cut(s.logFile(b, uuid, "stderr.txt"), " ")
				ours += nanoseconds(b, bufio.NewScanner(strings.NewReader(took)))
				s.checkFlood(b, uuid, c.total, c.length)
			}
			bytes := float64(b.N) * float64(c.total) / 1e6
			lines := float64(b.N) * float64(c.total) / float64(c.length)
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(bytes/ours.Seconds(), "MB/s")
			b.ReportMetric(bytes/offered.Seconds(), "offered-MB/s")
			b.ReportMetric((bytes+31*lines/1e6)/ours.Seconds(), "log-MB/s")
			b.ReportMetric(whole.Seconds()/float64(b.N), "s-job")
			b.ReportMetric(float64(peak)/1024, "peak-MiB")
		})
	}
}

// watchPeak returns a process's largest resident set in kB (proc(5), VmHWM), as
// it was shortly before its end. The one that wait4(2) tells includes what this
// process had when it started the other.
func watchPeak(pid int) (peak int64) {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for range tick.C {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		_, after, found := strings.Cut(string(text), "VmHWM:")
		if err != nil || !found { // it has ended, and is a zombie at most
			return peak
		}
		n, err := strconv.ParseInt(strings.Fields(after)[0], 10, 64)
		if err != nil {
			return peak
		}
		peak = n // executing itself again, it begins anew
	}
	return peak
}

func nanoseconds(b *testing.B, from *bufio.Scanner) time.Duration {
	b.Helper()
	from.Scan()
	n, err := strconv.ParseInt(from.Text(), 10, 64)
	if err != nil {
		b.Fatal(err)
	}
	return time.Duration(n)
}

// checkFlood checks that a log has every line of the program, with a time stamp.
func (s *site) checkFlood(b *testing.B, uuid string, total, length int) {
	b.Helper()
	ctx := context.Background()
	record, err := s.boss.GetContainer(ctx, uuid)
	if err != nil {
		b.Fatal(err)
	}
	log, err := s.boss.GetCollection(ctx, record.Log, "manifest_text")
	if err != nil {
		b.Fatal(err)
	}
	_, blocks := s.connect(b, s.cluster.DispatcherToken())
	c, err := keep.NewCollection(log.ManifestText, blocks)
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	f, err := c.Open("stdout.txt")
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	const stamp = len("2006-01-02T15:04:05.000000000Z ")
	repeat := max(1, (1000000+length-1)/length)
	lines := bufio.NewReaderSize(f, 16<<20)
	for n, seen := 0, 0; ; n++ {
		if n == repeat {
			n = 0
		}
		line, err := lines.ReadSlice('\n')
		if len(line) == 0 && err != nil {
			if seen != total {
				b.Fatalf("%d bytes in the log, of %d: %v", seen, total, err)
			}
			return
		}
		if len(line) <= stamp || line[stamp-2] != 'Z' {
			b.Fatalf("line without a time stamp: %.60q", line)
		}
		line = line[stamp:]
		number := strconv.Itoa(n)
		number = number[:min(len(number), length-1)]
		seen += len(line)
		if !bytes.HasPrefix(line, []byte(number)) && seen != total || len(line) != length && seen != total {
			b.Fatalf("after %d bytes: line %.60q, want number %d", seen, line, n)
		}
	}
}
