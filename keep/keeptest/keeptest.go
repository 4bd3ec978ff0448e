// Package keeptest is a keepstore for tests: it speaks the protocol of a real
// one over HTTP, with blocks in memory, and fails on demand.
//
// It checks what a real one checks (hashes, signatures, sizes) and answers with
// the same texts and headers. It is not the block server of this project, which
// stores durably and is package keep/keepstore.
package keeptest

import (
	"crypto/md5"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"crunch-oci/keep"
)

// Token is a token to use with a Server. Any other does as well.
const Token = "v2/zzzzz-gj3su-keeptest0000000/keeptestsecretkeeptestsecretkeeptestsecretkeeptest"

// Server is a keepstore. Set the exported fields before it serves.
type Server struct {
	// Signer signs replies and checks signatures. Without a key nothing is
	// signed or checked.
	Signer keep.Signer
	// Classes are the storage classes offered; none means "default".
	Classes []string
	// Replication is what one stored copy counts; 0 means 1.
	Replication int

	mu       sync.Mutex
	blocks   map[string][]byte
	remote   map[string][]byte
	requests []Request
	faults   []*fault
}

// Request is one that the server has received.
type Request struct {
	Method string
	Path   string
	Header http.Header
	// Length is the Content-Length, -1 if it was not given.
	Length int64
}

// Fault answers a request in place of the server. It returns false to let the
// server answer after all.
type Fault func(s *Server, w http.ResponseWriter, r *http.Request) bool

type fault struct {
	left int // -1: for ever
	fn   Fault
}

// Start serves s until the test ends and returns it as a disk service.
func (s *Server) Start(tb testing.TB) keep.Service {
	tb.Helper()
	srv := httptest.NewServer(s)
	tb.Cleanup(func() {
		// A hanging reply would keep Close from returning.
		srv.CloseClientConnections()
		srv.Close()
	})
	return keep.Service{
		UUID: "zzzzz-bi6l4-" + suffix(srv.URL),
		URL:  srv.URL,
		Type: "disk",
	}
}

func suffix(url string) string {
	sum := md5.Sum([]byte(url))
	return hex.EncodeToString(sum[:])[:15]
}

// NewClient returns a client of the given services that retries without delay.
// edit, if not nil, may change its configuration. It is closed with the test.
func NewClient(tb testing.TB, edit func(*keep.ClientConfig), services ...keep.Service) *keep.Client {
	tb.Helper()
	cfg := keep.ClientConfig{
		Services:           keep.FixedServices(services),
		Token:              Token,
		DefaultReplication: 1,
		RetryDelay:         func(int) time.Duration { return 0 },
	}
	if edit != nil {
		edit(&cfg)
	}
	c, err := keep.NewClient(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { c.Close() })
	return c
}

// Put stores a block and returns its locator, signed for Token if the server
// signs.
func (s *Server) Put(data []byte) keep.Locator {
	hash := hashOf(data)
	s.mu.Lock()
	s.store(hash, data)
	s.mu.Unlock()
	return s.locator(hash, len(data), Token)
}

// PutRemote makes a block available that another cluster holds.
func (s *Server) PutRemote(data []byte) keep.Locator {
	hash := hashOf(data)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.remote == nil {
		s.remote = make(map[string][]byte)
	}
	s.remote[hash] = data
	return mustParse(fmt.Sprintf("%s+%d+Rzbbbb-%040d@ffffffff", hash, len(data), 0))
}

// Block returns a stored block, or nil.
func (s *Server) Block(hash string) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.blocks[hash]
}

// Len returns the number of stored blocks.
func (s *Server) Len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.blocks)
}

// Delete forgets a block.
func (s *Server) Delete(hash string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.blocks, hash)
}

// Requests returns all requests received so far.
func (s *Server) Requests() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Request(nil), s.requests...)
}

// Inject lets f answer the next n requests, all if n is negative. Faults
// injected earlier come first.
func (s *Server) Inject(n int, f Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = append(s.faults, &fault{n, f})
}

// Recover removes all faults.
func (s *Server) Recover() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = nil
}

// Status is a Fault that answers with an HTTP status and a line of text.
func Status(code int, text string) Fault {
	return func(_ *Server, w http.ResponseWriter, _ *http.Request) bool {
		http.Error(w, text, code)
		return true
	}
}

// Reset is a Fault that drops the connection without an answer.
func Reset(*Server, http.ResponseWriter, *http.Request) bool { panic(http.ErrAbortHandler) }

// Hang is a Fault that answers nothing until the client goes away.
func Hang(_ *Server, _ http.ResponseWriter, r *http.Request) bool {
	io.Copy(io.Discard, r.Body)
	<-r.Context().Done()
	return true
}

// Corrupt is a Fault that sends a block with its first byte changed.
func Corrupt(s *Server, w http.ResponseWriter, r *http.Request) bool {
	data := s.Block(hashInPath(r))
	if r.Method != http.MethodGet || len(data) == 0 {
		return false
	}
	data = append([]byte{data[0] ^ 1}, data[1:]...)
	w.Header().Set("Content-Length", strconv.Itoa(len(data)))
	w.Write(data)
	return true
}

// Truncate is a Fault that breaks off half way through a block, as keepstore
// does when it finds a stored block damaged.
func Truncate(s *Server, w http.ResponseWriter, r *http.Request) bool {
	data := s.Block(hashInPath(r))
	if r.Method != http.MethodGet || len(data) == 0 {
		return false
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(data)))
	w.Write(data[:len(data)/2])
	if f, ok := w.(http.Flusher); ok {
		f.Flush()
	}
	panic(http.ErrAbortHandler)
}

func hashInPath(r *http.Request) string {
	hash, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "+")
	return hash
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.requests = append(s.requests, Request{r.Method, r.URL.Path, r.Header.Clone(), r.ContentLength})
	var fn Fault
	if len(s.faults) > 0 {
		f := s.faults[0]
		fn = f.fn
		if f.left--; f.left == 0 {
			s.faults = s.faults[1:]
		}
	}
	s.mu.Unlock()
	if fn != nil && fn(s, w, r) {
		return
	}
	id := r.Header.Get("X-Request-Id")
	if id == "" {
		id = "req-00000000000000000000"
	}
	w.Header().Set("X-Request-Id", id)
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		s.get(w, r)
	case http.MethodPut:
		s.put(w, r)
	default:
		http.Error(w, "Bad Request", http.StatusBadRequest)
	}
}

func (s *Server) get(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Vary", "X-Keep-Signature")
	p, err := keep.ParsePathLocator(strings.TrimLeft(r.URL.Path, "/"))
	switch {
	case err == keep.ErrNoSuchPath:
		http.Error(w, "Bad Request", http.StatusBadRequest)
		return
	case err != nil:
		http.Error(w, "invalid locator", http.StatusBadRequest)
		return
	}
	token := tokenOf(r)
	if token == "" {
		http.Error(w, "no token provided in Authorization header", http.StatusUnauthorized)
		return
	}
	if p.Remote && !p.Signed {
		s.getRemote(w, r, p, token)
		return
	}
	if s.Signer.Key != "" {
		switch s.Signer.VerifySignature(p.Text, token, time.Now()) {
		case nil:
		case keep.ErrSignatureExpired:
			http.Error(w, "expired signature", http.StatusUnauthorized)
			return
		default:
			http.Error(w, "invalid signature", http.StatusBadRequest)
			return
		}
	}
	if r.Method == http.MethodGet && p.Size == 0 && p.Hash != keep.EmptyLocator.Hash() {
		http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
		return
	}
	data := s.Block(p.Hash)
	if data == nil && p.Hash != keep.EmptyLocator.Hash() {
		http.Error(w, "file does not exist", http.StatusNotFound)
		return
	}
	if r.Method == http.MethodGet && p.Size != int64(len(data)) {
		// A real one has promised SIZE by the time it notices.
		w.Header().Set("Content-Length", strconv.FormatInt(p.Size, 10))
		panic(http.ErrAbortHandler)
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(data)))
	if r.Method == http.MethodGet {
		w.Write(data)
	}
}

func (s *Server) getRemote(w http.ResponseWriter, r *http.Request, p keep.PathLocator, token string) {
	s.mu.Lock()
	data, ok := s.remote[p.Hash]
	local, _, _ := strings.Cut(r.Header.Get("X-Keep-Signature"), ",")
	if ok && local == "local" {
		s.store(p.Hash, data)
	}
	s.mu.Unlock()
	if !ok {
		http.Error(w, "remote cluster not configured", http.StatusBadRequest)
		return
	}
	if local == "local" {
		w.Header().Set("X-Keep-Locator", s.locator(p.Hash, len(data), token).String())
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(data)))
	if r.Method == http.MethodGet {
		w.Write(data)
	}
}

func (s *Server) put(w http.ResponseWriter, r *http.Request) {
	p, err := keep.ParsePathLocator(strings.TrimPrefix(r.URL.Path, "/"))
	if err != nil {
		http.Error(w, "Bad Request", http.StatusBadRequest)
		return
	}
	if r.ContentLength > keep.MaxBlockSize {
		http.Error(w, http.StatusText(http.StatusRequestEntityTooLarge), http.StatusRequestEntityTooLarge)
		return
	}
	data, err := readBody(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	if hash := hashOf(data); hash != p.Hash {
		http.Error(w, fmt.Sprintf("content hash %s did not match specified locator %s", hash, p.Hash), http.StatusBadRequest)
		return
	}
	offered := s.Classes
	if len(offered) == 0 {
		offered = []string{"default"}
	}
	if wanted := r.Header.Get("X-Keep-Storage-Classes"); wanted != "" && !overlap(wanted, offered) {
		http.Error(w, "insufficient storage", http.StatusInsufficientStorage)
		return
	}
	s.mu.Lock()
	s.store(p.Hash, data)
	s.mu.Unlock()
	copies := max(s.Replication, 1)
	confirmed := make([]string, len(offered))
	for i, class := range offered {
		confirmed[i] = fmt.Sprintf("%s=%d", class, copies)
	}
	w.Header().Set("X-Keep-Replicas-Stored", strconv.Itoa(copies))
	w.Header().Set("X-Keep-Storage-Classes-Confirmed", strings.Join(confirmed, ", "))
	fmt.Fprintln(w, s.locator(p.Hash, len(data), tokenOf(r)))
}

func readBody(r *http.Request) ([]byte, error) {
	if r.ContentLength < 0 {
		return io.ReadAll(io.LimitReader(r.Body, keep.MaxBlockSize+1))
	}
	data := make([]byte, r.ContentLength)
	_, err := io.ReadFull(r.Body, data)
	return data, err
}

func overlap(wanted string, offered []string) bool {
	for _, w := range strings.Split(wanted, ",") {
		for _, o := range offered {
			if strings.TrimSpace(w) == o {
				return true
			}
		}
	}
	return false
}

// store keeps data, which nobody changes any more. The caller holds the lock.
func (s *Server) store(hash string, data []byte) {
	if s.blocks == nil {
		s.blocks = make(map[string][]byte)
	}
	s.blocks[hash] = data
}

func (s *Server) locator(hash string, size int, token string) keep.Locator {
	expiry := time.Now().Add(s.Signer.TTL)
	return mustParse(s.Signer.SignLocator(fmt.Sprintf("%s+%d", hash, size), token, expiry))
}

func mustParse(s string) keep.Locator {
	loc, err := keep.ParseLocator(s)
	if err != nil {
		panic(err)
	}
	return loc
}

func tokenOf(r *http.Request) string {
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if scheme != "Bearer" && scheme != "OAuth2" {
		return ""
	}
	return strings.TrimSpace(token)
}

func hashOf(data []byte) string {
	sum := md5.Sum(data)
	return hex.EncodeToString(sum[:])
}
