package keep_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"testing"
	"time"

	"crunch-oci/keep"
	"crunch-oci/keep/keeptest"
)

// A part of a file arrives as it is, wherever it lies in the file, over plain
// connections and over TLS, and as often as copies are wanted.
func TestWritePart(t *testing.T) {
	data := make([]byte, 9<<20)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(data)
	f := tempFile(t, data)
	for _, c := range []struct {
		name           string
		offset, length int64
		tls            bool
	}{
		{"whole file", 0, 9 << 20, false},
		{"odd part", 12345, 5<<20 + 1, false},
		{"few bytes", 1, 3, false},
		{"nothing", 77, 0, false},
		{"TLS", 12345, 5<<20 + 1, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			want := data[c.offset : c.offset+c.length]
			var list []*keeptest.Server
			var services []keep.Service
			roots := x509.NewCertPool()
			for range 2 {
				s := new(keeptest.Server)
				start := httptest.NewServer
				if c.tls {
					start = httptest.NewTLSServer
				}
				hs := start(s)
				t.Cleanup(hs.Close)
				if c.tls {
					roots.AddCert(hs.Certificate())
				}
				list, services = append(list, s), append(services, keep.Service{UUID: hs.URL, URL: hs.URL, Type: "disk"})
			}
			list[0].Inject(1, keeptest.Status(503, "later"))
			client := keeptest.NewClient(t, func(cfg *keep.ClientConfig) { cfg.TLS = &tls.Config{RootCAs: roots} }, services...)
			loc, err := client.WritePart(t.Context(), md5hex(want), keep.FilePart{File: f, Offset: c.offset, Length: c.length}, keep.WriteOptions{Replication: 2})
			if err != nil || loc.Hash() != md5hex(want) {
				t.Fatalf("%v, %v", loc, err)
			}
			for _, s := range list {
				if !bytes.Equal(s.Block(loc.Hash()), want) {
					t.Error("a server has something else")
				}
			}
		})
	}
}

// A file that is shorter than it was is no fault of the services: they are not
// asked again.
func TestWritePartOfShortFile(t *testing.T) {
	data := make([]byte, 1<<20)
	f := tempFile(t, data)
	if err := os.Truncate(f.Name(), 1<<19); err != nil {
		t.Fatal(err)
	}
	list, services := servers(t, 2, data)
	client := keeptest.NewClient(t, nil, services...)
	_, err := client.WritePart(t.Context(), md5hex(data), keep.FilePart{File: f, Length: 1 << 20}, keep.WriteOptions{Replication: 1})
	// A server may not have begun with a request that breaks off.
	if n := counts(list); !errors.Is(err, keep.ErrUnreadable) || n[0]+n[1] > 1 {
		t.Errorf("%v after %d requests", err, n)
	}
}

// A server that takes nothing does not keep a client that gives up.
func TestWriteToStalledServer(t *testing.T) {
	data := make([]byte, 32<<20)
	f := tempFile(t, data)
	for name, write := range map[string]func(context.Context, *keep.Client) error{
		"memory": func(ctx context.Context, c *keep.Client) error {
			_, err := c.WriteBlock(ctx, data, keep.WriteOptions{})
			return err
		},
		"file": func(ctx context.Context, c *keep.Client) error {
			_, err := c.WritePart(ctx, md5hex(data), keep.FilePart{File: f, Length: 32 << 20}, keep.WriteOptions{})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			returned := make(chan struct{})
			s := new(keeptest.Server)
			s.Inject(-1, func(_ *keeptest.Server, _ http.ResponseWriter, _ *http.Request) bool {
				cancel()
				<-returned
				return true
			})
			defer close(returned)
			if err := write(ctx, keeptest.NewClient(t, nil, s.Start(t))); !errors.Is(err, context.Canceled) {
				t.Errorf("error %v", err)
			}
		})
	}
}

// A service that says to have stored a block before it has received it is
// believed only if it then takes the block.
func TestWriteAnsweredFirst(t *testing.T) {
	data := make([]byte, 32<<20) // more than a connection buffers
	_, _ = rand.NewChaCha8([32]byte{2}).Read(data)
	hash := md5hex(data)
	f := tempFile(t, data)
	ways := map[string]func(context.Context, *keep.Client) (keep.Locator, error){
		"memory": func(ctx context.Context, c *keep.Client) (keep.Locator, error) {
			return c.WriteBlock(ctx, data, keep.WriteOptions{Replication: 1})
		},
		"file": func(ctx context.Context, c *keep.Client) (keep.Locator, error) {
			return c.WritePart(ctx, hash, keep.FilePart{File: f, Length: int64(len(data))}, keep.WriteOptions{Replication: 1})
		},
	}
	for name, then := range map[string]func(*bufio.ReadWriter, int64, <-chan struct{}) []byte{
		"closes": func(*bufio.ReadWriter, int64, <-chan struct{}) []byte { return nil },
		"stalls": func(_ *bufio.ReadWriter, _ int64, end <-chan struct{}) []byte { <-end; return nil },
		"half": func(rw *bufio.ReadWriter, n int64, _ <-chan struct{}) []byte {
			_, _ = io.CopyN(io.Discard, rw, n/2)
			return nil
		},
		"takes it": func(rw *bufio.ReadWriter, n int64, _ <-chan struct{}) []byte {
			got := make([]byte, n)
			_, _ = io.ReadFull(rw, got)
			return got
		},
	} {
		for way, write := range ways {
			t.Run(name+"/"+way, func(t *testing.T) {
				got, end := make(chan []byte, 100), make(chan struct{})
				s := new(keeptest.Server)
				s.Inject(-1, func(_ *keeptest.Server, w http.ResponseWriter, r *http.Request) bool {
					conn, rw, err := w.(http.Hijacker).Hijack()
					if err != nil {
						t.Error(err)
						return true
					}
					defer conn.Close()
					text := fmt.Sprintf("%s+%d\n", hash, r.ContentLength)
					fmt.Fprintf(rw, "HTTP/1.1 200 OK\r\nX-Keep-Replicas-Stored: 1\r\nContent-Length: %d\r\n\r\n%s", len(text), text)
					if err := rw.Flush(); err != nil {
						t.Error(err)
					}
					got <- then(rw, r.ContentLength, end)
					return true
				})
				service := s.Start(t)
				defer close(end)
				idle := time.Minute
				if name == "stalls" {
					idle = 100 * time.Millisecond
				}
				client := keeptest.NewClient(t, func(cfg *keep.ClientConfig) {
					cfg.IdleTimeout, cfg.Retries = idle, 1
				}, service)
				loc, err := write(t.Context(), client)
				if name == "takes it" {
					if err != nil || loc.Hash() != hash || !bytes.Equal(<-got, data) {
						t.Errorf("%v, %v, or something else was sent", loc, err)
					}
					return
				}
				var failed *keep.WriteError
				if !errors.As(err, &failed) || failed.Stored != 0 || failed.Attempts != 2 {
					t.Errorf("%v, %v", loc, err)
				}
			})
		}
	}
}

func TestAppendBlock(t *testing.T) {
	list, services := servers(t, 1, nil)
	client := keeptest.NewClient(t, nil, services...)
	c, err := keep.NewCollection("", client)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	f, err := c.Create("f")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, step := range []func() error{
		func() error { return f.AppendBlock(list[0].Put([]byte("foo"))) },
		func() error { return f.AppendBlock(list[0].Put([]byte("bar"))) },
		func() error { _, err := f.Write([]byte("baz")); return err },
		func() error { return f.AppendBlock(list[0].Put([]byte("foo"))) },
		func() error { _, err := f.WriteAt([]byte("XX"), 2); return err },
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	got := make([]byte, 12)
	if _, err := f.ReadAt(got, 0); err != nil || string(got) != "foXXarbazfoo" || c.Size() != 12 {
		t.Errorf("%q, %d bytes, %v", got, c.Size(), err)
	}
}
