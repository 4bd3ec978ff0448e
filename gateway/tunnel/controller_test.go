package tunnel

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

const patience = time.Minute

const (
	testUUID   = "zzzzz-dz642-gatewaytest0001"
	testSecret = "5e1e84362078fc86c93883d47f9a5504983a8c15102216df8fb64eb06b1f7199"
	testToken  = "v2/zzzzz-gj3su-000000000000000/sometokensecret"
	ready      = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: tunnel\r\nX-Arvados-Internal-Url: https://10.0.0.10:1010/\r\n\r\n"
)

type tunnelVectors struct {
	Request string `json:"request"`
	Accepts []struct {
		Response string  `json:"response"`
		Accepted *bool   `json:"accepted"`
		Address  *string `json:"gateway_address"`
		Log      string  `json:"log"`
	} `json:"supervisor_accepts"`
	Yamux map[string]string `json:"yamux"`
}

func spec(t testing.TB) tunnelVectors {
	t.Helper()
	data, err := os.ReadFile("../../testdata/spec/gateway.json")
	if err != nil {
		t.Fatal(err)
	}
	var v struct {
		Tunnel tunnelVectors `json:"tunnel"`
	}
	if err := json.Unmarshal(data, &v); err != nil {
		t.Fatal(err)
	}
	return v.Tunnel
}

// controller accepts TLS connections, reads a request from each and leaves the
// rest to answer.
type controller struct {
	host string
	tls  *tls.Config // for clients

	mu       sync.Mutex
	requests []string
}

func newController(t testing.TB, answer func(n int, c net.Conn, request string)) *controller {
	t.Helper()
	lender := httptest.NewUnstartedServer(nil) // of a certificate
	lender.StartTLS()
	settings := lender.TLS.Clone()
	settings.NextProtos = nil
	client := lender.Client().Transport.(interface{ CloseIdleConnections() })
	defer client.CloseIdleConnections()
	roots := lender.Certificate()
	lender.Close()
	l, err := tls.Listen("tcp", "127.0.0.1:0", settings)
	if err != nil {
		t.Fatal(err)
	}
	c := &controller{host: l.Addr().String(), tls: &tls.Config{RootCAs: pool(roots)}}
	var all sync.WaitGroup
	all.Go(func() {
		for n := 0; ; n++ {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer conn.Close()
				request, err := readRequest(conn)
				if err != nil {
					return
				}
				c.mu.Lock()
				c.requests = append(c.requests, request)
				c.mu.Unlock()
				answer(n, conn, request)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		all.Wait()
	})
	return c
}

// readRequest reads a request as bytes.
func readRequest(c net.Conn) (string, error) {
	r := bufio.NewReader(c)
	var b strings.Builder
	length := 0
	for {
		text, err := r.ReadString('\n')
		if err != nil {
			return "", err
		}
		b.WriteString(text)
		fmt.Sscanf(text, "Content-Length: %d", &length)
		if text == "\r\n" {
			break
		}
	}
	_, err := io.CopyN(&b, r, int64(length))
	return b.String(), err
}

// running is a tunnel under test.
type running struct {
	up    chan string
	conns chan net.Conn
	stop  func() // and wait

	mu   sync.Mutex
	text strings.Builder
}

func (r *running) log() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.text.String()
}

var quick = timing{setup: patience, first: time.Millisecond, max: 3 * time.Millisecond, remind: time.Hour}

func run(t testing.TB, c *controller, change func(*Config)) *running {
	t.Helper()
	r := &running{up: make(chan string, 1000), conns: make(chan net.Conn, 1000)}
	config := Config{
		Host: c.host, Token: testToken, TLS: c.tls, UUID: testUUID, Secret: testSecret, timing: quick,
		Up:    func(u string) { r.up <- u },
		Serve: func(c net.Conn) { r.conns <- c },
		Logf: func(format string, args ...any) {
			r.mu.Lock()
			defer r.mu.Unlock()
			fmt.Fprintf(&r.text, format+"\n", args...)
		},
	}
	if change != nil {
		change(&config)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		Run(ctx, config)
		close(ended)
	}()
	r.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case <-ended:
		case <-time.After(patience):
			t.Error("the tunnel does not end")
		}
		if text := r.log(); strings.Contains(text, testSecret) || strings.Contains(text, "sometokensecret") {
			t.Errorf("the log tells secrets:\n%s", text)
		}
	})
	t.Cleanup(r.stop)
	return r
}

// await waits for a value.
func await[T any](t testing.TB, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatal("nothing has happened")
		panic("unreachable")
	}
}
