package keepstore

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"

	"crunch-oci/keep/keepstore/s3test"
)

// Blocks of all sizes come back, from keys where every keepstore looks for them.
func TestS3Blocks(t *testing.T) {
	g := newGateway(t)
	var c *cluster
	empty, foo := []byte{}, []byte("foo")
	parts := randomBytes(1, s3Part+1)       // two parts of an upload
	pieces := randomBytes(2, 2*s3ReadPiece) // two whole pieces
	largest := randomBytes(3, maxBlockSize) // the most that there is
	for _, n := range []int{0, 3} {
		t.Run(fmt.Sprint("PrefixLength ", n), func(t *testing.T) {
			c = g.store(func(_ *Config, s *S3Config) { s.PrefixLength, s.IndexPageSize = n, 2 })
			for _, data := range [][]byte{empty, foo, parts, pieces, largest} {
				key := md5hex(data)
				if n > 0 {
					key = key[:n] + "/" + key
				}
				signed := c.put(data)
				c.want(c.do("GET", "/"+signed, userToken, nil), 200, string(data))
				if r := c.do("HEAD", "/"+signed, userToken, nil); r.status != 200 || r.header.Get("Content-Length") != fmt.Sprint(len(data)) {
					t.Errorf("HEAD: %+v", r)
				}
				if got := g.Read(key); string(got) != string(data) {
					t.Errorf("%s has %d bytes, want %d", key, len(got), len(data))
				}
				if got := g.Read("recent/" + key); len(got) != 0 {
					t.Errorf("recent/%s has %d bytes", key, len(got))
				}
			}
			if got := strings.Count(c.do("GET", "/index", rootToken, nil).body, "\n"); got != 6 {
				t.Errorf("index: %d lines", got)
			}
		})
	}
	if r := c.do("GET", "/mounts", rootToken, nil); !strings.Contains(r.body, `"device_id":"s3://`+strings.TrimPrefix(g.URL, "http://")+`/blocks"`) {
		t.Errorf("/mounts: %s", r.body)
	}
}

// What another keepstore has written is read, and listed with its time stamps.
func TestS3ExistingData(t *testing.T) {
	g := newGateway(t)
	foo, bar, odd := []byte("foo"), []byte("bar"), []byte("odd") // acbd18..., 37b51d..., ...
	for _, data := range [][]byte{foo, bar, odd} {
		g.Write(md5hex(data), data)
	}
	for _, key := range []string{"recent/" + md5hex(foo), "recent/" + md5hex(bar), "trash/" + md5hex(foo), "README", "abc/" + md5hex(foo), "recent/0"} {
		g.Write(key, nil)
	}
	g.age("recent/"+md5hex(foo), 500*time.Hour)
	c := g.store(func(_ *Config, s *S3Config) { s.IndexPageSize = 1 })
	signer := c.srv.signer
	for _, data := range [][]byte{foo, bar, odd} {
		c.want(c.do("GET", "/"+signer.SignLocator(md5hex(data)+"+3", userToken, time.Now().Add(time.Hour)), userToken, nil), 200, string(data))
	}
	lines := map[string]time.Time{}
	for line := range strings.Lines(c.do("GET", "/index", rootToken, nil).body) {
		var ns int64
		var hash string
		if n, _ := fmt.Sscanf(line, "%s %d\n", &hash, &ns); n == 2 {
			lines[hash] = time.Unix(0, ns)
		}
	}
	for data, age := range map[string]time.Duration{"foo": 500 * time.Hour, "bar": 0, "odd": 0} {
		at, ok := lines[md5hex([]byte(data))+"+3"]
		if off := time.Since(at) - age; !ok || off.Abs() > time.Hour {
			t.Errorf("%s: %v in %v", data, at, lines)
		}
	}
	if len(lines) != 3 {
		t.Errorf("index: %v", lines)
	}
	if r := c.do("GET", "/index/acb", rootToken, nil); strings.Count(r.body, "\n") != 2 || !strings.HasPrefix(r.body, md5hex(foo)) {
		t.Errorf("index/acb: %q", r.body)
	}
}

// A PUT of what is there renews its time stamp and transfers nothing; a damaged
// copy is never served, and replaced.
func TestS3Refresh(t *testing.T) {
	g := newGateway(t)
	c := g.store(nil)
	data := randomBytes(4, s3ReadPiece+100)
	key := md5hex(data)
	signed := c.put(data)
	path := filepath.Join(g.Dir, key)
	for _, again := range []func(){
		func() { c.put(data) },
		func() { c.want(c.do("TOUCH", "/"+key, rootToken, nil), 200, "") },
	} {
		before := stat(t, path)
		g.age("recent/"+key, 500*time.Hour)
		again()
		if !os.SameFile(before, stat(t, path)) {
			t.Error("a good copy was written again")
		}
		if age := time.Since(stat(t, filepath.Join(g.Dir, "recent", key)).ModTime()); age > time.Hour {
			t.Errorf("time stamp is %v old", age)
		}
	}
	absent := md5hex([]byte("absent"))
	c.want(c.do("TOUCH", "/"+absent, rootToken, nil), 404, "file does not exist\n")
	if strings.Contains(g.Keys(), absent) {
		t.Error("a mark was made for a block that is not there")
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt([]byte{data[s3ReadPiece+5] ^ 1}, s3ReadPiece+5)
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	c.want(c.do("GET", "/"+signed, userToken, nil), 502, "checksum mismatch in stored data\n")
	c.put(data)
	c.want(c.do("GET", "/"+signed, userToken, nil), 200, string(data))
	for name, wrong := range map[string][]byte{"empty": nil, "shorter": data[:5], "longer": append(data[:len(data):len(data)], 1)} {
		g.Write(key, wrong)
		c.want(c.do("GET", "/"+signed, userToken, nil), 502, "checksum mismatch in stored data\n")
		c.put(data)
		if r := c.do("GET", "/"+signed, userToken, nil); r.status != 200 || r.body != string(data) {
			t.Errorf("%s: %d", name, r.status)
		}
	}
}

func TestS3Trash(t *testing.T) {
	g := newGateway(t)
	c := g.store(nil)
	vol := c.srv.mounts[0].volume
	foo := []byte("foo")
	hash := md5hex(foo)
	signed := c.put(foo)
	const old = 1000 * time.Hour
	// Too young: nothing is done, no error.
	c.want(c.do("DELETE", "/"+hash, rootToken, nil), 200, "")
	c.want(c.do("GET", "/"+signed, userToken, nil), 200, "foo")
	c.want(c.do("DELETE", "/"+md5hex([]byte("absent")), rootToken, nil), 404, "file does not exist\n")

	g.age("recent/"+hash, old)
	c.want(c.do("DELETE", "/"+hash, rootToken, nil), 200, "")
	c.want(c.do("GET", "/"+signed, userToken, nil), 404, "file does not exist\n")
	c.want(c.do("DELETE", "/"+hash, rootToken, nil), 404, "file does not exist\n")
	if got, want := g.Keys(), "recent/"+hash+" trash/"+hash; got != want {
		t.Errorf("keys %q, want %q", got, want)
	}
	c.want(c.do("PUT", "/untrash/"+hash, rootToken, nil), 200, "")
	c.want(c.do("PUT", "/untrash/"+md5hex([]byte("absent")), rootToken, nil), 404, "file does not exist\n")
	c.want(c.do("GET", "/"+signed, userToken, nil), 200, "foo")

	// A trash list acts on the time stamp that the index shows, only.
	g.age("recent/"+hash, old)
	var ns int64
	index := c.do("GET", "/index", rootToken, nil).body
	if _, err := fmt.Sscanf(index, hash+"+3 %d\n", &ns); err != nil {
		t.Fatal(err, index)
	}
	list := func(ns int64) {
		c.want(c.do("PUT", "/trash", rootToken, fmt.Appendf(nil, `[{"locator":"%s+3","block_mtime":%d}]`, hash, ns)), 200, "")
	}
	list(ns + 1)
	if err := vol.trash(context.Background(), hash, ns+1); err != nil || !strings.HasPrefix(g.Keys(), hash) {
		t.Errorf("%v, %s", err, g.Keys())
	}
	list(ns)
	waitFor(t, "the block to be trashed", func() bool { return g.Keys() == "recent/"+hash+" trash/"+hash })

	// Trash stays for its lifetime, here one hour.
	empty := func() string {
		t.Helper()
		if err := vol.emptyTrash(context.Background()); err != nil {
			t.Fatal(err)
		}
		return g.Keys()
	}
	if got := empty(); !strings.Contains(got, "trash/"+hash) {
		t.Errorf("keys %q", got)
	}
	g.age("trash/"+hash, 2*time.Hour)
	if got := empty(); got != "" {
		t.Errorf("keys %q", got)
	}
	// One whose block was written again goes alone.
	c.put(foo)
	g.Write("trash/"+hash, foo)
	g.age("trash/"+hash, 2*time.Hour)
	if got, want := empty(), hash+" recent/"+hash; got != want {
		t.Errorf("keys %q, want %q", got, want)
	}
	// RaceWindow is a lower bound for the lifetime.
	c = g.store(func(_ *Config, s *S3Config) { s.RaceWindow = 24 * time.Hour })
	vol = c.srv.mounts[0].volume
	g.Write("trash/"+hash, foo)
	g.age("trash/"+hash, 2*time.Hour)
	if got := empty(); !strings.Contains(got, "trash/"+hash) {
		t.Errorf("keys %q", got)
	}
}

// Without a lifetime of trash blocks are deleted only where that is asked for.
func TestS3UnsafeDelete(t *testing.T) {
	g := newGateway(t)
	foo := []byte("foo")
	for _, unsafe := range []bool{false, true} {
		c := g.store(func(cfg *Config, s *S3Config) { cfg.BlobTrashLifetime, s.UnsafeDelete = 0, unsafe })
		c.put(foo)
		g.age("recent/"+md5hex(foo), 1000*time.Hour)
		r := c.do("DELETE", "/"+md5hex(foo), rootToken, nil)
		if left := g.Keys(); unsafe != (left == "") || unsafe != (r.status == 200) || !unsafe && r.status != 405 {
			t.Errorf("UnsafeDelete %v: %d %q, keys %q", unsafe, r.status, r.body, left)
		}
	}
}

// A block that was trashed while somebody wrote it is brought back from there,
// whoever notices.
func TestS3Race(t *testing.T) {
	g := newGateway(t)
	foo := []byte("foo")
	hash := md5hex(foo)
	notice := map[string]func(c *cluster){
		"GET":   func(c *cluster) {},
		"TOUCH": func(c *cluster) { c.want(c.do("TOUCH", "/"+hash, rootToken, nil), 200, "") },
		"PUT":   func(c *cluster) { c.put(foo) },
		"emptyTrash": func(c *cluster) {
			if err := c.srv.mounts[0].emptyTrash(context.Background()); err != nil {
				t.Error(err)
			}
			if got, want := g.Keys(), hash+" recent/"+hash+" trash/"+hash; got != want {
				t.Errorf("keys %q, want %q", got, want)
			}
		},
		"read-only": func(c *cluster) {},
	}
	for name, act := range notice {
		t.Run(name, func(t *testing.T) {
			c := g.store(func(cfg *Config, _ *S3Config) { cfg.Volumes[0].ReadOnly = name == "read-only" })
			g.Write("trash/"+hash, foo)
			g.age("trash/"+hash, 400*time.Hour)
			g.Write("recent/"+hash, nil)
			g.age("recent/"+hash, 500*time.Hour) // 100 hours, less than the 336 that it was promised for
			_ = g.Client.RemoveObject(context.Background(), s3test.Bucket, hash, minio.RemoveObjectOptions{})
			act(c)
			signed := c.srv.sign(hash+"+3", userToken)
			c.want(c.do("GET", "/"+signed, userToken, nil), 200, "foo")
			if there := strings.HasPrefix(g.Keys(), hash); there == (name == "read-only") {
				t.Errorf("keys %q", g.Keys())
			}
		})
	}
}

// What can go wrong with a server in the middle of a transfer.
func TestS3Faults(t *testing.T) {
	g := newGateway(t)
	c := g.store(nil)
	data := randomBytes(5, 3*s3ReadPiece)
	signed := c.put(data)
	var n atomic.Int64
	times := func(most int64, match func(*http.Request) bool, do func(http.ResponseWriter)) {
		n.Store(0)
		g.Fail(func(w http.ResponseWriter, r *http.Request) bool {
			if !match(r) || n.Add(1) > most {
				return false
			}
			do(w)
			return true
		})
	}
	get := func(r *http.Request) bool { return r.Method == "GET" }
	slowDown := func(w http.ResponseWriter) { s3test.Error(w, 503, "SlowDown") }
	cut := func(w http.ResponseWriter) {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes 0-%d/%d", s3ReadPiece-1, len(data)))
		w.Header().Set("Last-Modified", time.Now().UTC().Format(http.TimeFormat))
		w.Header().Set("Content-Length", fmt.Sprint(s3ReadPiece))
		w.WriteHeader(206)
		_, _ = w.Write(data[:1<<20])
		panic(http.ErrAbortHandler)
	}
	ask := func(name string, status int) {
		t.Helper()
		if r := c.do("GET", "/"+signed, userToken, nil); r.status != status || status == 200 && r.body != string(data) {
			t.Errorf("%s: %d %.200s", name, r.status, r.body)
		}
	}
	times(2, get, slowDown)
	ask("busy for a moment", 200)
	times(1, func(r *http.Request) bool { return get(r) && strings.HasPrefix(r.Header.Get("Range"), "bytes=0-") }, cut)
	ask("a piece cut off", 200)
	times(1<<40, get, func(w http.ResponseWriter) { s3test.Error(w, 403, "AccessDenied") })
	ask("no permission", 500)
	times(1<<40, get, func(w http.ResponseWriter) { s3test.Error(w, 404, "NoSuchBucket") })
	ask("no bucket", 500) // not: no block
	times(1<<40, func(r *http.Request) bool { return r.Header.Get("Range") != "" }, func(w http.ResponseWriter) {
		w.Header().Set("Last-Modified", time.Now().UTC().Format(http.TimeFormat))
		w.Header().Set("Content-Length", fmt.Sprint(len(data)))
		_, _ = w.Write(data)
	})
	ask("no ranges", 500)
	g.Fail(nil)
	ask("well again", 200)

	other := randomBytes(6, 2*s3Part+1)
	put := func() reply { return c.do("PUT", "/"+md5hex(other), userToken, other) }
	times(1, func(r *http.Request) bool { return r.Method == "PUT" && r.URL.Query().Has("partNumber") }, slowDown)
	if r := put(); r.status != 200 {
		t.Errorf("busy for a moment: %d %s", r.status, r.body)
	}
	other = randomBytes(7, 2*s3Part+1)
	times(1<<40, func(r *http.Request) bool { return r.URL.Query().Get("partNumber") == "2" }, func(w http.ResponseWriter) { s3test.Error(w, 403, "AccessDenied") })
	if r := put(); r.status != 503 || r.body != "volume unavailable\n" {
		t.Errorf("a part refused: %d %s", r.status, r.body)
	}
	g.Fail(nil)
	for u := range g.Client.ListIncompleteUploads(context.Background(), s3test.Bucket, "", true) {
		t.Errorf("an upload is left: %+v", u)
	}
	times(1<<40, func(r *http.Request) bool { return r.Method == "PUT" }, func(w http.ResponseWriter) { s3test.Error(w, 507, "QuotaExceeded") })
	other = []byte("small")
	if r := put(); r.status != 507 {
		t.Errorf("full: %d %s", r.status, r.body)
	}
	// Data without its time stamp is no success.
	times(1<<40, func(r *http.Request) bool { return r.Method == "PUT" && strings.Contains(r.URL.Path, "/recent/") }, func(w http.ResponseWriter) { s3test.Error(w, 403, "AccessDenied") })
	if r := put(); r.status != 503 {
		t.Errorf("no mark: %d %s", r.status, r.body)
	}
}

// A node whose clock is a month fast does not trash what is young.
func TestS3ClockSkew(t *testing.T) {
	g := newGateway(t)
	c := g.store(nil)
	foo := []byte("foo")
	signed := c.put(foo)
	g.age("recent/"+md5hex(foo), 400*time.Hour) // old enough by this machine's clock
	g.Fail(func(w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("Date", time.Now().Add(-100*time.Hour).UTC().Format(http.TimeFormat))
		return false
	})
	c.want(c.do("DELETE", "/"+md5hex(foo), rootToken, nil), 200, "")
	c.want(c.do("GET", "/"+signed, userToken, nil), 200, "foo")
}

// A configuration that cannot work is refused at the start, with the reason.
func TestS3Refused(t *testing.T) {
	g := newGateway(t)
	none := httptest.NewServer(http.NotFoundHandler())
	defer none.Close()
	for want, edit := range map[string]func(*S3Config){
		"SignatureDoesNotMatch":          func(c *S3Config) { c.SecretAccessKey = "another" },
		"NoSuchBucket":                   func(c *S3Config) { c.Bucket = "another" },
		"Bucket is empty":                func(c *S3Config) { c.Bucket = "" },
		"is not the URL of a server":     func(c *S3Config) { c.Endpoint = "ftp://x" },
		"PrefixLength is 33":             func(c *S3Config) { c.PrefixLength = 33 },
		"IndexPageSize is -1":            func(c *S3Config) { c.IndexPageSize = -1 },
		"S3 list blocks/ at 127.0.0.1:1": func(c *S3Config) { c.Endpoint = "http://127.0.0.1:1" },
		"only one of AccessKeyID":        func(c *S3Config) { c.AccessKeyID = "" },
		"no instance role gives any":     func(c *S3Config) { c.AccessKeyID, c.SecretAccessKey, c.metadata = "", "", none.URL },
	} {
		v := g.volume(edit)
		s, err := New(Config{MaxKeepBlobBuffers: 1, Volumes: []VolumeConfig{v}})
		if err == nil {
			s.Close()
		}
		if err == nil || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "volume "+v.UUID+": ") {
			t.Errorf("%s: %v", want, err)
		}
		if err != nil && strings.Contains(err.Error(), s3test.Secret) {
			t.Errorf("the error has the secret: %v", err)
		}
	}
}

// Access keys come from the machine's instance role where none are configured.
func TestS3InstanceRole(t *testing.T) {
	g := newGateway(t)
	asked := 0
	metadata := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked++
		switch r.URL.Path {
		case "/latest/api/token":
			fmt.Fprint(w, "token")
		case "/latest/meta-data/iam/security-credentials/":
			fmt.Fprint(w, "node")
		case "/latest/meta-data/iam/security-credentials/node":
			fmt.Fprintf(w, `{"Code":"Success","AccessKeyId":%q,"SecretAccessKey":%q,"Token":"","Expiration":%q}`,
				s3test.Key, s3test.Secret, time.Now().Add(time.Hour).UTC().Format(time.RFC3339))
		default:
			http.NotFound(w, r)
		}
	}))
	defer metadata.Close()
	c := g.store(func(_ *Config, s *S3Config) { s.AccessKeyID, s.SecretAccessKey, s.metadata = "", "", metadata.URL })
	foo := []byte("foo")
	c.want(c.do("GET", "/"+c.put(foo), userToken, nil), 200, "foo")
	if asked == 0 {
		t.Error("the role was not asked for")
	}
}
