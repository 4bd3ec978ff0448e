package gateway

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

// works checks that the controller still gets through.
func works(t *testing.T, s *Server) {
	t.Helper()
	if r := to(t, s).send(header("GET", "/") + "\r\n"); r.StatusCode != 404 {
		t.Errorf("the controller gets %s", r.Status)
	}
}

// closed checks that the server has given up a connection.
func closed(t *testing.T, what string, c net.Conn) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(patience))
	_, err := io.Copy(io.Discard, c)
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		t.Errorf("%s: the connection is kept", what)
	}
}

// Who takes a long time over anything, without having shown who it is, loses
// the connection.
func TestSlowStrangers(t *testing.T) {
	s, book := open(t, func(_ *Config, l *limits) { l.header = 100 * time.Millisecond; l.idle = 100 * time.Millisecond })
	raw := func() net.Conn {
		c, err := net.Dial("tcp", s.Address())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	hello := raw()
	hello.Write([]byte{0x16, 3, 1, 2, 0, 1}) // the beginning of a ClientHello
	slow := map[string]net.Conn{"says nothing": raw(), "begins a handshake": hello}
	for what, bytes := range map[string]string{
		"only connects":              "",
		"begins a request":           "GET / HT",
		"begins a header":            "GET / HTTP/1.1\r\nHost: x\r\nX-A",
		"begins a form":              "POST / HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 100\r\n\r\nuuid=",
		"begins an unwanted body":    "POST / HTTP/1.1\r\nHost: x\r\n" + headerUUID + ": " + s.config.UUID + "\r\nContent-Length: 100\r\n\r\nx",
		"begins a chunk":             "POST / HTTP/1.1\r\nHost: x\r\n" + headerUUID + ": " + s.config.UUID + "\r\nTransfer-Encoding: chunked\r\n\r\n5",
		"stays after being refused":  "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
		"asks for a body to be sent": "POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 100\r\n\r\n",
	} {
		raw := raw()
		c := tls.Client(raw, clientTLS)
		if c.Handshake() != nil {
			continue // too slow already, on this machine
		}
		io.WriteString(c, bytes)
		slow[what] = raw
	}
	for what, c := range slow {
		closed(t, what, c)
	}
	if strings.Count(book.String(), "\n") > 1 {
		t.Errorf("strangers fill the log:\n%s", book)
	}
}

// A refusal does not wait for the body it will not read.
func TestRefusalsDoNotWait(t *testing.T) {
	s, _ := open(t, func(c *Config, _ *limits) { c.Logs = tree(nil) })
	for what, c := range map[string]struct {
		request string
		status  int
	}{
		"stranger":   {strings.Replace(header("POST", "/ssh"), "{auth}", "x", 1), 401},
		"misdirect":  {strings.Replace(header("POST", "/ssh"), "{uuid}", "x", 1), 502},
		"no path":    {header("POST", "/"), 404},
		"bad port":   {header("POST", "/", headerPort+": x"), 400},
		"write":      {header("PUT", "/x", headerSource+": /log"), 405},
		"no service": {header("POST", "/", headerPort+": 1"), 502},
		"no shell":   {header("POST", "/ssh", "Upgrade: ssh"), 503},
	} {
		l := to(t, s).connect()
		io.WriteString(l, l.fill(s.config.UUID, c.request+"Content-Length: 100\r\n\r\n"))
		r, err := http.ReadResponse(l.r, &http.Request{Method: "POST"})
		if err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		if body, err := io.ReadAll(r.Body); r.StatusCode != c.status || err != nil || !r.Close {
			t.Errorf("%s: %s %q %v, close %t", what, r.Status, body, err, r.Close)
		}
		l.Close()
	}
}

// However many connections strangers hold, the controller gets one.
func TestStrangersMakeRoom(t *testing.T) {
	const most = 8
	s, _ := open(t, func(_ *Config, l *limits) { l.strangers = most })
	kept := to(t, s).connect() // who has shown who it is stays
	if r := to(t, s).on(kept, header("GET", "/")+"\r\n"); r.StatusCode != 404 {
		t.Fatal(r.Status)
	}
	var strangers []net.Conn
	for range 10 * most {
		c, err := net.Dial("tcp", s.Address())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		strangers = append(strangers, c)
	}
	works(t, s)
	for i, c := range strangers[:9*most] {
		closed(t, fmt.Sprintf("stranger %d", i), c)
	}
	if r := to(t, s).on(kept, header("GET", "/")+"\r\n"); r.StatusCode != 404 {
		t.Errorf("the old connection: %s", r.Status)
	}
}

// A flood of strangers who know the protocol is held within bounds, and so is
// what they make us remember.
func TestFlood(t *testing.T) {
	const most, flood = 32, 500
	s, book := open(t, func(_ *Config, l *limits) { l.strangers = most })
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	stop := make(chan bool)
	var all sync.WaitGroup
	for i := range flood {
		all.Go(func() {
			raw, err := net.Dial("tcp", s.Address())
			if err != nil {
				return
			}
			defer raw.Close()
			c := tls.Client(raw, clientTLS)
			raw.SetDeadline(time.Now().Add(patience))
			if i%2 == 0 && c.Handshake() == nil {
				io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n"+strings.Repeat("X-A: "+strings.Repeat("a", 1000)+"\r\n", 50))
			}
			<-stop
		})
	}
	// The controller may lose a connection to the flood, but gets another one.
	for attempt := 0; ; attempt++ {
		l, err := to(t, s).tryConnect()
		if err == nil {
			io.WriteString(l, l.fill(s.config.UUID, header("GET", "/")+"\r\n"))
			var r *http.Response
			if r, err = http.ReadResponse(l.r, nil); err == nil && r.StatusCode == 404 {
				l.Close()
				break
			}
			l.Close()
		}
		if attempt == 1000 {
			t.Fatalf("the controller does not get through: %v", err)
		}
	}
	s.guests.mu.Lock()
	strangers := s.guests.strangers.Len()
	s.guests.mu.Unlock()
	if strangers > most {
		t.Errorf("%d strangers are kept", strangers)
	}
	close(stop)
	all.Wait()
	works(t, s)
	runtime.GC()
	runtime.ReadMemStats(&after)
	if after.HeapAlloc > before.HeapAlloc+most*(2*uint64(s.limits.headerBytes)+256<<10) {
		t.Errorf("%d KiB more memory", (after.HeapAlloc-before.HeapAlloc)>>10)
	}
	if strings.Count(book.String(), "\n") > 1 {
		t.Errorf("the log:\n%s", book)
	}
}

func TestOversizedHeaders(t *testing.T) {
	s, _ := open(t, nil)
	for what, c := range map[string]struct {
		request string
		status  int
	}{
		"one value":     {header("GET", "/", "X-A: "+strings.Repeat("a", 100<<10)), 431},
		"many":          {header("GET", "/", strings.Repeat("X-A: a\r\n", 20<<10)+"X-B: b"), 431},
		"path":          {header("GET", "/"+strings.Repeat("a", 100<<10)), 431},
		"no end":        {"GET / HTTP/1.1\r\n" + strings.Repeat("a", 1<<20), 431},
		"not too big":   {header("GET", "/", "X-A: "+strings.Repeat("a", 30<<10)), 404},
		"no host":       {"GET / HTTP/1.1\r\n", 400},
		"bad name":      {header("GET", "/", "X A: b"), 400},
		"space":         {header("GET", "/", "X-Webdav-Source : /log"), 400},
		"bare return":   {header("GET", "/", "X-A: a\rX-Webdav-Source: /log"), 400},
		"two lengths":   {header("POST", "/", "Content-Length: 1", "Content-Length: 2"), 400},
		"odd length":    {header("POST", "/", "Content-Length: +1"), 400},
		"odd coding":    {header("POST", "/", "Transfer-Encoding: xchunked"), 501},
		"HTTP/2":        {"PRI * HTTP/2.0\r\n\r\nSM\r\n", 502},
		"other version": {"GET / HTTP/3.7\r\nHost: x\r\n", 505},
	} {
		t.Run(what, func(t *testing.T) {
			l := to(t, s).connect()
			done := make(chan bool)
			go func() {
				defer close(done)
				io.WriteString(l, l.fill(s.config.UUID, c.request+"\r\n"))
			}()
			r, err := http.ReadResponse(l.r, nil)
			if err != nil {
				t.Fatal(err)
			}
			if r.StatusCode != c.status {
				t.Errorf("%s", r.Status)
			}
			l.Close()
			<-done
		})
	}
	works(t, s)
}

// A length and chunks together are one request, not two.
func TestRequestSmuggling(t *testing.T) {
	port, requests := rawService(t, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
	ssh := &fakeSSH{}
	s, _ := open(t, func(c *Config, _ *limits) { c.SSH = ssh })
	inner := header("POST", "/ssh", "Upgrade: ssh", "Content-Length: 0") + "\r\n"
	l := to(t, s).connect()
	inner = l.fill(s.config.UUID, inner)
	outer := header("POST", "/", headerPort+": "+port, "Transfer-Encoding: chunked", fmt.Sprint("Content-Length: ", len(inner)), "Connection: keep-alive")
	r := to(t, s).on(l, outer+"\r\n"+fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(inner), inner))
	if r.StatusCode == 200 {
		if seen := <-requests; !strings.Contains(seen, "Upgrade: ssh") {
			t.Errorf("the body was lost: %q", seen)
		}
	} else if r.StatusCode != 400 {
		t.Errorf("%s", r.Status)
	}
	if ssh.served.Load() > 0 {
		t.Error("the body was taken for a request")
	}
}

// On a node that lets a process have few files, the gateway leaves half of them.
func TestLimitsFit(t *testing.T) {
	for _, files := range []uint64{0, 64, 1024, 4096, 1 << 20} {
		l := defaultLimits.fit(files)
		if most := l.strangers + 2*l.forwards + 4*l.shells + 2*l.logReaders; uint64(most) > max(files/2, 9) {
			t.Errorf("%d of %d files", most, files)
		}
		if l.strangers < 1 || l.forwards < 1 || l.shells < 1 || l.logReaders < 1 {
			t.Errorf("%d files: %+v", files, l)
		}
	}
	if defaultLimits.fit(4096) != defaultLimits || defaultLimits.fit(1024).shells != 64 {
		t.Errorf("%+v", defaultLimits.fit(1024))
	}
}

// No ALPN is what the controller says; h2 alone is refused, not spoken.
func TestProtocols(t *testing.T) {
	s, _ := open(t, nil)
	for _, c := range []struct {
		offer  []string
		max    uint16
		agreed string
		fails  bool
	}{
		{nil, 0, "", false},
		{nil, tls.VersionTLS12, "", false},
		{nil, tls.VersionTLS11, "", true},
		{[]string{"h2", "http/1.1"}, 0, "http/1.1", false},
		{[]string{"h2"}, 0, "", true},
	} {
		config := &tls.Config{InsecureSkipVerify: true, NextProtos: c.offer, MaxVersion: c.max, MinVersion: tls.VersionTLS10}
		conn, err := tls.Dial("tcp", s.Address(), config)
		if (err != nil) != c.fails {
			t.Errorf("%v: %v", c, err)
		}
		if err == nil {
			if got := conn.ConnectionState().NegotiatedProtocol; got != c.agreed {
				t.Errorf("%v: %q", c, got)
			}
			conn.Close()
		}
	}
}

// descriptors counts the open files of this process.
func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// After a thousand connections of every kind and every end, nothing is left.
func TestNothingIsLeftBehind(t *testing.T) {
	echo := service(t, func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) })
	switched := upgrader(t, "Connection: upgrade\r\nUpgrade: own\r\n", func(c *net.TCPConn, r *bufio.Reader) { io.Copy(c, r) })
	s, _ := open(t, func(c *Config, _ *limits) {
		c.Logs = tree(map[string]string{"stdout.txt": "x"})
		c.SSH = &fakeSSH{}
	})
	kinds := []struct{ request, answer string }{
		{"", ""},
		{"GET / HTTP/1.1\r\nHo", ""},
		{"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 502"},
		{header("GET", "/stdout.txt", headerSource+": /log") + "\r\n", "HTTP/1.1 200"},
		{header("POST", "/", headerPort+": "+echo, "Content-Length: 2") + "\r\nhi", "HTTP/1.1 200"},
		{header("POST", "/", headerPort+": "+echo, "Content-Length: 2") + "\r\nh", ""}, // never ends
		{header("GET", "/", headerPort+": 1") + "\r\n", "HTTP/1.1 502"},
		{header("GET", "/", headerPort+": "+switched, "Connection: Upgrade", "Upgrade: own") + "\r\n", "HTTP/1.1 101"},
		{header("POST", "/ssh", "Upgrade: ssh", "Content-Length: 0") + "\r\n", "HTTP/1.1 101"},
	}
	visit := func(i int) {
		kind := kinds[i%len(kinds)]
		c := to(t, s)
		raw, err := net.Dial("tcp", s.Address())
		if err != nil {
			t.Error(err)
			return
		}
		defer raw.Close() // without a word, for half of them
		raw.SetDeadline(time.Now().Add(patience))
		conn := tls.Client(raw, clientTLS)
		if err := conn.Handshake(); err != nil {
			t.Error(err)
			return
		}
		l := &line{Conn: conn}
		l.request, _ = Authorization(c.secret, conn.ConnectionState().PeerCertificates[0].Raw)
		io.WriteString(conn, l.fill(s.config.UUID, kind.request))
		got := make([]byte, len(kind.answer))
		if _, err := io.ReadFull(conn, got); err != nil || string(got) != kind.answer {
			t.Errorf("%q: %q %v", kind.request, got, err)
		}
		if i%2 == 0 {
			conn.Close()
		}
	}
	visits := func(n int) {
		var all sync.WaitGroup
		next := make(chan int)
		for range 20 {
			all.Go(func() {
				for i := range next {
					visit(i)
				}
			})
		}
		for i := range n {
			next <- i
		}
		close(next)
		all.Wait()
	}
	settle := func(good func() bool) {
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for end := time.Now().Add(5 * patience); !good() && time.Now().Before(end); {
			<-tick.C
		}
	}
	count := func() int {
		s.guests.mu.Lock()
		defer s.guests.mu.Unlock()
		return s.guests.strangers.Len() + len(s.guests.known)
	}
	visits(len(kinds)) // whatever is made once
	settle(func() bool { return count() == 0 })
	files, routines := descriptors(t), runtime.NumGoroutine()
	visits(1000)
	settle(func() bool { return count() == 0 && descriptors(t) <= files && runtime.NumGoroutine() <= routines })
	if count() > 0 || descriptors(t) > files || runtime.NumGoroutine() > routines {
		t.Errorf("%d connections, %d descriptors, %d goroutines; before 0, %d, %d", count(), descriptors(t), runtime.NumGoroutine(), files, routines)
	}
}
