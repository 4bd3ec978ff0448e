package keep_test

import (
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
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"crunch-oci/internal/leaktest"
	"crunch-oci/keep"
	"crunch-oci/keep/keeptest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

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
	services[1].URL = "http://127.0.0.1:1" // nobody's
	client := keeptest.NewClient(t, nil, services...)
	_, err := client.ReadBlock(t.Context(), loc)
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
