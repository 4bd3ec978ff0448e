package api

import (
	"context"
	"errors"
	"io/fs"
	"mime"
	"net/http"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/webdav"

	"crunch-oci/keep"
	"crunch-oci/localcluster/internal/store"
)

// The logs endpoint: container_requests/{uuid}/log[/{container}[/{file}]], a
// read-only WebDAV view of the request's log collection (section 11.4; gateway.md
// section 8). The log of a running container comes from its gateway, if it has
// one; without one it is what has been saved so far.

const requestsPath = "/arvados/v1/container_requests/"

// logPath tells whether a path is one of the logs endpoint, and what it is
// about: the request, and what follows "/log".
func logPath(p string) (request, rest string, ok bool) {
	p, ok = strings.CutPrefix(p, requestsPath)
	if !ok {
		return "", "", false
	}
	request, rest, ok = strings.Cut(p, "/")
	rest, found := strings.CutPrefix(rest, "log")
	return request, rest, ok && found && (rest == "" || rest[0] == '/')
}

// logMethods are all that the endpoint offers.
var logMethods = []string{http.MethodGet, http.MethodHead, http.MethodOptions, "PROPFIND"}

// serveLog answers a request to the logs endpoint.
func (s *Server) serveLog(w http.ResponseWriter, c *call, uuid, rest string) {
	c.res = s.resources["container_requests"]
	var collection store.Record
	var container, live string
	token := headerToken(c.r, true)
	if token == "" {
		token = c.r.URL.Query().Get("api_token")
	}
	err := s.cfg.Store.View(c.r.Context(), func(tx *store.Tx) (err error) {
		c.tx = tx
		if c.caller, err = s.authenticate(tx, token, c.now); err != nil {
			return err
		}
		if !slices.Contains(logMethods, c.r.Method) {
			return plainError(http.StatusMethodNotAllowed, "API endpoint not found")
		}
		if !c.caller.mayCall(c.r.Method, c.r.URL.Path) {
			return backError(http.StatusForbidden, "Forbidden")
		}
		if err := c.checkUUID(uuid); err != nil {
			return err
		}
		request, err := c.find(c.res, uuid, false)
		if err != nil {
			return err
		}
		container = request.Str("container_uuid")
		if below(rest, container) {
			rec, err := tx.Get(store.Containers, container)
			if err == nil {
				live, _ = logTarget(rec)
			} else if !errors.Is(err, store.ErrNotFound) {
				return err
			}
		}
		if request.Str("log_uuid") == "" {
			return nil
		}
		collection, err = c.find(s.resources["collections"], request.Str("log_uuid"), false)
		var refused *apiError
		if errors.As(err, &refused) {
			err = nil // removed by a user: as if there was none
		}
		return err
	})
	if errors.Is(err, errNotLoggedIn) {
		w.Header().Set("Www-Authenticate", `Basic realm="collections"`)
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	if err != nil {
		s.answer(w, c, nil, err)
		return
	}
	if live != "" && s.liveLogOf(w, c, uuid, container, live) {
		return
	}
	text := ""
	if collection != nil {
		text = s.cfg.Signer.SignManifest(collection.Str("manifest_text"), s.cfg.SystemRootToken, c.now.Add(time.Hour))
	}
	tree, err := keep.NewCollection(text, s.cfg.Blocks)
	if err != nil {
		s.answer(w, c, nil, err)
		return
	}
	defer tree.Close()
	if at, ok := collection.Time("modified_at"); ok {
		tree.SetModTime(at)
	}
	dav := webdav.Handler{FileSystem: logTree{tree: tree}, LockSystem: webdav.NewMemLS(), Prefix: requestsPath + uuid + "/log"}
	// Below a container's name is its own log: in the collection that is a
	// directory with a longer name.
	if below(rest, container) {
		dav.Prefix += "/" + container
		dav.FileSystem = logTree{tree: tree, dir: "log for container " + container}
	}
	dav.ServeHTTP(w, c.r)
}

// below tells whether what follows "/log" leads to the container's own log.
func below(rest, container string) bool {
	first, _, _ := strings.Cut(strings.TrimPrefix(rest, "/"), "/")
	return first != "" && first == container
}

// logTree is a directory of a collection as WebDAV wants it.
type logTree struct {
	tree *keep.Collection
	dir  string
}

// name is the path in the collection. Nothing leads out of dir.
func (l logTree) name(p string) string { return path.Join(l.dir, path.Clean("/"+p)) }

// Stat implements webdav.FileSystem.
func (l logTree) Stat(_ context.Context, name string) (os.FileInfo, error) {
	fi, err := l.tree.Stat(strings.TrimPrefix(l.name(name), "/"))
	if err != nil {
		return nil, err
	}
	return logInfo{fi}, nil
}

// OpenFile implements webdav.FileSystem, for reading.
func (l logTree) OpenFile(ctx context.Context, name string, flag int, _ os.FileMode) (webdav.File, error) {
	if flag&(os.O_WRONLY|os.O_RDWR|os.O_CREATE|os.O_TRUNC|os.O_APPEND) != 0 {
		return nil, os.ErrPermission
	}
	name = strings.TrimPrefix(l.name(name), "/")
	fi, err := l.tree.Stat(name)
	if err != nil {
		return nil, err
	}
	if fi.IsDir() {
		return &logDir{l.tree, name, fi}, nil
	}
	f, err := l.tree.Open(name)
	if err != nil {
		return nil, err
	}
	return &logFile{f.WithContext(ctx)}, nil
}

// Mkdir, RemoveAll and Rename implement webdav.FileSystem: nothing can be
// written.
func (logTree) Mkdir(context.Context, string, os.FileMode) error { return os.ErrPermission }
func (logTree) RemoveAll(context.Context, string) error          { return os.ErrPermission }
func (logTree) Rename(context.Context, string, string) error     { return os.ErrPermission }

// logInfo tells the type of a file by its name, without reading it.
type logInfo struct{ keep.FileInfo }

// ContentType implements webdav.ContentTyper.
func (i logInfo) ContentType(context.Context) (string, error) {
	if t := mime.TypeByExtension(path.Ext(i.Name())); t != "" {
		return t, nil
	}
	return "application/octet-stream", nil
}

// logFile is an open file.
type logFile struct{ *keep.File }

func (f *logFile) Stat() (fs.FileInfo, error) {
	fi, err := f.File.Stat()
	return logInfo{fi}, err
}

func (f *logFile) Readdir(int) ([]fs.FileInfo, error) { return nil, fs.ErrInvalid }
func (f *logFile) Write([]byte) (int, error)          { return 0, os.ErrPermission }

// logDir is an open directory.
type logDir struct {
	tree *keep.Collection
	name string
	info keep.FileInfo
}

func (d *logDir) Close() error                   { return nil }
func (d *logDir) Read([]byte) (int, error)       { return 0, fs.ErrInvalid }
func (d *logDir) Seek(int64, int) (int64, error) { return 0, fs.ErrInvalid }
func (d *logDir) Write([]byte) (int, error)      { return 0, os.ErrPermission }
func (d *logDir) Stat() (fs.FileInfo, error)     { return logInfo{d.info}, nil }

// Readdir implements http.File. All entries come at once, whatever is asked for.
func (d *logDir) Readdir(int) ([]fs.FileInfo, error) {
	entries, err := d.tree.ReadDir(d.name)
	if err != nil {
		return nil, err
	}
	out := make([]fs.FileInfo, len(entries))
	for i, e := range entries {
		out[i] = logInfo{e}
	}
	return out, nil
}
