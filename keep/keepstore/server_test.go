package keepstore

import (
	"bytes"
	"crypto/md5"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"crunch-oci/internal/leaktest"
	"crunch-oci/keep"
)

func TestMain(m *testing.M) {
	if root := os.Getenv(serveVariable); root != "" {
		serveForever(root)
	}
	leaktest.Main(m)
}

const (
	rootToken  = "systemroottokensystemroottokensystemroottoken"
	userToken  = "v2/zzzzz-gj3su-aey2u9zwnz5ggdk/secretsecretsecretsecretsecretsecretsecretsecretse"
	mgmtToken  = "managementtokenmanagementtoken"
	signingKey = "kq0xw7g3mwd5s1v9h2c8rj4t6y0b3n5f7z9l1p3a5e7u9i1o3q"
)

// cluster is one keepstore under test, behind a real HTTP server.
type cluster struct {
	t    testing.TB
	url  string
	cfg  Config
	srv  *Server
	http *http.Client
}

func start(t testing.TB, edit func(*Config)) *cluster {
	t.Helper()
	cfg := Config{
		SystemRootToken: rootToken, ManagementToken: mgmtToken,
		BlobSigningKey: signingKey, BlobSigning: true,
		BlobTrash: true, BlobTrashLifetime: time.Hour, BlobTrashConcurrency: 2, BlobDeleteConcurrency: 2, BlobReplicateConcurrency: 1,
		MaxKeepBlobBuffers: 4, NoSync: true,
		Volumes: []VolumeConfig{{UUID: "zzzzz-nyw5e-000000000000000", Root: t.TempDir()}},
	}
	if edit != nil {
		edit(&cfg)
	}
	srv, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	hs := httptest.NewServer(srv)
	client := &http.Client{Transport: &http.Transport{}}
	t.Cleanup(func() {
		client.CloseIdleConnections()
		hs.Close()
		if err := srv.Close(); err != nil {
			t.Error(err)
		}
	})
	return &cluster{t: t, url: hs.URL, cfg: cfg, srv: srv, http: client}
}

type reply struct {
	status int
	header http.Header
	body   string
	err    error // of reading the body
}

func (c *cluster) do(method, path, token string, body []byte, headers ...string) reply {
	c.t.Helper()
	var rd io.Reader
	if body != nil {
		rd = bytes.NewReader(body)
	}
	req, err := http.NewRequest(method, c.url+path, rd)
	if err != nil {
		c.t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := c.http.Do(req)
	if err != nil {
		c.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return reply{resp.StatusCode, resp.Header, string(text), err}
}

func (c *cluster) want(r reply, status int, body string) {
	c.t.Helper()
	if r.status != status || r.body != body {
		c.t.Errorf("got %d %.100q (%d bytes), want %d %.100q (%d bytes)", r.status, r.body, len(r.body), status, body, len(body))
	}
}

// put stores data and returns its signed locator.
func (c *cluster) put(data []byte) string {
	c.t.Helper()
	r := c.do("PUT", "/"+md5hex(data), userToken, data)
	if r.status != http.StatusOK {
		c.t.Fatalf("PUT: %d %s", r.status, r.body)
	}
	return strings.TrimSpace(r.body)
}

func (c *cluster) file(data []byte) string {
	h := md5hex(data)
	return filepath.Join(c.cfg.Volumes[0].Root, h[:3], h)
}

func md5hex(data []byte) string {
	sum := md5.Sum(data)
	return hex.EncodeToString(sum[:])
}

func randomBytes(seed uint64, n int) []byte {
	var key [32]byte
	key[0], key[1] = byte(seed), byte(seed>>8)
	b := make([]byte, n)
	_, _ = rand.NewChaCha8(key).Read(b)
	return b
}

// Exchanges recorded from a real keepstore are replayed in order.
func TestCaptures(t *testing.T) {
	c := start(t, nil)
	fill := strings.NewReplacer("<ALICE_SECRET>", "alice", "<ADMIN_SECRET>", "admin",
		"<CONTAINER_TOKEN_SECRET>", "ctr", "<SYSTEM_ROOT_TOKEN>", rootToken, "<MANAGEMENT_TOKEN>", mgmtToken)
	signature := regexp.MustCompile(`\+A[0-9a-f]{40}@[0-9a-f]{8}`)
	signed := map[string]string{} // captured locator -> ours
	for _, name := range []string{
		"014-keep-put", "015-keep-put-storage-class", "016-keep-get-signed", "017-keep-head-signed",
		"018-keep-get-unsigned", "019-keep-get-wrong-token", "020-keep-get-no-token", "021-keep-put-wrong-hash",
		"022-keep-put-bad-token", "023-keep-get-missing", "078-keep-put-log-block", "108-keep-put-output-block",
		"116-keep-get-container-token-after-complete", "151-health-keepstore", "152-metrics-keepstore-noauth",
	} {
		t.Run(name, func(t *testing.T) {
			var x struct {
				Request struct {
					Method, Path string
					Headers      map[string]string
					Body         *string
				}
				Response struct {
					Status  int
					Headers [][2]string
					Body    any
				}
			}
			text, err := os.ReadFile("../../testdata/spec/captures/" + name + ".json")
			if err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal(text, &x); err != nil {
				t.Fatal(err)
			}
			path := x.Request.Path
			if ours, ok := signed[strings.TrimPrefix(path, "/")]; ok {
				path = "/" + ours
			}
			var headers []string
			for k, v := range x.Request.Headers {
				headers = append(headers, k, fill.Replace(v))
			}
			var body []byte
			if x.Request.Body != nil {
				body = []byte(*x.Request.Body)
			}
			got := c.do(x.Request.Method, path, "", body, headers...)
			if got.status != x.Response.Status {
				t.Errorf("status %d, want %d", got.status, x.Response.Status)
			}
			wantBody, isText := x.Response.Body.(string)
			if !isText {
				j, _ := json.Marshal(x.Response.Body)
				wantBody = string(j) + "\n"
			}
			if x.Request.Method == "PUT" && got.status == 200 {
				signed[strings.TrimSpace(wantBody)] = strings.TrimSpace(got.body)
			}
			const mark = "+Asignature"
			if g, w := signature.ReplaceAllString(got.body, mark), signature.ReplaceAllString(wantBody, mark); g != w {
				t.Errorf("body %q, want %q", g, w)
			}
			for _, h := range x.Response.Headers {
				switch have := got.header.Get(h[0]); h[0] {
				case "Date":
				case "X-Request-Id":
					if !regexp.MustCompile(`^req-[0-9a-z]{20}$`).MatchString(have) {
						t.Errorf("X-Request-Id %q", have)
					}
				default:
					if have != h[1] {
						t.Errorf("%s: %q, want %q", h[0], have, h[1])
					}
				}
				got.header.Del(h[0])
			}
			if len(got.header) > 0 {
				t.Errorf("more headers than captured: %v", got.header)
			}
		})
	}
}

func TestVerifyVectors(t *testing.T) {
	var vectors struct {
		Verify []struct {
			Note, Key, Token, Locator, Result string
			TTL                               int64 `json:"ttl_seconds"`
		}
	}
	readVectors(t, &vectors)
	want := map[string]string{
		"ok":      "404 file does not exist\n",
		"missing": "400 invalid signature\n",
		"invalid": "400 invalid signature\n",
		"expired": "401 expired signature\n",
	}
	for _, v := range vectors.Verify {
		t.Run(v.Note, func(t *testing.T) {
			c := start(t, func(cfg *Config) {
				cfg.BlobSigningKey, cfg.BlobSigningTTL = v.Key, time.Duration(v.TTL)*time.Second
			})
			// HEAD has no body; a GET needs a size, which not all vectors have.
			r := httptest.NewRecorder()
			req := httptest.NewRequest("GET", "/x", nil)
			req.URL.Path = "/" + v.Locator
			req.Header.Set("Authorization", "Bearer "+v.Token)
			c.srv.ServeHTTP(r, req)
			got, want := fmt.Sprintf("%d %s", r.Code, r.Body), want[v.Result]
			switch {
			case !isHash(v.Locator): // not a block path at all
				want = "400 Bad Request\n"
			case v.Note == "remote signature only": // a request for another cluster
				want = "400 remote cluster not configured\n"
			case v.Note == "no size hint": // accepted, but then a size is needed
				want = "405 method not allowed\n"
			case v.Note == "empty hint":
				want = "400 invalid locator\n"
			}
			if got != want {
				t.Errorf("%s: got %q, want %q", v.Locator, got, want)
			}
		})
	}
}

func TestMountOrderVectors(t *testing.T) {
	var vectors struct {
		Order []struct {
			Note   string
			Mounts []struct {
				UUID     string
				Priority int
			}
			Probes []struct {
				Hash  string
				Order []string
			}
		} `json:"keepstore_mount_order"`
	}
	readVectors(t, &vectors)
	for _, v := range vectors.Order {
		var mounts []*mount
		for _, m := range v.Mounts {
			mounts = append(mounts, &mount{uuid: m.UUID, priority: m.Priority})
		}
		for _, p := range v.Probes {
			var got []string
			for _, m := range probeOrder(mounts, p.Hash) {
				got = append(got, m.uuid)
			}
			if strings.Join(got, " ") != strings.Join(p.Order, " ") {
				t.Errorf("%s: %s: %v, want %v", v.Note, p.Hash, got, p.Order)
			}
		}
	}
}

func readVectors(t *testing.T, into any) {
	t.Helper()
	text, err := os.ReadFile("../../testdata/spec/keep.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, into); err != nil {
		t.Fatal(err)
	}
}

func TestBlockRequests(t *testing.T) {
	c := start(t, nil)
	foo := []byte("foo")
	hash := md5hex(foo)
	signed := c.put(foo)
	unsignedSize := strings.Replace(signed, "+3", "", 1)
	wrongSize := strings.Replace(signed, "+3", "+4", 1)
	absent := keep.Signer{Key: signingKey, TTL: 336 * time.Hour}.SignLocator(
		md5hex([]byte("absent"))+"+6", userToken, time.Now().Add(time.Hour))

	type row struct {
		method, path, token string
		body                []byte
		status              int
		want                string
	}
	for _, x := range []row{
		{"GET", "/" + signed, userToken, nil, 200, "foo"},
		{"GET", "//" + signed, userToken, nil, 200, "foo"},
		{"HEAD", "//" + signed, userToken, nil, 200, ""},
		{"HEAD", "/" + unsignedSize, userToken, nil, 200, ""},
		{"GET", "/" + unsignedSize, userToken, nil, 405, "method not allowed\n"},
		{"GET", "/" + wrongSize, userToken, nil, 502, "stored block has 3 bytes, locator says 4\n"},
		{"HEAD", "/" + wrongSize, userToken, nil, 502, ""},
		{"GET", "/" + absent, userToken, nil, 404, "file does not exist\n"},
		{"GET", "/" + hash + "+3++", userToken, nil, 400, "invalid locator\n"},
		{"GET", "/" + hash + "+3+4", userToken, nil, 400, "invalid locator\n"},
		{"GET", "/" + strings.ToUpper(hash), userToken, nil, 400, "Bad Request\n"},
		{"GET", "/", "", nil, 400, "Bad Request\n"},
		{"GET", "/status.json", rootToken, nil, 400, "Bad Request\n"},
		{"POST", "/", userToken, foo, 400, "Bad Request\n"},
		{"POST", "/" + hash, userToken, foo, 400, "Bad Request\n"},
		{"PUT", "//" + hash, userToken, foo, 400, "Bad Request\n"},
		{"OPTIONS", "/" + hash, "", nil, 200, ""},
		{"PUT", "/" + hash, userToken, []byte("bar"), 400,
			"content hash 37b51d194a7513e45b56f6524f2d51f2 did not match specified locator " + hash + "\n"},
		{"PUT", "/" + hash, "", foo, 200, hash + "+3\n"},
		{"GET", "/" + hash + "+3+Rzzzzz-1f27a35dd9af37191d63ad8eb8985624451e7b79@5835c8bc", userToken, nil,
			400, "remote cluster not configured\n"},
	} {
		r := c.do(x.method, x.path, x.token, x.body)
		if r.status != x.status || r.body != x.want {
			t.Errorf("%s %s: got %d %q, want %d %q", x.method, x.path, r.status, r.body, x.status, x.want)
		}
	}
	if r := c.do("GET", "/"+signed, userToken, nil, "Range", "bytes=1-", "X-Request-Id", "req-mine"); r.status != 200 || r.body != "foo" ||
		r.header.Get("X-Request-Id") != "req-mine" {
		t.Errorf("Range is to be ignored, the request id kept: %+v", r)
	}
	// A size in a PUT path is ignored; the answer carries the real one.
	if r := c.do("PUT", "/"+hash+"+99", userToken, foo); !strings.HasPrefix(r.body, hash+"+3+A") {
		t.Errorf("PUT with size: %+v", r)
	}
	// The layout is that of every other keepstore.
	fi, err := os.Stat(c.file(foo))
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("block file: %v %v", fi, err)
	}
	if di, err := os.Stat(filepath.Dir(c.file(foo))); err != nil || di.Mode().Perm() != 0o755 {
		t.Errorf("block directory: %v %v", di, err)
	}
	// The empty block needs no size in the locator.
	empty := c.put(nil)
	r := c.do("GET", "/"+strings.Replace(empty, "+0", "", 1), userToken, nil)
	c.want(r, 200, "")
}

func TestTokenSources(t *testing.T) {
	c := start(t, nil)
	signed := "/" + c.put([]byte("foo"))
	for name, headers := range map[string][]string{
		"Bearer":    {"Authorization", "Bearer " + userToken},
		"OAuth2":    {"Authorization", "OAuth2  " + userToken + " "},
		"lower":     {"Authorization", "bearer " + userToken},
		"basic":     {"Authorization", "Basic " + b64("x:"+userToken)},
		"cookie":    {"Cookie", "arvados_api_token=" + b64(userToken)},
		"precedent": {"Authorization", "Bearer " + userToken, "Cookie", "arvados_api_token=" + b64("other")},
	} {
		if r := c.do("GET", signed, "", nil, headers...); r.status != 200 {
			t.Errorf("%s: %d %s", name, r.status, r.body)
		}
	}
	c.want(c.do("GET", signed+"?api_token="+userToken, "", nil), 200, "foo")
	c.want(c.do("GET", signed+"?api_token="+userToken, "other", nil), 400, "invalid signature\n")
	// Any token may be the administrator's.
	if r := c.do("GET", "/index?api_token="+rootToken, userToken, nil); r.status != 200 {
		t.Errorf("index: %d", r.status)
	}
}

func TestNoSigning(t *testing.T) {
	c := start(t, func(cfg *Config) { cfg.BlobSigning, cfg.BlobSigningKey = false, "" })
	foo := []byte("foo")
	c.want(c.do("PUT", "/"+md5hex(foo), userToken, foo), 200, md5hex(foo)+"+3\n")
	c.want(c.do("GET", "/"+md5hex(foo)+"+3", "", nil), 200, "foo")
	// A key signs even if signatures are not asked for.
	c = start(t, func(cfg *Config) { cfg.BlobSigning = false })
	if l := c.put(foo); !strings.Contains(l, "+A") {
		t.Errorf("locator %q has no signature", l)
	}
}

func TestLargeBlocks(t *testing.T) {
	c := start(t, nil)
	data := randomBytes(1, keep.MaxBlockSize)
	r := c.do("GET", "/"+c.put(data), userToken, nil)
	if r.status != 200 || r.body != string(data) {
		t.Errorf("64 MiB came back as %d with %d bytes", r.status, len(r.body))
	}
	over := append(data, 'x')
	req, _ := http.NewRequest("PUT", c.url+"/"+md5hex(over), io.MultiReader(bytes.NewReader(over))) // chunked
	req.Header.Set("Authorization", "Bearer "+userToken)
	if resp, err := c.http.Do(req); err == nil { // the server may close before all is sent
		resp.Body.Close()
		if resp.StatusCode != http.StatusRequestEntityTooLarge {
			t.Errorf("chunked 64 MiB + 1: %d", resp.StatusCode)
		}
	}
	rec := httptest.NewRecorder()
	put := httptest.NewRequest("PUT", "/"+md5hex(over), bytes.NewReader(over))
	c.srv.ServeHTTP(rec, put)
	if rec.Code != http.StatusRequestEntityTooLarge {
		t.Errorf("64 MiB + 1: %d", rec.Code)
	}
}

func TestHealthAndMetrics(t *testing.T) {
	c := start(t, nil)
	c.want(c.do("GET", "/_health/ping", "", nil), 401, "authorization required\n")
	c.want(c.do("GET", "/_health/ping", userToken, nil), 403, "authorization error\n")
	c.want(c.do("GET", "/_health/ping", mgmtToken, nil), 200, `{"health":"OK"}`+"\n")
	c.want(c.do("GET", "/metrics", "x", nil), 403, "Forbidden\n")
	c.put([]byte("foo"))
	if r := c.do("GET", "/metrics", mgmtToken, nil); r.status != 200 ||
		!strings.Contains(r.body, `arvados_keepstore_requests_total{code="200",method="PUT"} 1`) {
		t.Errorf("metrics: %d %s", r.status, r.body)
	}
	c = start(t, func(cfg *Config) { cfg.ManagementToken = "" })
	c.want(c.do("GET", "/_health/ping", mgmtToken, nil), 404, "disabled\n")
	if r := c.do("GET", "/metrics.json", "", nil); r.status != 200 || !json.Valid([]byte(r.body)) {
		t.Errorf("metrics.json: %d %s", r.status, r.body)
	}
}

func TestConfigErrors(t *testing.T) {
	dir := t.TempDir()
	good := Config{MaxKeepBlobBuffers: 1, Volumes: []VolumeConfig{{UUID: "v", Root: dir}}}
	for name, edit := range map[string]func(*Config){
		"BlobSigningKey":     func(c *Config) { c.BlobSigning = true },
		"MaxKeepBlobBuffers": func(c *Config) { c.MaxKeepBlobBuffers = 0 },
		"no volume":          func(c *Config) { c.Volumes = nil },
		"used twice":         func(c *Config) { c.Volumes = append(c.Volumes, c.Volumes[0]) },
		"not an absolute":    func(c *Config) { c.Volumes = []VolumeConfig{{UUID: "v", Root: "x"}} },
		"no such file":       func(c *Config) { c.Volumes = []VolumeConfig{{UUID: "v", Root: dir + "/x"}} },
		"BlobSigningTTL":     func(c *Config) { c.BlobSigningTTL = time.Millisecond },
	} {
		cfg := good
		cfg.Volumes = append([]VolumeConfig(nil), good.Volumes...)
		edit(&cfg)
		if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: error is %v", name, err)
		}
	}
	s, err := New(good)
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
}

func b64(s string) string { return base64.URLEncoding.EncodeToString([]byte(s)) }
