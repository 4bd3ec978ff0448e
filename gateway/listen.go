package gateway

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"syscall"
	"time"
)

// keepAlive finds peers that have vanished without a word: after about two and
// a half minutes.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 30 * time.Second, Interval: 30 * time.Second, Count: 4}

// binding is what GatewayAddress asks for.
type binding struct {
	host   string   // goes into the container's record as it is
	port   string   // number or service name; "0" is any
	binds  []string // host parts to listen on; "" is every interface
	tunnel bool     // nobody can connect to us
}

// parseAddress reads GatewayAddress (gateway.md section 2). The host is never
// resolved: it is the node's name as the controller sees it.
func parseAddress(address string) (binding, error) {
	if address == "" {
		address = ":0"
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return binding{}, err
	}
	b := binding{host: host, port: port, binds: []string{""}}
	switch ip := net.ParseIP(host); {
	case host == "":
		// The controller could do nothing with it. The literal 127.0.0.1 in the
		// record tells it to look for a tunnel.
		b.host, b.binds, b.tunnel = "127.0.0.1", []string{"127.0.0.1"}, true
	case host == "localhost":
		b.binds = []string{"127.0.0.1", "::1"}
	case ip.IsLoopback():
		b.binds = []string{host}
	}
	return b, nil
}

// listen opens the listeners of b, all with the same port, and returns the value
// for gateway_address.
func (b binding) listen(ctx context.Context) (listeners []net.Listener, address string, err error) {
	// A port that is free on 127.0.0.1 may be taken on ::1: then another one.
	for attempt := 0; ; attempt++ {
		listeners, err = b.try(ctx)
		if err == nil || b.port != "0" || attempt == 10 || !errors.Is(err, syscall.EADDRINUSE) {
			break
		}
	}
	if err != nil {
		return nil, "", err
	}
	port := listeners[0].Addr().(*net.TCPAddr).Port
	return listeners, net.JoinHostPort(b.host, strconv.Itoa(port)), nil
}

func (b binding) try(ctx context.Context) (listeners []net.Listener, err error) {
	config := net.ListenConfig{KeepAliveConfig: keepAlive}
	port := b.port
	for i, host := range b.binds {
		l, err := config.Listen(ctx, "tcp", net.JoinHostPort(host, port))
		if err != nil && i > 0 && !errors.Is(err, syscall.EADDRINUSE) {
			continue // a node without IPv6
		}
		if err != nil {
			for _, l := range listeners {
				l.Close()
			}
			return nil, err
		}
		listeners = append(listeners, l)
		port = strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
	}
	return listeners, nil
}

// handedIn is a listener whose connections are handed in by others.
type handedIn struct {
	conns  chan net.Conn
	closed context.Context
	close  context.CancelFunc
}

func newHandedIn() *handedIn {
	l := &handedIn{conns: make(chan net.Conn)}
	l.closed, l.close = context.WithCancel(context.Background())
	return l
}

// hand gives the listener a connection, or closes it if nobody will take it.
func (l *handedIn) hand(c net.Conn) {
	select {
	case l.conns <- c:
	case <-l.closed.Done():
		c.Close()
	}
}

func (l *handedIn) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed.Done():
		return nil, fmt.Errorf("accept from tunnel: %w", net.ErrClosed)
	}
}

func (l *handedIn) Close() error {
	l.close()
	return nil
}

func (l *handedIn) Addr() net.Addr { return tunnelAddr{} }

type tunnelAddr struct{}

func (tunnelAddr) Network() string { return "tunnel" }
func (tunnelAddr) String() string  { return "tunnel" }
