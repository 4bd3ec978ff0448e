package keep_test

import (
	"context"
	"crypto/md5"
	"fmt"
	"io"
	"math/rand"
	"runtime"
	"strings"
	"testing"

	"crunch-oci/keep"
	"crunch-oci/keep/keeptest"
)

// manyFiles is a signed manifest of n small files in directories of 580, packed
// as the reference packs them.
func manyFiles(n int) string {
	var b strings.Builder
	const perDir = 580
	for i := 0; i < n; i += perDir {
		fmt.Fprintf(&b, "./data/batch%04d", i/perDir)
		fmt.Fprintf(&b, " %032x+%d+A%040x@7fffffff", i, perDir*100_000, i)
		for j := range min(perDir, n-i) {
			fmt.Fprintf(&b, " %d:100000:sample_%06d_R1_001.fastq.gz", j*100_000, i+j)
		}
		b.WriteString("\n")
	}
	return b.String()
}

func BenchmarkManifestParse(b *testing.B) {
	text := manyFiles(58_000)
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		c, err := keep.NewCollection(text, nil)
		if err != nil {
			b.Fatal(err)
		}
		c.Close()
	}
	c, err := keep.NewCollection(text, nil)
	if err != nil {
		b.Fatal(err)
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	runtime.KeepAlive(c)
	c = nil
	runtime.GC()
	runtime.ReadMemStats(&after)
	b.ReportMetric(float64(before.HeapAlloc-after.HeapAlloc)/58_000, "heap-bytes/file")
}

func BenchmarkManifestNormalize(b *testing.B) {
	text := manyFiles(58_000)
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		if _, err := keep.NormalizeManifest(text); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkManifestStrip(b *testing.B) {
	text := manyFiles(58_000)
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		keep.StripSignatures(text)
	}
}

func randomBlock() []byte {
	data := make([]byte, keep.MaxBlockSize)
	rand.New(rand.NewSource(1)).Read(data)
	return data
}

// BenchmarkMD5 is the peer: no client can be faster than the hash.
func BenchmarkMD5(b *testing.B) {
	data := randomBlock()
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		md5.Sum(data)
	}
}

// BenchmarkPut stores 64 MiB blocks through HTTP on the loopback interface; the
// server, which hashes too, runs in the same process.
func BenchmarkPut(b *testing.B) {
	srv := &keeptest.Server{}
	client := keeptest.NewClient(b, nil, srv.Start(b))
	data := randomBlock()
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		if _, err := client.WriteBlock(context.Background(), data, keep.WriteOptions{}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkGet(b *testing.B) {
	srv := &keeptest.Server{}
	client := keeptest.NewClient(b, nil, srv.Start(b))
	loc := srv.Put(randomBlock())
	b.SetBytes(loc.Size())
	for b.Loop() {
		if _, err := client.ReadBlock(context.Background(), loc); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkCollectionWrite writes a file of 512 MiB and stores it.
func BenchmarkCollectionWrite(b *testing.B) {
	srv := &keeptest.Server{}
	client := keeptest.NewClient(b, nil, srv.Start(b))
	data := randomBlock()
	b.SetBytes(8 * int64(len(data)))
	for b.Loop() {
		c := newCollection(b, "", client, 0)
		f, err := c.Create("f")
		if err != nil {
			b.Fatal(err)
		}
		for range 8 {
			for off := 0; off < len(data); off += 1 << 20 {
				if _, err := f.Write(data[off : off+1<<20]); err != nil {
					b.Fatal(err)
				}
			}
		}
		f.Close()
		marshal(b, c)
		c.Close()
	}
}

// BenchmarkCollectionRead reads a file of 512 MiB through the cache.
func BenchmarkCollectionRead(b *testing.B) {
	srv := &keeptest.Server{}
	client := keeptest.NewClient(b, nil, srv.Start(b))
	c := newCollection(b, "", client, 0)
	data := randomBlock()
	f, err := c.Create("f")
	if err != nil {
		b.Fatal(err)
	}
	for i := range 8 {
		data[0] = byte(i)
		f.Write(data)
	}
	text := marshal(b, c)
	b.SetBytes(8 * int64(len(data)))
	for b.Loop() {
		cache := keep.NewCache(client, 256<<20)
		f, err := newCollection(b, text, cache, 0).Open("f")
		if err != nil {
			b.Fatal(err)
		}
		buf := make([]byte, 128<<10)
		if n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, f, buf); n != 8*int64(len(data)) || err != nil {
			b.Fatal(n, err)
		}
		f.Close()
		cache.Close()
	}
}

// BenchmarkManySmallFiles writes 100,000 files of 10 kB and stores them.
func BenchmarkManySmallFiles(b *testing.B) {
	const files, size = 100_000, 10_000
	data := make([]byte, size)
	b.SetBytes(files * size)
	for b.Loop() {
		c := newCollection(b, "", discardStore{}, 0)
		for i := range files {
			if i%1000 == 0 {
				if err := c.Mkdir(fmt.Sprintf("d%03d", i/1000)); err != nil {
					b.Fatal(err)
				}
			}
			f, err := c.Create(fmt.Sprintf("d%03d/file%06d", i/1000, i))
			if err != nil {
				b.Fatal(err)
			}
			data[0] = byte(i)
			if _, err := f.Write(data); err != nil {
				b.Fatal(err)
			}
			f.Close()
		}
		marshal(b, c)
		c.Close()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	b.ReportMetric(float64(m.Sys)/(1<<20), "MiB-from-system")
}

// discardStore hashes blocks and forgets them.
type discardStore struct{}

func (discardStore) ReadBlock(context.Context, keep.Locator) ([]byte, error) {
	return nil, keep.ErrNotFound
}

func (discardStore) WriteBlock(_ context.Context, data []byte, _ keep.WriteOptions) (keep.Locator, error) {
	return keep.ParseLocator(fmt.Sprintf("%x+%d", md5.Sum(data), len(data)))
}
