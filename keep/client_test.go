package keep_test

import (
	"bytes"
	"context"
	"crypto/md5"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"crunch-oci/keep"
	"crunch-oci/keep/keeptest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var signer = keep.Signer{Key: "blobsigningkey", TTL: 336 * time.Hour}

// servers starts n keepstores and returns them in probe order for data.
func servers(t *testing.T, n int, data []byte) (list []*keeptest.Server, services []keep.Service) {
	t.Helper()
	byURL := make(map[string]*keeptest.Server)
	for range n {
		s := &keeptest.Server{Signer: signer}
		svc := s.Start(t)
		byURL[svc.URL] = s
		services = append(services, svc)
	}
	services = keep.ProbeOrder(md5hex(data), services)
	for _, svc := range services {
		list = append(list, byURL[svc.URL])
	}
	return list, services
}

func md5hex(data []byte) string {
	sum := md5.Sum(data)
	return hex.EncodeToString(sum[:])
}

// counts returns how many requests each server has seen.
func counts(list []*keeptest.Server) (n []int) {
	for _, s := range list {
		n = append(n, len(s.Requests()))
	}
	return n
}

// portal is what answers in networks that want a login first.
func portal(_ *keeptest.Server, w http.ResponseWriter, _ *http.Request) bool {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	_, _ = io.WriteString(w, "<html><body>Please log in to the network.</body></html>")
	return true
}

func TestClientReadFaults(t *testing.T) {
	data := []byte("the quick brown fox")
	for _, tc := range []struct {
		name   string
		faults [3][]keeptest.Fault // per server, in probe order
		lost   [3]bool             // the server does not have the block
		want   string              // part of the error; "" if the read succeeds
		reqs   []int               // requests per server
		is     error
		isNot  error
	}{
		{name: "first server has it", reqs: []int{1, 0, 0}},
		{name: "last server has it", lost: [3]bool{true, true, false}, reqs: []int{1, 1, 1}},
		{
			name: "nobody has it", lost: [3]bool{true, true, true}, reqs: []int{1, 1, 1},
			want: "not found on any of 3 Keep services", is: keep.ErrNotFound,
		},
		{
			name:   "gone is not there, either",
			faults: [3][]keeptest.Fault{{keeptest.Status(410, "")}},
			lost:   [3]bool{false, true, true}, reqs: []int{1, 1, 1},
			want: "not found on any of 3 Keep services", is: keep.ErrNotFound,
		},
		{
			name:   "error that passes",
			faults: [3][]keeptest.Fault{{keeptest.Status(503, "")}},
			lost:   [3]bool{false, true, true}, reqs: []int{2, 1, 1},
		},
		{
			name:   "every temporary error",
			faults: [3][]keeptest.Fault{{keeptest.Status(499, "timeout"), keeptest.Status(429, "busy")}, {keeptest.Status(408, ""), keeptest.Status(500, "")}, {keeptest.Reset, keeptest.Truncate}},
			reqs:   []int{3, 2, 2},
		},
		{
			name:   "errors that do not pass",
			faults: [3][]keeptest.Fault{{keeptest.Status(403, "forbidden")}, {keeptest.Status(400, "bad\nnews")}},
			lost:   [3]bool{true, true, true}, reqs: []int{1, 1, 1},
			want: `HTTP 400 "bad\nnews"`, isNot: keep.ErrNotFound,
		},
		{
			name:   "damaged copy on one server",
			faults: [3][]keeptest.Fault{{keeptest.Corrupt}}, reqs: []int{1, 1, 0},
		},
		{
			name:   "damaged copies are asked for twice only",
			faults: [3][]keeptest.Fault{{keeptest.Corrupt, keeptest.Corrupt, keeptest.Corrupt}},
			lost:   [3]bool{false, true, true}, reqs: []int{2, 1, 1},
			want: "bad checksum", is: keep.ErrChecksum, isNot: keep.ErrNotFound,
		},
		{
			name:   "damaged copies are asked for twice only, others more often",
			faults: [3][]keeptest.Fault{{keeptest.Corrupt, keeptest.Corrupt, keeptest.Corrupt}, {keeptest.Status(503, ""), keeptest.Status(503, ""), keeptest.Status(503, "")}},
			lost:   [3]bool{false, true, true}, reqs: []int{2, 3, 1},
			want: "bad checksum", is: keep.ErrChecksum, isNot: keep.ErrNotFound,
		},
		{
			name:   "a page of something else is not a damaged copy",
			faults: [3][]keeptest.Fault{{portal, portal}},
			lost:   [3]bool{false, true, true}, reqs: []int{3, 1, 1},
		},
		{
			name: "retries used up",
			faults: [3][]keeptest.Fault{
				{keeptest.Reset, keeptest.Truncate, keeptest.Status(502, "checksum mismatch in stored data")},
			},
			lost: [3]bool{false, true, true}, reqs: []int{3, 1, 1},
			want: `HTTP 502 "checksum mismatch in stored data"`, isNot: keep.ErrNotFound,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			list, services := servers(t, 3, data)
			var loc keep.Locator
			for i, s := range list {
				loc = s.Put(data)
				if tc.lost[i] {
					s.Delete(loc.Hash())
				}
				for _, f := range tc.faults[i] {
					s.Inject(1, f)
				}
			}
			slices.Reverse(services) // the client must sort
			client := keeptest.NewClient(t, nil, services...)
			got, err := client.ReadBlock(t.Context(), loc)
			if tc.want == "" {
				if err != nil || !bytes.Equal(got, data) {
					t.Errorf("%q, %v", got, err)
				}
			} else if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want %q", err, tc.want)
			}
			if tc.is != nil && !errors.Is(err, tc.is) {
				t.Errorf("%v is not %v", err, tc.is)
			}
			if tc.isNot != nil && errors.Is(err, tc.isNot) {
				t.Errorf("%v is %v", err, tc.isNot)
			}
			if tc.reqs != nil && !slices.Equal(counts(list), tc.reqs) {
				// The transport repeats a GET by itself when a connection
				// that it had pooled is reset.
				t.Errorf("requests per server %v, want %v", counts(list), tc.reqs)
			}
		})
	}
}

func TestClientRequestHeaders(t *testing.T) {
	data := []byte("foo")
	list, services := servers(t, 1, data)
	client := keeptest.NewClient(t, func(cfg *keep.ClientConfig) {
		cfg.RequestID = func() string { return "req-abcdefghij0123456789" }
		cfg.StorageClasses = []string{"a", "b", "a"}
	}, services...)
	list[0].Classes = []string{"a", "b"}
	loc, err := client.WriteBlock(t.Context(), data, keep.WriteOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.ReadBlock(t.Context(), loc); err != nil {
		t.Fatal(err)
	}
	want := []keeptest.Request{
		{Method: "PUT", Path: "/" + loc.Hash(), Length: 3, Header: http.Header{
			"Content-Type":            {"application/octet-stream"},
			"Content-Length":          {"3"},
			"X-Keep-Desired-Replicas": {"1"},
			"X-Keep-Storage-Classes":  {"a, b"},
		}},
		{Method: "GET", Path: "/" + loc.String(), Header: http.Header{}},
	}
	got := list[0].Requests()
	if len(got) != 2 {
		t.Fatalf("%d requests", len(got))
	}
	for i, w := range want {
		w.Header.Set("Authorization", "Bearer "+keeptest.Token)
		w.Header.Set("X-Request-Id", "req-abcdefghij0123456789")
		got[i].Header.Del("User-Agent")
		if fmt.Sprint(got[i]) != fmt.Sprint(w) {
			t.Errorf("request\n%v, want\n%v", got[i], w)
		}
	}
	if err := signer.VerifySignature(loc.String(), keeptest.Token, time.Now()); err != nil {
		t.Errorf("signature of the stored block: %v", err)
	}
}

func TestClientSharesFetch(t *testing.T) {
	data := []byte("shared")
	list, services := servers(t, 1, data)
	client := keeptest.NewClient(t, nil, services...)
	loc := list[0].Put(data)
	arrived, answer := make(chan struct{}), make(chan struct{})
	list[0].Inject(1, func(*keeptest.Server, http.ResponseWriter, *http.Request) bool {
		close(arrived)
		<-answer
		return false
	})
	read := func(ctx context.Context) error {
		got, err := client.ReadBlock(ctx, loc)
		if err == nil && !bytes.Equal(got, data) {
			err = errors.New("wrong data")
		}
		return err
	}
	first, leave := context.WithCancel(t.Context())
	firstDone := make(chan error, 1)
	go func() { firstDone <- read(first) }()
	<-arrived
	var wg sync.WaitGroup
	errs := make(chan error, 9)
	for range 9 {
		wg.Go(func() { errs <- read(t.Context()) })
	}
	// The one that started the fetch goes away; the others still get it.
	for !client.Waiting(loc, 10) {
	}
	leave()
	if err := <-firstDone; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	close(answer)
	wg.Wait()
	for range 9 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if n := len(list[0].Requests()); n != 1 {
		t.Errorf("%d requests", n)
	}
}

// A reader with a good signature is not told about somebody else's bad one.
func TestClientSharedFetchOtherSignature(t *testing.T) {
	data := []byte("shared")
	list, services := servers(t, 1, data)
	client := keeptest.NewClient(t, nil, services...)
	good := list[0].Put(data)
	bad, err := keep.ParseLocator(signer.SignLocator(good.WithoutHints().String(), "other", time.Now().Add(time.Hour)))
	if err != nil {
		t.Fatal(err)
	}
	arrived, answer := make(chan struct{}), make(chan struct{})
	list[0].Inject(1, func(*keeptest.Server, http.ResponseWriter, *http.Request) bool {
		close(arrived)
		<-answer
		return false
	})
	badDone := make(chan error, 1)
	go func() {
		_, err := client.ReadBlock(t.Context(), bad)
		badDone <- err
	}()
	<-arrived
	goodDone := make(chan error, 1)
	go func() {
		_, err := client.ReadBlock(t.Context(), good)
		goodDone <- err
	}()
	for !client.Waiting(good, 2) {
	}
	close(answer)
	if err := <-badDone; err == nil {
		t.Error("bad signature accepted")
	}
	if err := <-goodDone; err != nil {
		t.Errorf("good signature: %v", err)
	}
}

func TestClientStalledServer(t *testing.T) {
	data := []byte("stalled")
	for _, method := range []string{"read", "write"} {
		t.Run(method, func(t *testing.T) {
			list, services := servers(t, 2, data)
			list[0].Inject(-1, keeptest.Hang)
			loc := list[1].Put(data)
			client := keeptest.NewClient(t, func(cfg *keep.ClientConfig) {
				cfg.IdleTimeout = 50 * time.Millisecond
			}, services...)
			var err error
			if method == "read" {
				_, err = client.ReadBlock(t.Context(), loc)
			} else {
				_, err = client.WriteBlock(t.Context(), data, keep.WriteOptions{})
			}
			if err != nil {
				t.Error(err)
			}
			if got := counts(list); got[0] == 0 || got[1] == 0 {
				t.Errorf("requests %v", got)
			}
		})
	}
}

// A block that keeps arriving is not cut off, however long it takes altogether.
func TestClientSlowServer(t *testing.T) {
	data := bytes.Repeat([]byte("s"), 20)
	list, services := servers(t, 1, data)
	loc := list[0].Put(data)
	const idle = 300 * time.Millisecond
	list[0].Inject(1, func(s *keeptest.Server, w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("Content-Length", "20")
		tick := time.NewTicker(idle / 10)
		defer tick.Stop()
		for i := range data {
			<-tick.C
			w.Write(data[i : i+1])
			w.(http.Flusher).Flush()
		}
		return true
	})
	client := keeptest.NewClient(t, func(cfg *keep.ClientConfig) {
		cfg.IdleTimeout, cfg.Retries = idle, -1
	}, services...)
	if _, err := client.ReadBlock(t.Context(), loc); err != nil {
		t.Error(err)
	}
}

func TestClientCancel(t *testing.T) {
	data := []byte("cancel")
	list, services := servers(t, 1, data)
	loc := list[0].Put(data)
	client := keeptest.NewClient(t, nil, services...)
	for _, op := range []func(context.Context) error{
		func(ctx context.Context) error { _, err := client.ReadBlock(ctx, loc); return err },
		func(ctx context.Context) error {
			_, err := client.WriteBlock(ctx, data, keep.WriteOptions{})
			return err
		},
	} {
		ctx, cancel := context.WithCancel(t.Context())
		list[0].Inject(1, func(s *keeptest.Server, w http.ResponseWriter, r *http.Request) bool {
			cancel()
			return keeptest.Hang(s, w, r)
		})
		if err := op(ctx); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}
}

// The connection refused by a dead server and the texts of a live one must not
// give away the token or a signature.
func TestClientErrorsHoldNoSecrets(t *testing.T) {
	data := []byte("secret")
	list, services := servers(t, 2, data)
	loc := list[0].Put(data)
	list[0].Inject(-1, func(s *keeptest.Server, w http.ResponseWriter, r *http.Request) bool {
		http.Error(w, "cannot serve "+r.URL.String()+" to "+r.Header.Get("Authorization")+" or "+strings.Split(keeptest.Token, "/")[2], 500)
		return true
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	services[1].URL = "http://" + l.Addr().String()
	l.Close()
	client := keeptest.NewClient(t, nil, services...)
	_, err = client.ReadBlock(t.Context(), loc)
	if err == nil {
		t.Fatal("no error")
	}
	secret := strings.Split(keeptest.Token, "/")[2]
	sig := loc.Hints()[0]
	for _, s := range []string{secret, sig, sig[1:41]} {
		if strings.Contains(err.Error(), s) {
			t.Errorf("%q is in %q", s, err)
		}
	}
	for _, s := range []string{"cannot serve", "connection refused", services[0].URL, services[1].URL, loc.Hash()} {
		if !strings.Contains(err.Error(), s) {
			t.Errorf("%q is not in %q", s, err)
		}
	}
}

func TestClientRedirectIsNotFollowed(t *testing.T) {
	list, services := servers(t, 2, nil)
	data := []byte("x")
	loc := list[1].Put(data)
	list[0].Inject(-1, func(_ *keeptest.Server, w http.ResponseWriter, r *http.Request) bool {
		http.Redirect(w, r, services[1].URL+r.URL.Path, http.StatusTemporaryRedirect)
		return true
	})
	client := keeptest.NewClient(t, nil, services[0])
	if _, err := client.ReadBlock(t.Context(), loc); err == nil || len(list[1].Requests()) != 0 {
		t.Errorf("the token was taken to another server (%v)", err)
	}
}

func TestClientLocalLocator(t *testing.T) {
	data := []byte("remote")
	list, services := servers(t, 2, data)
	client := keeptest.NewClient(t, nil, services...)
	remote := list[1].PutRemote(data)
	list[1].Inject(1, keeptest.Status(503, ""))
	loc, err := client.LocalLocator(t.Context(), remote)
	if err != nil || loc.IsRemote() || loc.Hash() != remote.Hash() {
		t.Fatalf("%v, %v", loc, err)
	}
	if err := signer.VerifySignature(loc.String(), keeptest.Token, time.Now()); err != nil {
		t.Error(err)
	}
	before := len(list[1].Requests())
	if same, err := client.LocalLocator(t.Context(), loc); same != loc || err != nil || len(list[1].Requests()) != before {
		t.Errorf("a local locator was sent out: %v", err)
	}
	missing, _ := keep.ParseLocator("acbd18db4cc2f85cedef654fccc4a4d8+3+Rzbbbb-0123@ffffffff")
	if _, err := client.LocalLocator(t.Context(), missing); err == nil {
		t.Error("no error")
	}
}

func TestClientConfig(t *testing.T) {
	ok := keep.ClientConfig{Services: keep.FixedServices{}, Token: "t"}
	for name, edit := range map[string]func(*keep.ClientConfig){
		"no services":          func(c *keep.ClientConfig) { c.Services = nil },
		"no token":             func(c *keep.ClientConfig) { c.Token = "" },
		"token with line feed": func(c *keep.ClientConfig) { c.Token = "abc\n" },
		"negative replication": func(c *keep.ClientConfig) { c.DefaultReplication = -1 },
	} {
		cfg := ok
		edit(&cfg)
		if _, err := keep.NewClient(cfg); err == nil || strings.Contains(err.Error(), "abc") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A pooled connection that the server has closed meanwhile costs no retry.
func TestClientStaleConnection(t *testing.T) {
	store := &keeptest.Server{}
	srv := httptest.NewServer(store)
	defer srv.Close()
	client := keeptest.NewClient(t, func(cfg *keep.ClientConfig) { cfg.Retries = -1 }, keep.Service{URL: srv.URL, Type: "disk"})
	for i := range 20 {
		loc, err := client.WriteBlock(t.Context(), []byte{byte(i)}, keep.WriteOptions{})
		if err != nil {
			t.Fatal(err)
		}
		srv.CloseClientConnections()
		if _, err := client.ReadBlock(t.Context(), loc); err != nil {
			t.Fatal(err)
		}
		srv.CloseClientConnections()
	}
}

func TestClientTLS(t *testing.T) {
	srv := httptest.NewUnstartedServer(&keeptest.Server{})
	srv.Config.ErrorLog = log.New(io.Discard, "", 0) // the refused handshake
	srv.StartTLS()
	defer srv.Close()
	private := x509.NewCertPool()
	private.AddCert(srv.Certificate())
	for name, c := range map[string]struct {
		config *tls.Config
		works  bool
	}{
		"system's roots":     {nil, false},
		"private authority":  {&tls.Config{RootCAs: private}, true},
		"another authority":  {&tls.Config{RootCAs: x509.NewCertPool()}, false},
		"no check whatever":  {&tls.Config{InsecureSkipVerify: true}, true},
		"the system's again": {&tls.Config{}, false},
	} {
		for _, kind := range []string{"disk", "proxy"} {
			client := keeptest.NewClient(t, func(cfg *keep.ClientConfig) { cfg.TLS = c.config }, keep.Service{URL: srv.URL, Type: kind})
			_, err := client.WriteBlock(t.Context(), []byte("x"), keep.WriteOptions{})
			if (err == nil) != c.works {
				t.Errorf("%s, %s: %v", name, kind, err)
			}
			client.Close()
		}
	}
}

// A proxy of the site is the way to a keepproxy, and to nothing else.
func TestClientSiteProxy(t *testing.T) {
	asked := make(chan string, 10)
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked <- r.Method + " " + r.Host
		http.Error(w, "not today", http.StatusBadGateway)
	}))
	defer proxy.Close()
	t.Setenv("HTTPS_PROXY", proxy.URL)
	t.Setenv("HTTP_PROXY", proxy.URL)
	t.Setenv("NO_PROXY", "")
	for _, c := range []struct{ kind, url, want string }{
		{"proxy", "https://keep.invalid", "CONNECT keep.invalid:443"},
		{"proxy", "http://keep.invalid:25107", ""},
		{"disk", "https://keep.invalid", ""},
	} {
		client := keeptest.NewClient(t, func(cfg *keep.ClientConfig) { cfg.Retries = -1 }, keep.Service{URL: c.url, Type: c.kind})
		if _, err := client.WriteBlock(t.Context(), []byte("x"), keep.WriteOptions{}); err == nil {
			t.Errorf("%s %s: no error", c.kind, c.url)
		}
		client.Close()
		got := ""
		if len(asked) > 0 {
			got = <-asked
		}
		if got != c.want {
			t.Errorf("%s %s: the site's proxy was asked %q, want %q", c.kind, c.url, got, c.want)
		}
	}
}

func TestClientClose(t *testing.T) {
	data := []byte("x")
	list, services := servers(t, 1, data)
	loc := list[0].Put(data)
	client := keeptest.NewClient(t, nil, services...)
	reading := make(chan struct{})
	list[0].Inject(1, func(s *keeptest.Server, w http.ResponseWriter, r *http.Request) bool {
		close(reading)
		return keeptest.Hang(s, w, r)
	})
	done := make(chan error)
	go func() {
		_, err := client.ReadBlock(context.Background(), loc)
		done <- err
	}()
	<-reading
	client.Close()
	if err := <-done; err == nil {
		t.Error("read succeeded")
	}
	if _, err := client.ReadBlock(t.Context(), loc); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("read after Close: %v", err)
	}
}

// memoryFile is an io.WriterAt that takes room bytes at most.
type memoryFile struct {
	data []byte
	room int
}

func (f *memoryFile) WriteAt(p []byte, off int64) (int, error) {
	if int(off)+len(p) > f.room {
		return 0, syscall.ENOSPC
	}
	f.data = append(f.data[:off], p...)
	return len(p), nil
}

// A block that is copied is the right one after any number of bad attempts, and
// what fails on our side is not retried.
func TestClientCopyBlock(t *testing.T) {
	srv := &keeptest.Server{}
	client := keeptest.NewClient(t, nil, srv.Start(t))
	data := bytes.Repeat([]byte("0123456789"), 100_000)
	loc := srv.Put(data)
	for name, fault := range map[string]keeptest.Fault{
		"good": nil, "corrupt": keeptest.Corrupt, "truncated": keeptest.Truncate, "reset": keeptest.Reset, "busy": keeptest.Status(503, "busy"),
	} {
		srv.Recover()
		if fault != nil {
			srv.Inject(1, fault)
		}
		f := &memoryFile{room: len(data)}
		if err := client.CopyBlock(t.Context(), loc, f); err != nil || !bytes.Equal(f.data, data) {
			t.Errorf("%s: %d bytes, %v", name, len(f.data), err)
		}
	}
	before := len(srv.Requests())
	if err := client.CopyBlock(t.Context(), loc, &memoryFile{room: 500_000}); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("full: %v", err)
	}
	if n := len(srv.Requests()) - before; n != 1 {
		t.Errorf("%d requests for a file that is full", n)
	}
	srv.Delete(loc.Hash())
	if err := client.CopyBlock(t.Context(), loc, &memoryFile{}); !errors.Is(err, keep.ErrNotFound) {
		t.Errorf("missing: %v", err)
	}
}
