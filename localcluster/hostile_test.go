package localcluster

import (
	"crypto/tls"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

// peakMemory is the most memory, in MiB, that a process has had.
func peakMemory(t testing.TB, pid int) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	var kib int
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			fmt.Sscan(rest, &kib)
		}
	}
	if kib == 0 {
		t.Fatal("no VmHWM")
	}
	return kib >> 10
}

// repeated is text around a part that is repeated to a length in bytes.
func repeated(before, part, after string, length int) io.Reader {
	n := (length - len(before) - len(after)) / len(part)
	parts := make([]io.Reader, 0, 1026)
	chunk := strings.Repeat(part, n/1024)
	parts = append(parts, strings.NewReader(before))
	for range 1024 {
		parts = append(parts, strings.NewReader(chunk))
	}
	return io.MultiReader(append(parts, strings.NewReader(after))...)
}

// Bodies of 100 MB at once, of kinds that could be expensive, are refused, or
// told to come again, in bounded memory; and the cluster serves others.
// CRUNCH_RUN_TEST_LONG=1 has more kinds.
func TestLargeBodies(t *testing.T) {
	info, _ := startChild(t, t.TempDir())
	user := newClient(t, info.Host, info.CA, info.User)
	user.keep = info.Keep
	user.image("busybox:latest")
	size := 100 << 20
	if raceDetector {
		size = 4 << 20
	}
	bodies := map[string]func() io.Reader{
		"POST collections with a long name":    func() io.Reader { return repeated(`{"collection":{"name":"`, "x", `"}}`, size) },
		"POST collections with a bad manifest": func() io.Reader { return repeated(`{"collection":{"manifest_text":"`, ". no/such ", `"}}`, size) },
	}
	long := map[string]func() io.Reader{
		"POST collections of deep JSON":           func() io.Reader { return repeated(`{"collection":{"properties":`, "[", ``, size) },
		"POST containers of many keys":            func() io.Reader { return repeated(`{`, `"a":1,`, `"b":1}`, size) },
		"POST container_requests of many words":   func() io.Reader { return repeated(`{"container_request":{"command":["a"`, `,"a"`, `]}}`, size) },
		"POST collections of nothing but numbers": func() io.Reader { return repeated(``, "1", ``, size) },
	}
	if os.Getenv("CRUNCH_RUN_TEST_LONG") != "" {
		maps.Copy(bodies, long)
	}
	var wg sync.WaitGroup
	for what, body := range bodies {
		wg.Go(func() {
			path := strings.Fields(what)[1]
			req, err := http.NewRequest("POST", user.base+"/arvados/v1/"+path, body())
			if err != nil {
				t.Error(err)
				return
			}
			req.Header.Set("Content-Type", "application/json")
			req.Header.Set("Authorization", "Bearer "+info.User)
			resp, err := user.http.Do(req)
			if err != nil { // refused while it was still being sent
				t.Logf("%s: %v", what, err)
				return
			}
			defer resp.Body.Close()
			text, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
			if s := resp.StatusCode; s != 400 && s != 403 && s != 422 && s != 503 {
				t.Errorf("%s: %d %.200s", what, s, text)
			}
			if len(text) > 64<<10 {
				t.Errorf("%s: the answer has %d bytes", what, len(text))
			}
		})
	}
	for range 20 { // in the meantime
		user.must("GET", "users/current", nil)
	}
	wg.Wait()
	user.must("POST", "container_requests", request(nil))
	// Read, decoded and looked at, a body can be there several times, but never
	// all of them.
	const bound = 1600
	if peak := peakMemory(t, info.PID); peak > bound && !raceDetector {
		t.Errorf("peak memory %d MiB, want at most %d", peak, bound)
	} else {
		t.Logf("peak memory %d MiB", peak)
	}
}

// Clients that send slowly, or do not read what they asked for, keep nobody else
// from being served, nor the cluster from stopping.
func TestSlowClients(t *testing.T) {
	p := setUp(t)
	pool := p.user.http.Transport.(*http.Transport).TLSClientConfig.RootCAs
	var conns []net.Conn
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	for i := range 60 {
		conn, err := tls.Dial("tcp", p.c.Host(), &tls.Config{RootCAs: pool})
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, conn)
		head := fmt.Sprintf("Host: x\r\nAuthorization: Bearer %s\r\n", p.c.UserToken())
		text := []string{
			"POST /arvados/v1/collections HTTP/1.1\r\n" + head + "Content-Type: application/json\r\nContent-Length: 100000000\r\n\r\n{\"collection\":",
			"GET /arvados/v1/users/current HTTP/1.1\r\n" + head[:20],
			strings.Repeat("GET /discovery/v1/apis/arvados/v1/rest HTTP/1.1\r\n"+head+"\r\n", 20),
		}[i%3]
		if _, err := io.WriteString(conn, text); err != nil {
			t.Fatal(err)
		}
	}
	for range 20 {
		p.user.must("GET", "users/current", nil)
		p.submit(nil)
	}
	p.c.grace = 100 * time.Millisecond
	closed := make(chan error, 1)
	go func() { closed <- p.c.Close() }()
	select {
	case <-closed: // that somebody was slow may be said
	case <-time.After(time.Minute):
		t.Error("the cluster does not stop")
	}
}

// Clients that ask for large answers and do not read them take a bounded part of
// the memory, and those that come in too many are told to come again.
func TestSlowReaders(t *testing.T) {
	info, _ := startChild(t, t.TempDir())
	user := newClient(t, info.Host, info.CA, info.User)
	user.keep = info.Keep
	size, readers := 32<<20, 16
	if raceDetector {
		size = 2 << 20
	}
	admin := user.as(info.Admin)
	file := " 0:0:" + strings.Repeat("n", 4000)
	coll := str(admin.must("POST", "collections?select=[\"uuid\"]", obj{"collection": obj{
		"manifest_text": ". d41d8cd98f00b204e9800998ecf8427e+0" + strings.Repeat(file, size/len(file)) + "\n"}}), "uuid")
	pool := user.http.Transport.(*http.Transport).TLSClientConfig.RootCAs
	var conns []net.Conn
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	refused := 0
	for range readers {
		conn, err := tls.Dial("tcp", info.Host, &tls.Config{RootCAs: pool})
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, conn)
		if _, err := fmt.Fprintf(conn, "GET /arvados/v1/collections/%s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n\r\n", coll, info.Admin); err != nil {
			t.Fatal(err)
		}
		// The beginning of the answer, and no more.
		head := make([]byte, 12)
		if _, err := io.ReadFull(conn, head); err != nil {
			t.Fatal(err)
		}
		switch string(head) {
		case "HTTP/1.1 200":
		case "HTTP/1.1 503":
			refused++
		default:
			t.Fatalf("%s", head)
		}
	}
	for range 10 {
		user.must("GET", "users/current", nil)
		user.must("POST", "collections", obj{"collection": obj{}})
	}
	if (refused == 0 || refused == readers) && !raceDetector {
		t.Errorf("%d of %d were refused", refused, readers)
	}
	const bound = 1600
	if peak := peakMemory(t, info.PID); peak > bound && !raceDetector {
		t.Errorf("peak memory %d MiB, want at most %d", peak, bound)
	} else {
		t.Logf("peak memory %d MiB, %d refused", peak, refused)
	}
}

// Two hundred clients at once are all served. More may be told to come again,
// which they are told to do when.
func TestManyClients(t *testing.T) {
	p := setUp(t)
	clients := 200
	if raceDetector {
		clients = 60
	}
	body := encode(obj{"collection": obj{"manifest_text": ". d41d8cd98f00b204e9800998ecf8427e+0 0:0:f\n"}})
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			for _, e := range []struct {
				method, path string
				header       http.Header
				body         []byte
			}{{"POST", "collections", jsonHeader, body}, {"GET", "collections?limit=5", nil, nil}, {"GET", "users/current", nil, nil}} {
				a, err := p.user.try(e.method, p.user.base+"/arvados/v1/"+e.path, e.header, e.body)
				if err != nil || a.status != 200 {
					t.Errorf("%s %s: %d %s %v", e.method, e.path, a.status, a.body, err)
				}
			}
		})
	}
	wg.Wait()
	if n := fmt.Sprint(p.user.get("collections", map[string]string{"limit": "0"}).obj["items_available"]); n != fmt.Sprint(clients+1) {
		t.Errorf("%s collections", n)
	}
}
