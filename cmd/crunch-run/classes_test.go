package main_test

import (
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"sync"
	"testing"

	"crunch-oci/arvados"
)

// The container's storage classes hold for every block that is written: output
// and log.
func TestStorageClasses(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	c := startCluster(t, n)
	target, err := url.Parse(c.keepURL)
	if err != nil {
		t.Fatal(err)
	}
	// The cluster's block server has no such class: this one says that it has.
	const class = "fast"
	var mu sync.Mutex
	asked := make(map[string]int)
	proxy := httputil.NewSingleHostReverseProxy(target)
	proxy.ModifyResponse = func(r *http.Response) error {
		if r.Request.Method == http.MethodPut {
			r.Header.Set("X-Keep-Storage-Classes-Confirmed", class+"=1")
		}
		return nil
	}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut {
			mu.Lock()
			asked[r.Header.Get("X-Keep-Storage-Classes")]++
			mu.Unlock()
			r.Header.Del("X-Keep-Storage-Classes")
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(srv.Close)

	uuid := c.submit(t, c.storeTools(t), sh("echo hello; echo there >f"), attrs{"output_storage_classes": []string{class}})
	p := n.start(t, run{args: []string{uuid}, env: append(c.supervisorEnv(), "ARVADOS_KEEP_SERVICES="+srv.URL)})
	c.finished(t, n, p, uuid, 0, arvados.StateComplete)
	mu.Lock()
	defer mu.Unlock()
	// The output, the log at the start, and the log at the end.
	if len(asked) != 1 || asked[class] < 3 {
		t.Errorf("blocks written by storage classes asked for: %v", asked)
	}
}
