package controller

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"
)

// handshakeTimeout bounds connecting to a gateway.
const handshakeTimeout = 30 * time.Second

// conn is a connection to a container's gateway.
type conn struct {
	*tls.Conn
	// host is what requests call the gateway.
	host string
	// request proves to the gateway that we know the secret, response proves it
	// to us. Both hold for this connection's certificate only.
	request, response string
}

// connect finds the way to the gateway of a container and opens a connection.
// address is the record's gateway_address.
func (c *Controller) connect(ctx context.Context, uuid, address string) (*conn, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	raw, host, err := c.dial(ctx, uuid, address)
	if err != nil {
		return nil, err
	}
	// There is no authority for these certificates: each side proves that it
	// knows the secret, for the certificate it sees.
	t := tls.Client(raw, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12}) //nolint:gosec // see above
	if err := t.HandshakeContext(ctx); err != nil {
		_ = raw.Close()
		return nil, fmt.Errorf("TLS handshake with the container gateway: %w", err)
	}
	leaf := t.ConnectionState().PeerCertificates[0].Raw
	secret := AuthSecret(c.cfg.SystemRootToken, uuid)
	request := sign(secret, leaf)
	return &conn{Conn: t, host: host, request: request, response: sign(secret, []byte(request))}, nil
}

// dial follows gateway.md section 10: the address if it can be connected to,
// else this process's tunnel.
func (c *Controller) dial(ctx context.Context, uuid, address string) (raw net.Conn, host string, err error) {
	// Nothing on this machine but a supervisor's loopback listener is at
	// 127.0.0.1, and that one opens a tunnel.
	if h, _, err := net.SplitHostPort(address); err == nil && h != "" && h != "127.0.0.1" {
		raw, err := new(net.Dialer).DialContext(ctx, "tcp", address)
		if err != nil {
			return nil, "", fmt.Errorf("connect to the container gateway: %w", err)
		}
		return raw, raw.RemoteAddr().String(), nil
	}
	c.mu.Lock()
	t := c.tunnels[uuid]
	c.mu.Unlock()
	if t != nil {
		raw, err := t.open(ctx)
		if err != nil {
			return nil, "", fmt.Errorf("open a stream in the container's tunnel: %w", err)
		}
		return raw, "pipe", nil
	}
	text := "container is running but tunnel is down"
	if address == "" {
		text = "container is running but gateway is not available"
	} else if url, ok := strings.CutPrefix(address, "tunnel "); ok && url != "" && url != c.cfg.InternalURL {
		// There is no other controller here that could have it.
		text = "container gateway is running but tunnel endpoint is invalid"
	}
	return nil, "", &Error{http.StatusServiceUnavailable, text}
}

// errNoProof says that whoever answered does not know the secret.
var errNoProof = errors.New("bad X-Arvados-Authorization-Response header")

// proven checks the answer of a gateway. The header is ours alone, and removed.
func (g *conn) proven(h http.Header) error {
	values := h.Values(headerResponse)
	ok := len(values) == 1 && sameText(values[0], g.response)
	h.Del(headerResponse)
	if !ok {
		return errNoProof
	}
	return nil
}

// The headers between controller and gateway (gateway.md section 4).
const (
	headerUUID     = "X-Arvados-Container-Gateway-Uuid"
	headerRequest  = "X-Arvados-Authorization"
	headerResponse = "X-Arvados-Authorization-Response"
	headerPort     = "X-Arvados-Container-Target-Port"
	headerSource   = "X-Webdav-Source"
	headerPrefix   = "X-Webdav-Prefix"
)
