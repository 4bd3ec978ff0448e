package webdav

import (
	"io/fs"
	"net/http"
	"net/url"
	"path"
	"strings"

	dav "golang.org/x/net/webdav"
)

// maxBody bounds the body of a PROPFIND, in bytes.
const maxBody = 64 << 10

// Serve answers a request for the tree, whose root has the URL path prefix
// (gateway.md section 8). A nil tree does not exist.
func Serve(w http.ResponseWriter, r *http.Request, tree fs.FS, prefix string) {
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, "PROPFIND":
	default:
		w.Header().Set("Allow", "GET, HEAD, OPTIONS, PROPFIND")
		http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
		return
	}
	prefix = strings.TrimRight(prefix, "/")
	rest, ok := strings.CutPrefix(r.URL.Path, prefix)
	if !ok || rest != "" && rest[0] != '/' {
		http.Error(w, "X-Webdav-Prefix header is not a prefix of the requested path", http.StatusBadRequest)
		return
	}
	if tree == nil {
		http.Error(w, "Not found", http.StatusNotFound)
		return
	}
	name := path.Clean("/" + rest)

	in := new(http.Request)
	*in = *r
	in.URL = &url.URL{Path: prefix + name}
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		w.Header().Set("Content-Type", contentType(name))
	}
	in.Body = http.MaxBytesReader(w, r.Body, maxBody)
	h := dav.Handler{Prefix: prefix, FileSystem: readOnly{tree}, LockSystem: noLocks{}}
	h.ServeHTTP(&plainErrors{ResponseWriter: w}, in)
}

// plainErrors gives error replies, whose text is the bare reason phrase, the
// type of what they are instead of that of what was asked for.
type plainErrors struct {
	http.ResponseWriter
	wrote bool
}

func (w *plainErrors) WriteHeader(status int) {
	if status >= 400 && !w.wrote {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("X-Content-Type-Options", "nosniff")
	}
	w.wrote = true
	w.ResponseWriter.WriteHeader(status)
}

// Unwrap is for http.ResponseController.
func (w *plainErrors) Unwrap() http.ResponseWriter { return w.ResponseWriter }
