// Package api is the Arvados REST API of the embedded cluster: requests in,
// records of the store out, with the status codes, shapes and side effects of
// the real server (arvados-api.md and the captures).
//
// The real server is two programs, a front end and a back end behind it, whose
// answers differ in details; each resource here answers like the one that
// answers for it there.
package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/semaphore"

	"crunch-oci/keep"
	"crunch-oci/localcluster/internal/controller"
	"crunch-oci/localcluster/internal/store"
)

// Config says what a Server serves. All fields but Log must be set.
type Config struct {
	Store     *store.DB
	ClusterID string // five characters of [a-z0-9]

	SystemRootToken string // a v1 token with admin rights
	ManagementToken string // for health checks
	Signer          keep.Signer

	// Blocks reads blocks whose locators are signed for the system root token.
	Blocks keep.BlockReader

	// KeepAt returns where Keep is for a client that reached this server at
	// the given local address.
	KeepAt func(local net.Addr) (host string, port int)

	// Host is the address of this server, HOST:PORT.
	Host string
	// Gateways leads into running containers.
	Gateways    *controller.Controller
	ShellAccess ShellAccess

	Log *slog.Logger // nil: discard
}

// The values of the cluster configuration that real installations have by
// default (captures 001 and 002).
const (
	maxRequestSize       = 128 << 20
	maxItemsPerResponse  = 1000
	maxConcurrent        = 64
	maxQueued            = 256
	maxRetryAttempts     = 3
	maxDispatchAttempts  = 10
	defaultTrashLifetime = 336 * time.Hour
	requestTimeout       = 5 * time.Minute
)

// bodyBudget is the memory that large request bodies may take together: one of
// the largest there can be, and some that are smaller.
const bodyBudget = maxRequestSize + 64<<20

// answerBudget is the memory that large answers may take together while clients
// read them.
const answerBudget = 256 << 20

// Server answers API requests. It is an http.Handler.
type Server struct {
	cfg       Config
	log       *slog.Logger
	resources map[string]*resource
	discovery discoveryCache
	taken     *semaphore.Weighted // requests that have been read and wait, or are worked on
	running   *semaphore.Weighted // those being worked on
	bodies    *semaphore.Weighted // bytes of large bodies held
	answers   *semaphore.Weighted // bytes of large answers held
	started   time.Time
}

// New makes a Server. The store must have been set up with SetUp.
func New(cfg Config) *Server {
	s := &Server{
		cfg: cfg, log: cfg.Log, started: now(),
		running: semaphore.NewWeighted(maxConcurrent), taken: semaphore.NewWeighted(maxConcurrent + maxQueued),
		bodies: semaphore.NewWeighted(bodyBudget), answers: semaphore.NewWeighted(answerBudget),
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.resources = map[string]*resource{}
	for _, r := range []*resource{
		collectionResource(), containerResource(), containerRequestResource(), linkResource(), groupResource(),
		logResource(), userResource(), tokenResource(), keepServiceResource(), configResource(), vocabularyResource(),
	} {
		s.resources[r.name] = r
	}
	return s
}

// now is the present time as records hold it.
func now() time.Time { return time.Now().UTC().Truncate(time.Microsecond) }

// endpoint is one method of one path.
type endpoint struct {
	do     func(c *call, uuid string) (any, error)
	write  bool // needs the write transaction
	public bool // needs no token
}

// call is one request while it is worked on.
type call struct {
	s      *Server
	r      *http.Request
	id     string // request id
	method string // as overridden
	now    time.Time
	res    *resource
	params params
	tx     *store.Tx
	caller *caller // nil on public endpoints

	// reused is the container that a request was matched to while it was
	// committed, nil if it got one of its own.
	reused store.Record
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), requestTimeout)
	defer cancel()
	c := &call{s: s, r: r.WithContext(ctx), id: requestID(r.Header.Get("X-Request-Id")), method: r.Method, now: now()}
	// A client that neither sends nor reads is dropped in the end.
	conn := http.NewResponseController(w)
	deadline, _ := ctx.Deadline()
	_ = conn.SetReadDeadline(deadline)
	_ = conn.SetWriteDeadline(deadline)
	// Under these names everything is the service's, headers and options too.
	if uuid, port, link, ok := portHost(r.Host); ok {
		s.servePort(w, c, uuid, port, link)
		return
	}
	h := w.Header()
	h.Set("X-Request-Id", c.id)
	h.Set("Access-Control-Allow-Origin", "*")
	h.Set("Access-Control-Allow-Methods", "GET, HEAD, OPTIONS, PROPFIND, PUT, POST, PATCH, DELETE")
	h.Set("Access-Control-Allow-Headers", "Authorization, Content-Type, Range, X-Http-Method-Override")
	h.Set("Access-Control-Expose-Headers", "Content-Range")
	h.Set("Access-Control-Max-Age", "86486400")
	uuid, rest, isLog := logPath(r.URL.Path)
	// Elsewhere only browsers ask for options, before they send a token.
	if r.Method == http.MethodOptions && (!isLog || r.Header.Get("Access-Control-Request-Method") != "") {
		return
	}
	// Connections that stay open for hours take no place of requests.
	if uuid, what, ok := gatewayPath(r.URL.Path); ok {
		c.r = r.WithContext(context.WithoutCancel(ctx))
		s.serveGateway(w, c, uuid, what)
		return
	}
	// A defect must not look like a broken connection, which clients retry
	// without a trace of why.
	defer func() {
		if p := recover(); p == http.ErrAbortHandler { //nolint:errorlint // it is that very value
			panic(p) // on purpose: an answer that broke off must look like it
		} else if p != nil {
			s.log.Error("panic in request", "method", c.method, "path", r.URL.Path, "request_id", c.id, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			s.answer(w, c, nil, backError(http.StatusInternalServerError, "internal error"))
		}
	}()
	if isLog {
		release, err := s.take()
		if err != nil {
			s.answer(w, c, nil, err)
			return
		}
		defer release()
		s.serveLog(w, c, uuid, rest)
		return
	}
	v, err := s.serve(w, c)
	if text, ok := v.(*encoded); ok {
		defer s.answers.Release(text.held)
	}
	s.answer(w, c, v, err)
}

// take gives a request a place, unless too many have one.
func (s *Server) take() (release func(), err error) {
	if !s.taken.TryAcquire(1) {
		return nil, plainError(http.StatusServiceUnavailable, "too many requests")
	}
	return func() { s.taken.Release(1) }, nil
}

// encoded is an answer as text.
type encoded struct {
	body []byte
	held int64 // of answerBudget
}

// encodeAnswer makes the text of an answer. Like bodies, answers that are not
// small count against a budget: clients may read them slowly.
func (s *Server) encodeAnswer(v any) (*encoded, error) {
	body, err := encode(v)
	if err != nil {
		return nil, fmt.Errorf("encode answer: %w", err) // a value of ours that is no JSON: a defect
	}
	text := &encoded{body: body}
	if len(body) > freeBody {
		if !s.answers.TryAcquire(int64(cap(body))) {
			return nil, plainError(http.StatusServiceUnavailable, "too many large answers are being read")
		}
		text.held = int64(cap(body))
	}
	return text, nil
}

// serve finds the endpoint, reads the parameters, recognises the caller and
// runs the endpoint in a transaction.
func (s *Server) serve(w http.ResponseWriter, c *call) (any, error) {
	switch c.r.URL.Path {
	case "/discovery/v1/apis/arvados/v1/rest":
		if c.method != http.MethodGet && c.method != http.MethodHead {
			return nil, errPathNotFound()
		}
		return s.discoveryDocument(c), nil
	case "/_health/ping":
		return s.health(c)
	}
	path, ok := strings.CutPrefix(c.r.URL.Path, "/arvados/v1/")
	if !ok {
		return nil, errPathNotFound()
	}
	parts := strings.Split(path, "/")
	if c.res = s.resources[parts[0]]; c.res == nil {
		return nil, errPathNotFound()
	}
	// The token is looked at before the body where it can be, so that nobody
	// without one makes the server read much.
	token := headerToken(c.r, c.res.front)
	if token != "" {
		if err := s.cfg.Store.View(c.r.Context(), func(tx *store.Tx) error {
			_, err := s.authenticate(tx, token, c.now)
			return err
		}); err != nil && !errors.Is(err, errNotLoggedIn) {
			return nil, err
		} else if err != nil && !c.res.open() {
			return nil, err
		}
	}
	release, err := c.readParams(w)
	defer release()
	if err != nil {
		return nil, err
	}
	ep, uuid, err := c.route(parts[1:])
	if err != nil {
		return nil, err
	}
	if token == "" {
		token = c.params.token(c.res.front)
	}
	// Only now: a client that sends slowly keeps nobody else from being served.
	leave, err := s.take()
	if err != nil {
		return nil, err
	}
	defer leave()
	if err := s.running.Acquire(c.r.Context(), 1); err != nil {
		return nil, err
	}
	defer s.running.Release(1)
	var out any
	run := func(tx *store.Tx) error {
		c.tx = tx
		if !ep.public {
			if c.caller, err = s.authenticate(tx, token, c.now); err != nil {
				return err
			}
			if !c.caller.mayCall(c.method, c.r.URL.Path) {
				return backError(http.StatusForbidden, "Forbidden")
			}
		}
		out, err = ep.do(c, uuid)
		return err
	}
	if ep.write {
		err = s.cfg.Store.Update(c.r.Context(), run)
	} else {
		err = s.cfg.Store.View(c.r.Context(), run)
	}
	if err != nil {
		return nil, err
	}
	text, err := s.encodeAnswer(out)
	if err != nil {
		return nil, err
	}
	return text, nil
}

// route finds the endpoint for the rest of the path.
func (c *call) route(rest []string) (endpoint, string, error) {
	method := c.method
	switch method {
	case http.MethodPatch:
		method = http.MethodPut
	case http.MethodHead:
		method = http.MethodGet
	}
	var patterns []string // of this path, the most particular one first
	uuid := ""
	switch len(rest) {
	case 0:
		patterns = []string{""}
	case 1:
		patterns, uuid = []string{" " + rest[0], " {uuid}"}, rest[0]
	case 2:
		patterns, uuid = []string{" {uuid}/" + rest[1]}, rest[0]
	}
	known := false
	for _, p := range patterns {
		ep, ok := c.res.endpoints[method+p]
		if !ok {
			for k := range c.res.endpoints {
				_, kp, _ := strings.Cut(k, " ")
				known = known || kp == strings.TrimPrefix(p, " ")
			}
			continue
		}
		if strings.HasPrefix(p, " {uuid}") {
			if err := c.checkUUID(uuid); err != nil {
				return endpoint{}, "", err
			}
		}
		return ep, uuid, nil
	}
	if known && c.res.front {
		return endpoint{}, "", plainError(http.StatusMethodNotAllowed, "API endpoint not found")
	}
	return endpoint{}, "", errPathNotFound()
}

// checkUUID refuses what cannot be a record of this cluster.
func (c *call) checkUUID(uuid string) error {
	if c.res.byPDH && pdhPattern.MatchString(uuid) {
		return nil
	}
	if !uuidPattern.MatchString(uuid) {
		return errPathNotFound()
	}
	if cluster := uuid[:5]; cluster != c.s.cfg.ClusterID {
		return plainError(http.StatusNotFound, "no proxy available for cluster %s", cluster)
	}
	return nil
}

// answer writes the value, or the error in the shape of the resource.
func (s *Server) answer(w http.ResponseWriter, c *call, v any, err error) {
	status := http.StatusOK
	if err != nil {
		var e *apiError
		e, status = s.classify(c, err)
		v = e.body(c)
		if status == http.StatusServiceUnavailable {
			w.Header().Set("Retry-After", "1")
		}
	}
	var body []byte
	if text, ok := v.(*encoded); ok {
		body = text.body
	} else if body, err = encode(v); err != nil { // a value of ours that is no JSON: a defect
		s.log.Error("cannot encode answer", "path", c.r.URL.Path, "request_id", c.id, "error", err)
		status, body = http.StatusInternalServerError, []byte(`{"errors":["cannot encode answer"]}`)
	}
	s.log.Debug("api", "method", c.method, "path", c.r.URL.Path, "status", status, "request_id", c.id, "took", time.Since(c.now))
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	if c.method != http.MethodHead {
		_, _ = w.Write(body) // the client may be gone
	}
}

func (s *Server) health(c *call) (any, error) {
	token := headerToken(c.r, false)
	switch {
	case token == "":
		return nil, plainError(http.StatusUnauthorized, "authorization required")
	case !sameSecret(token, s.cfg.ManagementToken):
		return nil, plainError(http.StatusForbidden, "authorization error")
	}
	return map[string]json.RawMessage{"health": json.RawMessage(`"OK"`)}, nil
}
