package main_test

import (
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// keepProxy stands between a supervisor and the cluster's block server, whose
// address it is told with ARVADOS_KEEP_SERVICES.
type keepProxy struct {
	*httptest.Server
	read   atomic.Int64 // bytes of blocks that were read
	target atomic.Pointer[url.URL]

	held    atomic.Bool
	first   sync.Once
	arrived chan struct{} // closed by the first read that is held
}

func newKeepProxy(t testing.TB, c *cluster) *keepProxy {
	t.Helper()
	k := &keepProxy{arrived: make(chan struct{})}
	k.lead(t, c)
	proxy := &httputil.ReverseProxy{
		Rewrite:        func(r *httputil.ProxyRequest) { r.SetURL(k.target.Load()) },
		ModifyResponse: k.count,
		ErrorLog:       log.New(io.Discard, "", 0), // it answers with status 502
	}
	k.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet && k.held.Load() {
			k.first.Do(func() { close(k.arrived) })
			<-r.Context().Done()
			return
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(func() {
		k.CloseClientConnections()
		k.Close()
	})
	return k
}

// lead sends requests to the cluster's block server, wherever that is now.
func (k *keepProxy) lead(t testing.TB, c *cluster) {
	t.Helper()
	target, err := url.Parse(c.keepURL)
	if err != nil {
		t.Fatal(err)
	}
	k.target.Store(target)
}

// hold lets all reads wait for ever.
func (k *keepProxy) hold() { k.held.Store(true) }

// awaitReader waits until somebody waits for a block.
func (k *keepProxy) awaitReader(t testing.TB) {
	t.Helper()
	select {
	case <-k.arrived:
	case <-time.After(patience):
		t.Fatal("nobody reads from Keep")
	}
}

func (k *keepProxy) count(resp *http.Response) error {
	if resp.Request.Method == http.MethodGet {
		resp.Body = countedBody{resp.Body, &k.read}
	}
	return nil
}

type countedBody struct {
	io.ReadCloser
	n *atomic.Int64
}

func (b countedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.n.Add(int64(n))
	return n, err
}
