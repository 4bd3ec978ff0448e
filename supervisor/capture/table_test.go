package capture

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crunch-oci/keep"
	"crunch-oci/keep/keepstore"
)

// benchChild, a directory and a block server's URL, makes this program capture
// the directory and end.
const benchChild = "CAPTURE_BENCH_CHILD"

// supervisorLimit is the memory limit that a supervisor sets itself, in bytes.
const supervisorLimit = 512 << 20

// captureAlone is the process whose memory is measured. It prints how long the
// capture took, in nanoseconds, and its largest resident set, in kB.
func captureAlone(dir, url string) error {
	debug.SetMemoryLimit(supervisorLimit)
	client, err := keep.NewClient(keep.ClientConfig{Services: keep.FixedServices{{UUID: "zzzzz-bi6l4-000000000000000", URL: url, Type: "disk"}}, Token: "bench", DefaultReplication: 1})
	if err != nil {
		return err
	}
	defer client.Close()
	out, err := keep.NewCollection("", client)
	if err != nil {
		return err
	}
	defer out.Close()
	began := time.Now()
	manifest, err := Run(context.Background(), Config{Mounts: tmpOutput(), OutputPath: "/out", HostDir: dir, Collections: manifests{}, Log: unsaid{}}, out)
	if err != nil {
		return err
	}
	took := time.Since(began)
	status, err := os.ReadFile("/proc/self/status")
	_, after, found := strings.Cut(string(status), "VmHWM:")
	if err != nil || !found || manifest == "" {
		return fmt.Errorf("no memory, or no manifest: %w", err)
	}
	fmt.Println(took.Nanoseconds(), strings.Fields(after)[0])
	return nil
}

type unsaid struct{}

func (unsaid) Printf(string, ...any) {}

// benchNumber is a size of the table: short unless a variable says otherwise.
func benchNumber(b *testing.B, name string, short int) int {
	text := os.Getenv(name)
	if text == "" {
		return short
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		b.Fatalf("%s=%q", name, text)
	}
	return n
}

// BenchmarkTable prints the table of doc/performance.md, "Output capture": a few
// large files and many small ones, beside md5sum of the same files, turn by turn.
// It is short unless these are set:
//
//	CAPTURE_BENCH_MIB    size of 20 files together (256)
//	CAPTURE_BENCH_FILES  files of 4 KiB (5,000)
//	CAPTURE_BENCH_RUNS   of which the median is shown (3)
func BenchmarkTable(b *testing.B) {
	mib, files, runs := benchNumber(b, "CAPTURE_BENCH_MIB", 256), benchNumber(b, "CAPTURE_BENCH_FILES", 5000), benchNumber(b, "CAPTURE_BENCH_RUNS", 3)
	for b.Loop() {
		load, _ := os.ReadFile("/proc/loadavg")
		fmt.Printf("\nload %s| | capture | lowest to highest | `md5sum` | ratio | highest RSS, MiB | CPU ms per 64 MiB, capture + keepstore |\n|---|---|---|---|---|---|---|\n", load)
		benchRow(b, fmt.Sprintf("%d MiB in 20 files", mib), 20, mib<<20/20, runs)
		benchRow(b, fmt.Sprintf("%d files of 4 KiB", files), files, 4096, runs)
	}
}

func benchRow(b *testing.B, name string, files, size, runs int) {
	dir := b.TempDir()
	r := rand.NewChaCha8([32]byte{1})
	data := make([]byte, size)
	for i := range files {
		_, _ = r.Read(data)
		path := filepath.Join(dir, fmt.Sprintf("d%03d", i/1000), fmt.Sprintf("f%06d", i))
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, data, 0o644)); err != nil {
			b.Fatal(err)
		}
	}
	total := float64(files) * float64(size) / 1e6
	var ours, peer, client, server []float64
	perBlock := func(d time.Duration) float64 { return d.Seconds() * 1e3 / (total * 1e6 / keep.MaxBlockSize) }
	peak := 0
	for range runs {
		began := time.Now()
		bench(b, exec.Command("sh", "-c", `find "$1" -type f -print0 | xargs -0 md5sum >/dev/null`, "sh", dir))
		peer = append(peer, total/time.Since(began).Seconds())
		r := benchCapture(b, dir)
		ours = append(ours, total/r.took.Seconds())
		client, server = append(client, perBlock(r.client)), append(server, perBlock(r.server))
		peak = max(peak, r.kb)
	}
	for _, v := range [][]float64{ours, peer, client, server} {
		slices.Sort(v)
	}
	median := func(v []float64) float64 { return v[len(v)/2] }
	fmt.Printf("| %s | %.0f MB/s | %.0f to %.0f | %.0f MB/s | %.2f | %d | %.0f + %.0f |\n", name, median(ours), ours[0], ours[len(ours)-1], median(peer), median(ours)/median(peer), peak>>10, median(client), median(server))
}

// benchResult is how a capture went.
type benchResult struct {
	took           time.Duration
	client, server time.Duration // CPU time
	kb             int           // largest resident set of the client
}

// benchCapture captures in a process of its own, into a block server in this
// one that has no block yet.
func benchCapture(b *testing.B, dir string) (r benchResult) {
	root, err := os.MkdirTemp(b.TempDir(), "keep")
	if err != nil {
		b.Fatal(err)
	}
	defer os.RemoveAll(root)
	store, err := keepstore.New(keepstore.Config{MaxKeepBlobBuffers: 8, NoSync: true, Volumes: []keepstore.VolumeConfig{{UUID: "zzzzz-nyw5e-000000000000000", Root: root}}})
	if err != nil {
		b.Fatal(err)
	}
	defer store.Close()
	srv := httptest.NewServer(store)
	defer srv.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), benchChild+"="+dir+" "+srv.URL)
	before := cpuTime(b)
	text := bench(b, cmd)
	r.server, r.client = cpuTime(b)-before, cmd.ProcessState.UserTime()+cmd.ProcessState.SystemTime()
	if _, err := fmt.Sscan(text, &r.took, &r.kb); err != nil {
		b.Fatalf("%v: %s", err, text)
	}
	return r
}

// cpuTime is what this process has used.
func cpuTime(b *testing.B) time.Duration {
	var r unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &r); err != nil {
		b.Fatal(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

func bench(b *testing.B, cmd *exec.Cmd) string {
	b.Helper()
	out, err := cmd.CombinedOutput()
	if err != nil {
		b.Fatalf("%v: %v\n%s", cmd, err, out)
	}
	return string(out)
}
