package mount

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// benchWorld is a file of several full blocks.
func benchWorld(b *testing.B, args ...string) (w *world, path string, size int64, locs []string) {
	w = newWorld(b)
	const blocks = 8
	manifest := "."
	for i := range blocks {
		l := w.put(testBytes(uint64(i), 64<<20))
		locs = append(locs, l)
		manifest += " " + l
	}
	size = blocks * 64 << 20
	pdh := w.publish(manifest+fmt.Sprintf(" 0:%d:big\n", size), time.Now().Add(time.Hour))
	w.mount(args...)
	return w, w.path("by_id", pdh, "big"), size, locs
}

// readFresh reads a file that the kernel has been told to forget.
func readFresh(b *testing.B, path string, size int64, buf []byte) {
	f, err := os.Open(path)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	b.StopTimer()
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		b.Fatal(err)
	}
	b.StartTimer()
	n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{f}, buf)
	if n != size || err != nil {
		b.Fatal(n, err)
	}
}

// BenchmarkSequentialRead reads a file through the mount, each time from Keep.
func BenchmarkSequentialRead(b *testing.B) {
	_, path, size, _ := benchWorld(b, "--file-cache", fmt.Sprint(256<<20))
	buf := make([]byte, 1<<20)
	b.SetBytes(size)
	for b.Loop() {
		readFresh(b, path, size, buf)
	}
}

// BenchmarkCachedRead reads what is in the server's cache but not in the
// kernel's.
func BenchmarkCachedRead(b *testing.B) {
	_, path, size, _ := benchWorld(b, "--file-cache", fmt.Sprint(1<<30))
	buf := make([]byte, 1<<20)
	readFresh(b, path, size, buf)
	b.SetBytes(size)
	for b.Loop() {
		readFresh(b, path, size, buf)
	}
}

// BenchmarkHTTP reads the same blocks from the same keepstore, one after the
// other, without verifying them.
func BenchmarkHTTP(b *testing.B) {
	w, _, size, locs := benchWorld(b)
	b.SetBytes(size)
	for b.Loop() {
		for _, l := range locs {
			signed := w.signer.SignLocator(l, token, time.Now().Add(time.Hour))
			resp, err := http.Get(w.url + "/" + signed + "?api_token=" + token)
			if err != nil {
				b.Fatal(err)
			}
			n, err := io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			if n != 64<<20 || err != nil {
				b.Fatal(n, err)
			}
		}
	}
}

// BenchmarkSmallFiles opens, reads and closes files of a collection with many.
func BenchmarkSmallFiles(b *testing.B) {
	const n = 20_000
	w := newWorld(b)
	loc := w.put(testBytes(3, n*100))
	var manifest strings.Builder
	manifest.WriteString(". " + loc)
	for i := range n {
		fmt.Fprintf(&manifest, " %d:100:file-%05d", i*100, i)
	}
	manifest.WriteString("\n")
	pdh := w.publish(manifest.String(), time.Now().Add(time.Hour))
	w.mount()
	dir := w.path("by_id", pdh)
	i := 0
	for b.Loop() {
		text, err := os.ReadFile(fmt.Sprintf("%s/file-%05d", dir, i%n))
		if err != nil || len(text) != 100 {
			b.Fatal(err)
		}
		i++
	}
}

// BenchmarkList looks up a collection of 20,000 files that nobody has seen yet
// and lists it with the attributes of its files.
func BenchmarkList(b *testing.B) {
	const n = 20_000
	w := newWorld(b)
	loc := w.put(testBytes(3, n))
	w.mount()
	for i := 0; b.Loop(); i++ {
		b.StopTimer()
		var manifest strings.Builder
		manifest.WriteString(". " + loc)
		for j := range n {
			fmt.Fprintf(&manifest, " %d:1:file-%d-%05d", j, i, j)
		}
		manifest.WriteString("\n")
		dir := w.path("by_id", w.publish(manifest.String(), time.Now().Add(time.Hour)))
		b.StartTimer()
		entries, err := os.ReadDir(dir)
		if err != nil || len(entries) != n {
			b.Fatal(len(entries), err)
		}
		for _, e := range entries {
			if _, err := e.Info(); err != nil {
				b.Fatal(err)
			}
		}
	}
}
