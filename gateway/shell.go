package gateway

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
)

// serveSSH turns the connection into one that speaks SSH (gateway.md section
// 5.1).
func (s *Server) serveSSH(w http.ResponseWriter, r *http.Request) {
	if forwarded(r) {
		http.Error(w, "a shell is asked for by the controller itself", http.StatusBadRequest)
		return
	}
	options, err := s.shellOptions(w, r)
	switch {
	case err != nil:
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	case s.config.SSH == nil:
		http.Error(w, "this container has no shell access", http.StatusServiceUnavailable)
		return
	case !s.shells.take():
		http.Error(w, fmt.Sprintf("too many shells in this container (%d)", cap(s.shells)), http.StatusServiceUnavailable)
		return
	}
	defer s.shells.free()

	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, fmt.Sprintf("connection upgrade failed: %v", err), http.StatusInternalServerError)
		return
	}
	defer conn.Close()
	// The controller compares these two as whole values.
	w.Header().Set("Connection", "upgrade")
	w.Header().Set("Upgrade", "ssh")
	if err := writeSwitching(conn, w.Header()); err != nil {
		return // gone, as the probe of every client is
	}
	s.config.SSH.ServeConn(r.Context(), withBuffered(conn, buffered.Reader), options)
}

// forwarded tells whether the request bears both marks of one that a reverse
// proxy has passed on for somebody else: the controller writes its own requests
// for shells without either. Otherwise a client of a published port who talks
// the controller's proxy into dropping the port (as a hop-by-hop header, say)
// would be root.
func forwarded(r *http.Request) bool {
	return hasToken(r.Header["Connection"], "upgrade") && r.Header.Get("X-Forwarded-For") != ""
}

// shellOptions are the form values of the body or of the query, or else the
// headers that old controllers sent.
func (s *Server) shellOptions(w http.ResponseWriter, r *http.Request) (SSHOptions, error) {
	form := r.URL.Query()
	if isForm(r) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, s.limits.formBytes))
		if err != nil {
			return SSHOptions{}, fmt.Errorf("the form could not be read: %w", err)
		}
		values, err := url.ParseQuery(string(body))
		if err != nil {
			return SSHOptions{}, fmt.Errorf("the form could not be understood: %w", err)
		}
		for name, v := range values {
			form[name] = v
		}
	}
	value := func(name, header string) string {
		if form.Has(name) {
			return form.Get(name)
		}
		return r.Header.Get(header)
	}
	o := SSHOptions{DetachKeys: value("detach_keys", headerDetach), LoginUser: value("login_username", headerLogin)}
	if o.LoginUser == "" {
		o.LoginUser = "root"
	}
	return o, nil
}

// writeSwitching writes a 101 reply and nothing that is not in h.
func writeSwitching(w io.Writer, h http.Header) error {
	var b strings.Builder
	b.WriteString("HTTP/1.1 101 Switching Protocols\r\n")
	if err := h.Write(&b); err != nil {
		return err
	}
	b.WriteString("\r\n")
	_, err := io.WriteString(w, b.String())
	return err
}

// hasToken tells whether the list headers contain token.
func hasToken(values []string, token string) bool {
	for _, v := range values {
		for t := range strings.SplitSeq(v, ",") {
			if strings.EqualFold(strings.TrimSpace(t), token) {
				return true
			}
		}
	}
	return false
}

// withBuffered puts what r has already read from c in front of it.
func withBuffered(c net.Conn, r *bufio.Reader) net.Conn {
	n := r.Buffered()
	if n == 0 {
		return c
	}
	first, _ := r.Peek(n)
	return &bufferedConn{Conn: c, first: first}
}

type bufferedConn struct {
	net.Conn
	first []byte
}

func (c *bufferedConn) Read(p []byte) (int, error) {
	if len(c.first) == 0 {
		return c.Conn.Read(p)
	}
	n := copy(p, c.first)
	c.first = c.first[n:]
	return n, nil
}

// CloseWrite tells the other side that there is no more, if it can be told.
func (c *bufferedConn) CloseWrite() error { return closeWrite(c.Conn) }

// closeWrite ends c's direction to the other side; what cannot be half closed is
// closed.
func closeWrite(c io.Closer) error {
	if h, ok := c.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return c.Close()
}
