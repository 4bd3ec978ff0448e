package keepstore

import (
	"bufio"
	"context"
	"crypto/md5"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"crunch-oci/internal/forkthread"
)

// serveVariable makes the test binary a block server of the directory it names.
const serveVariable = "KEEPSTORE_TEST_ROOT"

// serveForever is that server. It tells its address and ends when it is killed.
func serveForever(root string) {
	s, err := New(Config{MaxKeepBlobBuffers: 4, Volumes: []VolumeConfig{{UUID: "v", Root: root}}})
	if err != nil {
		panic(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	fmt.Println(l.Addr())
	panic(http.Serve(l, s))
}

// A server that is killed while it writes leaves no block that is not whole, and
// has all that it has confirmed.
func TestKilledMidWrite(t *testing.T) {
	root := t.TempDir()
	var confirmed sync.Map
	for round := range 4 {
		left, _ := filepath.Glob(root + "/???/tmp*")
		for _, name := range left {
			os.Remove(name)
		}
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = []string{serveVariable + "=" + root}
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		forkthread.Do(func() { err = cmd.Start() })
		if err != nil {
			t.Fatal(err)
		}
		line, err := bufio.NewReader(out).ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		client := &http.Client{Transport: &http.Transport{}}
		var wg sync.WaitGroup
		var done atomic.Int64
		for writer := range 3 {
			wg.Go(func() {
				for i := 0; ; i++ {
					data := randomBytes(uint64(round*1000+writer*100+i%100), 24<<20+i)
					req, _ := http.NewRequest("PUT", "http://"+strings.TrimSpace(line)+"/"+md5hex(data), strings.NewReader(string(data)))
					resp, err := client.Do(req)
					if err != nil {
						return
					}
					_, err = io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
					if err == nil && resp.StatusCode == http.StatusOK {
						confirmed.Store(md5hex(data), true)
						done.Add(1)
					}
				}
			})
		}
		waitFor(t, "some block", func() bool { return done.Load() > 0 })
		waitFor(t, "a file that is not whole yet", func() bool { return halfWritten(root) })
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		wg.Wait()
		client.CloseIdleConnections()
	}
	whole := map[string]bool{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || strings.HasPrefix(d.Name(), "tmp") {
			return err
		}
		data, err := os.ReadFile(path)
		if sum := md5.Sum(data); hex.EncodeToString(sum[:]) != d.Name() {
			t.Errorf("%s is not whole: %d bytes", path, len(data))
		}
		whole[d.Name()] = true
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	confirmed.Range(func(hash, _ any) bool {
		if !whole[hash.(string)] {
			t.Errorf("%s was confirmed and is not there", hash)
		}
		return true
	})
}

// halfWritten tells whether there is a file with a part of its content.
func halfWritten(root string) bool {
	files, _ := filepath.Glob(root + "/???/*")
	for _, name := range files {
		if fi, err := os.Stat(name); err == nil && fi.Size() > 0 && fi.Size() < 24<<20 {
			return true
		}
	}
	return false
}

// One of two volumes is full, or has become read-only: the other one takes all.
func TestOneVolumeFails(t *testing.T) {
	for name, spoil := range map[string]func(dir string) error{
		"full": func(dir string) error { return syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=1m") },
		"read-only": func(dir string) error {
			if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=200m"); err != nil {
				return err
			}
			return syscall.Mount("tmpfs", dir, "tmpfs", syscall.MS_REMOUNT|syscall.MS_RDONLY, "size=200m")
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := twoVolumes(t, nil)
			bad := c.cfg.Volumes[0].Root
			if err := spoil(bad); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = syscall.Unmount(bad, syscall.MNT_DETACH) })
			for i := range 8 {
				data := fmt.Append(nil, "block ", i)
				for range 2 {
					c.want(c.do("GET", "/"+c.put(data), userToken, nil), 200, string(data))
				}
			}
		})
	}
}

// A client that stops reading does not hold its place for ever.
func TestStalledReader(t *testing.T) {
	t.Parallel()
	writer := start(t, nil)
	data := randomBytes(10, maxBlockSize)
	signed := writer.put(data)
	c := start(t, func(cfg *Config) {
		cfg.Volumes, cfg.MaxKeepBlobBuffers, cfg.RequestTimeout = writer.cfg.Volumes, 1, time.Second
	})
	conn, err := net.Dial("tcp", strings.TrimPrefix(c.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "GET /%s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n\r\n", signed, userToken)
	if _, err := conn.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "its place to be free again", func() bool { return len(c.srv.buffers.slots) == 0 })
}

// Idle connections are bounded, those at work are left alone.
func TestLimitConnections(t *testing.T) {
	c := start(t, nil)
	hs := httptest.NewUnstartedServer(c.srv)
	LimitConnections(hs.Config, 20)
	hs.Start()
	defer hs.Close()
	addr := strings.TrimPrefix(hs.URL, "http://")
	foo := []byte("foo")
	working, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer working.Close()
	fmt.Fprintf(working, "PUT /%s HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nf", md5hex(foo))
	waitFor(t, "the request to begin", func() bool { return len(c.srv.buffers.slots) == 1 })
	var idle []net.Conn
	for range 300 {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		idle = append(idle, conn)
	}
	closed := 0
	for _, conn := range idle[:280] {
		_ = conn.SetReadDeadline(time.Now().Add(2 * time.Minute))
		if _, err := conn.Read(make([]byte, 1)); err == io.EOF || strings.Contains(err.Error(), "reset") {
			closed++
		}
	}
	if closed != 280 {
		t.Errorf("%d of the first 280 connections were closed", closed)
	}
	// Somebody new is served, and who was at work may finish.
	resp, err := c.http.Get(hs.URL + "/_health/ping")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	fmt.Fprint(working, "oo")
	answer, err := http.ReadResponse(bufio.NewReader(working), nil)
	if err != nil || answer.StatusCode != 200 {
		t.Fatalf("%v %v", answer, err)
	}
	answer.Body.Close()
}

// While others trash, restore and touch a block and empty the trash as fast as
// they can, one that was confirmed is there until its time is over.
func TestRaces(t *testing.T) {
	const ttl = 4 * time.Second
	foo := []byte("foo")
	hash := md5hex(foo)
	for name, make := range map[string]func(t *testing.T) (c *cluster, stamped string){
		"Directory": func(t *testing.T) (*cluster, string) {
			c := start(t, func(cfg *Config) { cfg.BlobSigningTTL, cfg.BlobTrashLifetime = ttl, time.Second })
			return c, c.file(foo)
		},
		"S3": func(t *testing.T) (*cluster, string) {
			g := newGateway(t)
			return g.store(func(cfg *Config, _ *S3Config) { cfg.BlobSigningTTL = ttl }), filepath.Join(g.Dir, "recent", hash)
		},
	} {
		t.Run(name, func(t *testing.T) {
			c, stamped := make(t)
			old := func() { // as if the last promise were long past
				at := time.Now().Add(-time.Hour)
				_ = os.Chtimes(stamped, at, at)
			}
			ctx, cancel := context.WithCancel(context.Background())
			var wg sync.WaitGroup
			for _, act := range []func(){
				func() { c.do("DELETE", "/"+hash, rootToken, nil) },
				func() { c.do("PUT", "/untrash/"+hash, rootToken, nil) },
				func() { c.do("TOUCH", "/"+hash, rootToken, nil) },
				func() { _ = c.srv.mounts[0].emptyTrash(ctx) },
			} {
				wg.Go(func() {
					for ctx.Err() == nil {
						act()
					}
				})
			}
			checked := 0
			for begin := time.Now(); time.Since(begin) < 2*time.Second; {
				old()
				at := time.Now()
				signed := c.put(foo)
				r := c.do("GET", "/"+signed, userToken, nil)
				if time.Since(at) > ttl/2 {
					continue // a busy machine: it may have gone by right
				}
				checked++
				if r.status != 200 || r.body != "foo" {
					t.Errorf("%d %s", r.status, r.body)
				}
			}
			cancel()
			wg.Wait()
			t.Logf("%d rounds", checked)
		})
	}
}

// What comes in over the socket need not be HTTP, nor end.
func TestHostileSockets(t *testing.T) {
	c := start(t, nil)
	hs := httptest.NewUnstartedServer(c.srv)
	hs.Config.MaxHeaderBytes = 64 << 10
	hs.Start()
	defer hs.Close()
	foo := []byte("foo")
	hash := md5hex(foo)
	signed := c.srv.sign(hash+"+3", userToken)
	for name, x := range map[string]struct{ send, want string }{
		"body cut off":         {"PUT /" + hash + " HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nfoo", "HTTP/1.1 400 "},
		"chunked body cut off": {"PUT /" + hash + " HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nfoo\r\n", "HTTP/1.1 400 "},
		"bad chunk":            {"PUT /" + hash + " HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nfoo\r\n", "HTTP/1.1 400 "},
		"too long, announced":  {"PUT /" + hash + " HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n", "HTTP/1.1 413 "},
		"huge header":          {"GET /" + signed + " HTTP/1.1\r\nHost: x\r\nX-Y: " + strings.Repeat("y", 200<<10) + "\r\n\r\n", "HTTP/1.1 431 "},
		"dots":                 {"GET /../../etc/passwd HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "HTTP/1.1 400 "},
		"dots after a hash":    {"GET /" + hash + "/../../etc/passwd HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "HTTP/1.1 400 "},
		"encoded dots":         {"GET /%2e%2e%2f%2e%2e%2fetc HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "HTTP/1.1 400 "},
		"a NUL":                {"GET /" + hash + "%00+3 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "HTTP/1.1 400 "},
		"a new line in a hint": {"GET /" + hash + "+3%0aX HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "HTTP/1.1 401 "},
		"a made-up method":     {"STEAL /" + hash + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "HTTP/1.1 400 "},
		"another's signature": {"GET /" + md5hex([]byte("bar")) + strings.TrimPrefix(signed, hash) + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer " + userToken + "\r\n\r\n",
			"HTTP/1.1 400 "},
		"two tokens":  {"GET /" + signed + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer a\r\nAuthorization: Bearer " + userToken + "\r\n\r\n", "HTTP/1.1 400 "},
		"two lengths": {"PUT /" + hash + " HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nfoo", "HTTP/1.1 400 "},
	} {
		conn, err := net.Dial("tcp", strings.TrimPrefix(hs.URL, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(time.Minute))
		go func() {
			_, _ = io.WriteString(conn, x.send)
			_ = conn.(*net.TCPConn).CloseWrite()
		}()
		got, _ := bufio.NewReader(conn).ReadString('\n')
		if !strings.HasPrefix(got, x.want) {
			t.Errorf("%s: %q, want %q", name, got, x.want)
		}
		conn.Close()
	}
	if got := c.do("GET", "/index", rootToken, nil).body; got != "\n" {
		t.Errorf("a block was stored: %s", got)
	}
	waitFor(t, "all places to be free", func() bool { return len(c.srv.buffers.slots) == 0 })
}
