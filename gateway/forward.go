package gateway

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"
)

// hopByHop are the headers that speak of one connection only (RFC 9110 section
// 7.6.1, and those that have been in use before it).
var hopByHop = []string{
	"Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Proxy-Connection",
	"Te", "Trailer", "Transfer-Encoding", "Upgrade",
}

// forwarder passes requests on to services in the container, and their replies
// back, both as they come (gateway.md sections 7 and 14.22).
//
// It is not httputil.ReverseProxy because that one adds headers where ours must
// be replaced, loses them after an interim reply, loses what is buffered behind
// an upgrade, and cannot read and write at the same time.
type forwarder struct {
	transport  *http.Transport
	halfClosed time.Duration
	buffers    sync.Pool
}

func newForwarder(target Target, halfClosed time.Duration) *forwarder {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	return &forwarder{
		transport: &http.Transport{
			DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
				_, text, err := net.SplitHostPort(addr)
				if err != nil {
					return nil, err
				}
				port, err := strconv.Atoi(text)
				if err != nil {
					return nil, err
				}
				return target.Dial(ctx, port)
			},
			Protocols: protocols,
			// One connection each: nothing stays open, and nothing is sent
			// twice because a service has closed a connection it had kept.
			DisableKeepAlives:      true,
			DisableCompression:     true,
			ExpectContinueTimeout:  time.Second,
			MaxResponseHeaderBytes: 1 << 20,
		},
		halfClosed: halfClosed,
		buffers:    sync.Pool{New: func() any { return new([32 << 10]byte) }},
	}
}

// exchange is one request on its way.
type exchange struct {
	w    http.ResponseWriter
	rc   *http.ResponseController
	in   *http.Request
	body *requestBody

	upgrade string   // what the client wants to speak
	service net.Conn // what the request went out on

	mu   sync.Mutex // interim replies come from another goroutine
	over bool       // ... and none must come any more
}

func (f *forwarder) serve(w http.ResponseWriter, r *http.Request, port int) {
	x := &exchange{w: w, rc: http.NewResponseController(w), in: r}
	// Without this the request's body is read to the end before the reply
	// begins.
	x.rc.EnableFullDuplex()
	w.Header().Del("Connection")
	out := x.outgoing(port)
	if x.body != nil {
		defer x.endBody()
	}
	reply, err := f.transport.RoundTrip(out)
	x.mu.Lock()
	x.over = true
	x.mu.Unlock()
	switch {
	case r.Context().Err() != nil:
		if err == nil {
			reply.Body.Close()
		}
		panic(http.ErrAbortHandler) // nobody to answer
	case err != nil:
		x.fail(err)
	case reply.StatusCode == http.StatusSwitchingProtocols:
		f.serveUpgrade(x, reply)
	case reply.StatusCode < 200 || reply.StatusCode > 999:
		reply.Body.Close()
		x.fail(errors.New("the service's reply has no valid status code"))
	default:
		f.relay(x, reply)
	}
}

// outgoing is the request as the service gets it.
func (x *exchange) outgoing(port int) *http.Request {
	in := x.in
	header := in.Header.Clone()
	if hasToken(header["Connection"], "upgrade") {
		x.upgrade = header.Get("Upgrade")
	}
	trailers := hasToken(header["Te"], "trailers")
	dropHopByHop(header)
	for _, name := range []string{headerUUID, headerPort, headerAuth} {
		header.Del(name)
	}
	header.Add("Via", "HTTP/1.1 arvados-crunch-run")
	if trailers {
		header.Set("Te", "trailers")
	}
	if x.upgrade != "" {
		header.Set("Connection", "Upgrade")
		header.Set("Upgrade", x.upgrade)
	}
	if _, given := header["User-Agent"]; !given {
		header["User-Agent"] = []string{""} // or one is invented
	}

	target := *in.URL
	target.Scheme, target.Host, target.User = "http", net.JoinHostPort("container", strconv.Itoa(port)), nil
	target.Opaque = exactPath(in)
	out := (&http.Request{
		Method: in.Method, URL: &target, Host: in.Host, Header: header,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		ContentLength: in.ContentLength, TransferEncoding: in.TransferEncoding,
		// The server fills in the values when the body has been read.
		Trailer: in.Trailer,
	}).WithContext(httptrace.WithClientTrace(in.Context(), &httptrace.ClientTrace{
		GotConn:        func(info httptrace.GotConnInfo) { x.service = info.Conn },
		Got1xxResponse: x.interim,
	}))
	if in.ContentLength != 0 {
		x.body = &requestBody{from: in.Body}
		out.Body = x.body
	}
	return out
}

// exactPath is the path as the client has written it, or "" if its decoded form
// does as well: encoding it again may give another spelling.
func exactPath(r *http.Request) string {
	path, _, _ := strings.Cut(r.RequestURI, "?")
	if !strings.HasPrefix(path, "/") || strings.HasPrefix(path, "//") {
		return ""
	}
	if decoded, err := url.PathUnescape(path); err != nil || decoded != r.URL.Path {
		return ""
	}
	return path
}

func dropHopByHop(h http.Header) {
	for _, values := range h["Connection"] {
		for name := range strings.SplitSeq(values, ",") {
			h.Del(strings.TrimSpace(name))
		}
	}
	for _, name := range hopByHop {
		h.Del(name)
	}
}

// interim passes on a 1xx reply.
func (x *exchange) interim(code int, header textproto.MIMEHeader) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	// Our own server says 100 when the body is wanted.
	if x.over || code == http.StatusContinue || code < 100 {
		return nil
	}
	h := x.w.Header()
	ours := h.Clone()
	x.replace(http.Header(header).Clone())
	x.w.WriteHeader(code)
	clear(h)
	for name, values := range ours {
		h[name] = values
	}
	return nil
}

// replace puts the service's headers over our own, but for what proves who we
// are.
func (x *exchange) replace(header http.Header) {
	dropHopByHop(header)
	header.Del(headerResponse)
	h := x.w.Header()
	for name, values := range header {
		h[name] = values
	}
}

// fail answers for a service that does not.
func (x *exchange) fail(err error) {
	status, text := http.StatusBadGateway, err.Error()
	if errors.Is(err, ErrNoAddress) {
		status = http.StatusServiceUnavailable
		if !strings.HasPrefix(text, ErrNoAddress.Error()) {
			text = ErrNoAddress.Error() + ": " + text
		}
	}
	if x.body != nil && !x.body.ended() {
		x.w.Header().Set("Connection", "close")
	}
	http.Error(x.w, text, status)
}

// relay passes on a reply.
func (f *forwarder) relay(x *exchange, reply *http.Response) {
	defer reply.Body.Close()
	h := x.w.Header()
	x.replace(reply.Header)
	reply.Trailer.Del(headerResponse)
	for name := range reply.Trailer {
		h.Add("Trailer", name)
	}
	if x.body != nil && !x.body.ended() {
		// What is left of the request must not be taken for the next one.
		h.Set("Connection", "close")
	}
	x.w.WriteHeader(reply.StatusCode)
	if reply.ContentLength != 0 && x.in.Method != http.MethodHead {
		// The body may be long in coming. Nor is its type guessed then.
		x.rc.Flush()
	}

	buffer := f.buffers.Get().(*[32 << 10]byte)
	defer f.buffers.Put(buffer)
	for {
		n, err := reply.Body.Read(buffer[:])
		if n > 0 {
			if _, err := x.w.Write(buffer[:n]); err != nil {
				panic(http.ErrAbortHandler)
			}
			x.rc.Flush()
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			// The client must see that this is not all.
			panic(http.ErrAbortHandler)
		}
	}
	reply.Body.Close() // reads the trailer
	for name, values := range reply.Trailer {
		switch {
		case name == headerResponse:
		case hasToken(h["Trailer"], name):
			h[name] = values
		default:
			h[http.TrailerPrefix+name] = values
		}
	}
}

// endBody ends the reading of the request's body, which a service need not wait
// for.
func (x *exchange) endBody() {
	if !x.body.ended() {
		// Gives the client the time to see the reply and to stop.
		x.rc.SetReadDeadline(time.Now().Add(5 * time.Second))
	}
	x.body.abandon()
}

// requestBody is what the transport reads. It may do so even after it has
// returned the reply, but the server's reader must not be used after the
// handler.
type requestBody struct {
	from io.Reader

	mu        sync.Mutex
	eof       bool
	abandoned bool
}

func (b *requestBody) Read(p []byte) (int, error) {
	b.mu.Lock()
	abandoned := b.abandoned
	b.mu.Unlock()
	if abandoned {
		return 0, http.ErrBodyReadAfterClose
	}
	n, err := b.from.Read(p)
	if err == io.EOF {
		b.mu.Lock()
		b.eof = true
		b.mu.Unlock()
	}
	return n, err
}

// Close does nothing: the server closes its own.
func (b *requestBody) Close() error { return nil }

func (b *requestBody) ended() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.eof
}

func (b *requestBody) abandon() {
	b.mu.Lock()
	b.abandoned = true
	b.mu.Unlock()
}
