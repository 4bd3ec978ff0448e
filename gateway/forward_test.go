package gateway

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"
)

// service runs an HTTP server "in the container" and returns its port.
func service(t testing.TB, h http.HandlerFunc) string {
	t.Helper()
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	u, _ := url.Parse(server.URL)
	return u.Port()
}

// rawService answers every connection with these bytes when it has read a
// request, and returns its port and the requests as they came.
func rawService(t testing.TB, answer string) (port string, requests <-chan string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan string, 100)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				c.SetDeadline(time.Now().Add(patience))
				var seen bytes.Buffer
				r, err := http.ReadRequest(bufio.NewReader(io.TeeReader(c, &seen)))
				if err != nil {
					return
				}
				io.Copy(io.Discard, r.Body)
				got <- seen.String()
				io.WriteString(c, answer)
			}()
		}
	}()
	t.Cleanup(func() { l.Close() })
	_, port, _ = net.SplitHostPort(l.Addr().String())
	return port, got
}

func TestForwardVector(t *testing.T) { everyWay(t, testForwardVector) }

func testForwardVector(t *testing.T, open opener) {
	v := spec(t).Forward
	port, requests := rawService(t, v.Answers)
	s, _ := open(t, nil)
	l := to(t, s).connect()
	r := to(t, s).on(l, strings.Replace(v.From, "Target-Port: 8888", "Target-Port: "+port, 1))

	seen := <-requests
	first, _, _ := strings.Cut(seen, "\r\n")
	if first != v.See.Line {
		t.Errorf("request line %q", first)
	}
	request, err := http.ReadRequest(bufio.NewReader(strings.NewReader(seen)))
	if err != nil {
		t.Fatal(err)
	}
	if request.Host != v.See.Host {
		t.Errorf("Host %q", request.Host)
	}
	for name, value := range v.See.Headers {
		if got := request.Header[name]; !slices.Equal(got, []string{value}) {
			t.Errorf("%s: %q", name, got)
		}
		request.Header.Del(name)
	}
	for _, name := range v.See.Absent {
		if strings.Contains(seen, name+":") {
			t.Errorf("the service is told %s", name)
		}
	}
	if !strings.Contains(seen, "\r\n"+v.See.Framing+"\r\n") || strings.Contains(seen, "chunked") {
		t.Errorf("framing of %q", seen)
	}
	request.Header.Del("Content-Length")
	request.Header.Del("Connection")
	if len(request.Header) > 0 {
		t.Errorf("headers nobody sent: %v", request.Header)
	}
	if !strings.HasSuffix(seen, "\r\n\r\n"+v.See.Body) {
		t.Errorf("body of %q", seen)
	}

	if r.StatusCode != v.Back.Status || r.body != v.Back.Body {
		t.Errorf("%s %q", r.Status, r.body)
	}
	for name, values := range v.Back.Headers {
		for i := range values {
			values[i] = l.fill("", values[i])
		}
		if got := r.Header[name]; !slices.Equal(got, values) {
			t.Errorf("%s: %q, want %q", name, got, values)
		}
	}
	if r.Header["Content-Type"] != nil {
		t.Errorf("a type was guessed: %q", r.Header["Content-Type"])
	}
}

// What the service sees of requests of all kinds.
func TestForwardedRequests(t *testing.T) {
	port, requests := rawService(t, "HTTP/1.1 204 No Content\r\n\r\n")
	s, _ := open(t, nil)
	for name, c := range map[string]struct {
		method, path string
		headers      []string
		body         string
		want, absent []string
	}{
		"path as written":     {"GET", "/a%2fb/%7Ex/%41|/é?x=%zz&y;z&=", nil, "", []string{"GET /a%2fb/%7Ex/%41|/é?x=%zz&y;z&= HTTP/1.1\r\n"}, nil},
		"two slashes":         {"GET", "//evil.example/x", nil, "", []string{"GET //evil.example/x HTTP/1.1\r\n", "\r\nHost: x\r\n"}, nil},
		"empty query":         {"GET", "/x?", nil, "", []string{"GET /x? HTTP/1.1\r\n"}, nil},
		"dots":                {"GET", "/a/../b/./c", nil, "", []string{"GET /a/../b/./c HTTP/1.1\r\n"}, nil},
		"of the server":       {"OPTIONS", "*", nil, "", []string{"OPTIONS * HTTP/1.1\r\n"}, nil},
		"own method":          {"BREW", "/pot", nil, "", []string{"BREW /pot HTTP/1.1\r\n"}, nil},
		"absolute form":       {"GET", "http://pipe/p%2Fq?r", nil, "", []string{"GET /p%2Fq?r HTTP/1.1\r\n"}, nil},
		"nothing invented":    {"GET", "/", nil, "", nil, []string{"User-Agent", "Accept-Encoding", "X-Forwarded", "Content-Length", "chunked"}},
		"empty body":          {"POST", "/", []string{"Content-Length: 0"}, "", []string{"\r\nContent-Length: 0\r\n"}, nil},
		"length":              {"PUT", "/", []string{"Content-Length: 3"}, "abc", []string{"\r\nContent-Length: 3\r\n", "\r\n\r\nabc"}, []string{"chunked"}},
		"chunks and trailer":  {"POST", "/", []string{"Transfer-Encoding: chunked", "Trailer: X-Sum"}, "3\r\nabc\r\n0\r\nX-Sum: 7\r\n\r\n", []string{"chunked\r\n", "\r\n3\r\nabc\r\n0\r\nX-Sum: 7\r\n\r\n"}, []string{"Content-Length"}},
		"forwarding headers":  {"GET", "/", []string{"Forwarded: for=a", "X-Forwarded-For: b", "X-Forwarded-Host: c", "X-Forwarded-Proto: d", "Via: 1.1 e"}, "", []string{"Forwarded: for=a\r\n", "X-Forwarded-For: b\r\n", "X-Forwarded-Host: c\r\n", "X-Forwarded-Proto: d\r\n", "Via: 1.1 e\r\nVia: HTTP/1.1 arvados-crunch-run\r\n"}, nil},
		"hop by hop":          {"GET", "/", []string{"Connection: close, X-Mine", "X-Mine: 1", "Keep-Alive: 9", "Proxy-Authorization: p", "TE: gzip, trailers", "Upgrade: ssh"}, "", []string{"Te: trailers\r\n"}, []string{"X-Mine", "Keep-Alive", "Proxy-Auth", "gzip", "Upgrade"}},
		"values in order":     {"GET", "/", []string{"X-A: 2", "X-A: 1", "Cookie: a=1", "Cookie: b=2"}, "", []string{"X-A: 2\r\nX-A: 1\r\n", "Cookie: a=1\r\nCookie: b=2\r\n"}, nil},
		"other source header": {"GET", "/", []string{"X-Webdav-Source: /log/x", "X-Webdav-Prefix: /p"}, "", []string{"X-Webdav-Source: /log/x\r\n"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			r := to(t, s).send(header(c.method, c.path, append(c.headers, headerPort+": "+port)...) + "\r\n" + c.body)
			if r.StatusCode != 204 {
				t.Fatalf("%s %q", r.Status, r.body)
			}
			seen := <-requests
			for _, w := range c.want {
				if !strings.Contains(seen, w) {
					t.Errorf("no %q in\n%s", w, seen)
				}
			}
			for _, a := range append(c.absent, headerPort, headerUUID, headerAuth) {
				if strings.Contains(seen, a) {
					t.Errorf("%q in\n%s", a, seen)
				}
			}
		})
	}
}

// What the controller sees of replies of all kinds.
func TestForwardedReplies(t *testing.T) { everyWay(t, testForwardedReplies) }

func testForwardedReplies(t *testing.T, open opener) {
	for name, c := range map[string]struct {
		answer string
		method string
		status int
		body   string
		broken bool
		want   []string
		absent []string
	}{
		"error":               {answer: "HTTP/1.1 500 Oh No\r\nContent-Length: 2\r\n\r\nno", status: 500, body: "no"},
		"own Vary":            {answer: "HTTP/1.1 200 OK\r\nVary: Cookie\r\nVary: Accept\r\nContent-Length: 0\r\n\r\n", status: 200, want: []string{"Vary: Cookie\r\nVary: Accept\r\n"}, absent: []string{"X-Webdav"}},
		"gzip":                {answer: "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nzzz", status: 200, body: "zzz", want: []string{"Content-Encoding: gzip\r\n"}},
		"until the end":       {answer: "HTTP/1.0 200 OK\r\n\r\nabc", status: 200, body: "abc"},
		"head":                {answer: "HTTP/1.1 200 OK\r\nContent-Length: 77\r\n\r\n", method: "HEAD", status: 200, want: []string{"Content-Length: 77\r\n"}},
		"not modified":        {answer: "HTTP/1.1 304 Not Modified\r\nEtag: \"x\"\r\n\r\n", status: 304, want: []string{"Etag: \"x\"\r\n"}},
		"no content":          {answer: "HTTP/1.1 204 No Content\r\n\r\n", status: 204},
		"trailer":             {answer: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum, X-Arvados-Authorization-Response\r\n\r\n1\r\na\r\n0\r\nX-Sum: 7\r\nX-Late: 8\r\nX-Arvados-Authorization-Response: forged\r\n\r\n", status: 200, body: "a", want: []string{"Trailer: X-Sum\r\n", "\r\n0\r\nX-Late: 8\r\nX-Sum: 7\r\n\r\n"}, absent: []string{"forged"}},
		"hop by hop":          {answer: "HTTP/1.1 200 OK\r\nConnection: keep-alive, X-Mine\r\nX-Mine: 1\r\nKeep-Alive: 5\r\nUpgrade: h2c\r\nContent-Length: 0\r\n\r\n", status: 200, absent: []string{"X-Mine", "Keep-Alive", "h2c"}},
		"interim":             {answer: "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nX-Arvados-Authorization-Response: forged\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", status: 200, want: []string{"HTTP/1.1 103 Early Hints\r\n", "Link: </a>\r\n"}, absent: []string{"forged"}},
		"cut off":             {answer: "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", status: 200, body: "abc", broken: true},
		"cut off in chunks":   {answer: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", status: 200, body: "abc", broken: true},
		"bad chunk":           {answer: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nzz\r\n", status: 200, body: "abc", broken: true},
		"no HTTP":             {answer: "SSH-2.0-x\r\n", status: 502},
		"nothing":             {answer: "", status: 502},
		"status 0":            {answer: "HTTP/1.1 000 Zero\r\n\r\n", status: 502},
		"status 99":           {answer: "HTTP/1.1 099 Low\r\n\r\n", status: 502},
		"status 999":          {answer: "HTTP/1.1 999 High\r\nContent-Length: 0\r\n\r\n", status: 999},
		"interim without end": {answer: strings.Repeat("HTTP/1.1 102 Processing\r\n\r\n", 1000), status: 502},
		"header without end":  {answer: "HTTP/1.1 200 OK\r\n" + strings.Repeat("X-Y: "+strings.Repeat("z", 1000)+"\r\n", 2000) + "\r\n", status: 502},
		"switches unasked":    {answer: "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: ssh\r\n\r\n", status: 502},
		"two lengths":         {answer: "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", status: 502},
	} {
		t.Run(name, func(t *testing.T) {
			port, _ := rawService(t, c.answer)
			s, _ := open(t, nil)
			l := to(t, s).connect()
			if c.method == "" {
				c.method = "GET"
			}
			var raw bytes.Buffer
			l.r = bufio.NewReader(io.TeeReader(l.Conn, &raw))
			io.WriteString(l, l.fill(s.config.UUID, header(c.method, "/", headerPort+": "+port, "Connection: close")+"\r\n"))
			request := &http.Request{Method: c.method}
			r, err := http.ReadResponse(l.r, request)
			for err == nil && r.StatusCode < 200 {
				r, err = http.ReadResponse(l.r, request)
			}
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(r.Body)
			if (err != nil) != c.broken {
				t.Errorf("reading the body: %v", err)
			}
			if r.StatusCode != c.status || c.status != 502 && string(body) != c.body {
				t.Errorf("%s %q", r.Status, body)
			}
			checkAuth(t, reply{Response: r}, l, true)
			if r.Header["Link"] != nil {
				t.Error("the final reply has headers of the interim one")
			}
			for _, w := range c.want {
				if !strings.Contains(raw.String(), w) {
					t.Errorf("no %q in\n%s", w, &raw)
				}
			}
			for _, a := range c.absent {
				if strings.Contains(raw.String(), a) {
					t.Errorf("%q in\n%s", a, &raw)
				}
			}
		})
	}
}

// Events arrive one by one, and so do the first bytes of a reply that never
// ends.
func TestEventStream(t *testing.T) { everyWay(t, testEventStream) }

func testEventStream(t *testing.T, open opener) {
	next, gone := make(chan string), make(chan bool)
	port := service(t, func(w http.ResponseWriter, r *http.Request) {
		defer close(gone)
		w.Header().Set("Content-Type", "text/event-stream")
		w.(http.Flusher).Flush()
		for {
			select {
			case event := <-next:
				fmt.Fprintf(w, "data: %s\n\n", event)
				w.(http.Flusher).Flush()
			case <-r.Context().Done():
				return
			}
		}
	})
	s, _ := open(t, nil)
	l := to(t, s).connect()
	io.WriteString(l, l.fill(s.config.UUID, header("GET", "/", headerPort+": "+port)+"\r\n"))
	r, err := http.ReadResponse(l.r, nil)
	if err != nil {
		t.Fatal(err)
	}
	events := bufio.NewReader(r.Body)
	for _, event := range []string{"one", "two", "three"} {
		next <- event
		if got, err := events.ReadString('\n'); got != "data: "+event+"\n" {
			t.Fatalf("%q %v", got, err)
		}
		events.ReadString('\n')
	}
	l.Close()
	select {
	case <-gone:
	case <-time.After(patience):
		t.Error("the service is still being asked")
	}
}

// A request and its reply flow at the same time.
func TestBothWaysAtOnce(t *testing.T) { everyWay(t, testBothWaysAtOnce) }

func testBothWaysAtOnce(t *testing.T, open opener) {
	port := service(t, func(w http.ResponseWriter, r *http.Request) {
		http.NewResponseController(w).EnableFullDuplex()
		w.WriteHeader(200)
		lines := bufio.NewScanner(r.Body)
		for lines.Scan() {
			fmt.Fprintf(w, "echo %s\n", lines.Text())
			w.(http.Flusher).Flush()
		}
	})
	s, _ := open(t, nil)
	l := to(t, s).connect()
	body := httputil.NewChunkedWriter(l)
	io.WriteString(l, l.fill(s.config.UUID, header("POST", "/", headerPort+": "+port, "Transfer-Encoding: chunked")+"\r\n"))
	fmt.Fprint(body, "1\n")
	r, err := http.ReadResponse(l.r, nil)
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(r.Body)
	for i := 1; i < 10; i++ {
		if got, err := lines.ReadString('\n'); got != fmt.Sprintf("echo %d\n", i) {
			t.Fatalf("%q %v", got, err)
		}
		fmt.Fprintf(body, "%d\n", i+1)
	}
	body.Close()
	io.WriteString(l, "\r\n")
	if rest, err := io.ReadAll(lines); err != nil || string(rest) != "echo 10\n" {
		t.Errorf("%q %v", rest, err)
	}
}

// A service may answer without reading, and the next request is not mistaken
// for the rest of this one.
func TestEarlyReply(t *testing.T) { everyWay(t, testEarlyReply) }

func testEarlyReply(t *testing.T, open opener) {
	port, _ := rawServiceNoBody(t, "HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nno\n")
	s, _ := open(t, nil)
	l := to(t, s).connect()
	io.WriteString(l, l.fill(s.config.UUID, header("POST", "/", headerPort+": "+port, "Content-Length: 100000000")+"\r\n"+"GET /ssh HTTP/1.1\r\n"))
	r, err := http.ReadResponse(l.r, nil)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(r.Body)
	if r.StatusCode != 413 || string(body) != "no\n" || err != nil || !r.Close {
		t.Errorf("%s %q %v, close %t", r.Status, body, err, r.Close)
	}
	if b, err := l.r.ReadByte(); err == nil {
		t.Errorf("and then %q", b)
	}
}

// rawServiceNoBody is rawService that does not wait for the body.
func rawServiceNoBody(t testing.TB, answer string) (string, net.Listener) {
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
			r := bufio.NewReader(c)
			if _, err := http.ReadRequest(r); err == nil {
				io.WriteString(c, answer)
			}
			c.(*net.TCPConn).CloseWrite()
			t.Cleanup(func() { c.Close() })
		}
	}()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port, l
}

// The body is asked for when the service wants it, and not otherwise.
func TestExpectContinue(t *testing.T) { everyWay(t, testExpectContinue) }

func testExpectContinue(t *testing.T, open opener) {
	port := service(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/no" {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		io.Copy(w, r.Body)
	})
	s, _ := open(t, nil)
	ask := func(path string) (*line, string) {
		l := to(t, s).connect()
		io.WriteString(l, l.fill(s.config.UUID, header("POST", path, headerPort+": "+port, "Expect: 100-continue", "Content-Length: 2")+"\r\n"))
		status, err := l.r.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		return l, strings.TrimSpace(status)
	}
	if _, status := ask("/no"); status != "HTTP/1.1 403 Forbidden" {
		t.Error(status)
	}
	l, status := ask("/yes")
	if status != "HTTP/1.1 100 Continue" {
		t.Fatal(status)
	}
	l.r.ReadString('\n')
	io.WriteString(l, "hi")
	r, err := http.ReadResponse(l.r, nil)
	if err != nil {
		t.Fatal(err)
	}
	if body, _ := io.ReadAll(r.Body); r.StatusCode != 200 || string(body) != "hi" {
		t.Errorf("%s %q", r.Status, body)
	}
}

// 16 MiB up and down arrive as they were.
func TestLargeBodies(t *testing.T) { everyWay(t, testLargeBodies) }

func testLargeBodies(t *testing.T, open opener) {
	const size = 16 << 20
	port := service(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(r.ContentLength))
		http.NewResponseController(w).EnableFullDuplex()
		io.Copy(w, r.Body)
	})
	s, _ := open(t, nil)
	l := to(t, s).connect()
	source := rand.NewChaCha8([32]byte{1})
	sent := sha256.New()
	go func() {
		io.WriteString(l, l.fill(s.config.UUID, header("PUT", "/", headerPort+": "+port, fmt.Sprint("Content-Length: ", size))+"\r\n"))
		io.Copy(l, io.TeeReader(io.LimitReader(source, size), sent))
	}()
	r, err := http.ReadResponse(l.r, nil)
	if err != nil {
		t.Fatal(err)
	}
	got := sha256.New()
	n, err := io.Copy(got, r.Body)
	if n != size || err != nil {
		t.Fatalf("%d bytes, %v", n, err)
	}
	if !bytes.Equal(got.Sum(nil), sent.Sum(nil)) {
		t.Error("other bytes came back")
	}
}

func TestForwardsAreCounted(t *testing.T) {
	const most = 2
	begun, end := make(chan bool), make(chan bool)
	port := service(t, func(w http.ResponseWriter, r *http.Request) {
		begun <- true
		<-end
	})
	s, _ := open(t, func(_ *Config, l *limits) { l.forwards = most })
	for range most {
		l := to(t, s).connect()
		io.WriteString(l, l.fill(s.config.UUID, header("GET", "/", headerPort+": "+port)+"\r\n"))
		<-begun
	}
	r := to(t, s).send(header("GET", "/", headerPort+": "+port) + "\r\n")
	if r.StatusCode != 503 || !strings.Contains(r.body, "too many connections") {
		t.Errorf("%s %q", r.Status, r.body)
	}
	close(end)
}

// The node's proxy settings are for the node.
func TestNoProxy(t *testing.T) {
	t.Setenv("http_proxy", "http://127.0.0.1:1")
	t.Setenv("HTTP_PROXY", "http://127.0.0.1:1")
	port := service(t, func(w http.ResponseWriter, r *http.Request) {})
	s, _ := open(t, nil)
	if r := to(t, s).send(header("GET", "/", headerPort+": "+port) + "\r\n"); r.StatusCode != 200 {
		t.Errorf("%s %q", r.Status, r.body)
	}
}
