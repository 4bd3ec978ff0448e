package joblog

import (
	"bytes"
	"context"
	"crypto/md5"
	"fmt"
	"testing"

	"crunch-oci/keep"
)

// hashingStore is a Keep that costs what a client must do: MD5, and nothing
// else.
type hashingStore struct{ bytes int64 }

func (h *hashingStore) ReadBlock(context.Context, keep.Locator) ([]byte, error) {
	return nil, keep.ErrNotFound
}

func (h *hashingStore) WriteBlock(_ context.Context, data []byte, _ keep.WriteOptions) (keep.Locator, error) {
	h.bytes += int64(len(data))
	return keep.ParseLocator(fmt.Sprintf("%x+%d", md5.Sum(data), len(data)))
}

// What a container writes, in pieces as a pipe gives them, reaches the log. The
// bytes are those of the container; the log has a time stamp of 31 more for each
// line.
func BenchmarkLog(b *testing.B) {
	for _, length := range []int{2, 20, 100, 1000, 1 << 20} {
		b.Run(fmt.Sprintf("line=%d", length), func(b *testing.B) {
			store := new(hashingStore)
			c, err := keep.NewCollection("", store)
			if err != nil {
				b.Fatal(err)
			}
			defer c.Close()
			l, err := New(Config{UUID: testUUID, Tree: InCollection(c), Saver: new(recorder)})
			if err != nil {
				b.Fatal(err)
			}
			s, err := l.Stream("stdout.txt", StreamOptions{Stamp: true})
			if err != nil {
				b.Fatal(err)
			}
			line := append(bytes.Repeat([]byte("x"), length-1), '\n')
			text := bytes.Repeat(line, max(1, (1<<20)/length))
			const piece = 32 << 10
			b.SetBytes(int64(len(text)))
			for b.Loop() {
				for rest := text; len(rest) > 0; {
					n := min(piece, len(rest))
					if _, err := s.Write(rest[:n]); err != nil {
						b.Fatal(err)
					}
					rest = rest[n:]
				}
			}
		})
	}
}
