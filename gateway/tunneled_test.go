package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/yamux"
)

// cluster is a controller that accepts tunnels, on a real HTTP server.
type cluster struct {
	*httptest.Server
	sessions chan *yamux.Session
	next     func() (internalURL string) // for the next tunnel
}

func newCluster(t *testing.T, secret string) *cluster {
	t.Helper()
	c := &cluster{sessions: make(chan *yamux.Session, 100), next: func() string { return "https://10.0.0.10:1010/" }}
	c.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.PostFormValue("auth_secret") != secret || !strings.HasSuffix(r.URL.Path, "/gateway_tunnel") {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusUnauthorized)
			io.WriteString(w, `{"errors":["authentication error"]}`+"\n")
			return
		}
		conn, buffered, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nAccess-Control-Expose-Headers: Content-Range\r\nConnection: upgrade\r\nUpgrade: tunnel\r\nX-Arvados-Internal-Url: %s\r\nX-Request-Id: req-sd2j893fk4zp1mw70k7b\r\n\r\n", c.next())
		config := yamux.DefaultConfig()
		config.LogOutput = io.Discard
		session, err := yamux.Server(withBuffered(conn, buffered.Reader), config)
		if err != nil {
			t.Error(err)
			return
		}
		c.sessions <- session
	}))
	t.Cleanup(func() {
		for len(c.sessions) > 0 {
			(<-c.sessions).Close()
		}
		c.Server.CloseClientConnections()
		c.Server.Close()
	})
	return c
}

func (c *cluster) session(t *testing.T) *yamux.Session {
	t.Helper()
	select {
	case s := <-c.sessions:
		t.Cleanup(func() { s.Close() })
		return s
	case <-time.After(patience):
		t.Fatal("no tunnel")
		return nil
	}
}

// openTunnel starts a gateway that nobody can connect to.
func openTunnel(t *testing.T, change func(*Config, *limits)) (*Server, *logbook, *cluster) {
	t.Helper()
	cl := newCluster(t, spec(t).Names.Secret)
	s, book := open(t, func(c *Config, l *limits) {
		c.Address = ""
		c.Tunnel = Tunnel{Host: cl.Listener.Addr().String(), Token: "v2/zzzzz-gj3su-000000000000000/dispatcherstoken", TLS: cl.Client().Transport.(*http.Transport).TLSClientConfig}
		if change != nil {
			change(c, l)
		}
	})
	return s, book, cl
}

// Everything works the same through the tunnel.
func TestThroughTheTunnel(t *testing.T) {
	v := spec(t)
	ssh := &fakeSSH{}
	s, book, cl := openTunnel(t, func(c *Config, _ *limits) { c.Logs = tree(v.Dispatch.Files); c.SSH = ssh })
	if host, _, _ := net.SplitHostPort(strings.SplitN(book.String(), "listening at ", 2)[1]); host != "127.0.0.1" {
		t.Errorf("%s", book)
	}
	session := cl.session(t)
	c := &controller{t, s.config.Secret, func() (net.Conn, error) { return session.Open() }}
	for _, d := range v.Dispatch.Cases {
		if d.Method == http.MethodHead {
			d.Status = http.StatusOK
		}
		t.Run(d.Name, func(t *testing.T) { play(t, &controller{t, c.secret, c.dial}, d) })
	}
	l := c.connect()
	request := strings.ReplaceAll(v.SSHUpgrade.Request, "10.9.8.7:40267", "pipe")
	if got, want := ask(t, l, l.fill(v.Names.UUID, request)), l.fill("", v.SSHUpgrade.Response); got != want {
		t.Errorf("\n%s, want\n%s", got, want)
	}
	if hello, _ := l.r.ReadString('\n'); !strings.HasPrefix(hello, "SSH-2.0-") {
		t.Error(hello)
	}
	port := service(t, func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) })
	var all sync.WaitGroup
	for i := range 50 {
		all.Go(func() {
			body := strings.Repeat(fmt.Sprint(i), 100<<10)
			if r := c.send(header("POST", "/", headerPort+": "+port, fmt.Sprint("Content-Length: ", len(body))) + "\r\n" + body); r.body != body {
				t.Errorf("%d: %s, %d bytes, %v", i, r.Status, len(r.body), r.err)
			}
		})
	}
	all.Wait()
}

// One connection that fails is a message and nothing more.
func TestFailedStream(t *testing.T) {
	s, book, cl := openTunnel(t, nil)
	session := cl.session(t)
	stream, err := session.Open()
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(stream, "GET / HTTP/1.0\r\n\r\n")
	io.Copy(io.Discard, stream)
	stream.Close()
	c := &controller{t, s.config.Secret, func() (net.Conn, error) { return session.Open() }}
	if r := c.send(header("GET", "/") + "\r\n"); r.StatusCode != 404 {
		t.Error(r.Status)
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(patience); !strings.Contains(book.String(), "\ntunnel connection 2: TLS handshake: "); <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("log:\n%s", book)
		}
	}
}

// After a thousand streams nothing is left of them, in either process.
func TestStreamsLeaveNothingBehind(t *testing.T) {
	s, _, cl := openTunnel(t, func(c *Config, _ *limits) { c.SSH = &fakeSSH{} })
	session := cl.session(t)
	c := &controller{t, s.config.Secret, func() (net.Conn, error) { return session.Open() }}
	requests := []string{header("GET", "/") + "\r\n", header("POST", "/ssh", "Upgrade: ssh", "Content-Length: 0") + "\r\n"}
	var all sync.WaitGroup
	for worker := range 10 {
		all.Go(func() {
			for i := range 100 {
				stream, err := session.Open()
				if err != nil {
					t.Error(err)
					return
				}
				conn := tls.Client(stream, clientTLS)
				switch {
				case i%2 == 0: // goes away without a word
				case i%10 != 9: // goes away within the handshake
					stream.Write([]byte{0x16, 3, 1, 2, 0, 1})
				default:
					if err := conn.Handshake(); err != nil {
						t.Error(err)
						return
					}
					l := &line{Conn: conn}
					l.request, _ = Authorization(c.secret, conn.ConnectionState().PeerCertificates[0].Raw)
					io.WriteString(conn, l.fill(s.config.UUID, requests[(worker+i)%2]))
					io.ReadFull(conn, make([]byte, 10))
				}
				conn.Close()
			}
		})
	}
	all.Wait()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(patience); session.NumStreams() > 0; <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("%d streams are left", session.NumStreams())
		}
	}
}

// updates records what is put into the container's record.
type updates struct {
	got chan string

	mu  sync.Mutex
	err error
}

func (u *updates) set(err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.err = err
}

func (u *updates) update(ctx context.Context, addr string) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	select {
	case u.got <- addr:
	case <-ctx.Done():
	}
	return u.err
}

func (u *updates) next(t *testing.T) string {
	t.Helper()
	select {
	case a := <-u.got:
		return a
	case <-time.After(patience):
		t.Fatal("no update")
		return ""
	}
}

func TestAddressFollowsTheTunnel(t *testing.T) {
	u := &updates{got: make(chan string, 100), err: errors.New("422: not Running")}
	urls := make(chan string, 2)
	urls <- "https://10.0.0.10:1010/"
	urls <- "https://10.0.0.11:1010/"
	cl := newCluster(t, spec(t).Names.Secret)
	cl.next = func() string { return <-urls }
	s, book := open(t, func(c *Config, l *limits) {
		c.Address, c.OnAddress, l.tunnelRetry = "", u.update, time.Millisecond
		u, _ := url.Parse(cl.URL)
		c.Tunnel = Tunnel{Host: u.Host, Token: "t", TLS: cl.Client().Transport.(*http.Transport).TLSClientConfig}
	})
	session := cl.session(t)
	first := "tunnel https://10.0.0.10:1010/"
	if got := u.next(t); got != first {
		t.Error(got)
	}
	if s.Address() != first {
		t.Error(s.Address())
	}
	s.AddressRecorded(first)
	u.set(nil)
	session.Close() // the controller is restarted
	cl.session(t)
	if got := u.next(t); got != "tunnel https://10.0.0.11:1010/" {
		t.Error(got)
	}
	if len(u.got) > 0 {
		t.Errorf("and %q", <-u.got)
	}
	if strings.Contains(book.String(), "422") {
		t.Errorf("an expected refusal is worth a message:\n%s", book)
	}
}

// drive runs a recorder with a short wait between attempts.
func drive(t *testing.T, u *updates) (*recorder, *logbook) {
	t.Helper()
	book := new(logbook)
	r := newRecorder("127.0.0.1:1", u.update, book.Logf)
	r.retry = time.Millisecond
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	all.Go(func() { r.run(ctx) })
	t.Cleanup(func() { cancel(); all.Wait() })
	return r, book
}

func TestRecorder(t *testing.T) {
	t.Run("lost race with Running", func(t *testing.T) {
		u := &updates{got: make(chan string, 100), err: errors.New("422")}
		r, _ := drive(t, u)
		old := r.address()
		r.change("tunnel A")
		u.next(t) // refused: not Running yet
		u.set(nil)
		r.recorded(old)
		if got := u.next(t); got != "tunnel A" {
			t.Error(got)
		}
	})
	t.Run("repeated until it succeeds", func(t *testing.T) {
		u := &updates{got: make(chan string, 1), err: errors.New("500")}
		r, book := drive(t, u)
		r.recorded(r.address())
		r.change("tunnel A")
		for range 3 {
			if got := u.next(t); got != "tunnel A" {
				t.Error(got)
			}
		}
		r.change("tunnel B")
		for u.next(t) != "tunnel B" {
		}
		if strings.Count(book.String(), "\n") != 1 {
			t.Errorf("log:\n%s", book)
		}
	})
	t.Run("once before Running", func(t *testing.T) {
		u := &updates{got: make(chan string, 100), err: errors.New("422")}
		r, book := drive(t, u)
		r.change("tunnel A")
		u.next(t)
		r.recorded("tunnel A")
		r.change("tunnel B")
		if got := u.next(t); got != "tunnel B" || strings.Contains(book.String(), "tunnel A") {
			t.Errorf("%s\n%s", got, book)
		}
	})
	t.Run("overtaken", func(t *testing.T) {
		// The update to Running carries B, but one of A was on its way.
		u := &updates{got: make(chan string, 100)}
		r, _ := drive(t, u)
		r.change("tunnel A")
		u.next(t)
		r.mu.Lock()
		r.current = "tunnel B"
		r.mu.Unlock()
		r.recorded("tunnel B")
		if got := u.next(t); got != "tunnel B" {
			t.Error(got)
		}
	})
}
