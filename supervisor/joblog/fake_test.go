package joblog

import (
	"context"
	"crypto/md5"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"crunch-oci/internal/syncbuf"
)

const testUUID = "zzzzz-dz642-s2zuqk7ijbnfxqh"

// memTree keeps files in memory; its "manifest" names them with their sizes.
type memTree struct {
	mu       sync.Mutex
	files    map[string][]byte
	flushErr error
	addErr   error
	gate     chan struct{} // when set, MarshalManifest takes from it first
	full     bool          // until the next MarshalManifest
}

func (m *memTree) Append(name string, p []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.addErr != nil && len(p) > 0 {
		return m.addErr
	}
	if m.full && len(p) > 0 {
		return fmt.Errorf("%w: %w", ErrFull, errTest)
	}
	if m.files == nil {
		m.files = make(map[string][]byte)
	}
	m.files[name] = append(m.files[name], p...)
	return nil
}

func (m *memTree) Size() (n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, f := range m.files {
		n += int64(len(f))
	}
	return n
}

func (m *memTree) MarshalManifest(ctx context.Context) (string, error) {
	if m.gate != nil {
		select {
		case <-m.gate:
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.flushErr != nil {
		return "", m.flushErr
	}
	m.full = false
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(m.files)) {
		fmt.Fprintf(&b, " %s=%d", name, len(m.files[name]))
	}
	return "." + b.String() + "\n", nil
}

func (m *memTree) set(change func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	change()
}

func (m *memTree) file(name string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return string(m.files[name])
}

// recorder is a Saver that writes down the requests in the order they end.
type recorder struct {
	mu    sync.Mutex
	calls []string
	fail  map[string]error // by first word of the call
}

func (r *recorder) note(word, call string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls = append(r.calls, call)
	return r.fail[word]
}

func (r *recorder) CreateCollection(_ context.Context, q Request) (string, string, error) {
	return "zzzzz-4zz18-log000000000001", pdh(q), r.note("POST", "POST "+body(q))
}

func (r *recorder) UpdateCollection(_ context.Context, uuid string, q Request) (string, error) {
	return pdh(q), r.note("PUT", "PUT "+uuid+" "+body(q))
}

func (r *recorder) SetContainerLog(_ context.Context, pdh string) error {
	return r.note("log", "log "+pdh)
}

func (r *recorder) take() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.calls
	r.calls = nil
	return c
}

func pdh(q Request) string {
	if q.Collection.ManifestText == nil {
		return "unchanged"
	}
	return fmt.Sprintf("%x+%d", md5.Sum([]byte(*q.Collection.ManifestText)), len(*q.Collection.ManifestText))
}

func body(q Request) string {
	b, err := json.Marshal(q)
	if err != nil {
		panic(err)
	}
	return string(b)
}

func newTestLog(t *testing.T, c Config) (*Log, *memTree, *recorder, *syncbuf.Buffer) {
	t.Helper()
	tree, rec, stderr := &memTree{}, &recorder{}, &syncbuf.Buffer{}
	c.UUID, c.Tree, c.Saver, c.Stderr = testUUID, tree, rec, stderr
	l, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return l, tree, rec, stderr
}

// vectors decodes one list of testdata/spec/logs-and-stats.json.
func vectors[T any](t testing.TB, name string) []T {
	t.Helper()
	return vectorsOf[T](t, "logs-and-stats.json", name)
}

func vectorsOf[T any](t testing.TB, file, name string) []T {
	t.Helper()
	data, err := os.ReadFile("../../testdata/spec/" + file)
	if err != nil {
		t.Fatal(err)
	}
	var all map[string]json.RawMessage
	if err := json.Unmarshal(data, &all); err != nil {
		t.Fatal(err)
	}
	var list []T
	if err := json.Unmarshal(all[name], &list); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	if len(list) == 0 {
		t.Fatalf("no vectors %s", name)
	}
	return list
}

var errTest = errors.New("no luck")
