package keep_test

import (
	"crypto/md5"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crunch-oci/keep"
)

// Parts of any lengths, as many at once as there may be, get their MD5, beside
// some that cannot be read.
func TestHashParts(t *testing.T) {
	data := make([]byte, 300_000)
	for i := range data {
		data[i] = byte(i * i >> 3)
	}
	f := tempFile(t, data)
	closed := tempFile(t, data)
	closed.Close()
	for _, count := range []int{0, 1, 3, 4, 8, 16, 17, 40} {
		var parts []keep.FilePart
		for i := range count {
			parts = append(parts, keep.FilePart{File: f, Offset: int64(i), Length: int64(i * i * i * 5 % 290_000)})
		}
		if count > 8 {
			parts[5] = keep.FilePart{File: f, Offset: 200_000, Length: 100_001}
			parts[7].File = closed
		}
		hashes, errs := keep.HashParts(t.Context(), parts)
		for i, part := range parts {
			sum := md5.Sum(data[part.Offset:min(part.Offset+part.Length, int64(len(data)))])
			switch {
			case count > 8 && i == 5:
				if !errors.Is(errs[i], io.ErrUnexpectedEOF) || hashes[i] != "" {
					t.Errorf("beyond the end: %q %v", hashes[i], errs[i])
				}
			case count > 8 && i == 7:
				if !errors.Is(errs[i], os.ErrClosed) {
					t.Errorf("closed: %q %v", hashes[i], errs[i])
				}
			case errs[i] != nil || hashes[i] != hex.EncodeToString(sum[:]):
				t.Errorf("%d of %d: %q %v", i, count, hashes[i], errs[i])
			}
		}
	}
}

func tempFile(t testing.TB, data []byte) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if _, err := f.Write(data); err != nil {
		t.Fatal(err)
	}
	return f
}

func BenchmarkHashParts(b *testing.B) {
	const size = 32 << 20
	f := tempFile(b, make([]byte, 16*size))
	for _, count := range []int{1, 2, 3, 4, 6, 8, 12, 16} {
		b.Run(fmt.Sprint(count), func(b *testing.B) {
			var parts []keep.FilePart
			for i := range count {
				parts = append(parts, keep.FilePart{File: f, Offset: int64(i) * size, Length: size})
			}
			b.SetBytes(int64(count) * size)
			before := cpuTime()
			for b.Loop() {
				keep.HashParts(b.Context(), parts)
			}
			b.ReportMetric(float64(b.N*count*size)/1e6/(cpuTime()-before).Seconds(), "MB/cpu-s")
		})
	}
}

func cpuTime() time.Duration {
	var u unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
