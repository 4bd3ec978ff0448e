package main_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"crunch-oci/arvados"
)

// apiWitness stands between a supervisor, with all its children, and the API.
type apiWitness struct {
	*httptest.Server
	mu       sync.Mutex
	requests []string  // "TOKEN METHOD PATH"
	changes  []apiCall // those that are no GET, in the order of their ends
}

// apiCall is a request that changes something, and the answer to it.
type apiCall struct {
	token, method, path string
	form                url.Values
	status              int
	answer              []byte
}

func newAPIWitness(t testing.TB, n *node, c *cluster) (*apiWitness, []string) {
	t.Helper()
	ca, err := os.ReadFile(c.env["SSL_CERT_FILE"])
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	w := new(apiWitness)
	target := &url.URL{Scheme: "https", Host: c.env["ARVADOS_API_HOST"]}
	proxy := &httputil.ReverseProxy{
		Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(target) },
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}},
		ErrorLog:  log.New(io.Discard, "", 0),
	}
	w.Server = httptest.NewTLSServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		token := "container"
		if strings.HasSuffix(r.Header.Get("Authorization"), " "+c.env["ARVADOS_DISPATCHER_TOKEN"]) {
			token = "dispatcher"
		}
		w.mu.Lock()
		w.requests = append(w.requests, token+" "+r.Method+" "+r.URL.Path)
		w.mu.Unlock()
		if r.Method == http.MethodGet {
			proxy.ServeHTTP(rw, r)
			return
		}
		w.change(token, rw, r, proxy)
	}))
	t.Cleanup(w.Close)
	bundle := filepath.Join(n.dir, "bundle.pem")
	ours := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: w.Certificate().Raw})
	if err := os.WriteFile(bundle, append(ca, ours...), 0o644); err != nil {
		t.Fatal(err)
	}
	return w, append(c.supervisorEnv(), "ARVADOS_API_HOST="+strings.TrimPrefix(w.URL, "https://"), "SSL_CERT_FILE="+bundle)
}

// change passes a request on, and remembers it.
func (w *apiWitness) change(token string, rw http.ResponseWriter, r *http.Request, proxy http.Handler) {
	body, err := io.ReadAll(r.Body)
	form, bad := url.ParseQuery(string(body))
	if err = errors.Join(err, bad); err != nil {
		http.Error(rw, err.Error(), http.StatusBadRequest)
		return
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	call := apiCall{token: token, method: r.Method, path: r.URL.Path, form: form}
	note := func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.changes = append(w.changes, call)
	}
	if r.Header.Get("Upgrade") != "" { // there is no other answer, and it has no end
		call.status = http.StatusSwitchingProtocols
		note()
		proxy.ServeHTTP(rw, r)
		return
	}
	answer := httptest.NewRecorder()
	proxy.ServeHTTP(answer, r)
	call.status, call.answer = answer.Code, answer.Body.Bytes()
	note()
	maps.Copy(rw.Header(), answer.Header())
	rw.WriteHeader(answer.Code)
	_, _ = rw.Write(call.answer)
}

// A job with one collection mount asks the API for little (doc/performance.md
// lists for what), and for nothing twice that does not change.
func TestNumberOfRequests(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	c := startCluster(t, n)
	w, env := newAPIWitness(t, n, c)
	uuid := c.submit(t, c.storeTools(t), sh("cat /in/a.txt; echo data >f"), withInput(c.store(t, map[string][]byte{"a.txt": []byte("A")})))
	c.finished(t, n, n.start(t, run{args: []string{uuid}, env: env}), uuid, 0, arvados.StateComplete)
	w.mu.Lock()
	defer w.mu.Unlock()
	const most = 18
	if len(w.requests) > most {
		t.Errorf("%d requests, %d are allowed:\n%s", len(w.requests), most, strings.Join(w.requests, "\n"))
	}
	seen := make(map[string]int)
	for _, r := range w.requests {
		seen[r]++
		// The input's record is read by the supervisor and by the FUSE server.
		if strings.Contains(r, " GET ") && seen[r] > 1 && !strings.Contains(r, "/collections/") {
			t.Errorf("asked twice: %s", r)
		}
	}
	if testing.Verbose() {
		t.Logf("%d requests:\n%s", len(w.requests), strings.Join(w.requests, "\n"))
	}
}
