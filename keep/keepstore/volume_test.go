package keepstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"crunch-oci/internal/syncbuf"
)

// A copy damaged on disk is never served, and is replaced by the next PUT.
func TestDamagedCopies(t *testing.T) {
	data := randomBytes(2, 1<<20+17)
	for name, damage := range map[string]func(path string) error{
		"flipped bit": func(p string) error {
			f, err := os.OpenFile(p, os.O_RDWR, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = f.WriteAt([]byte{data[len(data)-1] ^ 1}, int64(len(data)-1))
			return err
		},
		"truncated": func(p string) error { return os.Truncate(p, 1000) },
		"empty":     func(p string) error { return os.Truncate(p, 0) },
		"longer":    func(p string) error { return os.Truncate(p, int64(len(data))+1) },
		"too large": func(p string) error { return os.Truncate(p, maxBlockSize+1) },
	} {
		t.Run(name, func(t *testing.T) {
			c := start(t, nil)
			signed := c.put(data)
			if err := damage(c.file(data)); err != nil {
				t.Fatal(err)
			}
			status, text := 502, "checksum mismatch in stored data\n"
			if name == "too large" {
				status, text = 413, "block exceeds 67108864 bytes\n"
			}
			c.want(c.do("GET", "/"+signed, userToken, nil), status, text)
			c.want(c.do("HEAD", "/"+signed, userToken, nil), status, "")
			c.put(data)
			c.want(c.do("GET", "/"+signed, userToken, nil), 200, string(data))
		})
	}
}

// Another mount's good copy is used instead of a damaged or unreadable one.
func TestReadFallsBackToOtherMount(t *testing.T) {
	data := []byte("foo")
	for name, spoil := range map[string]func(path string) error{
		"missing":     os.Remove,
		"damaged":     func(p string) error { return os.WriteFile(p, []byte("bar"), 0o600) },
		"a directory": func(p string) error { return errors.Join(os.Remove(p), os.Mkdir(p, 0o700)) },
	} {
		t.Run(name, func(t *testing.T) {
			c := twoVolumes(t, nil)
			signed := c.put(data) // class a and b: both mounts
			first := probeOrder(c.srv.mounts, md5hex(data))[0]
			if err := spoil(dir(first).path(md5hex(data))); err != nil {
				t.Fatal(err)
			}
			c.want(c.do("GET", "/"+signed, userToken, nil), 200, "foo")
		})
	}
}

func twoVolumes(t *testing.T, edit func(*Config)) *cluster {
	c := start(t, func(cfg *Config) {
		cfg.Volumes = []VolumeConfig{
			{UUID: "zzzzz-nyw5e-000000000000000", Root: t.TempDir(), StorageClasses: []string{"a", "x"}, Replication: 1},
			{UUID: "zzzzz-nyw5e-111111111111111", Root: t.TempDir(), StorageClasses: []string{"b", "x"}, Replication: 2},
		}
		if edit != nil {
			edit(cfg)
		}
	})
	for _, m := range c.srv.mounts {
		if !m.allowWrite {
			continue
		}
		if err := m.write(context.Background(), md5hex([]byte("foo")), []byte("foo")); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

func TestStorageClasses(t *testing.T) {
	c := twoVolumes(t, nil)
	for i, x := range []struct {
		want     string
		status   int
		replicas string
		classes  string
	}{
		{"a", 200, "1", "a=1, x=1"},
		{"b", 200, "2", "b=2, x=2"},
		{"a, b", 200, "3", "a=1, b=2, x=3"},
		{" a ,,unknown", 200, "1", "a=1, x=1"}, // success although one class has no copy
		{"unknown", 507, "", ""},
	} {
		data := []byte(fmt.Sprint("block ", i))
		r := c.do("PUT", "/"+md5hex(data), userToken, data, "X-Keep-Storage-Classes", x.want)
		for range 2 { // again: found instead of written, same answer
			if r.status != x.status || r.header.Get("X-Keep-Replicas-Stored") != x.replicas ||
				r.header.Get("X-Keep-Storage-Classes-Confirmed") != x.classes {
				t.Errorf("%q: %d %q %q", x.want, r.status, r.header.Get("X-Keep-Replicas-Stored"), r.header.Get("X-Keep-Storage-Classes-Confirmed"))
			}
			r = c.do("PUT", "/"+md5hex(data), userToken, data, "X-Keep-Storage-Classes", x.want)
		}
	}
	// Without classes one copy is enough.
	data := []byte("anywhere")
	c.put(data)
	copies := 0
	for _, m := range c.srv.mounts {
		if _, err := os.Stat(dir(m).path(md5hex(data))); err == nil {
			copies++
		}
	}
	if copies != 1 {
		t.Errorf("%d copies", copies)
	}
}

// A write that fails on the preferred mount goes to the next one.
func TestWriteFallsBackToOtherMount(t *testing.T) {
	c := twoVolumes(t, nil)
	data := []byte("fallback")
	first := probeOrder(c.srv.mounts, md5hex(data))[0]
	// A file where the block directory should be.
	if err := os.WriteFile(filepath.Join(dir(first).root, md5hex(data)[:3]), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	signed := c.put(data)
	c.want(c.do("GET", "/"+signed, userToken, nil), 200, "fallback")
	// Where there is no next mount, the volume is at fault.
	class := first.classes[0]
	c.want(c.do("PUT", "/"+md5hex(data), userToken, data, "X-Keep-Storage-Classes", class), 503, "volume unavailable\n")
}

func TestReadOnlyVolume(t *testing.T) {
	c := twoVolumes(t, func(cfg *Config) {
		cfg.Volumes[0].ReadOnly, cfg.Volumes[1].ReadOnly = true, true
	})
	foo := []byte("foo")
	c.want(c.do("PUT", "/"+md5hex(foo), userToken, foo), 507, "insufficient storage\n")
	c.want(c.do("TOUCH", "/"+md5hex(foo), rootToken, nil), 404, "file does not exist\n")
}

// Where the volume's directory is gone nobody hears that blocks do not exist.
func TestVolumeGone(t *testing.T) {
	c := start(t, nil)
	foo := []byte("foo")
	signed := c.put(foo)
	hash := md5hex(foo)
	root := c.cfg.Volumes[0].Root
	if err := os.Rename(root, root+".away"); err != nil {
		t.Fatal(err)
	}
	for _, r := range [][2]string{{"GET", "/" + signed}, {"HEAD", "/" + signed}, {"PUT", "/" + hash}, {"GET", "/index"},
		{"TOUCH", "/" + hash}, {"DELETE", "/" + hash}, {"PUT", "/untrash/" + hash}} {
		token := rootToken
		if strings.Contains(r[1], "+") {
			token = userToken
		}
		if got := c.do(r[0], r[1], token, foo); got.status != 503 {
			t.Errorf("%s %s: %d %s", r[0], r[1], got.status, got.body)
		}
	}
	if err := os.Rename(root+".away", root); err != nil {
		t.Fatal(err)
	}
	c.want(c.do("GET", "/"+signed, userToken, nil), 200, "foo")
}

// PUT of a block that is there makes it as new as a written one.
func TestRefresh(t *testing.T) {
	c := start(t, nil)
	foo := []byte("foo")
	c.put(foo)
	old := time.Now().Add(-1000 * time.Hour)
	for _, again := range []func(){
		func() { c.put(foo) },
		func() { c.want(c.do("TOUCH", "/"+md5hex(foo), rootToken, nil), 200, "") },
	} {
		if err := os.Chtimes(c.file(foo), old, old); err != nil {
			t.Fatal(err)
		}
		before := stat(t, c.file(foo))
		again()
		after := stat(t, c.file(foo))
		if time.Since(after.ModTime()) > time.Hour {
			t.Errorf("time stamp is %v", after.ModTime())
		}
		if !os.SameFile(before, after) {
			t.Error("a good copy was written again")
		}
	}
	c.want(c.do("TOUCH", "/"+md5hex(foo), userToken, nil), 403, "Forbidden\n")
	c.want(c.do("TOUCH", "/"+md5hex(foo), "", nil), 401, "Unauthorized\n")
}

func stat(t *testing.T, path string) os.FileInfo {
	t.Helper()
	fi, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return fi
}

func TestFull(t *testing.T) {
	c := start(t, nil)
	root := c.cfg.Volumes[0].Root
	link := filepath.Join(root, "full")
	foo := []byte("foo")
	set := func(at time.Time) {
		t.Helper()
		os.Remove(link)
		if err := os.Symlink(strconv.FormatInt(at.Unix(), 10), link); err != nil {
			t.Fatal(err)
		}
	}
	set(time.Now())
	c.want(c.do("PUT", "/"+md5hex(foo), userToken, foo), 507, "insufficient storage\n")
	set(time.Now().Add(-2 * time.Hour))
	signed := c.put(foo)
	if _, err := os.Lstat(link); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an outdated link is still there: %v", err)
	}
	// Reading and touching need no space.
	set(time.Now())
	c.want(c.do("GET", "/"+signed, userToken, nil), 200, "foo")
	c.put(foo)
}

// A file system that is really full, and one without inodes.
func TestNoSpace(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to mount a tmpfs")
	}
	for name, opt := range map[string]string{"bytes": "size=1m", "inodes": "size=200m,nr_inodes=2"} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, opt); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { syscall.Unmount(dir, syscall.MNT_DETACH) })
			c := start(t, func(cfg *Config) { cfg.Volumes[0].Root = dir })
			foo := []byte("foo")
			c.want(c.do("PUT", "/"+md5hex(foo), userToken, foo), 507, "insufficient storage\n")
			_, err := os.Readlink(filepath.Join(dir, "full"))
			if name == "bytes" && err != nil {
				t.Errorf("no note for others: %v", err)
			}
		})
	}
}

func TestIndexAndMounts(t *testing.T) {
	c := twoVolumes(t, nil)
	foo, bar := []byte("foo"), []byte("bar") // acbd18..., 37b51d...
	c.do("PUT", "/"+md5hex(bar), userToken, bar, "X-Keep-Storage-Classes", "a")
	fooDir := filepath.Dir(c.file(foo))
	for _, junk := range []string{"tmp" + md5hex(foo) + "xyz", md5hex(foo) + ".trash.99999999999", "README", strings.ToUpper(md5hex(foo))} {
		if err := os.WriteFile(filepath.Join(fooDir, junk), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Join(c.cfg.Volumes[0].Root, "lost+found", md5hex(foo)), 0o700); err != nil {
		t.Fatal(err)
	}
	times := regexp.MustCompile(` \d{19}\n`)
	index := func(path string) string {
		r := c.do("GET", path, rootToken, nil)
		if r.status != 200 {
			t.Errorf("%s: %d %s", path, r.status, r.body)
		}
		return times.ReplaceAllString(r.body, " T\n")
	}
	fooLine, barLine := md5hex(foo)+"+3 T\n", md5hex(bar)+"+3 T\n"
	for path, want := range map[string]string{
		"/index/acb":    fooLine + fooLine + "\n",
		"/index/37b51d": barLine + "\n",
		"/index/0":      "\n",
		"/mounts/zzzzz-nyw5e-111111111111111/blocks":            fooLine + "\n",
		"/mounts/zzzzz-nyw5e-000000000000000/blocks?prefix=37":  barLine + "\n",
		"/mounts/zzzzz-nyw5e-000000000000000/blocks/acbd":       fooLine + "\n",
		"/index/" + md5hex(bar):                                 barLine + "\n",
		"/mounts/zzzzz-nyw5e-111111111111111/blocks?prefix=37b": "\n",
	} {
		if got := index(path); got != want {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
	if got := index("/index"); len(got) != len(fooLine+fooLine+barLine+"\n") {
		t.Errorf("/index: %q", got)
	}
	c.want(c.do("GET", "/mounts/zzzzz-nyw5e-222222222222222/blocks", rootToken, nil), 404, "mount not found\n")
	c.want(c.do("GET", "/index", userToken, nil), 403, "Forbidden\n")
	c.want(c.do("GET", "/mounts", "", nil), 401, "Unauthorized\n")
	c.want(c.do("GET", "/index/xyz", rootToken, nil), 400, "Bad Request\n")
	r := c.do("GET", "/mounts", rootToken, nil)
	want := regexp.MustCompile(`^\[\{"uuid":"zzzzz-nyw5e-000000000000000","device_id":"[^"]+","allow_write":true,"allow_trash":true,"replication":1,"storage_classes":\{"a":true,"x":true\}\},\{"uuid":"zzzzz-nyw5e-111111111111111",`)
	if !want.MatchString(r.body) {
		t.Errorf("/mounts: %s", r.body)
	}
}

func TestTrash(t *testing.T) {
	foo := []byte("foo")
	hash := md5hex(foo)
	old := time.Now().Add(-1000 * time.Hour).Truncate(time.Microsecond)
	c := start(t, nil)
	signed := c.put(foo)
	trashed := func() []string {
		found, _ := filepath.Glob(c.file(foo) + ".trash.*")
		return found
	}
	// Too young: nothing is done, no error.
	c.want(c.do("DELETE", "/"+hash, rootToken, nil), 200, "")
	c.want(c.do("GET", "/"+signed, userToken, nil), 200, "foo")
	c.want(c.do("DELETE", "/"+hash, userToken, nil), 403, "Forbidden\n")

	age := func() {
		if err := os.Chtimes(c.file(foo), old, old); err != nil {
			t.Fatal(err)
		}
	}
	age()
	c.want(c.do("DELETE", "/"+hash, rootToken, nil), 200, "")
	c.want(c.do("GET", "/"+signed, userToken, nil), 404, "file does not exist\n")
	c.want(c.do("DELETE", "/"+hash, rootToken, nil), 404, "file does not exist\n")
	if len(trashed()) != 1 || !stat(t, trashed()[0]).ModTime().Equal(old) {
		t.Errorf("trash: %v", trashed())
	}
	c.want(c.do("PUT", "/untrash/"+hash, rootToken, nil), 200, "")
	c.want(c.do("PUT", "/untrash/"+hash, rootToken, nil), 404, "file does not exist\n")
	c.want(c.do("GET", "/"+signed, userToken, nil), 200, "foo")

	// Trash lists act on the stated time stamp only.
	list := func(ns int64) {
		c.want(c.do("PUT", "/trash", rootToken, []byte(fmt.Sprintf(`[{"locator":"%s+3","block_mtime":%d}]`, hash, ns))), 200, "")
	}
	age()
	c.srv.trashOne(t.Context(), trashItem{Locator: hash + "+3"})
	if n := len(trashed()); n != 0 {
		t.Errorf("trashed without a time stamp: %d", n)
	}
	list(old.UnixNano() + 1)
	list(old.UnixNano())
	waitFor(t, "the block to be trashed", func() bool { return len(trashed()) == 1 })

	// Expired trash and leftovers of dead writers go.
	dir := filepath.Dir(c.file(foo))
	expired, stale, fresh := c.file(foo)+".trash.1", filepath.Join(dir, "tmp"+hash+"a"), filepath.Join(dir, "tmp"+hash+"b")
	for _, p := range []string{expired, stale, fresh} {
		if err := os.WriteFile(p, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chtimes(stale, old, old); err != nil {
		t.Fatal(err)
	}
	if err := c.srv.mounts[0].emptyTrash(context.Background()); err != nil {
		t.Fatal(err)
	}
	for p, want := range map[string]bool{expired: false, stale: false, fresh: true, trashed()[0]: true} {
		if _, err := os.Stat(p); (err == nil) != want {
			t.Errorf("%s: %v", p, err)
		}
	}

	c = start(t, func(cfg *Config) { cfg.BlobTrash = false })
	c.want(c.do("DELETE", "/"+hash, rootToken, nil), 405, "method not allowed\n")
}

// waitFor polls what another goroutine is about to do.
func waitFor(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for start := time.Now(); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Since(start) > 2*time.Minute {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func TestPull(t *testing.T) {
	from, to := start(t, nil), start(t, nil)
	foo := []byte("foo")
	from.put(foo)
	to.want(to.do("PUT", "/pull", rootToken, []byte(`[{"locator":"acbd18db4cc2f85cedef654fccc4a4d8"}]`)), 400, "locator without size in pull list\n")
	if r := to.do("PUT", "/pull", rootToken, []byte(`{`)); r.status != 500 {
		t.Errorf("bad JSON: %d", r.status)
	}
	to.want(to.do("PUT", "/pull", rootToken, []byte(fmt.Sprintf(
		`[{"locator":"%s+3","servers":["http://127.0.0.1:1","%s/"],"mount_uuid":"zzzzz-nyw5e-000000000000000"}]`, md5hex(foo), from.url))), 200, "")
	waitFor(t, "the block to arrive", func() bool { _, err := os.Stat(to.file(foo)); return err == nil })
	http.DefaultClient.CloseIdleConnections()
}

// Writers of the same and of other blocks do not disturb each other or readers.
func TestConcurrency(t *testing.T) {
	c := start(t, func(cfg *Config) { cfg.NoSync = false; cfg.MaxKeepBlobBuffers = 3 })
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			data := randomBytes(uint64(i%5), 100_000)
			signed := c.put(data)
			c.want(c.do("GET", "/"+signed, userToken, nil), 200, string(data))
		})
	}
	wg.Wait()
	var left []string
	_ = filepath.WalkDir(c.cfg.Volumes[0].Root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && strings.HasPrefix(d.Name(), "tmp") {
			left = append(left, path)
		}
		return err
	})
	if len(left) > 0 {
		t.Errorf("temporary files left: %v", left)
	}
}

// With every buffer in use a request waits, and fails with a status that
// clients repeat when it has waited too long.
func TestBufferLimit(t *testing.T) {
	c := start(t, func(cfg *Config) { cfg.MaxKeepBlobBuffers = 1; cfg.RequestTimeout = time.Second })
	foo := []byte("foo")
	if err := c.srv.buffers.acquire(context.Background()); err != nil {
		t.Fatal(err)
	}
	c.want(c.do("PUT", "/"+md5hex(foo), userToken, foo), 503, "request timed out in keepstore\n")
	c.srv.buffers.release()
	// A busy machine may take longer for it than this server allows.
	waitFor(t, "the block to be taken", func() bool { return c.do("PUT", "/"+md5hex(foo), userToken, foo).status == 200 })
}

func TestRequestLimit(t *testing.T) {
	c := start(t, func(cfg *Config) {
		cfg.MaxConcurrentRequests, cfg.MaxQueuedRequests = 1, 1
		cfg.RequestTimeout = time.Hour
	})
	body, send := io.Pipe()
	var wg sync.WaitGroup
	running := func(n int) func() bool {
		return func() bool { return len(c.srv.limit.running)+int(c.srv.limit.queued.Load()) == n }
	}
	wg.Go(func() {
		req, _ := http.NewRequest("PUT", c.url+"/"+md5hex([]byte("foo")), body)
		if resp, err := c.http.Do(req); err != nil || resp.StatusCode != 200 {
			t.Errorf("slow request: %v %v", resp, err)
		} else {
			resp.Body.Close()
		}
	})
	waitFor(t, "the first request", running(1))
	wg.Go(func() { c.put([]byte("bar")) })
	waitFor(t, "the second request", running(2))
	c.want(c.do("GET", "/index", rootToken, nil), 503, "")
	c.want(c.do("GET", "/_health/ping", mgmtToken, nil), 200, `{"health":"OK"}`+"\n")
	fmt.Fprint(send, "foo")
	send.Close()
	wg.Wait()
}

// A client that stops sending does not hold its place for ever, one that is slow
// may go on.
func TestStalledClient(t *testing.T) {
	t.Parallel()
	for name, edit := range map[string]func(cfg *Config){
		"silence":         func(cfg *Config) { cfg.bodySilence = 200 * time.Millisecond },
		"request timeout": func(cfg *Config) { cfg.RequestTimeout = 200 * time.Millisecond },
	} {
		c := start(t, func(cfg *Config) { cfg.MaxKeepBlobBuffers = 1; edit(cfg) })
		body, send := io.Pipe()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		req, _ := http.NewRequestWithContext(ctx, "PUT", c.url+"/"+md5hex([]byte("foo")), body)
		resp, err := c.http.Do(req)
		switch {
		case ctx.Err() != nil:
			t.Errorf("%s: still waits for the body", name)
		case err == nil: // else the connection was closed before the answer was read
			resp.Body.Close()
			if s := resp.StatusCode; s != 408 && s != 503 {
				t.Errorf("%s: status %d", name, s)
			}
		}
		waitFor(t, "the place to be free again", func() bool { return len(c.srv.buffers.slots) == 0 })
		cancel()
		send.Close()
	}
	// A busy machine may take too long for one byte, and is given more time.
	for every := 100 * time.Millisecond; ; every *= 5 {
		c := start(t, func(cfg *Config) { cfg.bodySilence = 10 * every })
		slow := &slowly{data: "abcdefghijklmnopqrst", every: every}
		req, _ := http.NewRequest("PUT", c.url+"/"+md5hex([]byte(slow.data)), slow)
		resp, err := c.http.Do(req)
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == 200 {
				return
			}
			err = errors.New(resp.Status)
		}
		if every > 5*time.Second {
			t.Fatalf("slow: %v", err)
		}
	}
}

// slowly gives out a byte now and then.
type slowly struct {
	data  string
	every time.Duration
	n     int
}

func (s *slowly) Read(p []byte) (int, error) {
	if s.n == len(s.data) {
		return 0, io.EOF
	}
	<-time.After(s.every)
	n := copy(p, s.data[s.n:s.n+1])
	s.n += n
	return n, nil
}

// The log names blocks but never how to get at them.
func TestLogHasNoSecrets(t *testing.T) {
	var buf syncbuf.Buffer
	c := start(t, func(cfg *Config) { cfg.Logger = jsonLogger(&buf) })
	foo := []byte("foo")
	signed := c.put(foo)
	c.do("GET", "/"+signed, userToken, nil)
	c.do("GET", "//"+signed+"?api_token="+userToken, "", nil)
	text := buf.String()
	sig := signed[strings.Index(signed, "+A")+2:]
	for _, secret := range []string{userToken, sig[:40]} {
		if strings.Contains(text, secret) {
			t.Errorf("log contains %q:\n%s", secret, text)
		}
	}
	for _, want := range []string{`"msg":"request"`, `"msg":"response"`, `"respStatusCode":200`, md5hex(foo)} {
		if !strings.Contains(text, want) {
			t.Errorf("log lacks %s:\n%s", want, text)
		}
	}
}
