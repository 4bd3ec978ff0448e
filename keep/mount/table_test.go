package mount

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crunch-oci/internal/forkthread"
)

// The table of doc/performance.md, "Keep". It is short unless these are set:
//
//	KEEP_BENCH_MIB      size of the large file (256)
//	KEEP_BENCH_FILES    files in one collection (5,800)
//	KEEP_BENCH_COLLECTIONS  (200)
//	KEEP_BENCH_RUNS     of which the median is shown (3)
//	KEEP_BENCH_ROWS     only these, of curl, disk, again, next, memory, files (all)
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

// BenchmarkTable prints the table. Each row is the median of several runs, its
// peer measured in turn with it.
func BenchmarkTable(b *testing.B) {
	for b.Loop() {
		tb := &table{b: b, runs: benchNumber(b, "KEEP_BENCH_RUNS", 3)}
		if text := os.Getenv("KEEP_BENCH_ROWS"); text != "" {
			tb.only = strings.Split(text, ",")
		}
		tb.largeFile(benchNumber(b, "KEEP_BENCH_MIB", 256))
		if tb.wanted("files") {
			tb.manyFiles(benchNumber(b, "KEEP_BENCH_FILES", 5800), benchNumber(b, "KEEP_BENCH_COLLECTIONS", 200))
		}
		tb.print()
	}
}

type table struct {
	b    *testing.B
	runs int
	only []string // groups of rows; none means all
	rows []*row
}

func (t *table) wanted(group string) bool { return len(t.only) == 0 || slices.Contains(t.only, group) }

// row is what was measured of one thing.
type row struct {
	name, unit string
	values     []float64
	pss        int64 // of the FUSE server, bytes, the highest
}

func (t *table) row(name, unit string) *row {
	for _, r := range t.rows {
		if r.name == name {
			return r
		}
	}
	r := &row{name: name, unit: unit}
	t.rows = append(t.rows, r)
	return r
}

// print prints what doc/performance.md shows.
func (t *table) print() {
	load, _ := os.ReadFile("/proc/loadavg")
	fmt.Printf("\nload %s", load)
	fmt.Printf("| | median | lowest to highest | highest PSS of the FUSE server, MiB |\n|---|---|---|---|\n")
	for _, r := range t.rows {
		slices.Sort(r.values)
		pss := "–"
		if r.pss > 0 {
			pss = fmt.Sprintf("%.0f", float64(r.pss)/(1<<20))
		}
		format := "| %s | %.0f %s | %.0f to %.0f | %s |\n"
		if r.values[0] < 20 {
			format = "| %s | %.2f %s | %.2f to %.2f | %s |\n"
		}
		fmt.Printf(format, r.name, r.values[len(r.values)/2], r.unit, r.values[0], r.values[len(r.values)-1], pss)
	}
}

// rate measures how fast do handles so many units. The server's memory is
// watched if there is one.
func (t *table) rate(name, unit string, n float64, w *world, do func()) {
	r := t.row(name, unit)
	stop := func() int64 { return 0 }
	if w != nil && w.cmd != nil {
		stop = watchPSS(w.cmd.Process.Pid)
	}
	start := time.Now()
	do()
	took := time.Since(start).Seconds()
	r.pss = max(r.pss, stop())
	if unit == "s" {
		r.values = append(r.values, took)
	} else {
		r.values = append(r.values, n/took)
	}
}

// watchPSS samples a process's proportional set size until the function it
// returns is called, which returns the highest.
func watchPSS(pid int) (stop func() int64) {
	done, result := make(chan struct{}), make(chan int64)
	go func() {
		ticker := time.NewTicker(50 * time.Millisecond)
		defer ticker.Stop()
		var most int64
		for {
			most = max(most, pss(pid))
			select {
			case <-ticker.C:
			case <-done:
				result <- most
				return
			}
		}
	}()
	return func() int64 { close(done); return <-result }
}

func pss(pid int) int64 {
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if rest, ok := strings.CutPrefix(lines.Text(), "Pss:"); ok {
			n, _ := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return n << 10
		}
	}
	return 0
}

func (t *table) sh(script string, args ...string) {
	cmd := exec.Command("sh", append([]string{"-c", script, "sh"}, args...)...)
	var err error
	var out []byte
	forkthread.Do(func() { out, err = cmd.CombinedOutput() })
	if err != nil {
		t.b.Fatalf("%s: %v\n%s", script, err, out)
	}
}

// end ends a mount, so that another one can follow.
func (w *world) end() {
	_ = w.cmd.Process.Signal(syscall.SIGTERM)
	<-w.exited
}

// forgetFile takes a file out of the kernel's cache.
func (t *table) forgetFile(path string) {
	f, err := os.Open(path)
	if err != nil {
		t.b.Fatal(err)
	}
	defer f.Close()
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		t.b.Fatal(err)
	}
}

// largeFile reads a file of so many MiB.
func (t *table) largeFile(mib int) {
	b := t.b
	if len(t.only) == 1 && t.wanted("files") {
		return
	}
	w := newWorld(b)
	var manifest, urls strings.Builder
	manifest.WriteString(".")
	dir := b.TempDir()
	local := filepath.Join(dir, "local")
	f, err := os.Create(local)
	if err != nil {
		b.Fatal(err)
	}
	size := int64(0)
	for i := 0; size < int64(mib)<<20; i++ {
		data := testBytes(uint64(i), int(min(64<<20, int64(mib)<<20-size)))
		loc := w.put(data)
		manifest.WriteString(" " + loc)
		fmt.Fprintf(&urls, "url = %s/%s?api_token=%s\n", w.url, w.signer.SignLocator(loc, token, time.Now().Add(time.Hour)), token)
		if _, err := f.Write(data); err != nil {
			b.Fatal(err)
		}
		size += int64(len(data))
	}
	if err := f.Close(); err != nil {
		b.Fatal(err)
	}
	unix.Sync()
	fmt.Fprintf(&manifest, " 0:%d:big\n", size)
	pdh := w.publish(manifest.String(), time.Now().Add(time.Hour))
	list := filepath.Join(dir, "urls")
	if err := os.WriteFile(list, []byte(urls.String()), 0o600); err != nil {
		b.Fatal(err)
	}
	cache := filepath.Join(dir, "cache")
	disk := []string{"--disk-cache", "--disk-cache-dir", cache, "--file-cache", "90%"}
	path := w.path("by_id", pdh, "big")
	mb := float64(size) / 1e6
	cat := func(name, path string, w *world) {
		t.rate(name, "MB/s", mb, w, func() { t.sh(`cat "$1" >/dev/null`, path) })
	}
	for range t.runs {
		if t.wanted("curl") {
			t.rate("cold: `curl` of the blocks, one after the other, piped to `md5sum`", "MB/s", mb, nil, func() {
				t.sh(`curl -sf -K "$1" | md5sum`, list)
			})
		}
		if t.wanted("disk") || t.wanted("again") || t.wanted("next") {
			if err := os.RemoveAll(cache); err != nil {
				b.Fatal(err)
			}
			w.mount(disk...)
			cat("cold: `cat` through the mount, disk cache", path, w)
			unix.Sync()
			if t.wanted("again") {
				t.readAgain(w, path, local, size, cat)
			}
			w.end()
		}
		if t.wanted("next") {
			w.mount(disk...)
			cat("`cat` through the mount of the node's next container (MD5 verified again)", path, w)
			w.end()
		}
		if t.wanted("memory") {
			w.mount("--ram-cache")
			cat("cold: `cat` through the mount, cache of 256 MiB in memory", path, w)
			w.end()
		}
	}
}

// readAgain reads a file that the disk cache and the kernel have.
func (t *table) readAgain(w *world, path, local string, size int64, cat func(name, path string, w *world)) {
	random := func(name, path string, w *world) {
		t.rate(name, "/s", 20_000, w, func() { t.randomReads(path, size) })
	}
	cat("warm: `cat` of the local file", local, nil)
	cat("warm: `cat` through the mount, again", path, w)
	t.forgetFile(path)
	cat("`cat` of what the disk cache has and the kernel has not", path, w)
	random("warm: 4 KiB random reads of the local file", local, nil)
	random("warm: 4 KiB random reads through the mount", path, w)
	t.forgetFile(path)
	random("4 KiB random reads of what the disk cache has and the kernel has not", path, w)
}

func (t *table) randomReads(path string, size int64) {
	f, err := os.Open(path)
	if err != nil {
		t.b.Fatal(err)
	}
	defer f.Close()
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_RANDOM); err != nil {
		t.b.Fatal(err)
	}
	buf := make([]byte, 4096)
	r := rand.New(rand.NewPCG(1, 2))
	for range 20_000 {
		if _, err := f.ReadAt(buf, r.Int64N(size/4096)*4096); err != nil && err != io.EOF {
			t.b.Fatal(err)
		}
	}
}

// manyFiles looks at the files of a large collection, and at many collections.
func (t *table) manyFiles(files, collections int) {
	w := newWorld(t.b)
	loc := w.put(testBytes(3, files))
	var large strings.Builder
	for i := range files {
		if i%1000 == 0 {
			if i > 0 {
				large.WriteString("\n")
			}
			fmt.Fprintf(&large, "./batch%03d %s", i/1000, loc)
		}
		fmt.Fprintf(&large, " %d:1:sample_%06d.fastq.gz", i, i)
	}
	large.WriteString("\n")
	pdh := w.publish(large.String(), time.Now().Add(time.Hour))
	var pdhs []string
	for i := range collections {
		pdhs = append(pdhs, w.publish(fmt.Sprintf(". %s 0:1:file-%d\n", loc, i), time.Now().Add(time.Hour)))
	}
	look := func(path string) {
		f, err := os.Open(path)
		if err != nil {
			t.b.Fatal(err)
		}
		if _, err := f.Stat(); err != nil {
			t.b.Fatal(err)
		}
		f.Close()
	}
	for range t.runs {
		w.mount("--ram-cache")
		t.rate(fmt.Sprintf("stat and open %d files of one collection", files), "s", 0, w, func() {
			for i := range files {
				look(w.path("by_id", pdh, fmt.Sprintf("batch%03d/sample_%06d.fastq.gz", i/1000, i)))
			}
		})
		t.rate(fmt.Sprintf("stat and open the files of %d collections", collections), "s", 0, w, func() {
			for i, pdh := range pdhs {
				look(w.path("by_id", pdh, fmt.Sprintf("file-%d", i)))
			}
		})
		w.end()
	}
}
