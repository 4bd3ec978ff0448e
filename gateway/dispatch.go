package gateway

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"crunch-oci/gateway/webdav"
)

// The headers of the protocol (gateway.md section 4).
const (
	headerUUID     = "X-Arvados-Container-Gateway-Uuid"
	headerAuth     = "X-Arvados-Authorization"
	headerResponse = "X-Arvados-Authorization-Response"
	headerPort     = "X-Arvados-Container-Target-Port"
	headerSource   = "X-Webdav-Source"
	headerPrefix   = "X-Webdav-Prefix"
	headerDetach   = "X-Arvados-Detach-Keys"    // from controllers before 2.5
	headerLogin    = "X-Arvados-Login-Username" // the same
)

var vary = strings.Join([]string{headerAuth, headerUUID, headerPort, headerPrefix, headerSource}, ", ")

// ServeHTTP lets the controller pass, and nobody else.
//
// What a client of a published port sends comes through the controller with most
// of its headers, so what is asked for is decided by the headers that the
// controller overwrites, in an order that leaves nothing to whom it does not
// (gateway.md section 4, "Required deviation").
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Vary", vary)
	if r.ContentLength != 0 {
		// A body that nobody wants is not waited for before the reply.
		w.Header().Set("Connection", "close")
	}
	if !s.enter() {
		http.Error(w, "the container's supervisor is ending", http.StatusServiceUnavailable)
		return
	}
	defer s.handlers.Done()
	r, ok := s.authenticate(w, r)
	if !ok {
		return
	}
	w.Header().Set(headerResponse, s.response)
	if g, _ := r.Context().Value(guestKey{}).(*guest); g != nil {
		g.trust()
	}

	port, source, err := selectors(r.Header)
	switch {
	case err != nil:
		http.Error(w, err.Error(), http.StatusBadRequest)
	case port != "" && source == "/log":
		// The controller has overwritten one of the two, a client has added the
		// other, and nobody knows which.
		http.Error(w, headerPort+" and "+headerSource+" exclude each other", http.StatusBadRequest)
	case port != "":
		s.servePort(w, r, port)
	case source == "/log":
		s.serveLogs(w, r)
	case source == "" && r.Method == http.MethodPost && r.URL.Path == "/ssh" && only(r.Header["Upgrade"], "ssh"):
		s.serveSSH(w, r)
	default:
		http.Error(w, "path not found", http.StatusNotFound)
	}
}

// authenticate tells whether the request is from the controller and meant for
// this container, and answers it if not. Strangers get little time for anything,
// and so does the controller for a body: who wants it longer must say so.
func (s *Server) authenticate(w http.ResponseWriter, r *http.Request) (*http.Request, bool) {
	rc := http.NewResponseController(w)
	deadline := time.Now().Add(s.limits.header)
	rc.SetReadDeadline(deadline)
	rc.SetWriteDeadline(deadline)
	for _, name := range []string{headerUUID, headerAuth} {
		if err := single(r.Header, name); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return r, false
		}
	}
	uuid := r.Header.Get(headerUUID)
	if uuid == "" {
		// Controllers before 2.5.
		var err error
		if r, uuid, err = s.formUUID(r); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return r, false
		}
	}
	if uuid != s.config.UUID {
		http.Error(w, fmt.Sprintf("misdirected request: meant for %q but received by crunch-run %q", shorten(uuid), s.config.UUID), http.StatusBadGateway)
		return r, false
	}
	if !AuthorizationEqual(r.Header.Get(headerAuth), s.request) {
		http.Error(w, "bad X-Arvados-Authorization header", http.StatusUnauthorized)
		return r, false
	}
	rc.SetWriteDeadline(time.Time{})
	if r.ContentLength == 0 {
		rc.SetReadDeadline(time.Time{})
	}
	return r, true
}

// formUUID is the form value uuid. The body, if it is one, can be read again
// from the request it returns.
func (s *Server) formUUID(r *http.Request) (*http.Request, string, error) {
	if !isForm(r) || r.ContentLength > s.limits.formBytes {
		return r, r.URL.Query().Get("uuid"), nil
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, s.limits.formBytes))
	if err != nil {
		return r, "", errors.New("the form could not be read")
	}
	again := *r
	again.Body = struct {
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader(body), r.Body), r.Body}
	if form, err := url.ParseQuery(string(body)); err == nil && form.Has("uuid") {
		return &again, form.Get("uuid"), nil
	}
	return &again, r.URL.Query().Get("uuid"), nil
}

func isForm(r *http.Request) bool {
	t, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	return err == nil && t == "application/x-www-form-urlencoded" && r.Method == http.MethodPost
}

// selectors are the values that say what is asked for.
func selectors(h http.Header) (port, source string, err error) {
	for _, name := range []string{headerPort, headerSource, headerPrefix} {
		if err := single(h, name); err != nil {
			return "", "", err
		}
	}
	return strings.TrimSpace(h.Get(headerPort)), strings.TrimSpace(h.Get(headerSource)), nil
}

// single refuses a header given twice: which of the two counts is what attacks
// on chains of servers are made of.
func single(h http.Header, name string) error {
	if len(h[name]) > 1 {
		return fmt.Errorf("more than one %s header", name)
	}
	return nil
}

func only(values []string, want string) bool { return len(values) == 1 && values[0] == want }

// shorten keeps a foreign text quotable.
func shorten(s string) string {
	if len(s) > 200 {
		return s[:200] + "..."
	}
	return s
}

// servePort forwards to a port of the container.
func (s *Server) servePort(w http.ResponseWriter, r *http.Request, port string) {
	number, err := parsePort(port)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if r.Method == http.MethodConnect {
		http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
		return
	}
	if !s.forwards.take() {
		http.Error(w, fmt.Sprintf("too many connections to this container (%d)", cap(s.forwards)), http.StatusServiceUnavailable)
		return
	}
	defer s.forwards.free()
	http.NewResponseController(w).SetReadDeadline(time.Time{})
	s.forward.serve(w, r, number)
}

// parsePort accepts decimal digits only.
func parsePort(text string) (int, error) {
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil || port == 0 || strings.ContainsFunc(text, func(c rune) bool { return c < '0' || c > '9' }) {
		return 0, fmt.Errorf("bad %s header: %q is not a port number", headerPort, shorten(text))
	}
	return int(port), nil
}

// serveLogs shows the live log collection.
func (s *Server) serveLogs(w http.ResponseWriter, r *http.Request) {
	if !s.logReaders.take() {
		http.Error(w, fmt.Sprintf("too many readers of this container's log (%d)", cap(s.logReaders)), http.StatusServiceUnavailable)
		return
	}
	defer s.logReaders.free()
	if r.Method == "PROPFIND" && r.ContentLength != 0 {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, s.limits.formBytes))
		if err != nil {
			http.Error(w, "the request could not be read", http.StatusBadRequest)
			return
		}
		http.NewResponseController(w).SetReadDeadline(time.Time{})
		w.Header().Del("Connection")
		again := *r
		again.Body = io.NopCloser(bytes.NewReader(body))
		r = &again
	}
	webdav.Serve(w, r, s.config.Logs, r.Header.Get(headerPrefix))
}
