package imagestore

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"crunch-oci/imagestore/archive"
	"crunch-oci/imagestore/internal/imagetest"
	. "crunch-oci/imagestore/internal/tartest"

	"golang.org/x/sys/unix"
)

// benchImage makes an image like those of Python and R pipelines: five layers,
// in which most files are small and most bytes are in a few large ones.
var benchImage = sync.OnceValue(func() imagetest.Image {
	files, bytes := 30_000, 1<<30
	if testing.Short() {
		files, bytes = 3_000, 64<<20
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	data := make([]byte, 32<<20)
	for i := range data {
		data[i] = byte(rnd.Uint32() >> (rnd.Uint32() % 16)) // compresses by a third or so
	}
	var m imagetest.Image
	for l, share := range []float64{.15, .05, .5, .2, .1} {
		nf, left := int(float64(files)*share), int(float64(bytes)*share)
		var entries []Entry
		for d := 0; d*20 < nf; d++ {
			dir := fmt.Sprintf("l%d/usr/lib/python3/dist-packages/package%d", l, d/5)
			if d%5 == 0 {
				entries = append(entries, Dir(dir))
			}
			dir = fmt.Sprintf("%s/module%d", dir, d%5)
			entries = append(entries, Dir(dir))
			for f := range 20 {
				size := 1000 + rnd.IntN(12_000)
				if f == 0 && d%30 == 0 { // the large ones
					size = left / (nf/600 + 1) * 3 / 4
				}
				size = min(size, len(data)-1)
				at := rnd.IntN(len(data) - size)
				e := File(fmt.Sprintf("%s/file_%d.py", dir, f), "")
				e.Body, e.Header.Size = data[at:at+size], int64(size)
				entries = append(entries, e)
			}
		}
		m.Layers = append(m.Layers, Tar(panicTB{}, entries...))
	}
	return m
})

type panicTB struct{}

func (panicTB) Helper()                   {}
func (panicTB) Fatalf(f string, a ...any) { panic(fmt.Sprintf(f, a...)) }

// BenchmarkUnpack unpacks an image of 1 GB and 30,000 files (with -short 64 MB
// and 3,000) beside tar -x of its layers, alternating, on the disk of the
// temporary directory and in memory. It reports medians in milliseconds, of
// the clock and of processor time, and the ratio of the former.
func BenchmarkUnpack(b *testing.B) {
	for _, packed := range []string{"", "gzip", "zstd"} {
		for _, place := range []string{"", "/dev/shm"} {
			name := map[string]string{"": "plain", "gzip": "gzip", "zstd": "zstd"}[packed] + "/" + map[string]string{"": "disk", "/dev/shm": "memory"}[place]
			b.Run(name, func(b *testing.B) { benchUnpack(b, place, packed) })
		}
	}
}

func benchUnpack(b *testing.B, place, packed string) {
	dir, err := os.MkdirTemp(place, "bench-unpack-")
	if err != nil {
		b.Skip(err)
	}
	defer os.RemoveAll(dir)
	m := benchImage()
	m.Compress = packed
	id := m.ID() // of a gigabyte: not again and again
	// The source is in memory in any case, so that its reading costs the same.
	src, err := os.MkdirTemp("/dev/shm", "bench-source-")
	if err != nil {
		b.Skip(err)
	}
	defer os.RemoveAll(src)
	tarball := filepath.Join(src, "image.tar")
	f, err := os.Create(tarball)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	if err := Write(f, imagetest.Docker25(m)...); err != nil {
		b.Fatal(err)
	}
	st, _ := f.Stat()
	var total int64
	for i, l := range m.Layers {
		total += int64(len(l))
		if err := os.WriteFile(filepath.Join(src, fmt.Sprint(i)), imagetest.Pack(packed, l), 0o600); err != nil {
			b.Fatal(err)
		}
	}
	var ours, theirs, oursCPU, theirsCPU []float64
	for b.Loop() {
		store := filepath.Join(dir, "store")
		unix.Sync()
		cpu := cpuTime(unix.RUSAGE_SELF)
		start := time.Now()
		s, err := Open(store, Options{})
		if err != nil {
			b.Fatal(err)
		}
		snap, err := s.Unpack(context.Background(), Key{ID: id}, func(ctx context.Context) (*archive.Image, error) {
			return archive.Open(ctx, f, st.Size(), archive.Options{WantID: id})
		}, nil)
		if err != nil {
			b.Fatal(err)
		}
		ours = append(ours, float64(time.Since(start).Microseconds())/1000)
		oursCPU = append(oursCPU, cpuTime(unix.RUSAGE_SELF)-cpu)
		snap.Close()
		s.Close(context.Background())
		os.RemoveAll(store)

		unix.Sync()
		cpu = cpuTime(unix.RUSAGE_CHILDREN)
		start = time.Now()
		for i := range m.Layers {
			into := filepath.Join(dir, "tar", fmt.Sprint(i))
			if err := os.MkdirAll(into, 0o700); err != nil {
				b.Fatal(err)
			}
			args := []string{"-x", "-f", filepath.Join(src, fmt.Sprint(i)), "-C", into}
			if packed != "" {
				args = append(args, "--"+packed)
			}
			if out, err := exec.Command("tar", args...).CombinedOutput(); err != nil {
				b.Fatalf("%v: %s", err, out)
			}
		}
		theirs = append(theirs, float64(time.Since(start).Microseconds())/1000)
		theirsCPU = append(theirsCPU, cpuTime(unix.RUSAGE_CHILDREN)-cpu)
		os.RemoveAll(filepath.Join(dir, "tar"))
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(total>>20), "MiB")
	b.ReportMetric(median(ours), "unpack-ms")
	b.ReportMetric(median(theirs), "tar-ms")
	b.ReportMetric(median(oursCPU), "unpack-cpu-ms")
	b.ReportMetric(median(theirsCPU), "tar-cpu-ms")
	b.ReportMetric(median(ours)/median(theirs), "ratio")
}

func median(x []float64) float64 {
	slices.Sort(x)
	return x[len(x)/2]
}

// cpuTime is the processor time used so far, in milliseconds.
func cpuTime(who int) float64 {
	var u unix.Rusage
	_ = unix.Getrusage(who, &u)
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e6
}

// BenchmarkWarmStart is what a container with a known image waits for: look-up,
// mount, and, at its end, unmount. The image has ten layers.
func BenchmarkWarmStart(b *testing.B) {
	var m imagetest.Image
	for i := range 10 {
		m.Layers = append(m.Layers, Tar(b, File(fmt.Sprint("f", i), "x")))
	}
	s := openStore(b, b.TempDir())
	unpack(b, s, m).Close()
	dir := b.TempDir()
	for i := 0; b.Loop(); i++ {
		d := filepath.Join(dir, fmt.Sprint(i))
		if err := os.Mkdir(d, 0o700); err != nil {
			b.Fatal(err)
		}
		s, err := Open(s.root, Options{})
		if err != nil {
			b.Fatal(err)
		}
		snap, err := s.Lookup(Key{ID: m.ID()})
		if err != nil {
			b.Fatal(err)
		}
		if err := MountRootfs(snap, d+"/root", d+"/upper", d+"/work"); err != nil {
			b.Fatal(err)
		}
		if err := Unmount(d + "/root"); err != nil {
			b.Fatal(err)
		}
		snap.Close()
		s.Close(context.Background())
	}
}
