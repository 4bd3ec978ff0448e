package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"crunch-oci/gateway/tunnel"
)

// Server is a running gateway.
type Server struct {
	config Config
	limits limits

	request, response string // what clients must send and get
	guests            guests
	http              *http.Server
	fromTunnel        *handedIn // nil: the controller connects to us
	record            *recorder
	forward           *forwarder

	shells, forwards, logReaders slots

	stop      context.CancelFunc
	servers   sync.WaitGroup // our own goroutines
	handlers  sync.WaitGroup
	closingMu sync.Mutex
	closing   bool
}

// Start opens the door and logs where. ctx bounds the start only. An error says
// what is wrong with the address or the listener; the container can run without
// a gateway.
func Start(ctx context.Context, c Config) (*Server, error) {
	return start(ctx, c, defaultLimits.fit(openFiles()))
}

func start(ctx context.Context, c Config, l limits) (*Server, error) {
	if c.UUID == "" || c.Secret == "" {
		return nil, errors.New("gateway: no container UUID or no GatewayAuthSecret")
	}
	if c.Logf == nil {
		c.Logf = func(string, ...any) {}
	}
	if c.Target == nil {
		c.Target = &Deferred{}
	}
	bind, err := parseAddress(c.Address)
	if err != nil {
		return nil, fmt.Errorf("GatewayAddress: %w", err)
	}
	certificate, err := newCertificate()
	if err != nil {
		return nil, err
	}
	listeners, address, err := bind.listen(ctx)
	if err != nil {
		return nil, fmt.Errorf("GatewayAddress: %w", err)
	}

	s := &Server{
		config: c, limits: l,
		guests:     guests{max: l.strangers},
		forward:    newForwarder(c.Target, l.halfClosed),
		shells:     make(slots, l.shells),
		forwards:   make(slots, l.forwards),
		logReaders: make(slots, l.logReaders),
		record:     newRecorder(address, c.OnAddress, c.Logf),
	}
	s.request, s.response = Authorization(c.Secret, certificate.Certificate[0])
	run, stop := context.WithCancel(context.Background())
	s.stop = stop
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	s.http = &http.Server{
		Handler:                      s,
		DisableGeneralOptionsHandler: true, // answers strangers
		Protocols:                    protocols,
		TLSConfig: &tls.Config{
			Certificates:           []tls.Certificate{certificate},
			MinVersion:             tls.VersionTLS12,
			NextProtos:             []string{"http/1.1"},
			SessionTicketsDisabled: true, // each connection shows the certificate
		},
		ReadHeaderTimeout: l.header,
		IdleTimeout:       l.idle,
		MaxHeaderBytes:    l.headerBytes,
		ErrorLog:          log.New(&serverLog{logf: c.Logf}, "", 0),
		BaseContext:       func(net.Listener) context.Context { return run },
		ConnContext:       rememberGuest,
	}
	if bind.tunnel {
		s.fromTunnel = newHandedIn()
		listeners = append(listeners, s.fromTunnel)
		t := tunnel.Config{
			Host: c.Tunnel.Host, Token: c.Tunnel.Token, TLS: c.Tunnel.TLS,
			UUID: c.UUID, Secret: c.Secret, Logf: c.Logf,
			Up: func(internalURL string) {
				if internalURL != "" {
					s.record.change("tunnel " + internalURL)
				}
			},
			Serve: s.fromTunnel.hand,
			Retry: l.tunnelRetry,
		}
		s.servers.Go(func() { tunnel.Run(run, t) })
	}
	s.servers.Go(func() { s.record.run(run) })
	for _, listener := range listeners {
		s.servers.Go(func() { s.serve(listener) })
	}
	c.Logf("gateway server listening at %s", address)
	return s, nil
}

func (s *Server) serve(l net.Listener) {
	_, known := l.(*handedIn)
	err := s.http.ServeTLS(guestListener{l, &s.guests, known}, "", "")
	if !errors.Is(err, http.ErrServerClosed) {
		s.config.Logf("gateway server stopped listening at %v: %v", l.Addr(), err)
	}
}

// Address is the present value for gateway_address.
func (s *Server) Address() string { return s.record.address() }

// AddressRecorded tells that the container is Running and that its record has
// addr as gateway_address. If the address has changed since it was asked for,
// and whenever it changes from now on, OnAddress is called until it succeeds.
func (s *Server) AddressRecorded(addr string) { s.record.recorded(addr) }

// Close ends the tunnel, the listener, and every connection, and waits until
// they have ended or ctx is done. It may be called again.
func (s *Server) Close(ctx context.Context) error {
	s.closingMu.Lock()
	s.closing = true
	s.closingMu.Unlock()

	s.stop()
	s.http.Close()
	if s.fromTunnel != nil {
		s.fromTunnel.Close()
	}
	s.guests.sendAway()

	ended := make(chan struct{})
	go func() {
		s.servers.Wait()
		s.handlers.Wait()
		close(ended)
	}()
	select {
	case <-ended:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("close the gateway: sessions have not ended: %w", ctx.Err())
	}
}

// enter counts a handler; false: the server is closing.
func (s *Server) enter() bool {
	s.closingMu.Lock()
	defer s.closingMu.Unlock()
	if s.closing {
		return false
	}
	s.handlers.Add(1)
	return true
}

type guestKey struct{}

// rememberGuest lets handlers find their connection.
func rememberGuest(ctx context.Context, c net.Conn) context.Context {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	g, _ := c.(*guest)
	return context.WithValue(ctx, guestKey{}, g)
}

// maxServerLog is how many lines an hour net/http may write.
const maxServerLog = 20

// serverLog passes on what net/http has to say, but for what strangers do:
// port scanners and health checks are no news.
type serverLog struct {
	logf func(string, ...any)

	mu    sync.Mutex
	since time.Time
	lines int
}

func (l *serverLog) Write(p []byte) (int, error) {
	line := strings.TrimSpace(string(p))
	rest, handshake := strings.CutPrefix(line, "http: TLS handshake error from ")
	switch {
	case !handshake:
		line = "gateway: " + line
	case strings.HasPrefix(rest, "tunnel connection "):
		line = strings.Replace(rest, ": ", ": TLS handshake: ", 1)
	default:
		return len(p), nil
	}
	l.mu.Lock()
	if time.Since(l.since) > time.Hour {
		l.since, l.lines = time.Now(), 0
	}
	l.lines++
	n := l.lines
	l.mu.Unlock()
	switch {
	case n < maxServerLog:
		l.logf("%s", line)
	case n == maxServerLog:
		l.logf("%s (more of this kind will not be logged for an hour)", line)
	}
	return len(p), nil
}
