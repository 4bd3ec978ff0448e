package controller

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/yamux"

	"crunch-oci/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// watchdog bounds what must happen.
const watchdog = time.Minute

// vectors are testdata/spec/gateway.json.
var vectors = func() (v struct {
	Names struct {
		UUID   string `json:"container_uuid"`
		Root   string `json:"system_root_token"`
		Secret string `json:"auth_secret"`
	}
	Addresses []struct {
		Address   string `json:"gateway_address"`
		Any       string
		NoTunnel  string `json:"no_tunnel"`
		OwnTunnel string `json:"own_tunnel"`
	} `json:"controller_reads_gateway_address"`
	Upgrade struct {
		Request  string `json:"request_example"`
		Response string
	} `json:"ssh_upgrade"`
	Tunnel struct {
		Request string
		Yamux   map[string]string
	}
	Forward struct {
		From string `json:"from_controller"`
	} `json:"forward_http"`
}) {
	text, err := os.ReadFile("../../../testdata/spec/gateway.json")
	if err == nil {
		err = json.Unmarshal(text, &v)
	}
	if err != nil {
		panic(err)
	}
	return v
}()

// newController is one whose tunnels and requests are served over HTTPS.
func newController(t *testing.T, o Config) (*Controller, *httptest.Server) {
	t.Helper()
	o.SystemRootToken = vectors.Names.Root
	if o.InternalURL == "" {
		o.InternalURL = "https://10.0.0.10:1010/"
	}
	c := New(o)
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		err := c.CheckTunnel(vectors.Names.UUID, r.FormValue("auth_secret"))
		if err == nil {
			err = c.ServeTunnel(w, vectors.Names.UUID)
		}
		var refused *Error
		if errors.As(err, &refused) {
			w.WriteHeader(refused.Status)
			_ = json.NewEncoder(w).Encode(map[string]any{"errors": []string{refused.Text}})
		} else if err != nil {
			t.Errorf("tunnel: %v", err)
		}
	}))
	t.Cleanup(func() { c.Close(); srv.Close() })
	return c, srv
}

// send sends a request as it is and returns the connection behind the answer.
func send(t *testing.T, srv *httptest.Server, raw string) (*http.Response, net.Conn, *bufio.Reader) {
	t.Helper()
	conn, err := tls.Dial("tcp", srv.Listener.Addr().String(), &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(watchdog))
	if _, err := io.WriteString(conn, raw); err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(conn)
	resp, err := http.ReadResponse(in, &http.Request{Method: "POST"})
	if err != nil {
		t.Fatal(err)
	}
	return resp, conn, in
}

func tunnelRequest(srv *httptest.Server) string {
	return strings.NewReplacer("{api_host}", srv.Listener.Addr().String(), "{token}", "any").Replace(vectors.Tunnel.Request)
}

// tunnelled makes a tunnel whose streams serve gets.
func tunnelled(t *testing.T, c *Controller, srv *httptest.Server, serve func(net.Conn)) *yamux.Session {
	t.Helper()
	resp, conn, in := send(t, srv, tunnelRequest(srv))
	if resp.StatusCode != 101 {
		t.Fatal(resp.Status)
	}
	_ = conn.SetDeadline(time.Time{})
	config := yamux.DefaultConfig()
	config.LogOutput = io.Discard
	session, err := yamux.Client(&bufferedConn{Conn: conn, r: in}, config)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			s, err := session.Accept()
			if err != nil {
				return
			}
			go serve(s)
		}
	}()
	t.Cleanup(func() { session.Close(); <-done })
	return session
}

// The supervisor's request, the answer, and the frames on the wire.
func TestTunnelVector(t *testing.T) {
	c, srv := newController(t, Config{})
	resp, conn, in := send(t, srv, tunnelRequest(srv))
	if resp.StatusCode != 101 || resp.Header.Get("Connection") != "upgrade" || resp.Header.Get("Upgrade") != "tunnel" ||
		resp.Header.Get("X-Arvados-Internal-Url") != "https://10.0.0.10:1010/" {
		t.Fatalf("answer: %s %v", resp.Status, resp.Header)
	}
	registered(t, c)
	failed := make(chan error, 1)
	go func() {
		_, err := c.connect(t.Context(), vectors.Names.UUID, "")
		failed <- err
	}()
	frame := func(name string) []byte {
		b, err := hex.DecodeString(vectors.Tunnel.Yamux[name])
		if err != nil || len(b) == 0 {
			t.Fatalf("vector %q: %v", name, err)
		}
		return b
	}
	want := frame("controller_opens_stream_2")
	got := make([]byte, len(want))
	if _, err := io.ReadFull(in, got); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("first frame %x %v, want %x", got, err, want)
	}
	if _, err := conn.Write(frame("supervisor_accepts_stream_2")); err != nil {
		t.Fatal(err)
	}
	// Data on the stream: the beginning of a TLS handshake.
	if _, err := io.ReadFull(in, got); err != nil || !bytes.Equal(got[:8], frame("controller_sends_hi")[:8]) {
		t.Fatalf("second frame %x %v", got, err)
	}
	if _, err := in.ReadByte(); err != nil {
		t.Fatal(err)
	}
	conn.Close()
	if err := <-failed; err == nil {
		t.Error("connected to nothing")
	}

	raw := strings.Replace(tunnelRequest(srv), vectors.Names.Secret, strings.Repeat("0", 64), 1)
	resp, _, _ = send(t, srv, raw)
	body, _ := io.ReadAll(resp.Body)
	if resp.StatusCode != 401 || string(body) != "{\"errors\":[\"authentication error\"]}\n" {
		t.Errorf("wrong secret: %s %q", resp.Status, body)
	}
}

// Which way to the gateway the record's address means.
func TestAddressVectors(t *testing.T) {
	for _, v := range vectors.Addresses {
		for _, own := range []bool{false, true} {
			want := v.Any
			if want == "" && own {
				want = v.OwnTunnel
			} else if want == "" {
				want = v.NoTunnel
			}
			if want == "" {
				continue // the same with and without
			}
			t.Run(v.Address+" "+strconv.FormatBool(own), func(t *testing.T) {
				c, srv := newController(t, Config{InternalURL: "https://10.0.0.11:1010/"})
				if own {
					tunnelled(t, c, srv, func(s net.Conn) { s.Close() })
					registered(t, c)
				}
				ctx, cancel := context.WithCancel(t.Context())
				if strings.Contains(want, "dials") || strings.Contains(want, "fails") {
					cancel() // before anything leaves this machine
				}
				defer cancel()
				_, host, err := c.dial(ctx, vectors.Names.UUID, v.Address)
				var refused *Error
				_, text, found := strings.Cut(want, "503 ")
				switch {
				case want == "uses tunnel":
					if err != nil || host != "pipe" {
						t.Errorf("%q %v", host, err)
					}
				case found:
					if !errors.As(err, &refused) || refused.Status != 503 || refused.Text != text {
						t.Errorf("%v, want %s", err, text)
					}
				default:
					if !errors.Is(err, context.Canceled) && !strings.Contains(err.Error(), "connect to the container gateway") {
						t.Errorf("%v, want a connection", err)
					}
				}
			})
		}
	}
}

func TestAuthSecret(t *testing.T) {
	if got := AuthSecret(vectors.Names.Root, vectors.Names.UUID); got != vectors.Names.Secret {
		t.Errorf("%s", got)
	}
}

// gateway is the far side: it keeps what it was sent, and answers with a proof.
type gateway struct {
	cert  tls.Certificate
	got   chan string
	reply func(response string) string
	// after gets the connection behind the answer.
	after func(net.Conn, *bufio.Reader)
}

func newGateway(t *testing.T, reply func(response string) string) *gateway {
	t.Helper()
	srv := httptest.NewUnstartedServer(nil)
	srv.StartTLS()
	defer srv.Close()
	return &gateway{cert: srv.TLS.Certificates[0], got: make(chan string, 100), reply: reply}
}

func (g *gateway) auth() string { return sign(vectors.Names.Secret, g.cert.Certificate[0]) }

func (g *gateway) serve(raw net.Conn) {
	defer raw.Close()
	_ = raw.SetDeadline(time.Now().Add(watchdog))
	conn := tls.Server(raw, &tls.Config{Certificates: []tls.Certificate{g.cert}})
	defer conn.Close()
	var text bytes.Buffer
	in := bufio.NewReader(io.TeeReader(conn, &text))
	req, err := http.ReadRequest(in)
	if err != nil {
		return
	}
	_, _ = io.Copy(io.Discard, req.Body)
	if state := conn.ConnectionState(); state.ServerName != "" || state.NegotiatedProtocol != "" {
		text.WriteString("SNI or ALPN")
	}
	g.got <- text.String()
	if _, err := io.WriteString(conn, g.reply(sign(vectors.Names.Secret, []byte(g.auth())))); err == nil && g.after != nil {
		g.after(conn, in)
	}
}

// listen serves direct connections.
func (g *gateway) listen(t *testing.T) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go g.serve(conn)
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return "localhost:" + port
}

func upgraded(response string) string {
	return strings.ReplaceAll(vectors.Upgrade.Response, "{auth_response}", response)
}

// A shell asks as gateways expect it, byte for byte, directly and through a
// tunnel; then bytes flow both ways, those sent early too.
func TestShellVector(t *testing.T) {
	for _, how := range []string{"direct", "tunnel"} {
		t.Run(how, func(t *testing.T) {
			c, srv := newController(t, Config{})
			g := newGateway(t, upgraded)
			g.after = func(conn net.Conn, in *bufio.Reader) {
				_, _ = io.WriteString(conn, "SSH-2.0-gateway\r\n")
				_, _ = io.Copy(conn, in) // an echo, with half-close
			}
			address, host := "127.0.0.1:1", "pipe"
			if how == "direct" {
				address = g.listen(t)
				host = "127.0.0.1" + strings.TrimPrefix(address, "localhost")
			} else {
				tunnelled(t, c, srv, g.serve)
				registered(t, c)
			}
			started := 0
			front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body) // the form
				s := Shell{DetachKeys: "ctrl-],ctrl-]", LoginUsername: "bob"}
				if err := c.ServeShell(context.WithoutCancel(r.Context()), w, vectors.Names.UUID, address, s, func(context.Context) error { started++; return nil }); err != nil {
					t.Error(err)
				}
			}))
			defer front.Close()
			conn, err := net.Dial("tcp", front.Listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(watchdog))
			if _, err := io.WriteString(conn, "POST / HTTP/1.1\r\nHost: x\r\nUpgrade: ssh\r\nContent-Length: 1\r\n\r\n.early "); err != nil {
				t.Fatal(err)
			}
			in := bufio.NewReader(conn)
			resp, err := http.ReadResponse(in, nil)
			if err != nil || resp.StatusCode != 101 || resp.Header.Get("Upgrade") != "ssh" || resp.Header.Get("Connection") != "upgrade" {
				t.Fatalf("%v %v", resp, err)
			}
			want := strings.NewReplacer("10.9.8.7:40267", host, "{auth}", g.auth()).Replace(vectors.Upgrade.Request)
			if got := <-g.got; got != want {
				t.Errorf("the gateway got\n%q, want\n%q", got, want)
			}
			if _, err := io.WriteString(conn, "late"); err != nil {
				t.Fatal(err)
			}
			if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
				t.Fatal(err)
			}
			if all, err := io.ReadAll(in); err != nil || string(all) != "SSH-2.0-gateway\r\nearly late" || started != 1 {
				t.Errorf("%q %v, started %d times", all, err, started)
			}
		})
	}
}

// What is no gateway of this container gets nothing, and is told to the client.
func TestShellRefused(t *testing.T) {
	c, _ := newController(t, Config{})
	for name, v := range map[string]struct {
		reply func(string) string
		text  string
	}{
		"no proof":    {func(string) string { return upgraded(strings.Repeat("0", 64)) }, "bad X-Arvados-Authorization-Response header"},
		"two proofs":  {func(r string) string { return upgraded(r + "\r\nX-Arvados-Authorization-Response: " + r) }, "bad X-Arvados-Authorization-Response header"},
		"no upgrade":  {func(r string) string { return strings.Replace(upgraded(r), "Upgrade: ssh", "Upgrade: tea", 1) }, `upgraded the connection to "tea"`},
		"other words": {func(string) string { return "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 3\r\n\r\nno\n" }, `unexpected status 502 Bad Gateway "no\n"`},
		"not HTTP":    {func(string) string { return "hello\r\n\r\n" }, "malformed HTTP"},
	} {
		address := newGateway(t, v.reply).listen(t)
		err := c.ServeShell(t.Context(), httptest.NewRecorder(), vectors.Names.UUID, address, Shell{}, func(context.Context) error {
			t.Errorf("%s: started", name)
			return nil
		})
		var refused *Error
		if !errors.As(err, &refused) || refused.Status != 502 || !strings.Contains(refused.Text, v.text) {
			t.Errorf("%s: %v, want %q", name, err, v.text)
		}
	}
}

// A request to a port reaches the gateway as in the vector, byte for byte, and
// the answer is the service's, without our proof.
func TestPortVector(t *testing.T) {
	c, _ := newController(t, Config{})
	g := newGateway(t, func(response string) string {
		return "HTTP/1.1 302 Found\r\nLocation: http://elsewhere/\r\nX-Foo: a\r\nX-Foo: b\r\nSet-Cookie: c=1\r\n" +
			"X-Arvados-Authorization-Response: " + response + "\r\nContent-Length: 5\r\n\r\nhello"
	})
	address := g.listen(t)
	want := strings.NewReplacer("{auth}", g.auth()).Replace(vectors.Forward.From)
	// What the client sends: the same without what the controller adds.
	r := httptest.NewRequest("POST", "/p/a%2Fb?q=1", strings.NewReader("body"))
	r.Host, r.RemoteAddr = "zzzzz-dz642-gatewaytest0001-8888.containers.example.com", "192.0.2.1:7777"
	r.Header = http.Header{"User-Agent": {"ua/1"}, "Authorization": {"Bearer app-token"}, "Cookie": {"other=1; arvados_api_token=eA=="},
		"X-Request-Id": {"req-0123456789abcdefghij"}, "X-Arvados-Container-Target-Port": {"22"}, "X-Arvados-Authorization": {"guess"}}
	w := httptest.NewRecorder()
	if err := c.ServePort(w, r, vectors.Names.UUID, address, 8888); err != nil {
		t.Fatal(err)
	}
	if got := <-g.got; got != want {
		t.Errorf("the gateway got\n%q, want\n%q", got, want)
	}
	if w.Code != 302 || w.Body.String() != "hello" || len(w.Header()["X-Foo"]) != 2 || w.Header().Get("X-Arvados-Authorization-Response") != "" {
		t.Errorf("%d %v %q", w.Code, w.Header(), w.Body)
	}

	bad := newGateway(t, func(string) string { return "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n" }).listen(t)
	w = httptest.NewRecorder()
	if err := c.ServePort(w, httptest.NewRequest("GET", "/", nil), vectors.Names.UUID, bad, 8888); !errors.Is(err, errNoProof) || w.Body.Len() > 0 {
		t.Errorf("without proof: %v", err)
	}
}

// The newest tunnel is used, and an older one that ends takes nothing with it.
func TestNewestTunnel(t *testing.T) {
	c, srv := newController(t, Config{})
	hello := func(text string) func(net.Conn) {
		return func(s net.Conn) { _, _ = io.WriteString(s, text); s.Close() }
	}
	ask := func() string {
		s, _, err := c.dial(t.Context(), vectors.Names.UUID, "")
		if err != nil {
			return err.Error()
		}
		defer s.Close()
		_ = s.SetDeadline(time.Now().Add(watchdog))
		text, _ := io.ReadAll(s)
		return string(text)
	}
	older := tunnelled(t, c, srv, hello("older"))
	eventually(t, "older", ask)
	newer := tunnelled(t, c, srv, hello("newer"))
	eventually(t, "newer", ask)
	older.Close()
	eventually(t, "true", func() string { // the controller has noticed
		rest := int64(DefaultMaxTunnels - 1)
		if !c.long.TryAcquire(rest) {
			return "false"
		}
		c.long.Release(rest)
		return "true"
	})
	if got := ask(); got != "newer" {
		t.Errorf("%q", got)
	}
	newer.Close()
	eventually(t, "container is running but gateway is not available", ask)
}

// registered waits for what happens some time after the 101.
func registered(t *testing.T, c *Controller) {
	t.Helper()
	eventually(t, "true", func() string {
		c.mu.Lock()
		defer c.mu.Unlock()
		return strconv.FormatBool(c.tunnels[vectors.Names.UUID] != nil)
	})
}

// eventually waits for an answer.
func eventually(t *testing.T, want string, ask func() string) {
	t.Helper()
	end := time.After(watchdog)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		got := ask()
		if got == want {
			return
		}
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("%q, want %q", got, want)
		}
	}
}

func TestMaxTunnels(t *testing.T) {
	_, srv := newController(t, Config{MaxTunnels: 2})
	for i, want := range []int{101, 101, 503} {
		resp, _, _ := send(t, srv, tunnelRequest(srv))
		if resp.StatusCode != want {
			t.Errorf("tunnel %d: %s", i, resp.Status)
		}
	}
}

// An upgraded connection carries bytes both ways.
func TestPortUpgrade(t *testing.T) {
	c, _ := newController(t, Config{})
	g := newGateway(t, func(response string) string {
		return "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nX-Arvados-Authorization-Response: " + response + "\r\n\r\n"
	})
	g.after = func(conn net.Conn, in *bufio.Reader) { _, _ = io.Copy(conn, in) }
	address := g.listen(t)
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := c.ServePort(w, r, vectors.Names.UUID, address, 8888); err != nil {
			t.Error(err)
		}
	}))
	defer front.Close()
	conn, err := net.Dial("tcp", front.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(watchdog))
	_, _ = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	in := bufio.NewReader(conn)
	resp, err := http.ReadResponse(in, nil)
	if err != nil || resp.StatusCode != 101 {
		t.Fatalf("%v %v", resp, err)
	}
	for range 2 {
		got := make([]byte, 4)
		_, _ = io.WriteString(conn, "ping")
		if _, err := io.ReadFull(in, got); err != nil || string(got) != "ping" {
			t.Fatalf("%q %v", got, err)
		}
	}
}
