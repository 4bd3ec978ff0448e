package keepstore

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net/http"
	"sync"
	"testing"
)

type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// dir is a mount's Directory volume.
func dir(m *mount) *directory { return m.volume.(*directory) }

func jsonLogger(w io.Writer) *slog.Logger { return slog.New(slog.NewJSONHandler(w, nil)) }

// BenchmarkGet is one 64 MiB block from the page cache through loopback.
func BenchmarkGet(b *testing.B) {
	c := start(b, nil)
	data := randomBytes(9, maxBlockSize)
	signed := c.put(data)
	b.SetBytes(maxBlockSize)
	for b.Loop() {
		req, _ := http.NewRequest("GET", c.url+"/"+signed, nil)
		req.Header.Set("Authorization", "Bearer "+userToken)
		resp, err := c.http.Do(req)
		if err != nil {
			b.Fatal(err)
		}
		n, err := io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if n != maxBlockSize || err != nil {
			b.Fatal(n, err)
		}
	}
}

// BenchmarkPut is one new 64 MiB block each time, with and without fsync.
func BenchmarkPut(b *testing.B) {
	for name, noSync := range map[string]bool{"sync": false, "nosync": true} {
		b.Run(name, func(b *testing.B) {
			d := &directory{root: b.TempDir(), noSync: noSync}
			data := randomBytes(9, maxBlockSize)
			b.SetBytes(maxBlockSize)
			for b.Loop() {
				if err := d.write(context.Background(), md5hex(data), data); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
