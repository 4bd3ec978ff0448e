// Package keepstore serves Keep blocks from directories and S3 buckets over HTTP: the server
// side of the Keep protocol, for an embedded cluster and for a block server
// that lives as long as one container.
//
// A block is named by the MD5 of its content. It is verified when it arrives
// and each time it leaves; a reply of 200 to a PUT means that content and name
// are on disk. A reader needs a locator signed for its token; nothing else is
// known about tokens here. The protocol is in spec page keep.md, section 6,
// the directory layout in section 11.
package keepstore

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"crunch-oci/keep"
)

// Server is an http.Handler. Close ends its background work.
type Server struct {
	cfg     Config
	log     *slog.Logger
	signer  keep.Signer
	mounts  []*mount
	buffers *buffers
	limit   limiter
	metrics metrics
	trash   *worklist[trashItem]
	pull    *worklist[pullItem]
	remotes map[string]*remote // by cluster id

	stop context.CancelFunc
	wg   sync.WaitGroup
}

// New checks the configuration and starts the server's background work: workers
// for lists and, if BlobTrash is set, emptying trash and removing what crashed
// writers left. (Both walk whole volumes. A block server that lives as long as
// one container has BlobTrash off and does not.)
func New(cfg Config) (*Server, error) {
	cfg.setDefaults()
	if err := cfg.check(); err != nil {
		return nil, err
	}
	s := &Server{
		cfg:    cfg,
		log:    cfg.Logger,
		signer: keep.Signer{Key: cfg.BlobSigningKey, TTL: cfg.BlobSigningTTL},
	}
	var err error
	if s.remotes, err = newRemotes(cfg.RemoteClusters); err != nil {
		return nil, err
	}
	s.buffers = newBuffers(cfg.MaxKeepBlobBuffers)
	for _, v := range cfg.Volumes {
		m, err := newMount(&cfg, v, s.buffers)
		if err != nil {
			s.closeVolumes()
			return nil, err
		}
		s.mounts = append(s.mounts, m)
	}
	s.limit = limiter{running: make(chan struct{}, cfg.MaxConcurrentRequests), maxQueued: int64(cfg.MaxQueuedRequests)}
	ctx, stop := context.WithCancel(context.Background())
	s.stop = stop
	if cfg.BlobTrash && cfg.BlobDeleteConcurrency > 0 {
		s.wg.Go(func() { s.tidy(ctx) })
	}
	s.trash = newWorklist(ctx, &s.wg, cfg.BlobTrashConcurrency, s.trashOne)
	s.pull = newWorklist(ctx, &s.wg, cfg.BlobReplicateConcurrency, s.pullOne)
	return s, nil
}

// Close ends background work and waits for it. Requests in progress are the
// business of the http.Server that brought them.
func (s *Server) Close() error {
	s.stop()
	s.wg.Wait()
	s.closeVolumes()
	return nil
}

func (s *Server) closeVolumes() {
	for _, m := range s.mounts {
		m.close()
	}
	for _, r := range s.remotes {
		r.http.CloseIdleConnections()
	}
	s.buffers.close()
}

// tidy empties trash now and then.
func (s *Server) tidy(ctx context.Context) {
	ticker := time.NewTicker(s.cfg.BlobTrashCheckInterval)
	defer ticker.Stop()
	for {
		for _, m := range s.mounts {
			if !m.allowTrash {
				continue
			}
			if err := m.emptyTrash(ctx); err != nil && ctx.Err() == nil {
				s.log.Error("empty trash", "mount", m.uuid, "error", err.Error())
			}
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

// answerGrace is the time for saying that a request took too long.
const answerGrace = 5 * time.Second

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/metrics", "/metrics.json":
		s.serveMetrics(w, r)
		return
	}
	id := r.Header.Get("X-Request-Id")
	if id == "" {
		id = newRequestID()
	}
	w.Header().Set("X-Request-Id", id)
	if r.URL.Path == "/_health/ping" {
		s.serveHealth(w, r)
		return
	}
	setCORS(w.Header())

	ctx, cancel := context.WithTimeout(r.Context(), s.cfg.RequestTimeout)
	defer cancel()
	// The context ends waiting, the deadlines end reading from and writing to
	// a client that does neither; the answer itself gets a moment more.
	conn := http.NewResponseController(w)
	deadline, _ := ctx.Deadline()
	_ = conn.SetReadDeadline(deadline)
	_ = conn.SetWriteDeadline(deadline.Add(answerGrace))

	rec := &recorder{ResponseWriter: w}
	start := time.Now()
	log := s.log.With("RequestID", id)
	log.Info("request", "remoteAddr", r.RemoteAddr, "reqMethod", r.Method, "reqPath", logPath(r.URL.Path), "reqBytes", r.ContentLength)
	err := s.admit(rec, r.WithContext(ctx))
	cut := err != nil && rec.status != 0
	if err != nil && !cut {
		sendError(rec, err)
	}
	if rec.status == 0 {
		rec.status = http.StatusOK
	}
	s.metrics.count(r.Method, rec.status, rec.bytes)
	fields := []any{"reqMethod", r.Method, "reqPath", logPath(r.URL.Path),
		"respStatusCode", rec.status, "respBytes", rec.bytes, "timeTotal", time.Since(start).Seconds()}
	if err != nil {
		fields = append(fields, "error", err.Error())
	}
	log.Info("response", fields...)
	if cut {
		// The reply had begun. Ending the connection is the only way left to
		// say that it is not complete.
		panic(http.ErrAbortHandler)
	}
}

// admit serves a request when its turn comes.
func (s *Server) admit(w http.ResponseWriter, r *http.Request) error {
	if err := s.limit.enter(r.Context()); err != nil {
		return err
	}
	defer s.limit.leave()
	return s.route(w, r)
}

// route is the table of spec keep.md section 6.
func (s *Server) route(w http.ResponseWriter, r *http.Request) error {
	path := strings.TrimPrefix(r.URL.Path, "/")
	read := r.Method == http.MethodGet || r.Method == http.MethodHead
	if read {
		if p, ok := strings.CutPrefix(path, "/"); ok && isHash(p) {
			path = p
		}
	}
	if r.Method == http.MethodOptions {
		return nil // the CORS headers are the answer
	}
	if isHash(path) {
		switch r.Method {
		case http.MethodGet, http.MethodHead:
			return s.serveBlock(w, r, path)
		case http.MethodPut:
			return s.putBlock(w, r, path)
		case "TOUCH":
			return s.touchBlock(r, path)
		case http.MethodDelete:
			return s.deleteBlock(r, path)
		}
		return errBadRequest
	}
	first, rest, _ := strings.Cut(path, "/")
	switch {
	case r.Method == http.MethodGet && first == "index":
		return s.serveIndex(w, r, s.mounts, rest)
	case r.Method == http.MethodGet && path == "mounts":
		return s.serveMounts(w, r)
	case r.Method == http.MethodGet && first == "mounts":
		return s.serveMountBlocks(w, r, rest)
	case r.Method == http.MethodPut && path == "trash":
		return s.putTrash(r)
	case r.Method == http.MethodPut && path == "pull":
		return s.putPull(r)
	case r.Method == http.MethodPut && first == "untrash" && isHash(rest):
		return s.untrashBlock(r, rest)
	}
	return errBadRequest
}

func sendError(w http.ResponseWriter, err error) {
	se := statusOf(err)
	if se == errBusy {
		w.WriteHeader(se.status)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Del("Content-Length")
	w.WriteHeader(se.status)
	fmt.Fprintln(w, oneLine(se.text))
}

// oneLine makes a text fit for the body of an error reply, and not too long.
func oneLine(s string) string {
	const most = 1000
	return strings.Join(strings.Fields(s[:min(len(s), most)]), " ")
}

// setCORS adds the headers that browsers ask for, as seen in captures.
func setCORS(h http.Header) {
	h.Set("Access-Control-Allow-Headers", "Authorization, Content-Length, Content-Type, X-Keep-Desired-Replicas, X-Keep-Signature, X-Keep-Storage-Classes")
	h.Set("Access-Control-Allow-Methods", "GET, HEAD, PUT, OPTIONS")
	h.Set("Access-Control-Allow-Origin", "*")
	h.Set("Access-Control-Expose-Headers", "X-Keep-Locator, X-Keep-Replicas-Stored, X-Keep-Storage-Classes-Confirmed")
	h.Set("Access-Control-Max-Age", "86486400")
}

// newRequestID returns "req-" and 20 base-36 characters.
func newRequestID() string {
	const digits = "0123456789abcdefghijklmnopqrstuvwxyz"
	b := []byte("req-")
	for range 20 {
		b = append(b, digits[rand.IntN(len(digits))])
	}
	return string(b)
}

// recorder remembers what was answered.
type recorder struct {
	http.ResponseWriter
	status int // 0: nothing was sent yet
	bytes  int64
}

// Unwrap is for http.ResponseController.
func (w *recorder) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *recorder) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *recorder) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	n, err := w.ResponseWriter.Write(p)
	w.bytes += int64(n)
	return n, err
}

// ReadFrom lets the kernel copy a file to the connection.
func (w *recorder) ReadFrom(src io.Reader) (int64, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	n, err := io.Copy(w.ResponseWriter, src)
	w.bytes += n
	return n, err
}

// limiter admits a number of requests and lets a number of others wait.
type limiter struct {
	running   chan struct{}
	queued    atomic.Int64
	maxQueued int64
}

func (l *limiter) enter(ctx context.Context) error {
	select {
	case l.running <- struct{}{}:
		return nil
	default:
	}
	if l.queued.Add(1) > l.maxQueued {
		l.queued.Add(-1)
		return errBusy
	}
	defer l.queued.Add(-1)
	select {
	case l.running <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (l *limiter) leave() { <-l.running }
