package gateway

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/yamux"
)

// patience is for watchdogs, not for measuring.
const patience = time.Minute

// logbook collects what a gateway logs.
type logbook struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *logbook) Logf(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	fmt.Fprintf(&l.text, format+"\n", args...)
}

func (l *logbook) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// toHost is a container whose network is this machine's loopback interface.
type toHost struct{ Target }

func (toHost) Dial(ctx context.Context, port int) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", port))
}

// open starts a gateway with the vectors' names, and closes it in the end. What
// it has logged must not tell its secret.
func open(t testing.TB, change func(*Config, *limits)) (*Server, *logbook) {
	t.Helper()
	v := spec(t)
	book := new(logbook)
	c := Config{UUID: v.Names.UUID, Secret: v.Names.Secret, Address: "127.0.0.1:0", Target: toHost{}, Logf: book.Logf}
	l := defaultLimits
	if change != nil {
		change(&c, &l)
	}
	s, err := start(t.Context(), c, l)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := s.Close(ctx); err != nil {
			t.Error(err)
		}
		if strings.Contains(book.String(), c.Secret) || strings.Contains(book.String(), s.request) {
			t.Errorf("the log tells the secret:\n%s", book)
		}
	})
	return s, book
}

// controller speaks to a gateway as the controller does.
type controller struct {
	t      testing.TB
	secret string
	dial   func() (net.Conn, error)
}

func to(t testing.TB, s *Server) *controller {
	dial := func() (net.Conn, error) { return net.Dial("tcp", s.Address()) }
	if session, ok := sessions.Load(s); ok {
		dial = func() (net.Conn, error) { return session.(*yamux.Session).Open() }
	}
	return &controller{t, s.config.Secret, dial}
}

// sessions are the tunnels of those servers that have one.
var sessions sync.Map

// opener is open, or opens a server behind a tunnel.
type opener func(*testing.T, func(*Config, *limits)) (*Server, *logbook)

// everyWay runs a test on a server that the controller connects to, and on one
// behind a tunnel.
func everyWay(t *testing.T, test func(t *testing.T, open opener)) {
	t.Run("direct", func(t *testing.T) {
		test(t, func(t *testing.T, change func(*Config, *limits)) (*Server, *logbook) { return open(t, change) })
	})
	t.Run("tunnel", func(t *testing.T) {
		test(t, func(t *testing.T, change func(*Config, *limits)) (*Server, *logbook) {
			s, book, cl := openTunnel(t, change)
			sessions.Store(s, cl.session(t))
			t.Cleanup(func() { sessions.Delete(s) })
			return s, book
		})
	})
}

// clientTLS checks no certificate, as the controller does not. The exchange of
// keys is one that costs little also under the race detector.
var clientTLS = &tls.Config{InsecureSkipVerify: true, CurvePreferences: []tls.CurveID{tls.X25519}}

// line is one authenticated connection.
type line struct {
	*tls.Conn
	r                 *bufio.Reader
	request, response string
}

// connect makes the TLS connection.
func (c *controller) connect() *line {
	c.t.Helper()
	l, err := c.tryConnect()
	if err != nil {
		c.t.Fatal(err)
	}
	return l
}

func (c *controller) tryConnect() (*line, error) {
	raw, err := c.dial()
	if err != nil {
		return nil, err
	}
	raw.SetDeadline(time.Now().Add(patience))
	conn := tls.Client(raw, clientTLS)
	if err := conn.Handshake(); err != nil {
		raw.Close()
		return nil, err
	}
	c.t.Cleanup(func() { raw.Close() })
	l := &line{Conn: conn, r: bufio.NewReader(conn)}
	l.request, l.response = Authorization(c.secret, conn.ConnectionState().PeerCertificates[0].Raw)
	return l, nil
}

// fill puts the connection's values into a text from the vectors.
func (l *line) fill(uuid, text string) string {
	return strings.NewReplacer("{uuid}", uuid, "{auth}", l.request, "{AUTH}", strings.ToUpper(l.request), "{auth_response}", l.response).Replace(text)
}

// reply is an answer, read to its end.
type reply struct {
	*http.Response
	body string
	err  error // of reading the body
}

// send sends a request as it is and reads the answer.
func (c *controller) send(raw string) reply {
	c.t.Helper()
	l := c.connect()
	defer l.Close()
	return c.on(l, raw)
}

func (c *controller) on(l *line, raw string) reply {
	c.t.Helper()
	raw = l.fill(spec(c.t).Names.UUID, raw)
	go io.WriteString(l, raw)
	method, _, _ := strings.Cut(raw, " ")
	r, err := http.ReadResponse(l.r, &http.Request{Method: method})
	if err != nil {
		c.t.Fatalf("no reply to %.200q: %v", raw, err)
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	return reply{r, string(body), err}
}

// header is an authenticated request for a port without its empty last line.
func header(method, path string, more ...string) string {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: x\r\nX-Arvados-Container-Gateway-Uuid: {uuid}\r\nX-Arvados-Authorization: {auth}\r\n", method, path)
	for _, h := range more {
		b.WriteString(h + "\r\n")
	}
	return b.String()
}

// checkAuth checks the gateway's half of the proof.
func checkAuth(t testing.TB, r reply, l *line, want bool) {
	t.Helper()
	got := r.Header[headerResponse]
	if want && (len(got) != 1 || got[0] != l.response) {
		t.Errorf("%s: %q", headerResponse, got)
	}
	if !want && got != nil {
		t.Errorf("a stranger is told %s", headerResponse)
	}
}
