package main_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

// service is the name of a port of the container.
func (e *entered) service(t testing.TB, port int) string {
	t.Helper()
	_, apiPort, err := net.SplitHostPort(e.local.Host())
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%s-%d.containers.localhost:%s", e.uuid, port, apiPort)
}

// What browsers do with a service in a container, directly and through a tunnel.
// The service listens on the loopback interface of a container without network.
func TestServices(t *testing.T) {
	t.Parallel()
	d := newDoor(t)
	for how, address := range map[string]string{"tunnel": "", "direct": "localhost:0"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			e := d.run(t, address, []string{"probe", "web", "8000"}, attrs{
				"published_ports": attrs{"8000": attrs{"access": "public", "label": "web"}},
			})
			waitFor(t, "the service", func() bool {
				status, _, _, err := e.ask(t.Context(), "GET", "https://"+e.service(t, 8000)+"/", nil)
				return err == nil && status == http.StatusOK
			})
			testService(t, e)
			testSmuggling(t, e)
			e.end(t)
		})
	}
}

func testService(t *testing.T, e *entered) {
	base := "https://" + e.service(t, 8000)
	ask := func(path string, header http.Header) (int, string, http.Header) {
		t.Helper()
		status, body, h, err := e.ask(t.Context(), "GET", base+path, header)
		if err != nil {
			t.Fatal(err)
		}
		return status, body, h
	}
	status, body, _ := ask("/seen?q=a%2Fb", http.Header{"User-Agent": {"ua/1"}, "Authorization": {"Bearer app-token"}})
	for _, want := range []string{"GET /seen?q=a%2Fb " + e.service(t, 8000) + "\n", "User-Agent: ua/1\r\n", "Authorization: Bearer app-token\r\n", "Via: HTTP/1.1 arvados-crunch-run\r\n", "X-Forwarded-For: 127.0.0.1\r\n"} {
		if !strings.Contains(body, want) {
			t.Errorf("the service did not see %q: %d %s", want, status, body)
		}
	}
	if strings.Contains(body, "X-Arvados") || strings.Contains(body, "Accept-Encoding: gzip\r\nAccept-Encoding") {
		t.Errorf("the service saw too much: %s", body)
	}
	if status, _, h := ask("/redirect", nil); status != http.StatusFound || h.Get("Location") != "http://elsewhere.invalid/" {
		t.Errorf("redirect: %d %v", status, h)
	}
	if _, _, _, err := e.ask(t.Context(), "GET", base+"/broken", nil); err == nil {
		t.Error("an answer that broke off looks complete")
	}
	// A private port.
	private := "https://" + e.service(t, 8001)
	if status, body, _, err := e.ask(t.Context(), "GET", private, nil); err != nil || status != http.StatusUnauthorized {
		t.Errorf("without a token: %d %s %v", status, body, err)
	}
	token := http.Header{"Cookie": {"arvados_api_token=" + base64.URLEncoding.EncodeToString([]byte(e.local.UserToken()))}}
	if status, body, _, err := e.ask(t.Context(), "GET", "https://"+e.service(t, 8002), token); err != nil || status != http.StatusBadGateway {
		t.Errorf("nothing listens: %d %s %v", status, body, err)
	}
	// Events come one by one.
	req, err := http.NewRequestWithContext(t.Context(), "GET", base+"/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := e.web.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	events := bufio.NewReader(resp.Body)
	if line, err := events.ReadString('\n'); line != "one\n" {
		t.Fatalf("first event: %q %v", line, err)
	}
	ask("/next", nil)
	if line, err := events.ReadString('\n'); line != "two\n" {
		t.Fatalf("second event: %q %v", line, err)
	}
	// A web socket.
	conn, in, resp := e.raw(t, "GET /socket HTTP/1.1\r\nHost: "+e.service(t, 8000)+"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	if resp.StatusCode != http.StatusSwitchingProtocols || resp.Header.Get("Upgrade") != "websocket" {
		t.Fatalf("socket: %s", resp.Status)
	}
	for _, words := range []string{"first", "second"} {
		got := make([]byte, len(words))
		if _, err := io.WriteString(conn, words); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(in, got); err != nil || string(got) != words {
			t.Errorf("socket: %q %v", got, err)
		}
	}
	conn.Close()
	// Fifty at once, and no socket stays open.
	before := len(e.descriptors(t))
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if status, body, _, err := e.ask(t.Context(), "GET", base+"/", nil); err != nil || status != 200 || body != "hello from the container\n" {
				t.Errorf("%d %q %v", status, body, err)
			}
		})
	}
	wg.Wait()
	waitFor(t, "the end of all connections", func() bool { return len(e.descriptors(t)) <= before })
}

// descriptors are the supervisor's open files.
func (e *entered) descriptors(t testing.TB) []os.DirEntry {
	t.Helper()
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", e.supervisor.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// raw sends bytes to the controller and reads an answer.
func (e *entered) raw(t testing.TB, request string) (net.Conn, *bufio.Reader, *http.Response) {
	t.Helper()
	conn, err := tls.Dial("tcp", e.local.Host(), e.web.Transport.(*http.Transport).TLSClientConfig)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(conn, request); err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(conn)
	resp, err := http.ReadResponse(in, nil)
	if err != nil {
		t.Fatal(err)
	}
	return conn, in, resp
}

// testSmuggling is an anonymous client of a public port, who adds headers that
// mean something to the gateway: no shell, no log.
func testSmuggling(t *testing.T, e *entered) {
	host := "Host: " + e.service(t, 8000) + "\r\n"
	for name, c := range map[string]struct {
		request string
		status  int
	}{
		"shell":                 {"POST /ssh HTTP/1.1\r\n" + host + "Connection: upgrade\r\nUpgrade: ssh\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 15\r\n\r\nuuid=" + "0123456789", http.StatusOK},
		"shell, port dropped":   {"POST /ssh HTTP/1.1\r\n" + host + "Connection: upgrade, X-Arvados-Container-Target-Port\r\nX-Arvados-Container-Target-Port: 8000\r\nUpgrade: ssh\r\nContent-Length: 0\r\n\r\n", http.StatusOK},
		"log":                   {"GET /crunch-run.txt HTTP/1.1\r\n" + host + "X-Webdav-Source: /log\r\n\r\n", http.StatusBadRequest},
		"log, other spelling":   {"PROPFIND / HTTP/1.1\r\n" + host + "x-webdav-source: /log\r\nX-Webdav-Source: x\r\n\r\n", http.StatusBadRequest},
		"another port":          {"GET / HTTP/1.1\r\n" + host + "X-Arvados-Container-Target-Port: 8001\r\n\r\n", http.StatusOK},
		"another container":     {"GET / HTTP/1.1\r\n" + host + "X-Arvados-Container-Gateway-Uuid: zzzzz-dz642-000000000000000\r\n\r\n", http.StatusOK},
		"guessed authorization": {"GET / HTTP/1.1\r\n" + host + "X-Arvados-Authorization: 0\r\n\r\n", http.StatusOK},
	} {
		_, _, resp := e.raw(t, c.request)
		body, _ := io.ReadAll(io.LimitReader(resp.Body, 100))
		if resp.StatusCode != c.status || strings.Contains(string(body), "SSH-") || strings.Contains(string(body), "crunch-run ") ||
			c.status == http.StatusOK && string(body) != "hello from the container\n" {
			t.Errorf("%s: %s %q", name, resp.Status, body)
		}
		resp.Body.Close()
	}
	// The other way round: a reader of the log who names a port.
	status, body, _, err := e.ask(context.WithoutCancel(t.Context()), "GET",
		"https://"+e.local.Host()+"/arvados/v1/container_requests/"+e.request+"/log/"+e.uuid+"/crunch-run.txt", http.Header{"X-Arvados-Container-Target-Port": {"8000"}})
	if err != nil || status != http.StatusBadRequest {
		t.Errorf("log with a port: %d %q %v", status, body, err)
	}
}
