package bench

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"crunch-oci/oci"
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

// BenchmarkWarmStart runs a program that only tells the time, from an image that
// is unpacked already, and beside it "runc run" of a bundle with the same
// settings, turn by turn. It reports medians and 99th percentiles, from the start
// of the process to the first instruction of the user's program (first) and to
// its end (job).
func BenchmarkWarmStart(b *testing.B) {
	rootfs := nowRootfs(b)
	s := newSite(b, rootfs)
	bundle := runcBundle(b, rootfs)
	warm := s.submit(b, []string{"/now"}, nil)
	if out, err := s.crunchRun(warm).CombinedOutput(); err != nil {
		b.Fatalf("%v: %s", err, out)
	}
	var ours, theirs, bare samples
	for b.Loop() {
		uuid := s.submit(b, []string{"/now"}, nil)
		cmd := s.crunchRun(uuid)
		ours.measure(b, cmd, func(string) string {
			_, stamp, _ := strings.Cut(s.logFile(b, uuid, "stdout.txt"), " ")
			return stamp
		})
		runc := exec.Command("runc", "--root", b.TempDir(), "run", "--bundle", bundle, "bench-"+strconv.Itoa(os.Getpid())+"-"+strconv.Itoa(len(theirs.first)))
		theirs.measure(b, runc, func(stdout string) string { return stdout })
		bare.measure(b, exec.Command(filepath.Join(rootfs, "now")), func(stdout string) string { return stdout })
	}
	b.ReportMetric(0, "ns/op")
	ours.report(b, "crunch-run")
	theirs.report(b, "runc")
	bare.report(b, "bare")
}

// runcBundle is a bundle with what crunch-run would ask for.
func runcBundle(b *testing.B, rootfs string) string {
	b.Helper()
	spec, err := oci.NewSpec(oci.Request{
		Image: ocispec.ImageConfig{}, RootfsPath: rootfs, Command: []string{"/now"}, Cwd: "/", Hostname: "bench",
		CgroupsPath: cgroupBase + "/runc",
		Limits:      oci.Limits{NanoCPUs: 1e9, RAM: 256 << 20},
	})
	if err != nil {
		b.Fatal(err)
	}
	dir := filepath.Join(b.TempDir(), "bundle")
	if err := oci.WriteBundle(dir, spec); err != nil {
		b.Fatal(err)
	}
	return dir
}

// samples are durations from the start of a process.
type samples struct{ first, job []time.Duration }

// measure runs cmd; stamp finds the program's time stamp, given its stdout.
func (s *samples) measure(b *testing.B, cmd *exec.Cmd, stamp func(stdout string) string) {
	b.Helper()
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	began := time.Now()
	if err := cmd.Run(); err != nil {
		b.Fatalf("%v: %s", err, stderr.String())
	}
	job := time.Since(began)
	ns, err := strconv.ParseInt(strings.TrimSpace(stamp(stdout.String())), 10, 64)
	if err != nil {
		b.Fatal(err)
	}
	s.first = append(s.first, time.Unix(0, ns).Sub(began))
	s.job = append(s.job, job)
}

func (s *samples) report(b *testing.B, who string) {
	for _, m := range []struct {
		name string
		d    []time.Duration
	}{{"first", s.first}, {"job", s.job}} {
		slices.Sort(m.d)
		for _, p := range []int{50, 99} {
			v := m.d[(len(m.d)-1)*p/100]
			b.ReportMetric(float64(v.Microseconds())/1000, who+"-"+m.name+"-p"+strconv.Itoa(p)+"-ms")
		}
	}
}
