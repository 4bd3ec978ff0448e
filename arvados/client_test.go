package arvados

import (
	"context"
	"encoding/pem"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// dispatcherToken is the token of test clients.
const dispatcherToken = "v2/zzzzz-gj3su-000000000000000/3kg6k6lzmp9kj5cpkcoxie963cmvjahbt2fod9zru30k1jqdmi"

// fakeClock is a clock that moves only when somebody sleeps, and then at once.
type fakeClock struct {
	mu    sync.Mutex
	now   time.Time
	slept []time.Duration
}

func newFakeClock() *fakeClock {
	return &fakeClock{now: time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)}
}

func (c *fakeClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *fakeClock) Sleep(ctx context.Context, d time.Duration) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
	c.slept = append(c.slept, d)
	return ctx.Err()
}

func (c *fakeClock) sleeps() []time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]time.Duration(nil), c.slept...)
}

// newTestServer starts a TLS server and returns a client for it that checks its
// certificate and does not really wait.
func newTestServer(t *testing.T, handler http.HandlerFunc, changes ...func(*Config)) (*Client, *fakeClock, *httptest.Server) {
	t.Helper()
	server := httptest.NewUnstartedServer(handler)
	server.Config.ErrorLog = quietLog()
	server.StartTLS()
	t.Cleanup(server.Close)
	clock := newFakeClock()
	// What is remembered of an earlier server with the same port.
	limiters.mu.Lock()
	delete(limiters.byHost, strings.TrimPrefix(server.URL, "https://"))
	limiters.mu.Unlock()
	cfg := Config{
		Host:   strings.TrimPrefix(server.URL, "https://"),
		Token:  dispatcherToken,
		CAFile: writeCA(t, server),
		Clock:  clock,
	}
	for _, change := range changes {
		change(&cfg)
	}
	c, err := NewClient(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c, clock, server
}

func writeCA(t *testing.T, server *httptest.Server) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "ca.pem")
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	if err := os.WriteFile(file, block, 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestCall(t *testing.T) {
	c, _, _ := newTestServer(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/arvados/v1/users/current" || r.Header.Get("Authorization") != "Bearer "+dispatcherToken {
			t.Errorf("%s %s %v", r.Method, r.URL, r.Header)
		}
		w.Write([]byte(`{"uuid":"zzzzz-tpzed-000000000000000","is_admin":true}`))
	})
	u, err := c.CurrentUser(context.Background())
	if err != nil || u.UUID != "zzzzz-tpzed-000000000000000" || !u.IsAdmin {
		t.Fatal(u, err)
	}
}

// quietLog is for servers whose clients are expected to fail.
func quietLog() *log.Logger { return log.New(io.Discard, "", 0) }
