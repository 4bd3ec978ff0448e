package arvados

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// reset ends the connection of a request with a TCP reset.
func reset(w http.ResponseWriter) {
	conn, _, err := w.(http.Hijacker).Hijack()
	if err != nil {
		panic(err)
	}
	conn.(*tls.Conn).NetConn().(*net.TCPConn).SetLinger(0)
	conn.(*tls.Conn).NetConn().Close()
}

// raw answers a request with bytes instead of HTTP and closes the connection.
func raw(w http.ResponseWriter, answer string) {
	conn, _, err := w.(http.Hijacker).Hijack()
	if err != nil {
		panic(err)
	}
	io.WriteString(conn, answer)
	conn.Close()
}

// A fault that happens twice does not fail the call.
func TestTransientFaults(t *testing.T) {
	for name, fault := range map[string]http.HandlerFunc{
		"reset":                    func(w http.ResponseWriter, r *http.Request) { reset(w) },
		"closed without an answer": func(w http.ResponseWriter, r *http.Request) { raw(w, "") },
		"not HTTP":                 func(w http.ResponseWriter, r *http.Request) { raw(w, "\x00\xff\x01 nonsense\r\n\r\n") },
		"half a status line":       func(w http.ResponseWriter, r *http.Request) { raw(w, "HTTP/1.1 20") },
		"body cut short": func(w http.ResponseWriter, r *http.Request) {
			raw(w, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"uuid\":")
		},
		"chunked body cut short": func(w http.ResponseWriter, r *http.Request) {
			raw(w, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{\"uuid")
		},
		"unbounded body cut short": func(w http.ResponseWriter, r *http.Request) {
			raw(w, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{\"uuid\":")
		},
		"body reset": func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, `{"uuid":`)
			w.(http.Flusher).Flush()
			reset(w)
		},
		"garbage body":    func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "\xff\xfe\x00garbage") },
		"empty body":      func(w http.ResponseWriter, r *http.Request) {},
		"page of a proxy": func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "<html>please wait</html>") },
		"bad gzip": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			io.WriteString(w, "no")
		},
		"502 with HTML": func(w http.ResponseWriter, r *http.Request) {
			http.Error(w, "<html>Bad Gateway</html>", http.StatusBadGateway)
		},
		"503 without a body": func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(503) },
		"no answer in time":  func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
		"body never ends": func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, `{`)
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		},
	} {
		t.Run(name, func(t *testing.T) {
			hangs := name == "no answer in time" || name == "body never ends"
			var attempts atomic.Int32
			c, _, _ := newTestServer(t, func(w http.ResponseWriter, r *http.Request) {
				// The server notices that a client has gone only when it has
				// read the request.
				io.Copy(io.Discard, r.Body)
				if attempts.Add(1) <= 2 {
					fault(w, r)
					return
				}
				io.WriteString(w, `{"uuid":"zzzzz-4zz18-000000000000001","portable_data_hash":"d41d8cd98f00b204e9800998ecf8427e+0"}`)
			}, func(cfg *Config) {
				if hangs {
					cfg.AttemptTimeout = 300 * time.Millisecond
				}
			})
			coll, err := c.CreateCollection(context.Background(), map[string]any{"manifest_text": ""}, true)
			// With that time-out a good answer may come too late as well, on a busy machine.
			if n := attempts.Load(); err != nil || coll.PortableDataHash != EmptyPDH || n < 3 || n > 3 && !hangs {
				t.Fatal(coll, err, n)
			}
		})
	}
}

// Faults another attempt cannot cure fail at once and say what to do.
func TestPermanentFaults(t *testing.T) {
	for name, tc := range map[string]struct {
		handler http.HandlerFunc
		want    string
	}{
		"other shape": {func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, `{"uuid":7}`) }, "unexpected answer"},
		"no object":   {func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, `null`) }, "not a JSON object"},
		"huge": {func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "1000000000000")
			io.WriteString(w, `{}`)
		}, "too large"},
		"huge, silent": {func(w http.ResponseWriter, r *http.Request) { w.Write(bytes.Repeat([]byte(" "), 5000)) }, "too large"},
		"other host": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "https://127.0.0.1:1/", http.StatusTemporaryRedirect)
		}, "redirect"},
		"redirect loop": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, r.URL.Path+"x", http.StatusTemporaryRedirect)
		}, "redirect"},
		"plain text": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://"+r.Host+"/", http.StatusTemporaryRedirect)
		}, "redirect"},
	} {
		t.Run(name, func(t *testing.T) {
			c, clock, _ := newTestServer(t, tc.handler, func(cfg *Config) { cfg.MaxResponse = 4096 })
			_, err := c.CurrentUser(context.Background())
			if err == nil || !strings.Contains(err.Error(), tc.want) || len(clock.sleeps()) != 0 {
				t.Fatal(err, clock.sleeps())
			}
		})
	}
}

func TestRedirectOnSameHost(t *testing.T) {
	c, _, _ := newTestServer(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if r.URL.Path != "/moved" {
			http.Redirect(w, r, "/moved", http.StatusTemporaryRedirect)
		} else if r.Method == "PUT" && len(body) > 0 && r.Header.Get("Authorization") == "Bearer "+dispatcherToken {
			io.WriteString(w, `{"uuid":"x"}`)
		}
	})
	if err := c.UpdateContainer(context.Background(), "x", map[string]any{"cost": 1}); err != nil {
		t.Fatal(err)
	}
	c, _, _ = newTestServer(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == "GET" {
			t.Error("an update became a read")
		}
		http.Redirect(w, r, "/moved", http.StatusFound)
	})
	if err := c.UpdateContainer(context.Background(), "x", map[string]any{"cost": 1}); err == nil {
		t.Fatal("a redirected update counts as done")
	}
}

func TestCertificates(t *testing.T) {
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, `{}`) }))
	server.Config.ErrorLog = quietLog()
	server.StartTLS()
	defer server.Close()
	host := strings.TrimPrefix(server.URL, "https://")
	call := func(cfg Config) (*fakeClock, error) {
		clock := newFakeClock()
		cfg.Host, cfg.Token, cfg.Clock = host, dispatcherToken, clock
		c, err := NewClient(cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		return clock, c.Call(context.Background(), "GET", "config", nil, nil)
	}
	clock, err := call(Config{})
	if err == nil || !strings.Contains(err.Error(), "SSL_CERT_FILE") || len(clock.sleeps()) != 0 {
		t.Error("unknown authority:", err, clock.sleeps())
	}
	if _, err := call(Config{Insecure: true}); err != nil {
		t.Error("insecure:", err)
	}
	if _, err := call(Config{CAFile: writeCA(t, server)}); err != nil {
		t.Error("CA file:", err)
	}
	for _, file := range []string{"/nonexistent/ca.pem", "/dev/null"} {
		if _, err := NewClient(Config{Host: host, Token: dispatcherToken, CAFile: file}); err == nil || !strings.Contains(err.Error(), file) {
			t.Errorf("CA file %s: %v", file, err)
		}
	}
}

func TestUnreachableHostIsRetried(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	host := l.Addr().String()
	l.Close()
	clock := newFakeClock()
	c, err := NewClient(Config{Host: host, Token: dispatcherToken, Clock: clock})
	if err != nil {
		t.Fatal(err)
	}
	err = c.Call(context.Background(), "GET", "config", nil, nil)
	var e *Error
	if !errors.As(err, &e) || e.Status != 0 || e.Attempts < 8 || !strings.Contains(err.Error(), "connection refused") {
		t.Fatal(err)
	}
}

func TestCancelledCall(t *testing.T) {
	ctx, cancel := context.WithCancelCause(context.Background())
	reason := errors.New("stopped by a signal")
	c, _, _ := newTestServer(t, func(w http.ResponseWriter, r *http.Request) { cancel(reason); <-r.Context().Done() })
	err := c.Call(ctx, "GET", "config", nil, nil)
	if !errors.Is(err, context.Canceled) || !errors.Is(err, reason) {
		t.Fatal(err)
	}

	// Between attempts the last answer is told too, but does not count as one.
	ctx, cancel = context.WithCancelCause(context.Background())
	c, _, _ = newTestServer(t, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(503) },
		func(cfg *Config) { cfg.OnRetry = func(Retry) { cancel(reason) } })
	err = c.Call(ctx, "GET", "config", nil, nil)
	if !errors.Is(err, context.Canceled) || IsStatus(err, 503) || !strings.Contains(err.Error(), "503") {
		t.Fatal(err)
	}
}

func TestBudgetCutsAHangingAttempt(t *testing.T) {
	// Real time: the first answer comes, the second never does. On a busy machine the
	// budget may end before that, and is larger the next time.
	for budget := 500 * time.Millisecond; ; budget *= 5 {
		var attempts atomic.Int32
		c, _, _ := newTestServer(t, func(w http.ResponseWriter, r *http.Request) {
			if attempts.Add(1) == 1 {
				http.Error(w, `{"errors":["overloaded"]}`, 500)
				return
			}
			<-r.Context().Done()
		}, func(cfg *Config) { cfg.Clock = nil; cfg.Budget = budget })
		err := c.Call(context.Background(), "GET", "config", nil, nil)
		if IsStatus(err, 500) && strings.Contains(err.Error(), "overloaded") && attempts.Load() == 2 {
			return
		}
		if budget > time.Minute {
			t.Fatal(err, attempts.Load())
		}
	}
}

// A server that offers HTTP/2 is still spoken to as the real one is.
func TestHTTP1Only(t *testing.T) {
	proto := ""
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { proto = r.Proto; io.WriteString(w, `{}`) }))
	server.EnableHTTP2 = true
	server.StartTLS()
	defer server.Close()
	c, err := NewClient(Config{Host: strings.TrimPrefix(server.URL, "https://"), Token: dispatcherToken, CAFile: writeCA(t, server)})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Call(context.Background(), "GET", "config", nil, nil); err != nil || proto != "HTTP/1.1" {
		t.Fatal(proto, err)
	}
}

func TestKeepAlive(t *testing.T) {
	remotes := map[string]bool{}
	protocols := map[string]bool{}
	c, _, _ := newTestServer(t, func(w http.ResponseWriter, r *http.Request) {
		remotes[r.RemoteAddr] = true
		protocols[r.Proto] = true
		if len(remotes) == 1 && r.Method == "DELETE" {
			http.Error(w, strings.Repeat("long error ", 1000), 404)
			return
		}
		fmt.Fprintf(w, `{"uuid":%q}`, r.URL.Path)
	})
	for range 3 {
		for _, method := range []string{"GET", "PUT", "DELETE"} {
			c.Call(context.Background(), method, "x", nil, nil)
			c.WithToken("container/token/01").Call(context.Background(), method, "x", nil, &struct{}{})
		}
	}
	if len(remotes) != 1 || !protocols["HTTP/1.1"] || len(protocols) != 1 {
		t.Fatalf("connections %v, protocols %v", remotes, protocols)
	}
}

// The page of a network's login, with status 200, is no answer to an update:
// the server has not heard of it.
func TestUpdateAnsweredBySomebodyElse(t *testing.T) {
	var attempts atomic.Int32
	c, _, _ := newTestServer(t, func(w http.ResponseWriter, r *http.Request) {
		switch attempts.Add(1) {
		case 1:
			io.WriteString(w, "<html>please log in</html>")
		case 2: // nothing
		default:
			io.WriteString(w, ` {"uuid":"zzzzz-dz642-xxxxxxxxxxxxxxx"}`)
		}
	})
	if err := c.UpdateContainer(t.Context(), "zzzzz-dz642-xxxxxxxxxxxxxxx", map[string]any{"state": StateRunning}); err != nil || attempts.Load() != 3 {
		t.Errorf("%v after %d attempts", err, attempts.Load())
	}
}

// An update is done only when the answer is about that container: whoever else
// says 200 with some JSON has changed nothing.
func TestUpdateAnsweredByAnother(t *testing.T) {
	const uuid = "zzzzz-dz642-xxxxxxxxxxxxxxx"
	for _, answer := range []string{`{}`, `null`, `[]`, `{"uuid":5}`, `{"uuid":""}`, `{"uuid":"zzzzz-dz642-yyyyyyyyyyyyyyy"}`} {
		c, _, _ := newTestServer(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, answer) })
		if err := c.UpdateContainer(t.Context(), uuid, map[string]any{"state": StateComplete}); err == nil || !strings.Contains(err.Error(), "unexpected answer") {
			t.Errorf("%s: %v", answer, err)
		}
	}
}
