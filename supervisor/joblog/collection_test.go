package joblog

import (
	"bytes"
	"context"
	"crypto/md5"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"

	"crunch-oci/keep"
)

// blocks is a Keep in memory that fails while fail is set.
type blocks struct {
	mu     sync.Mutex
	fail   error
	stored map[string][]byte
}

func (b *blocks) ReadBlock(_ context.Context, loc keep.Locator) ([]byte, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if data, ok := b.stored[loc.Hash()]; ok {
		return data, nil
	}
	return nil, keep.ErrNotFound
}

func (b *blocks) WriteBlock(_ context.Context, data []byte, _ keep.WriteOptions) (keep.Locator, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.fail != nil {
		return keep.Locator{}, b.fail
	}
	hash := fmt.Sprintf("%x", md5.Sum(data))
	if b.stored == nil {
		b.stored = make(map[string][]byte)
	}
	b.stored[hash] = bytes.Clone(data)
	return keep.ParseLocator(fmt.Sprintf("%s+%d", hash, len(data)))
}

func newCollection(t testing.TB, store keep.BlockReader) *keep.Collection {
	t.Helper()
	c, err := keep.NewCollection("", store)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// A log in a real collection: what was saved can be read again from Keep, and
// what is not saved yet can be read from the live tree.
func TestInCollection(t *testing.T) {
	store, rec := &blocks{}, &recorder{}
	c := newCollection(t, store)
	l, err := New(Config{UUID: testUUID, Tree: InCollection(c), Saver: rec, Now: ticking()})
	if err != nil {
		t.Fatal(err)
	}
	out, err := l.Stream("stdout.txt", StreamOptions{Stamp: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.Stream("stderr.txt", StreamOptions{Stamp: true}); err != nil {
		t.Fatal(err)
	}
	l.Printf("Starting container")
	io.WriteString(out, "hello\nwor")
	if got := unstamp(t, content(t, c, "stdout.txt")); got != "hello\nwor" {
		t.Errorf("live file %q", got)
	}
	if _, err := l.Save(t.Context()); err != nil {
		t.Fatal(err)
	}
	io.WriteString(out, "ld\n")
	store.set(errTest)
	if _, err := l.Publish(t.Context()); !errors.Is(err, errTest) {
		t.Errorf("save while Keep is down: %v", err)
	}
	store.set(nil)
	if _, err := l.Final(t.Context(), "Complete"); err != nil {
		t.Fatal(err)
	}
	manifest, err := c.MarshalManifest(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	saved, err := keep.NewCollection(manifest, store)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"stdout.txt": "hello\nworld\n",
		"stderr.txt": "",
		Messages:     "Starting container\nComplete\n",
	} {
		if got := unstamp(t, content(t, saved, name)); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if !strings.Contains(manifest, " 0:0:stderr.txt") {
		t.Errorf("manifest %q", manifest)
	}
}

func (b *blocks) set(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fail = err
}

func content(t *testing.T, c *keep.Collection, name string) string {
	t.Helper()
	f, err := c.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// nowhere takes blocks as fast as they come.
type nowhere struct{ blocks }

func (*nowhere) WriteBlock(_ context.Context, data []byte, _ keep.WriteOptions) (keep.Locator, error) {
	return keep.ParseLocator(fmt.Sprintf("%032x+%d", len(data), len(data)))
}

// 1 GiB of output per iteration, in pipe-sized pieces of 100-byte lines,
// through a real collection into a store without a cost of its own.
func BenchmarkGigabyte(b *testing.B) {
	const total, piece = 1 << 30, 64 << 10
	line := append(bytes.Repeat([]byte("x"), 99), '\n')
	chunk := bytes.Repeat(line, piece/len(line))
	b.SetBytes(total)
	b.ReportAllocs()
	for b.Loop() {
		c := newCollection(b, &nowhere{})
		l, err := New(Config{UUID: testUUID, Tree: InCollection(c), Saver: &recorder{}})
		if err != nil {
			b.Fatal(err)
		}
		s, err := l.Stream("stdout.txt", StreamOptions{Stamp: true})
		if err != nil {
			b.Fatal(err)
		}
		for n := 0; n < total; n += len(chunk) {
			if _, err := s.Write(chunk); err != nil {
				b.Fatal(err)
			}
		}
		if _, err := l.Final(b.Context(), "Complete"); err != nil {
			b.Fatal(err)
		}
		c.Close()
	}
}
