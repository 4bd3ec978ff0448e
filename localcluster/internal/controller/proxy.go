package controller

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// ServeLog answers a request for the live log of a container: whatever the
// gateway says is what the client gets. prefix is the part of the path above
// the log collection. An error was met before anything was answered.
func (c *Controller) ServeLog(w http.ResponseWriter, r *http.Request, uuid, address, prefix string) error {
	return c.proxy(w, r, uuid, address, func(h http.Header) {
		h.Set(headerSource, "/log")
		h.Set(headerPrefix, prefix)
	})
}

// TokenCookie is the cookie of a user's token.
const TokenCookie = "arvados_api_token"

// ServePort answers a request to a service in a container. The user's token is
// not for the service. An error was met before anything was answered.
func (c *Controller) ServePort(w http.ResponseWriter, r *http.Request, uuid, address string, port int) error {
	return c.proxy(w, r, uuid, address, func(h http.Header) {
		h.Set(headerPort, strconv.Itoa(port))
		cookies := parseCookies(h)
		h.Del("Cookie")
		for _, cookie := range cookies {
			if name, _, _ := strings.Cut(cookie, "="); strings.TrimSpace(name) != TokenCookie {
				h.Add("Cookie", cookie)
			}
		}
		if list := h.Values("Cookie"); len(list) > 1 {
			h.Set("Cookie", strings.Join(list, "; "))
		}
	})
}

// parseCookies are the cookies as they were sent: a service may use characters
// that are not allowed in them.
func parseCookies(h http.Header) (out []string) {
	for _, line := range h.Values("Cookie") {
		for part := range strings.SplitSeq(line, ";") {
			if part = strings.TrimSpace(part); part != "" {
				out = append(out, part)
			}
		}
	}
	return out
}

// proxy carries one request to the gateway, on a connection of its own, and the
// answer back as it comes, upgraded connections included. As in a real
// controller, headers that the client made up reach the gateway, except those
// that are set here: a gateway has to cope with them (gateway.md section 4).
func (c *Controller) proxy(w http.ResponseWriter, r *http.Request, uuid, address string, set func(http.Header)) error {
	end, err := c.begin(c.proxied)
	if err != nil {
		return err
	}
	defer end()
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	defer context.AfterFunc(c.ctx, cancel)()
	r = r.WithContext(ctx)
	g, err := c.connect(r.Context(), uuid, address)
	if err != nil {
		return err
	}
	transport := &http.Transport{
		DialTLSContext:    once(g),
		DisableKeepAlives: true, DisableCompression: true,
	}
	defer transport.CloseIdleConnections()
	defer g.Close()
	var failed error
	p := httputil.ReverseProxy{
		Transport:     transport,
		FlushInterval: -1, // at once: events, and files that grow
		ErrorLog:      log.New(discard{}, "", 0),
		Rewrite: func(pr *httputil.ProxyRequest) {
			pr.Out.URL.Scheme, pr.Out.URL.Host = "https", g.host
			pr.Out.URL.RawQuery = pr.In.URL.RawQuery // also where it is odd
			pr.Out.Host = pr.In.Host
			h := pr.Out.Header
			set(h)
			h.Set(headerUUID, uuid)
			h.Set(headerRequest, g.request)
			h["X-Forwarded-For"] = forwardedFor(pr.In)
		},
		ModifyResponse: func(resp *http.Response) error { return g.proven(resp.Header) },
		ErrorHandler:   func(_ http.ResponseWriter, _ *http.Request, err error) { failed = err },
	}
	p.ServeHTTP(w, r)
	return failed
}

// discard is a writer to nowhere: what goes wrong is told to the client.
type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }

// once dials by handing out a connection that there is already.
func once(g *conn) func(context.Context, string, string) (net.Conn, error) {
	used := false
	return func(context.Context, string, string) (net.Conn, error) {
		if used {
			return nil, errors.New("connection to the container gateway was lost")
		}
		used = true
		return g.Conn, nil
	}
}

// forwardedFor adds the client to those who passed the request on.
func forwardedFor(r *http.Request) []string {
	list := slices.Clone(r.Header["X-Forwarded-For"])
	if host, _, err := net.SplitHostPort(r.RemoteAddr); err == nil {
		list = append(list, host)
	}
	if len(list) == 0 {
		return nil
	}
	return []string{strings.Join(list, ", ")}
}

// ProxyError is what a client is told when a gateway cannot be used.
func ProxyError(status int, err error) *Error {
	var refused *Error
	if errors.As(err, &refused) {
		return refused
	}
	// Without the address that requests carry for form's sake.
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err
	}
	return &Error{status, fmt.Sprintf("proxy error: %v", err)}
}
