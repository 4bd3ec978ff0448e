package imagestore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"crunch-oci/imagestore/archive"
	"crunch-oci/imagestore/internal/imagetest"
	. "crunch-oci/imagestore/internal/tartest"

	"golang.org/x/sys/unix"
)

// benchImage makes an image like those of Python and R pipelines: five layers,
// in which most files are small and most bytes are in a few large ones. Its size
// is 1 GB in 30,000 files, with -short a sixteenth in a tenth, or what
// IMAGESTORE_BENCH_MIB and IMAGESTORE_BENCH_FILES say.
var benchImage = sync.OnceValue(func() imagetest.Image {
	files, bytes := 30_000, 1<<30
	if testing.Short() {
		files, bytes = 3_000, 64<<20
	}
	if n, err := strconv.Atoi(os.Getenv("IMAGESTORE_BENCH_FILES")); err == nil {
		files = n
	}
	if n, err := strconv.Atoi(os.Getenv("IMAGESTORE_BENCH_MIB")); err == nil {
		bytes = n << 20
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	data := benchContent(rnd, 32<<20)
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

// benchContent compresses to a third, as programs and libraries do: words, the
// first of the vocabulary more often, and some bytes that do not compress.
func benchContent(rnd *rand.Rand, size int) []byte {
	words := make([][]byte, 5000)
	for i := range words {
		words[i] = make([]byte, 3+rnd.IntN(10))
		for j := range words[i] {
			words[i][j] = byte(rnd.Uint32())
		}
	}
	data := make([]byte, 0, size+32)
	for len(data) < size {
		data = append(data, words[int(float64(len(words))*math.Pow(rnd.Float64(), 3))]...)
		if rnd.IntN(4) == 0 {
			data = append(data, byte(rnd.Uint32()))
		}
	}
	return data[:size]
}

type panicTB struct{}

func (panicTB) Helper()                   {}
func (panicTB) Fatalf(f string, a ...any) { panic(fmt.Sprintf(f, a...)) }

// BenchmarkUnpack unpacks an image beside "podman load" of the same tarball,
// "umoci unpack" of the same image as a layout, and tar -x of its layers, turn by
// turn, on the disk of the temporary directory and in memory. The sources are in
// memory in any case, so that reading costs all the same; each run has a process
// of its own, and the disk is synced before. It reports medians in
// milliseconds, and prints a table with the spread and the processor time.
func BenchmarkUnpack(b *testing.B) {
	for _, packed := range []string{"", "gzip", "zstd"} {
		for _, place := range []string{"", "/dev/shm"} {
			name := map[string]string{"": "plain", "gzip": "gzip", "zstd": "zstd"}[packed] + "/" + map[string]string{"": "disk", "/dev/shm": "memory"}[place]
			b.Run(name, func(b *testing.B) { benchUnpack(b, name, place, packed) })
		}
	}
}

// contestant is a program that unpacks the image into an empty directory.
type contestant struct {
	name     string
	commands func(into string) [][]string
	bytes    int64     // of the image
	wall     []float64 // ms
	cpu      []float64
}

func benchUnpack(b *testing.B, name, place, packed string) {
	need(b, "podman", "runc", "umoci", "skopeo")
	dir, err := os.MkdirTemp(place, "bench-unpack-")
	if err != nil {
		b.Skip(err)
	}
	defer os.RemoveAll(dir)
	src, err := os.MkdirTemp("/dev/shm", "bench-source-")
	if err != nil {
		b.Skip(err)
	}
	defer os.RemoveAll(src)
	m := benchImage()
	m.Compress, m.Tags = packed, []string{"localhost/bench:1"}
	total := benchSources(b, m, src)
	tarball := filepath.Join(src, "image.tar")

	ours := &contestant{name: "crunch-run", commands: func(into string) [][]string {
		return [][]string{{os.Args[0], filepath.Join(into, "store"), tarball, m.ID(), "0"}}
	}}
	tar := &contestant{name: "tar -x", commands: func(into string) (out [][]string) {
		for i := range m.Layers {
			d := filepath.Join(into, fmt.Sprint(i))
			args := []string{"tar", "-x", "-f", filepath.Join(src, fmt.Sprint(i)), "-C", d}
			if packed != "" {
				args = append(args, "--"+packed)
			}
			if err := os.Mkdir(d, 0o700); err != nil {
				b.Fatal(err)
			}
			out = append(out, args)
		}
		return out
	}}
	podman := &contestant{name: "podman load", commands: func(into string) [][]string {
		return [][]string{append(podmanHere(b, into), "load", "-q", "-i", tarball)}
	}}
	umoci := &contestant{name: "umoci unpack", commands: func(into string) [][]string {
		return [][]string{{"umoci", "unpack", "--image", filepath.Join(src, "oci:v1"), filepath.Join(into, "bundle")}}
	}}
	all := []*contestant{ours, tar, podman, umoci}
	if packed == "zstd" {
		all = all[:3] // umoci does not know it
	}
	for b.Loop() {
		for _, c := range all {
			c.bytes = total
			c.run(b, dir)
		}
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(total>>20), "MiB")
	b.ReportMetric(median(ours.wall), "unpack-ms")
	fmt.Printf("\n| %s, %d MiB | s, median | least | most | CPU | ours to it |\n|---|---|---|---|---|---|\n", name, total>>20)
	for _, c := range all {
		ratio := median(ours.wall) / median(c.wall)
		fmt.Printf("| %s | %.2f | %.2f | %.2f | %.2f | %.2f |\n", c.name, median(c.wall)/1e3, c.wall[0]/1e3, c.wall[len(c.wall)-1]/1e3, median(c.cpu)/1e3, ratio)
		if c != ours {
			b.ReportMetric(ratio, "to-"+strings.Fields(c.name)[0])
		}
	}
}

// benchSources writes the image into src in every form: a tarball, an OCI layout,
// single layers. It gives the bytes of the layers, uncompressed.
func benchSources(b *testing.B, m imagetest.Image, src string) (total int64) {
	f, err := os.Create(filepath.Join(src, "image.tar"))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	if err := Write(f, imagetest.Docker25(m)...); err != nil {
		b.Fatal(err)
	}
	oci := filepath.Join(src, "oci")
	if err := os.Mkdir(oci, 0o700); err != nil {
		b.Fatal(err)
	}
	run(b, "/", "tar", "-C", oci, "-xf", f.Name())
	index := filepath.Join(oci, "index.json")
	raw, err := os.ReadFile(index)
	if err == nil {
		err = os.WriteFile(index, bytes.ReplaceAll(raw, []byte(`"localhost/bench:1"`), []byte(`"v1"`)), 0o600)
	}
	if err != nil {
		b.Fatal(err)
	}
	for i, l := range m.Layers {
		total += int64(len(l))
		if err := os.WriteFile(filepath.Join(src, fmt.Sprint(i)), imagetest.Pack(m.Compress, l), 0o600); err != nil {
			b.Fatal(err)
		}
	}
	return total
}

// BenchmarkUnpackAlone is for profiles (-cpuprofile): the image of
// BenchmarkUnpack, uncompressed, in memory, in this process.
func BenchmarkUnpackAlone(b *testing.B) {
	dir, err := os.MkdirTemp("/dev/shm", "bench-unpack-")
	if err != nil {
		b.Skip(err)
	}
	defer os.RemoveAll(dir)
	m := benchImage()
	m.Compress = os.Getenv("IMAGESTORE_BENCH_COMPRESS")
	var raw bytes.Buffer
	if err := Write(&raw, imagetest.Docker25(m)...); err != nil {
		b.Fatal(err)
	}
	id, cpu := m.ID(), 0.0
	for b.Loop() {
		before := cpuTime(unix.RUSAGE_SELF)
		s, err := Open(dir, Options{})
		if err != nil {
			b.Fatal(err)
		}
		snap, err := s.Unpack(context.Background(), Key{ID: id}, opener(raw.Bytes(), archive.Options{WantID: id}), nil)
		if err != nil {
			b.Fatal(err)
		}
		snap.Close()
		s.Close(context.Background())
		cpu += cpuTime(unix.RUSAGE_SELF) - before
		b.StopTimer()
		if err := errors.Join(os.RemoveAll(dir), os.Mkdir(dir, 0o700)); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
	b.ReportMetric(cpu/float64(b.N), "cpu-ms/op")
}

// run unpacks once and removes what was unpacked.
func (c *contestant) run(b *testing.B, dir string) {
	into := filepath.Join(dir, "into")
	if err := os.Mkdir(into, 0o700); err != nil {
		b.Fatal(err)
	}
	commands := c.commands(into)
	if err := warmMemory(c.bytes); err != nil {
		b.Fatal(err)
	}
	unix.Sync()
	cpu, start := cpuTime(unix.RUSAGE_CHILDREN), time.Now()
	for _, args := range commands {
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Env = append(os.Environ(), "IMAGESTORE_TEST_USER=1") // as which this program unpacks
		if out, err := cmd.CombinedOutput(); err != nil {
			b.Fatalf("%q: %v: %s", args, err, out)
		}
	}
	c.wall = append(c.wall, float64(time.Since(start).Microseconds())/1000)
	c.cpu = append(c.cpu, cpuTime(unix.RUSAGE_CHILDREN)-cpu)
	if err := os.RemoveAll(into); err != nil {
		b.Fatal(err)
	}
}

// warmMemory has the kernel hand out so many bytes of memory and take them back.
// On a virtual machine the first use of a page may cost several times what
// writing it does, if the host has to find one first: whoever comes first after
// a while would pay that for all.
func warmMemory(bytes int64) error {
	f, err := os.CreateTemp("/dev/shm", "bench-warm-")
	if err != nil {
		return err
	}
	defer f.Close()
	if err := os.Remove(f.Name()); err != nil {
		return err
	}
	for buf := make([]byte, 1<<20); bytes > 0; bytes -= int64(len(buf)) { // fallocate(2) would not touch the pages
		if _, err := f.Write(buf); err != nil {
			return err
		}
	}
	return nil
}

// median sorts x.
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
