package gateway

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/websocket"
)

// wire is a connection whose first bytes were read ahead.
type wire struct {
	*line
}

func (w wire) Read(p []byte) (int, error) { return w.r.Read(p) }

func TestWebSocketEcho(t *testing.T) { everyWay(t, testWebSocketEcho) }

func testWebSocketEcho(t *testing.T, open opener) {
	ended := make(chan bool, 1)
	server := httptest.NewServer(websocket.Server{Handler: func(c *websocket.Conn) {
		for {
			var message string
			if websocket.Message.Receive(c, &message) != nil {
				break
			}
			websocket.Message.Send(c, message)
		}
		ended <- true
	}})
	defer server.Close()
	u, _ := url.Parse(server.URL)
	s, _ := open(t, nil)
	l := to(t, s).connect()
	config, err := websocket.NewConfig("ws://container.example/chat", "http://container.example/")
	if err != nil {
		t.Fatal(err)
	}
	config.Header.Set(headerUUID, s.config.UUID)
	config.Header.Set(headerAuth, l.request)
	config.Header.Set(headerPort, u.Port())
	c, err := websocket.NewClient(config, wire{l})
	if err != nil {
		t.Fatal(err)
	}
	for _, message := range []string{"hello", strings.Repeat("x", 1<<20), "bye"} {
		if err := websocket.Message.Send(c, message); err != nil {
			t.Fatal(err)
		}
		var got string
		if err := websocket.Message.Receive(c, &got); err != nil || got != message {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
	}
	c.Close()
	l.Close()
	select {
	case <-ended:
	case <-time.After(patience):
		t.Error("the service's connection is still open")
	}
}

// upgrader is a service that switches to a protocol of its own.
func upgrader(t *testing.T, header string, speak func(c *net.TCPConn, r *bufio.Reader)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				r := bufio.NewReader(c)
				if _, err := http.ReadRequest(r); err != nil {
					return
				}
				// Its first words come with the reply.
				io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\n"+header+"\r\nfirst\n")
				speak(c.(*net.TCPConn), r)
			}()
		}
	}()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

func TestUpgradeHeadersAndBufferedBytes(t *testing.T) {
	everyWay(t, testUpgradeHeadersAndBufferedBytes)
}

func testUpgradeHeadersAndBufferedBytes(t *testing.T, open opener) {
	port := upgrader(t, "Connection: keep-alive, upgrade\r\nUpgrade: Own/1\r\nX-Own: 1\r\nX-Own: 2\r\nX-Arvados-Authorization-Response: forged\r\n", func(c *net.TCPConn, r *bufio.Reader) {
		io.Copy(c, r)
	})
	s, _ := open(t, nil)
	l := to(t, s).connect()
	// The client's first words come with the request.
	got := ask(t, l, l.fill(s.config.UUID, header("GET", "/", headerPort+": "+port, "Connection: foo, Upgrade", "Upgrade: own/1")+"\r\nsecond\n"))
	want := "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: Own/1\r\nVary: " + vary + "\r\nX-Arvados-Authorization-Response: " + l.response + "\r\nX-Own: 1\r\nX-Own: 2\r\n\r\n"
	if got != want {
		t.Errorf("\n%s, want\n%s", got, want)
	}
	for _, want := range []string{"first\n", "second\n"} {
		if got, err := l.r.ReadString('\n'); got != want {
			t.Errorf("%q %v, want %q", got, err, want)
		}
	}
}

// Either side may say its last while the other goes on.
func TestUpgradeHalfClose(t *testing.T) { everyWay(t, testUpgradeHalfClose) }

func testUpgradeHalfClose(t *testing.T, open opener) {
	t.Run("client first", func(t *testing.T) {
		port := upgrader(t, "Connection: upgrade\r\nUpgrade: own\r\n", func(c *net.TCPConn, r *bufio.Reader) {
			all, err := io.ReadAll(r)
			fmt.Fprintf(c, "%d bytes %v", len(all), err)
		})
		s, _ := open(t, nil)
		l := to(t, s).connect()
		ask(t, l, l.fill(s.config.UUID, header("GET", "/", headerPort+": "+port, "Connection: Upgrade", "Upgrade: own")+"\r\n"))
		l.Write(bytes.Repeat([]byte("x"), 1<<20))
		l.CloseWrite()
		if rest, err := io.ReadAll(l.r); string(rest) != "first\n1048576 bytes <nil>" || err != nil {
			t.Errorf("%q %v", rest, err)
		}
	})
	t.Run("service first", func(t *testing.T) {
		heard := make(chan string, 1)
		port := upgrader(t, "Connection: upgrade\r\nUpgrade: own\r\n", func(c *net.TCPConn, r *bufio.Reader) {
			c.CloseWrite()
			all, _ := io.ReadAll(r)
			heard <- string(all)
		})
		s, _ := open(t, nil)
		l := to(t, s).connect()
		ask(t, l, l.fill(s.config.UUID, header("GET", "/", headerPort+": "+port, "Connection: Upgrade", "Upgrade: own")+"\r\n"))
		if rest, err := io.ReadAll(l.r); string(rest) != "first\n" || err != nil {
			t.Errorf("%q %v", rest, err)
		}
		io.WriteString(l, "last words")
		l.CloseWrite()
		if got := <-heard; got != "last words" {
			t.Errorf("%q", got)
		}
	})
}

// Who has closed one direction and is silent in the other has gone away.
func TestUpgradeEndsWithASilentPeer(t *testing.T) { everyWay(t, testUpgradeEndsWithASilentPeer) }

func testUpgradeEndsWithASilentPeer(t *testing.T, open opener) {
	gone := make(chan bool, 1)
	port := upgrader(t, "Connection: upgrade\r\nUpgrade: own\r\n", func(c *net.TCPConn, r *bufio.Reader) {
		c.CloseWrite()
		io.Copy(io.Discard, r) // ends when the gateway gives up
		gone <- true
	})
	s, _ := open(t, func(_ *Config, l *limits) { l.halfClosed = 50 * time.Millisecond })
	l := to(t, s).connect()
	ask(t, l, l.fill(s.config.UUID, header("GET", "/", headerPort+": "+port, "Connection: Upgrade", "Upgrade: own")+"\r\n"))
	select {
	case <-gone:
	case <-time.After(patience):
		t.Error("the connection is kept for ever")
	}
}

func TestUpgradeRefused(t *testing.T) {
	other := upgrader(t, "Connection: upgrade\r\nUpgrade: other\r\n", func(*net.TCPConn, *bufio.Reader) {})
	ordinary := service(t, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Header.Get("Upgrade")) })
	s, _ := open(t, nil)
	for name, c := range map[string]struct {
		port   string
		status int
		body   string
	}{
		"another protocol": {other, 502, "the service has switched to protocol \"other\" where \"own\" was asked for\n"},
		"no thanks":        {ordinary, 200, "own"},
	} {
		r := to(t, s).send(header("GET", "/", headerPort+": "+c.port, "Connection: Upgrade", "Upgrade: own") + "\r\n")
		if r.StatusCode != c.status || r.body != c.body {
			t.Errorf("%s: %s %q", name, r.Status, r.body)
		}
	}
}

// A connection that breaks on one side ends on the other.
func TestUpgradeEndsWithAReset(t *testing.T) {
	gone := make(chan bool, 1)
	port := upgrader(t, "Connection: upgrade\r\nUpgrade: own\r\n", func(c *net.TCPConn, r *bufio.Reader) {
		io.Copy(io.Discard, r)
		gone <- true
	})
	s, _ := open(t, nil)
	l := to(t, s).connect()
	ask(t, l, l.fill(s.config.UUID, header("GET", "/", headerPort+": "+port, "Connection: Upgrade", "Upgrade: own")+"\r\n"))
	tcp := l.NetConn().(*net.TCPConn)
	tcp.SetLinger(0)
	tcp.Close()
	select {
	case <-gone:
	case <-time.After(patience):
		t.Error("the service's connection is still open")
	}
}
