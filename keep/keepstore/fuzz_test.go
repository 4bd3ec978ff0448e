package keepstore

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// newFuzzed is a server without background work, and the directory around its
// volume's.
func newFuzzed(f *testing.F) (*Server, string) {
	outside := f.TempDir()
	root := filepath.Join(outside, "root")
	if err := os.Mkdir(root, 0o755); err != nil {
		f.Fatal(err)
	}
	s, err := New(Config{
		SystemRootToken: rootToken, BlobSigningKey: signingKey, BlobSigning: true, BlobTrash: true, BlobTrashLifetime: time.Hour,
		MaxKeepBlobBuffers: 4, NoSync: true, RequestTimeout: 20 * time.Second,
		RemoteClusters: map[string]RemoteCluster{"zbbbb": {Host: "127.0.0.1:1", Scheme: "http"}},
		Volumes:        []VolumeConfig{{UUID: "v", Root: root}},
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { s.Close() })
	return s, outside
}

// No request makes the server fail, write beside its blocks, or say what it
// should not.
func FuzzRequest(f *testing.F) {
	s, outside := newFuzzed(f)
	foo := md5hex([]byte("foo"))
	signed := s.sign(foo+"+3", userToken)
	for _, path := range []string{
		"/" + foo, "//" + signed, "/" + signed, "/" + foo + "+3+K@zzzzz", "/" + foo + "+-1", "/" + foo + "+99999999999999999999",
		"/" + foo + "+3+Rzaaaa-1f27a35dd9af37191d63ad8eb8985624451e7b79@5835c8bc", "/index", "/index/acb", "/mounts", "/mounts/v/blocks/ac", "/mounts/../blocks",
		"/untrash/" + foo, "/trash", "/pull", "/_health/ping", "/metrics", "/../../etc/passwd", "/" + foo[:31] + "/../x", "/%2e%2e/" + foo,
	} {
		for _, method := range []string{"GET", "HEAD", "PUT", "TOUCH", "DELETE", "POST", "OPTIONS"} {
			f.Add(method, path, "Bearer "+userToken, "default", []byte("foo"))
			f.Add(method, path, "Bearer "+rootToken, "local, time=2026-01-01T00:00:00Z", []byte(`[{"locator":"`+foo+`+3"}]`))
		}
	}
	f.Fuzz(func(t *testing.T, method, path, auth, header string, body []byte) {
		if strings.Contains(path, "+Rzbbbb-") {
			return // would wait for a cluster that is not there
		}
		req := httptest.NewRequest("GET", "/", bytes.NewReader(body))
		req.Method, req.URL = method, &url.URL{Path: path}
		if p, q, ok := strings.Cut(path, "?"); ok {
			req.URL = &url.URL{Path: p, RawQuery: q}
		}
		req.Header.Set("Authorization", auth)
		req.Header.Set("X-Keep-Storage-Classes", header)
		req.Header.Set("X-Keep-Signature", header)
		w := httptest.NewRecorder()
		s.ServeHTTP(w, req)
		if w.Code < 200 || w.Code > 599 {
			t.Errorf("status %d", w.Code)
		}
		text := w.Body.String()
		if w.Code >= 400 && strings.Count(text, "\n") > 1 {
			t.Errorf("%d %q", w.Code, text)
		}
		if !strings.Contains(auth+path, rootToken) && (strings.Contains(text, rootToken) || strings.Contains(text, signingKey)) {
			t.Errorf("%d %q", w.Code, text)
		}
		if method == http.MethodPut && w.Code == http.StatusOK && isHash(strings.TrimPrefix(path, "/")) && strings.TrimPrefix(path, "/")[:32] != md5hex(body) {
			t.Errorf("PUT %s confirmed %q", path, body)
		}
		entries, err := os.ReadDir(outside)
		if err != nil || len(entries) != 1 {
			t.Fatalf("files beside the volume: %v %v", entries, err)
		}
	})
}

// Lists for trashing and pulling blocks do nothing but that.
func FuzzLists(f *testing.F) {
	s, outside := newFuzzed(f)
	foo := []byte("foo")
	keep := md5hex([]byte("keep"))
	for _, text := range []string{
		`[]`, `null`, `{`, `[{"locator":"` + md5hex(foo) + `+3","block_mtime":1,"mount_uuid":"v"}]`,
		`[{"locator":"../../x","servers":["http://127.0.0.1:1","file:///etc/passwd","::"],"mount_uuid":"v"}]`,
		`[{"locator":"` + md5hex(foo) + `+99999999999","servers":[null]}]`, `[{"locator":null,"block_mtime":1e400}]`,
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		if err := dir(s.mounts[0]).write(t.Context(), keep, []byte("keep")); err != nil {
			t.Fatal(err)
		}
		for _, path := range []string{"/trash", "/pull"} {
			req := httptest.NewRequest("PUT", path, bytes.NewReader(text))
			req.Header.Set("Authorization", "Bearer "+rootToken)
			w := httptest.NewRecorder()
			s.ServeHTTP(w, req)
			if w.Code != 200 && w.Code != 400 && w.Code != 500 {
				t.Errorf("%s: %d %s", path, w.Code, w.Body)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel() // nobody is asked for blocks
		for item, ok := s.trash.next(); ok; item, ok = s.trash.next() {
			s.trashOne(t.Context(), item)
		}
		for item, ok := s.pull.next(); ok; item, ok = s.pull.next() {
			s.pullOne(ctx, item)
		}
		var found []string
		_ = filepath.WalkDir(outside, func(path string, d fs.DirEntry, err error) error {
			if err == nil && !d.IsDir() {
				found = append(found, path)
			}
			return err
		})
		if len(found) != 1 || filepath.Base(found[0]) != keep {
			t.Error(fmt.Sprint(found))
		}
	})
}
