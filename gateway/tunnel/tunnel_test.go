package tunnel

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/yamux"

	"crunch-oci/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

func pool(c *x509.Certificate) *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(c)
	return p
}

func TestRequestVector(t *testing.T) {
	got := make(chan string, 1)
	c := newController(t, func(_ int, c net.Conn, request string) {
		if state := c.(*tls.Conn).ConnectionState(); state.NegotiatedProtocol != "" {
			t.Errorf("ALPN %s", state.NegotiatedProtocol)
		}
		select {
		case got <- request:
		default:
		}
	})
	r := run(t, c, nil)
	want := strings.NewReplacer("{api_host}", c.host, "{token}", testToken).Replace(spec(t).Request)
	// Not in the vector, and harmless: some proxies want it.
	want = strings.Replace(want, "Upgrade: tunnel\r\n", "Upgrade: tunnel\r\nConnection: Upgrade\r\n", 1)
	if request := await(t, got); request != want {
		t.Errorf("\n%s, want\n%s", request, want)
	}
	r.stop()
}

func TestReplyVectors(t *testing.T) {
	for _, v := range spec(t).Accepts {
		t.Run(v.Response, func(t *testing.T) {
			asked := make(chan bool, 100)
			c := newController(t, func(_ int, c net.Conn, _ string) {
				io.WriteString(c, v.Response)
				asked <- true
				io.Copy(io.Discard, c) // until the tunnel gives up
			})
			r := run(t, c, func(c *Config) { c.timing.max = time.Hour; c.timing.first = time.Hour })
			if v.Accepted == nil || *v.Accepted {
				want := "https://10.0.0.10:1010/"
				if v.Address == nil {
					want = ""
				}
				if got := await(t, r.up); got != want {
					t.Errorf("internal URL %q", got)
				}
				return
			}
			await(t, asked)
			eventually(t, "a message", func() bool { return r.log() != "" })
			if want := cmpOr(v.Log, "runTunnel: error creating gateway tunnel: server did not provide a tunnel: bad response headers"); !strings.HasPrefix(r.log(), want) {
				t.Errorf("log %q, want %q", r.log(), want)
			}
			if len(r.up) > 0 {
				t.Error("accepted")
			}
		})
	}
}

func cmpOr(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// eventually waits for what cannot be waited for otherwise.
func eventually(t testing.TB, what string, good func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(patience); !good(); <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("%s: has not happened", what)
		}
	}
}

// The frames as they are on the wire.
func TestYamuxVectors(t *testing.T) {
	frames := map[string][]byte{}
	for name, text := range spec(t).Yamux {
		if name == "note" {
			continue
		}
		b, err := hex.DecodeString(text)
		if err != nil {
			t.Fatal(err)
		}
		frames[name] = b
	}
	result := make(chan error, 1)
	c := newController(t, func(n int, c net.Conn, _ string) {
		if n > 0 {
			return
		}
		c.SetDeadline(time.Now().Add(patience))
		result <- func() error {
			// Behind the reply, in the same packet: the first stream.
			if _, err := c.Write(append([]byte(ready), append(frames["controller_opens_stream_2"], frames["controller_sends_hi"]...)...)); err != nil {
				return err
			}
			for _, name := range []string{"supervisor_accepts_stream_2", "supervisor_sends_yo", "supervisor_half_closes"} {
				got := make([]byte, len(frames[name]))
				for {
					if _, err := io.ReadFull(c, got[:12]); err != nil {
						return fmt.Errorf("%s: %w", name, err)
					}
					if got[1] != 2 { // a ping of ours may come at any time
						break
					}
					if want := frames["first_keepalive_ping_of_either_side"]; !bytes.Equal(got[:12], want) {
						return fmt.Errorf("ping %x, want %x", got[:12], want)
					}
				}
				if _, err := io.ReadFull(c, got[12:]); err != nil {
					return fmt.Errorf("%s: %w", name, err)
				}
				if !bytes.Equal(got, frames[name]) {
					return fmt.Errorf("%s: %x, want %x", name, got, frames[name])
				}
			}
			return nil
		}()
	})
	r := run(t, c, nil)
	await(t, r.up)
	s := await(t, r.conns)
	hi := make([]byte, 2)
	if _, err := io.ReadFull(s, hi); err != nil || string(hi) != "hi" {
		t.Errorf("%q %v", hi, err)
	}
	io.WriteString(s, "yo")
	s.Close()
	if err := await(t, result); err != nil {
		t.Error(err)
	}
	if s.RemoteAddr().String() != "tunnel connection 2" {
		t.Error(s.RemoteAddr())
	}
}

// serveYamux is a controller's side that lives until the tunnel ends.
func serveYamux(c net.Conn) (*yamux.Session, error) {
	if _, err := io.WriteString(c, ready); err != nil {
		return nil, err
	}
	config := yamux.DefaultConfig()
	config.LogOutput = io.Discard
	return yamux.Server(c, config)
}

func TestManyStreamsAtOnce(t *testing.T) {
	sessions := make(chan *yamux.Session, 1)
	c := newController(t, func(_ int, c net.Conn, _ string) {
		s, err := serveYamux(c)
		if err != nil {
			return
		}
		sessions <- s
		<-s.CloseChan()
	})
	r := run(t, c, func(c *Config) {
		c.Serve = func(c net.Conn) {
			defer c.Close()
			io.Copy(c, c)
		}
	})
	session := await(t, sessions)
	var all sync.WaitGroup
	for i := range 50 {
		all.Go(func() {
			s, err := session.Open()
			if err != nil {
				t.Error(err)
				return
			}
			want := bytes.Repeat([]byte{byte(i)}, 300<<10) // more than a window
			go func() {
				s.Write(want)
				s.Close()
			}()
			if got, err := io.ReadAll(s); !bytes.Equal(got, want) || err != nil {
				t.Errorf("stream %d: %d bytes, %v", i, len(got), err)
			}
		})
	}
	all.Wait()
	if r.log() != "" {
		t.Errorf("log:\n%s", r.log())
	}
}

// One line for the first failure, one for each new reason, one for recovery;
// nothing between.
func TestReconnectAndLog(t *testing.T) {
	const unauthorized = "HTTP/1.1 401 Unauthorized\r\nContent-Type: application/json\r\nContent-Length: 36\r\n\r\n{\"errors\":[\"authentication error\"]}\n"
	c := newController(t, func(n int, c net.Conn, request string) {
		switch {
		case n < 5:
			io.WriteString(c, unauthorized)
		case n < 8: // a proxy that shows what it has been sent
			fmt.Fprintf(c, "HTTP/1.1 502 Bad\x1bGateway\r\n\r\nsorry\n%s", request[len(request)-76:])
		case n == 8:
			s, err := serveYamux(c)
			if err == nil {
				s.Close()
			}
		default:
			if s, err := serveYamux(c); err == nil {
				<-s.CloseChan()
			}
		}
	})
	r := run(t, c, nil)
	await(t, r.up)
	await(t, r.up) // the one after the tunnel that ended
	eventually(t, "recovery", func() bool { return strings.Count(r.log(), "up again\n") == 2 })
	r.stop()
	got := strings.Split(strings.TrimSpace(r.log()), "\n")
	for i, want := range []string{
		"runTunnel: error creating gateway tunnel: server did not provide a tunnel: 401 Unauthorized: authentication error",
		"runTunnel: error creating gateway tunnel: server did not provide a tunnel: 502 Bad Gateway: \"sorry\\nauth_secret=(hidden)\"",
		"runTunnel: the tunnel is up again",
		"runTunnel: the tunnel has ended: ",
		"runTunnel: the tunnel is up again",
	} {
		if i >= len(got) || !strings.HasPrefix(got[i], want) {
			t.Errorf("line %d is not %q:\n%s", i, want, r.log())
			break
		}
	}
	if len(got) != 5 {
		t.Errorf("%d lines:\n%s", len(got), r.log())
	}
}

// Whatever the other end says, it is an error, in bounded time and memory.
func TestBadReplies(t *testing.T) {
	for name, reply := range map[string]string{
		"no HTTP":            "SSH-2.0-x\r\n",
		"nothing":            "",
		"endless header":     "HTTP/1.1 101 Switching Protocols\r\n" + strings.Repeat("X: "+strings.Repeat("y", 1000)+"\r\n", 1000) + "\r\n",
		"endless body":       "HTTP/1.1 500 No\r\n\r\n" + strings.Repeat("z", 10<<20),
		"interim only":       strings.Repeat("HTTP/1.1 100 Continue\r\n\r\n", 100),
		"no upgrade":         "HTTP/1.1 101 Switching Protocols\r\n\r\n",
		"no connection":      "HTTP/1.1 101 Switching Protocols\r\nUpgrade: tunnel\r\n\r\n",
		"plain success":      "HTTP/1.1 200 OK\r\nConnection: upgrade\r\nUpgrade: tunnel\r\nContent-Length: 0\r\n\r\n",
		"redirect":           "HTTP/1.1 302 Found\r\nLocation: https://elsewhere/\r\nContent-Length: 0\r\n\r\n",
		"bytes after header": ready + "this is no yamux frame",
	} {
		t.Run(name, func(t *testing.T) {
			c := newController(t, func(_ int, c net.Conn, _ string) { io.WriteString(c, reply) })
			r := run(t, c, nil)
			eventually(t, "a message", func() bool { return r.log() != "" })
			r.stop()
			if name == "endless header" && !strings.Contains(r.log(), "reply header of more than") {
				t.Error(r.log())
			}
			if len(r.log()) > 4*maxMessage {
				t.Errorf("%d bytes of log", len(r.log()))
			}
		})
	}
	t.Run("interim first", func(t *testing.T) {
		c := newController(t, func(_ int, c net.Conn, _ string) {
			io.WriteString(c, "HTTP/1.1 102 Processing\r\n\r\n")
			if s, err := serveYamux(c); err == nil {
				<-s.CloseChan()
			}
		})
		await(t, run(t, c, nil).up)
	})
}

func TestWhoIsTrusted(t *testing.T) {
	c := newController(t, func(_ int, c net.Conn, _ string) {
		if s, err := serveYamux(c); err == nil {
			<-s.CloseChan()
		}
	})
	r := run(t, c, func(c *Config) { c.TLS = nil })
	eventually(t, "a message", func() bool { return r.log() != "" })
	r.stop()
	if !strings.Contains(r.log(), "x509") || len(c.requests) > 0 {
		t.Errorf("%s%q", r.log(), c.requests)
	}
	await(t, run(t, c, func(c *Config) { c.TLS = &tls.Config{InsecureSkipVerify: true} }).up)
}

// A controller that accepts and then says nothing is given up; one that is
// still silent when the process ends does not hold it.
func TestSilentController(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	r := run(t, &controller{host: l.Addr().String()}, func(c *Config) { c.timing.setup = 10 * time.Millisecond })
	eventually(t, "a message", func() bool { return r.log() != "" })
	r.stop()
	if !strings.Contains(r.log(), "timeout") {
		t.Error(r.log())
	}
	run(t, &controller{host: l.Addr().String()}, nil).stop()
}

// What would be sent to somebody else, or as another request, is not sent.
func TestBadSettings(t *testing.T) {
	for host, want := range map[string]string{
		"":                         "ARVADOS_API_HOST is not set",
		"api.example\r\nX-Evil: 1": "control characters",
		"no such host":             "blanks",
	} {
		r := run(t, &controller{host: host}, nil)
		eventually(t, "a message", func() bool { return r.log() != "" })
		r.stop()
		if !strings.Contains(r.log(), want) {
			t.Errorf("%q: %s", host, r.log())
		}
	}
}

func TestBackoff(t *testing.T) {
	b := backoff{first: 5 * time.Second, max: time.Minute}
	for round := range 2 {
		low := []time.Duration{5, 10, 20, 40, 40, 40}
		for i, l := range low {
			if d := b.next(); d < l*time.Second || d > l*time.Second*3/2 {
				t.Errorf("round %d, wait %d is %v", round, i, d)
			}
		}
		b.reset()
	}
	seen := map[time.Duration]bool{}
	for range 20 {
		b.reset()
		seen[b.next()] = true
	}
	if len(seen) < 2 {
		t.Error("every node comes back at the same moment")
	}
}
