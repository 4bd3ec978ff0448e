package webdav

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io"
	"io/fs"
	"mime"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"
)

const prefix = "/arvados/v1/container_requests/zzzzz-xvhdp-000000000000000/log/zzzzz-dz642-000000000000000"

var noon = time.Date(2026, 11, 23, 12, 0, 0, 5, time.UTC)

func tree(files map[string]string) fstest.MapFS {
	m := fstest.MapFS{}
	for name, content := range files {
		m[name] = &fstest.MapFile{Data: []byte(content), ModTime: noon}
	}
	return m
}

var sample = map[string]string{"stderr.txt": "hello world\n", "crunch-run.txt": "", "node.json": "{}\n", "sub/d.html": "<html></html>\n", "sp ace.txt": "x", "a&b<c>.dat": "1"}

// ask sends a request to a real server.
func ask(t testing.TB, tree fs.FS, method, path, body string, headers ...string) (*http.Response, string) {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { Serve(w, r, tree, prefix) }))
	defer server.Close()
	r, err := http.NewRequest(method, server.URL+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	w, err := server.Client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Body.Close()
	text, err := io.ReadAll(w.Body)
	if err != nil {
		t.Fatal(err)
	}
	return w, string(text)
}

func TestRangeVectors(t *testing.T) {
	data, err := os.ReadFile("../../testdata/spec/gateway.json")
	if err != nil {
		t.Fatal(err)
	}
	var v struct {
		Range []struct {
			Content      string   `json:"content"`
			Range        string   `json:"range"`
			Status       int      `json:"status"`
			ContentRange *string  `json:"content_range"`
			Body         string   `json:"body"`
			Multipart    []string `json:"multipart"`
		} `json:"webdav_range"`
	}
	if err := json.Unmarshal(data, &v); err != nil || len(v.Range) == 0 {
		t.Fatal(err, len(v.Range))
	}
	for _, c := range v.Range {
		t.Run(fmt.Sprintf("%d %s", len(c.Content), c.Range), func(t *testing.T) {
			w, body := ask(t, tree(map[string]string{"f.txt": c.Content}), "GET", prefix+"/f.txt", "", "Range", c.Range)
			if w.StatusCode != c.Status {
				t.Errorf("status %s", w.Status)
			}
			if got := w.Header["Content-Range"]; c.ContentRange == nil && got != nil || c.ContentRange != nil && !slices.Equal(got, []string{*c.ContentRange}) {
				t.Errorf("Content-Range %q", got)
			}
			if c.Multipart == nil {
				if body != c.Body {
					t.Errorf("body %q", body)
				}
				return
			}
			_, parameters, err := mime.ParseMediaType(w.Header.Get("Content-Type"))
			if err != nil {
				t.Fatal(err)
			}
			parts := multipart.NewReader(strings.NewReader(body), parameters["boundary"])
			for _, want := range c.Multipart {
				p, err := parts.NextPart()
				if err != nil {
					t.Fatal(err)
				}
				if got, _ := io.ReadAll(p); string(got) != want {
					t.Errorf("part %q", got)
				}
			}
		})
	}
}

// Only reading is possible, whatever the method is called.
func TestWriteMethods(t *testing.T) {
	before := tree(sample)
	for _, method := range []string{"PUT", "POST", "DELETE", "PATCH", "MKCOL", "COPY", "MOVE", "LOCK", "UNLOCK", "PROPPATCH", "TRACE", "REPORT", "SEARCH", "get", "MKACTIVITY"} {
		for _, path := range []string{"", "/", "/stderr.txt", "/new.txt", "/sub"} {
			w, body := ask(t, before, method, prefix+path, "x", "Destination", "/elsewhere", "Lock-Token", "<a>")
			if w.StatusCode != 405 || body != "method not allowed\n" || w.Header.Get("Allow") == "" {
				t.Errorf("%s %s: %s %q", method, path, w.Status, body)
			}
		}
	}
	if len(before) != len(sample) {
		t.Error("something has been written")
	}
}

func TestPrefixEndsAtSlash(t *testing.T) {
	for path, status := range map[string]int{
		prefix + "/stderr.txt":          200,
		prefix + "//stderr.txt":         200,
		prefix + "/sub/../stderr.txt":   200,
		prefix + "/../../../stderr.txt": 200, // of the log, not of anything above it
		prefix + "/%2e%2e/stderr.txt":   200,
		prefix + "/sp%20ace.txt":        200,
		prefix + "stderr.txt":           400,
		prefix + "x/stderr.txt":         400,
		prefix + "%2fstderr.txt":        200, // decoded before it is compared
		"/stderr.txt":                   400,
		"/":                             400,
		prefix + "/stderr.txt%00":       404,
		prefix + "/%ff%fe":              404,
		prefix + "/sub/d.html/x":        404,
	} {
		w, body := ask(t, tree(sample), "GET", path, "")
		if w.StatusCode != status {
			t.Errorf("%s: %s %q", path, w.Status, body)
		}
	}
}

func TestConditions(t *testing.T) {
	w, _ := ask(t, tree(sample), "GET", prefix+"/stderr.txt", "")
	etag, modified := w.Header.Get("Etag"), w.Header.Get("Last-Modified")
	if want := fmt.Sprintf(`"%x%x"`, noon.UnixNano(), 12); etag != want {
		t.Errorf("ETag %s, want %s", etag, want)
	}
	if modified != "Mon, 23 Nov 2026 12:00:00 GMT" {
		t.Errorf("Last-Modified %s", modified)
	}
	for _, c := range []struct {
		header, value string
		status        int
	}{
		{"If-None-Match", etag, 304},
		{"If-None-Match", `"other"`, 200},
		{"If-Match", etag, 200},
		{"If-Match", `"other"`, 412},
		{"If-Modified-Since", modified, 304},
		{"If-Unmodified-Since", "Mon, 23 Nov 2020 12:00:00 GMT", 412},
	} {
		if w, _ := ask(t, tree(sample), "GET", prefix+"/stderr.txt", "", c.header, c.value); w.StatusCode != c.status {
			t.Errorf("%s: %s: %s", c.header, c.value, w.Status)
		}
	}
	if w, body := ask(t, tree(sample), "GET", prefix+"/stderr.txt", "", "Range", "bytes=6-", "If-Range", etag); w.StatusCode != 206 || body != "world\n" {
		t.Errorf("If-Range: %s %q", w.Status, body)
	}
	if w, body := ask(t, tree(sample), "GET", prefix+"/stderr.txt", "", "Range", "bytes=6-", "If-Range", `"old"`); w.StatusCode != 200 || body != sample["stderr.txt"] {
		t.Errorf("If-Range: %s %q", w.Status, body)
	}
	grown := tree(map[string]string{"stderr.txt": sample["stderr.txt"] + "more"})
	if w, _ := ask(t, grown, "GET", prefix+"/stderr.txt", "", "If-None-Match", etag); w.StatusCode != 200 {
		t.Errorf("grown within the same instant: %s", w.Status)
	}
}

func TestHead(t *testing.T) {
	w, body := ask(t, tree(sample), "HEAD", prefix+"/stderr.txt", "")
	if w.StatusCode != 200 || w.ContentLength != 12 || body != "" || w.Header.Get("Etag") == "" {
		t.Errorf("%s %d %q", w.Status, w.ContentLength, body)
	}
	for path, status := range map[string]int{"/nosuch": 404, "/sub": 405, "": 405} {
		if w, _ := ask(t, tree(sample), "HEAD", prefix+path, ""); w.StatusCode != status {
			t.Errorf("%s: %s", path, w.Status)
		}
	}
}

// seen is a PROPFIND reply the way Workbench reads it: by literal names.
type seen struct {
	Responses []struct {
		Href string `xml:"href"`
		Prop struct {
			Name     string     `xml:"displayname"`
			Length   string     `xml:"getcontentlength"`
			Type     string     `xml:"getcontenttype"`
			Modified string     `xml:"getlastmodified"`
			ETag     string     `xml:"getetag"`
			Resource *resource  `xml:"resourcetype"`
			Lock     *plainText `xml:"supportedlock"`
		} `xml:"propstat>prop"`
		Status string `xml:"propstat>status"`
	} `xml:"response"`
}

type resource struct {
	Collection *plainText `xml:"collection"`
}

type plainText struct {
	Text string `xml:",innerxml"`
}

func propfind(t *testing.T, path, depth, body string) (string, seen) {
	t.Helper()
	var headers []string
	if depth != "" {
		headers = []string{"Depth", depth}
	}
	w, text := ask(t, unreadable{tree(sample)}, "PROPFIND", prefix+path, body, headers...)
	if w.StatusCode != 207 || w.Header.Get("Content-Type") != "text/xml; charset=utf-8" {
		t.Fatalf("%s %s %s", w.Status, w.Header.Get("Content-Type"), text)
	}
	var s seen
	if err := xml.Unmarshal([]byte(text), &s); err != nil {
		t.Fatalf("%v:\n%s", err, text)
	}
	return text, s
}

// unreadable is a tree whose files have a name, a size, and no content.
type unreadable struct{ fstest.MapFS }

func (u unreadable) Open(name string) (fs.File, error) {
	f, err := u.MapFS.Open(name)
	if d, ok := f.(fs.ReadDirFile); ok {
		return d, err
	}
	if err != nil {
		return nil, err
	}
	return sealed{f}, nil
}

type sealed struct{ fs.File }

func (sealed) Read([]byte) (int, error) { panic("PROPFIND reads contents") }

func (sealed) ReadAt([]byte, int64) (int, error) { panic("PROPFIND reads contents") }

func TestPropfind(t *testing.T) {
	for _, path := range []string{"", "/"} {
		text, s := propfind(t, path, "", "")
		for _, literal := range []string{`<D:multistatus xmlns:D="DAV:">`, "<D:response>", "<D:displayname>", "<D:getcontentlength>", "<D:resourcetype>", "<D:href>", "<D:getlastmodified>", "<D:getcontenttype>", "<D:getetag>", "<D:supportedlock>"} {
			if !strings.Contains(text, literal) {
				t.Errorf("no %s in %s", literal, text)
			}
		}
		got := map[string]string{}
		for i, r := range s.Responses {
			if i == 0 && r.Href != prefix+"/" {
				t.Errorf("the first is %s", r.Href)
			}
			if (r.Prop.Resource.Collection != nil) != strings.HasSuffix(r.Href, "/") {
				t.Errorf("%s: resourcetype %v", r.Href, r.Prop.Resource)
			}
			if r.Status != "HTTP/1.1 200 OK" || r.Prop.Modified == "" || r.Prop.Lock == nil {
				t.Errorf("%s: %+v", r.Href, r)
			}
			got[r.Href] = r.Prop.Name + " " + r.Prop.Length + " " + r.Prop.Type
		}
		want := map[string]string{
			prefix + "/":               "  ",
			prefix + "/stderr.txt":     "stderr.txt 12 text/plain; charset=utf-8",
			prefix + "/crunch-run.txt": "crunch-run.txt 0 text/plain; charset=utf-8",
			prefix + "/node.json":      "node.json 3 application/json",
			prefix + "/sp%20ace.txt":   "sp ace.txt 1 text/plain; charset=utf-8",
			prefix + "/a&b%3Cc%3E.dat": "a&b<c>.dat 1 application/octet-stream",
			prefix + "/sub/":           "sub  ",
			prefix + "/sub/d.html":     "d.html 14 text/html; charset=utf-8",
		}
		for href, w := range want {
			if got[href] != w {
				t.Errorf("%s: %q, want %q", href, got[href], w)
			}
			delete(got, href)
		}
		if len(got) > 0 {
			t.Errorf("and %v", got)
		}
	}
}

func TestPropfindDepth(t *testing.T) {
	count := func(path, depth, body string) int {
		_, s := propfind(t, path, depth, body)
		return len(s.Responses)
	}
	all := len(sample) + 2
	for depth, want := range map[string]int{"": all, "infinity": all, "1": all - 1, "0": 1} {
		if got := count("", depth, ""); got != want {
			t.Errorf("Depth %q: %d", depth, got)
		}
	}
	if got := count("/sub", "", ""); got != 2 {
		t.Errorf("of a directory: %d", got)
	}
	if got := count("/stderr.txt", "", ""); got != 1 {
		t.Errorf("of a file: %d", got)
	}
	if got := count("", "1", `<?xml version="1.0"?><propfind xmlns="DAV:"><prop><getcontentlength/></prop></propfind>`); got != all-1 {
		t.Errorf("of a property: %d", got)
	}
	if got := count("", "0", `<propfind xmlns="DAV:"><propname/></propfind>`); got != 1 {
		t.Errorf("of property names: %d", got)
	}
	for _, depth := range []string{"2", "-1", "Infinity", "x", "1,noroot"} {
		if w, body := ask(t, tree(sample), "PROPFIND", prefix, "", "Depth", depth); w.StatusCode != 400 || body != "Bad Request" {
			t.Errorf("Depth %q: %s %q", depth, w.Status, body)
		}
	}
	for name, body := range map[string]string{
		"not XML":    "{}",
		"cut off":    `<propfind xmlns="DAV:"><prop>`,
		"too long":   `<propfind xmlns="DAV:"><prop>` + strings.Repeat("<getetag/>", maxBody/10) + "</prop></propfind>",
		"entities":   `<!DOCTYPE a [<!ENTITY b "bbbbbbbb">]><propfind xmlns="DAV:"><prop>&b;</prop></propfind>`,
		"other root": `<lockinfo xmlns="DAV:"/>`,
	} {
		if w, body := ask(t, tree(sample), "PROPFIND", prefix, body); w.StatusCode != 400 {
			t.Errorf("%s: %s %q", name, w.Status, body)
		}
	}
}

// A reader of a real file that grows sees a prefix of what is there later, and
// one request sees one length.
func TestGrowingFile(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "stdout.txt")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var got bytes.Buffer
	var all strings.Builder
	for i := range 50 {
		w, _ := ask(t, os.DirFS(dir), "GET", prefix+"/stdout.txt", "", "Range", "bytes=-0")
		if want := fmt.Sprintf("bytes %d-%d/%d", all.Len(), all.Len()-1, all.Len()); w.StatusCode != 206 || w.Header.Get("Content-Range") != want {
			t.Fatalf("%s %s, want %s", w.Status, w.Header.Get("Content-Range"), want)
		}
		text := fmt.Sprintf("line %d\n", i)
		all.WriteString(text)
		if _, err := io.WriteString(f, text); err != nil {
			t.Fatal(err)
		}
		w, body := ask(t, os.DirFS(dir), "GET", prefix+"/stdout.txt", "", "Range", fmt.Sprintf("bytes=%d-", got.Len()))
		if w.StatusCode != 206 && w.StatusCode != 200 {
			t.Fatal(w.Status)
		}
		got.WriteString(body)
	}
	if got.String() != all.String() {
		t.Errorf("read\n%s", &got)
	}
	// It grows between the first byte of the reply and the last.
	grower := growing{os.DirFS(dir), func() { io.WriteString(f, "more") }}
	w, body := ask(t, grower, "GET", prefix+"/stdout.txt", "")
	if w.ContentLength != int64(all.Len()) || body != all.String() {
		t.Errorf("%d bytes announced, %q", w.ContentLength, body)
	}
}

type growing struct {
	fs.FS
	grow func()
}

func (g growing) Open(name string) (fs.File, error) {
	f, err := g.FS.Open(name)
	if err != nil {
		return nil, err
	}
	return &growingFile{f, g.grow}, nil
}

// growingFile can seek, but cannot be read at an offset.
type growingFile struct {
	fs.File
	grow func()
}

func (f *growingFile) Read(p []byte) (int, error) { f.grow(); return f.File.Read(p) }

func (f *growingFile) Seek(offset int64, whence int) (int64, error) {
	return f.File.(io.Seeker).Seek(offset, whence)
}
