package webdav

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
)

// FuzzServe asks for whatever path with whatever headers: no answer is a server
// error, none comes from above the root, and nothing is written.
func FuzzServe(f *testing.F) {
	f.Add("GET", prefix+"/stderr.txt", prefix, "bytes=-0", "", "")
	f.Add("GET", prefix+"/sub/../../x", prefix, "bytes=0-1,3-4", `"x"`, "")
	f.Add("PROPFIND", prefix, prefix, "", "1", "")
	f.Add("PROPFIND", prefix+"/", "", "", "infinity", `<propfind xmlns="DAV:"><prop><getetag/></prop></propfind>`)
	f.Add("OPTIONS", "/", "/", "", "", "")
	f.Add("PUT", "/x", "", "", "", "")
	files := tree(sample)
	f.Fuzz(func(t *testing.T, method, path, prefix, ranges, depth, body string) {
		r := httptest.NewRequest("GET", "/", strings.NewReader(body))
		r.Method, r.URL = method, &url.URL{Path: path}
		r.Header.Set("Range", ranges)
		r.Header.Set("If-None-Match", depth)
		r.Header.Set("If", depth)
		if depth != "" {
			r.Header.Set("Depth", depth)
		}
		w := httptest.NewRecorder()
		Serve(w, r, files, prefix)
		if w.Code >= 500 {
			t.Errorf("%d %s", w.Code, w.Body)
		}
		switch method {
		case http.MethodGet, http.MethodHead, http.MethodOptions, "PROPFIND":
		default:
			if w.Code != 405 {
				t.Errorf("%s: %d", method, w.Code)
			}
		}
		if len(files) != len(sample) {
			t.Error("something was written")
		}
	})
}
