package keep_test

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/hex"
	"fmt"
	"io"
	"path"
	"sync"
	"testing"

	"crunch-oci/keep"
)

// memStore is a BlockStore in memory whose writes can be made to fail or wait.
type memStore struct {
	mu      sync.Mutex
	blocks  map[string][]byte
	reads   []string
	writes  int
	opts    keep.WriteOptions
	fail    error
	onWrite func([]byte)  // called under mu
	gate    chan struct{} // if not nil, each write takes one token
}

func newMemStore() *memStore { return &memStore{blocks: map[string][]byte{}} }

func (m *memStore) ReadBlock(_ context.Context, loc keep.Locator) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.reads = append(m.reads, loc.Hash())
	if data, ok := m.blocks[loc.Hash()]; ok {
		return data, nil
	}
	return nil, keep.ErrNotFound
}

func (m *memStore) WriteBlock(ctx context.Context, data []byte, opts keep.WriteOptions) (keep.Locator, error) {
	m.mu.Lock()
	gate := m.gate
	m.mu.Unlock()
	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
			return keep.Locator{}, ctx.Err()
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.opts = opts
	if m.onWrite != nil {
		m.onWrite(data)
	}
	if m.fail != nil {
		return keep.Locator{}, m.fail
	}
	m.writes++
	sum := md5.Sum(data)
	hash := hex.EncodeToString(sum[:])
	m.blocks[hash] = bytes.Clone(data)
	return keep.ParseLocator(fmt.Sprintf("%s+%d", hash, len(data)))
}

func (m *memStore) setFail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fail = err
}

func (m *memStore) count() (reads, writes int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.reads), m.writes
}

func newCollection(t testing.TB, manifest string, store keep.BlockReader, blockSize int) *keep.Collection {
	t.Helper()
	c, err := keep.NewCollection(manifest, store)
	if err != nil {
		t.Fatal(err)
	}
	if blockSize > 0 {
		c.SetBlockSize(blockSize)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func writeFile(t testing.TB, c *keep.Collection, name string, data []byte) {
	t.Helper()
	if err := c.MkdirAll(path.Dir(name)); err != nil {
		t.Fatal(err)
	}
	f, err := c.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func readFile(t testing.TB, c *keep.Collection, name string) string {
	t.Helper()
	f, err := c.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	data, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func marshal(t testing.TB, c *keep.Collection) string {
	t.Helper()
	text, err := c.MarshalManifest(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// pattern is the content of a file in the packing vectors.
func pattern(name string, size int) []byte {
	data := make([]byte, size)
	for i := range data {
		data[i] = path.Base(name)[0] + byte(i)
	}
	return data
}
