package main_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"crunch-oci/arvados"
)

// faultProxy stands between a supervisor, with all its children, and both the
// API and Keep. It numbers the requests, and lets them meet trouble.
type faultProxy struct {
	cluster   *cluster
	api, keep *httptest.Server
	client    *http.Client
	env       []string // for the supervisor
	// decide is told each request, with its name as in the table, and returns
	// what happens to it.
	decide func(name string) trouble

	mu sync.Mutex
	// meddle, if not nil, may answer a request before anything else does.
	meddle func(w http.ResponseWriter, r *http.Request) (handled bool)
	// obeyed, if not nil, is told each request that has been obeyed; true: the
	// answer is not sent.
	obeyed   func(name string) bool
	answered map[string]int // requests that got a whole answer, by name
}

// trouble is what happens to a request.
type trouble int

const (
	noTrouble   trouble = iota
	unavailable         // status 503
	reset               // the connection is reset
	garbage             // status 200 with something else
	halfAnswer          // it is obeyed, and half of the answer arrives
	lostForGood         // nobody answers, ever: for supervisors that are dead
)

func newFaultProxy(t testing.TB, n *node, c *cluster, decide func(name string) trouble) *faultProxy {
	t.Helper()
	ca, err := os.ReadFile(c.env["SSL_CERT_FILE"])
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	p := &faultProxy{
		cluster: c, decide: decide, answered: make(map[string]int),
		client: &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}},
	}
	quiet := log.New(io.Discard, "", 0)
	serve := func(target string, name func(*http.Request, []byte) string) *httptest.Server {
		s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, err := io.ReadAll(r.Body)
			if err != nil {
				panic(http.ErrAbortHandler)
			}
			p.mu.Lock()
			meddle := p.meddle
			p.mu.Unlock()
			if meddle == nil || !meddle(w, r) {
				p.serve(w, r, target, name(r, body), body)
			}
		}))
		s.Config.ErrorLog = quiet
		return s
	}
	p.keep = serve(c.keepURL, nameOfKeepRequest)
	p.keep.Start()
	p.api = serve("https://"+c.env["ARVADOS_API_HOST"], p.nameOfAPIRequest)
	p.api.StartTLS()
	t.Cleanup(func() {
		for _, s := range []*httptest.Server{p.api, p.keep} {
			s.CloseClientConnections()
			s.Close()
		}
		p.client.CloseIdleConnections()
	})
	bundle := filepath.Join(n.dir, "bundle.pem")
	ours := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.api.Certificate().Raw})
	writeFile(t, bundle, append(ca, ours...))
	p.env = append(c.supervisorEnv(), "ARVADOS_API_HOST="+strings.TrimPrefix(p.api.URL, "https://"), "SSL_CERT_FILE="+bundle)
	return p
}

// meddleWith lets f answer requests, if it wants, before anything else does.
func (p *faultProxy) meddleWith(f func(w http.ResponseWriter, r *http.Request) (handled bool)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.meddle = f
}

func (p *faultProxy) serve(w http.ResponseWriter, r *http.Request, target, name string, body []byte) {
	what := p.decide(name)
	switch what {
	case unavailable:
		http.Error(w, `{"errors":["the service is being repaired"]}`, http.StatusServiceUnavailable)
		return
	case reset:
		cut(w)
	case garbage:
		_, _ = io.WriteString(w, "<html><body>Please log in to the network.</body></html>")
		return
	case lostForGood:
		<-r.Context().Done()
		return
	}
	u, err := url.Parse(target + r.URL.RequestURI())
	if err != nil {
		panic(err)
	}
	out := &http.Request{Method: r.Method, URL: u, Header: r.Header.Clone(), Body: io.NopCloser(bytes.NewReader(body)), ContentLength: int64(len(body))}
	resp, err := p.client.Do(out)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	if strings.HasSuffix(r.URL.Path, "/keep_services/accessible") || strings.HasSuffix(r.URL.Path, "/keep_services") {
		answer = p.redirectKeep(answer)
	}
	for k, v := range resp.Header {
		w.Header()[k] = v
	}
	if r.Method != http.MethodHead {
		w.Header().Set("Content-Length", strconv.Itoa(len(answer)))
	}
	p.mu.Lock()
	obeyed := p.obeyed
	p.mu.Unlock()
	if obeyed != nil && obeyed(name) {
		return
	}
	if what == halfAnswer {
		w.WriteHeader(resp.StatusCode)
		_, _ = w.Write(answer[:len(answer)/2])
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler) // closes the connection
	}
	if resp.StatusCode == http.StatusOK {
		p.mu.Lock()
		p.answered[name]++
		p.mu.Unlock()
	}
	w.WriteHeader(resp.StatusCode)
	_, _ = w.Write(answer)
}

// cut resets the connection. It does not return.
func cut(w http.ResponseWriter) {
	conn, _, err := w.(http.Hijacker).Hijack()
	if err == nil {
		plain := conn
		if t, ok := conn.(*tls.Conn); ok {
			plain = t.NetConn()
		}
		_ = plain.(*net.TCPConn).SetLinger(0)
		_ = plain.Close()
	}
	panic(http.ErrAbortHandler)
}

// redirectKeep makes a list of Keep services name the proxy's.
func (p *faultProxy) redirectKeep(list []byte) []byte {
	var decoded map[string]any
	if json.Unmarshal(list, &decoded) != nil {
		return list
	}
	host, port, _ := net.SplitHostPort(p.keep.Listener.Addr().String())
	number, _ := strconv.Atoi(port)
	items, _ := decoded["items"].([]any)
	for _, item := range items {
		if s, ok := item.(map[string]any); ok {
			s["service_host"], s["service_port"], s["service_ssl_flag"] = host, number, false
		}
	}
	text, err := json.Marshal(decoded)
	if err != nil {
		return list
	}
	return text
}

var anyPDH = regexp.MustCompile(`[0-9a-f]{32}\+[0-9]+`)

// nameOfAPIRequest says who asks for what: token, method, path, and what else
// tells requests apart.
func (p *faultProxy) nameOfAPIRequest(r *http.Request, body []byte) string {
	token := "container"
	if strings.HasSuffix(r.Header.Get("Authorization"), " "+p.cluster.env["ARVADOS_DISPATCHER_TOKEN"]) {
		token = "dispatcher"
	}
	path := strings.TrimPrefix(r.URL.Path, "/arvados/v1/")
	path = anyPDH.ReplaceAllString(uuidName.ReplaceAllString(path, "UUID"), "PDH")
	name := token + " " + r.Method + " " + path
	form, _ := url.ParseQuery(string(body))
	if r.URL.Query().Has("filters") {
		name += "?filters"
	}
	var attrs map[string]any
	for _, kind := range []string{"container", "collection"} {
		if json.Unmarshal([]byte(form.Get(kind)), &attrs) != nil {
			continue
		}
		switch state, ok := attrs["state"]; {
		case ok:
			name += " state=" + state.(string)
		case kind == "container":
			var keys []string
			for k := range attrs {
				keys = append(keys, k)
			}
			slices.Sort(keys)
			name += " " + strings.Join(keys, ",")
		default:
			what, _, _ := strings.Cut(attrs["name"].(string), " for ")
			name += " " + what
			if attrs["is_trashed"] == true {
				name += " is_trashed"
			}
		}
	}
	return "API: " + name
}

func nameOfKeepRequest(r *http.Request, _ []byte) string {
	return "Keep: " + r.Method + " " + hashName.ReplaceAllString(strings.Split(r.URL.Path, "+")[0], "HASH")
}

// finalStates are what may come of a call that fails for ever (spec: lifecycle
// sections 3 and 5, design.md), by name.
var finalStates = []struct {
	name   *regexp.Regexp
	states []string
}{
	// Nothing is known of the record: it is the dispatcher's.
	{regexp.MustCompile(`^API: dispatcher GET (/?discovery|config|containers/UUID$|containers/UUID/auth$)|secret_mounts$`), []string{arvados.StateLocked}},
	{regexp.MustCompile(`GET containers\?filters$`), []string{arvados.StateQueued}},
	{regexp.MustCompile(`keep_services/accessible$`), []string{arvados.StateCancelled, arvados.StateQueued}},
	// Image and inputs: any node would meet it.
	{regexp.MustCompile(`^API: container GET |^Keep: GET `), []string{arvados.StateCancelled}},
	// The first save of the log.
	{regexp.MustCompile(`^API: dispatcher POST collections logs|^Keep: (PUT|POST) |state=Running$`), []string{arvados.StateQueued}},
	// What is tried again later.
	{regexp.MustCompile(`exit_code$|PUT containers/UUID log$|PUT collections/UUID logs$|runtime_status$`), []string{arvados.StateComplete}},
	{regexp.MustCompile(`POST collections output|PUT collections/UUID logs is_trashed$`), []string{arvados.StateCancelled}},
	{regexp.MustCompile(`state=Complete$`), []string{arvados.StateRunning}},
}
