package bench

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// nowRootfs makes a root file system whose only program prints the time, in
// nanoseconds since 1970: its first instruction, as seen from outside.
func nowRootfs(b *testing.B) string {
	b.Helper()
	dir := b.TempDir()
	src := filepath.Join(b.TempDir(), "now.go")
	const program = `package main

import ("os"; "strconv"; "time")

func main() { os.Stdout.WriteString(strconv.FormatInt(time.Now().UnixNano(), 10) + "\n") }
`
	if err := os.WriteFile(src, []byte(program), 0o644); err != nil {
		b.Fatal(err)
	}
	build := exec.Command("go", "build", "-ldflags=-s -w", "-o", filepath.Join(dir, "now"), src)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		b.Fatalf("%v: %s", err, out)
	}
	for _, d := range []string{"proc", "sys", "dev", "etc", "out"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			b.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "etc/passwd"), []byte("root:x:0:0:root:/:/now\n"), 0o644); err != nil {
		b.Fatal(err)
	}
	return dir
}

// BenchmarkStart runs a program that only tells the time, from an image that is
// unpacked already, and beside it runc of our libcontainer's version and Debian's
// podman with that runc: one after the other, taking turns, and then many at
// once, each program by itself. It prints the tables of doc/performance.md.
//
// BENCH_STARTS and BENCH_PARALLEL set how many (200 and 64). The time to the
// user's first instruction counts from the start of the process, and for
// crunch-run also from the request for the container's record: that includes the
// answer, and leaves out what is learnt of the cluster before.
func BenchmarkStart(b *testing.B) {
	sequential, parallel := countFromEnv(b, "BENCH_STARTS", 200), countFromEnv(b, "BENCH_PARALLEL", 64)
	rootfs := nowRootfs(b)
	s := newSite(b, rootfs)
	runc := peerRunc(b)
	ours := &starter{name: "crunch-run", prepare: func() (*exec.Cmd, func(string) (stamps, error)) {
		uuid := s.submit(b, []string{"/now"}, nil)
		return s.crunchRun(uuid), func(string) (stamps, error) {
			return readLog(s.logFile(b, uuid, "crunch-run.txt"), s.logFile(b, uuid, "stdout.txt"))
		}
	}}
	peers := []*starter{ours, runcStarter(b, runc, rootfs), podmanStarter(b, runc, s.tarball), {
		name: "bare program",
		prepare: func() (*exec.Cmd, func(string) (stamps, error)) {
			return exec.Command(filepath.Join(rootfs, "now")), onStdout
		},
	}}
	for _, p := range peers {
		p.run(b, 1) // warm
		p.samples = nil
	}
	for b.Loop() {
		for range sequential {
			for _, p := range peers {
				p.run(b, 1)
			}
		}
		table(b, fmt.Sprintf("%d one after the other", sequential), peers)
		where(b, ours.samples)
		for _, p := range peers {
			p.samples = nil
			if parallel > 0 {
				p.run(b, parallel)
			}
		}
		if parallel > 0 {
			table(b, fmt.Sprintf("%d at once", parallel), peers)
		}
	}
	b.ReportMetric(0, "ns/op")
}

func countFromEnv(b *testing.B, name string, otherwise int) int {
	b.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 {
		b.Fatalf("%s=%q is not a number", name, text)
	}
	return n
}

// stamps are points in a program's life.
type stamps struct {
	began, first, ended time.Time
	// log is when crunch-run wrote which message, in order.
	log []message
}

type message struct {
	at   time.Time
	text string
}

// starter is a program that starts containers.
type starter struct {
	name string
	// prepare returns a command and what finds, given its stdout, when the
	// user's program began. It is not called by several goroutines.
	prepare func() (*exec.Cmd, func(stdout string) (stamps, error))
	samples []stamps
}

// run starts n at once, and waits for all.
func (p *starter) run(b *testing.B, n int) {
	b.Helper()
	type job struct {
		cmd            *exec.Cmd
		read           func(string) (stamps, error)
		stdout, stderr strings.Builder
		began, ended   time.Time
		err            error
	}
	jobs := make([]job, n)
	var running sync.WaitGroup
	for i := range jobs {
		j := &jobs[i]
		j.cmd, j.read = p.prepare()
		j.cmd.Stdout, j.cmd.Stderr = &j.stdout, &j.stderr
	}
	for i := range jobs {
		j := &jobs[i]
		running.Go(func() {
			j.began = time.Now()
			j.err = j.cmd.Run()
			j.ended = time.Now()
		})
	}
	running.Wait()
	for i := range jobs {
		j := &jobs[i]
		if j.err != nil {
			b.Fatalf("%s: %v: %s", p.name, j.err, &j.stderr)
		}
		got, err := j.read(j.stdout.String())
		if err != nil {
			b.Fatalf("%s: %v: %s", p.name, err, &j.stderr)
		}
		got.began, got.ended = j.began, j.ended
		p.samples = append(p.samples, got)
	}
}

func onStdout(stdout string) (stamps, error) {
	ns, err := strconv.ParseInt(strings.TrimSpace(stdout), 10, 64)
	return stamps{first: time.Unix(0, ns)}, err
}

// readLog finds the points in a log and in what the program has printed.
func readLog(log, stdout string) (stamps, error) {
	_, stamp, _ := strings.Cut(stdout, " ")
	s, err := onStdout(stamp)
	if err != nil {
		return s, err
	}
	for line := range strings.Lines(log) {
		at, text, _ := strings.Cut(strings.TrimSpace(line), " ")
		t, err := time.Parse(time.RFC3339Nano, at)
		if err != nil {
			return s, err
		}
		s.log = append(s.log, message{t, text})
	}
	return s, nil
}

// when tells when crunch-run wrote the message that begins so.
func (s stamps) when(b *testing.B, text string) time.Time {
	b.Helper()
	for _, m := range s.log {
		if strings.HasPrefix(m.text, text) {
			return m.at
		}
	}
	b.Fatalf("the log lacks %q", text)
	return time.Time{}
}

// recordAsked is the last message before the container's record is asked for.
const recordAsked = "Executing on host"

func table(b *testing.B, title string, peers []*starter) {
	b.Helper()
	fmt.Printf("| %s; ms | to the user's first instruction, p50 | p99 | whole process, p50 | p99 |\n|---|---|---|---|---|\n", title)
	row := func(name string, first, whole []time.Duration) {
		fmt.Printf("| %s | %s | %s | %s | %s |\n", name, ms(quantile(first, 50)), ms(quantile(first, 99)), ms(quantile(whole, 50)), ms(quantile(whole, 99)))
	}
	for i, p := range peers {
		var first, recorded, whole []time.Duration
		for _, s := range p.samples {
			first = append(first, s.first.Sub(s.began))
			whole = append(whole, s.ended.Sub(s.began))
			if i == 0 {
				recorded = append(recorded, s.first.Sub(s.when(b, recordAsked)))
			}
		}
		if i == 0 {
			row("crunch-run, from the container's record on", recorded, whole)
			row("crunch-run, from the start of the process", first, whole)
			continue
		}
		row(p.name, first, whole)
	}
	fmt.Println()
}

// where prints where crunch-run's time goes, by the messages of its log.
func where(b *testing.B, samples []stamps) {
	b.Helper()
	fmt.Println("| between | ms, p50 |\n|---|---|")
	points := []struct{ what, message string }{
		{"start of the process, its mount namespace, settings, what is to be known of the cluster, runtime directory, image store", recordAsked},
		{"record, token and secrets of the container; mounts", "Fetching Docker image"},
		{"image collection; the image found in the store, its root mounted", "Creating OCI container"},
		{"bundle, cgroup, container's init; description of the host; first save of the log; `Running`", "Starting container"},
		{"execution of the user's program", ""},
		{"the program; its end noticed", "Container exited"},
		{"exit code, output and log saved, clean-up, final state; end of the process", ""},
	}
	last := func(s stamps) time.Time { return s.began }
	for i, p := range points {
		from, to := last, func(s stamps) time.Time { return s.when(b, p.message) }
		switch {
		case i == len(points)-1:
			to = func(s stamps) time.Time { return s.ended }
		case p.message == "":
			to = func(s stamps) time.Time { return s.first }
		}
		var d []time.Duration
		for _, s := range samples {
			d = append(d, to(s).Sub(from(s)))
		}
		fmt.Printf("| %s | %s |\n", p.what, ms(quantile(d, 50)))
		last = to
	}
	fmt.Println()
}

func quantile(d []time.Duration, percent int) time.Duration {
	sorted := slices.Sorted(slices.Values(d))
	return sorted[(len(sorted)-1)*percent/100]
}

func ms(d time.Duration) string {
	v := float64(d.Microseconds()) / 1000
	if v < 10 {
		return strconv.FormatFloat(v, 'f', 1, 64)
	}
	return strconv.FormatFloat(v, 'f', 0, 64)
}
