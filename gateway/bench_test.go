package gateway

import (
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"testing"
)

// BenchmarkForward downloads 64 MiB from a service, through the gateway and,
// beside it, through the standard library's reverse proxy and without any.
func BenchmarkForward(b *testing.B) {
	const size = 64 << 20
	block := make([]byte, 1<<20)
	service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(size))
		for range size / len(block) {
			w.Write(block)
		}
	}))
	defer service.Close()
	target, _ := url.Parse(service.URL)
	s, _ := open(b, nil)
	proxy := httptest.NewTLSServer(&httputil.ReverseProxy{
		Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(target) },
		Transport: &http.Transport{DisableKeepAlives: true, DisableCompression: true},
	})
	defer proxy.Close()
	for _, way := range []struct{ name, url string }{
		{"gateway", "https://" + s.Address()}, {"ReverseProxy", proxy.URL}, {"plain", service.URL},
	} {
		b.Run(way.name, func(b *testing.B) {
			client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}}
			b.SetBytes(size)
			for b.Loop() {
				r, err := http.NewRequest("GET", way.url, nil)
				if err != nil {
					b.Fatal(err)
				}
				r.Header.Set(headerUUID, s.config.UUID)
				r.Header.Set(headerAuth, s.request)
				r.Header.Set(headerPort, target.Port())
				w, err := client.Do(r)
				if err != nil {
					b.Fatal(err)
				}
				if n, err := io.Copy(io.Discard, w.Body); n != size || err != nil {
					b.Fatal(w.Status, n, err)
				}
				w.Body.Close()
			}
		})
	}
}

// BenchmarkRequest is one authenticated request on a connection of its own, as
// the controller makes them.
func BenchmarkRequest(b *testing.B) {
	s, _ := open(b, nil)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}}
	for b.Loop() {
		r, err := http.NewRequest("GET", "https://"+s.Address(), nil)
		if err != nil {
			b.Fatal(err)
		}
		r.Header.Set(headerUUID, s.config.UUID)
		r.Header.Set(headerAuth, s.request)
		w, err := client.Do(r)
		if err != nil || w.StatusCode != 404 {
			b.Fatal(err)
		}
		w.Body.Close()
	}
}
