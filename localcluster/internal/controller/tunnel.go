package controller

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/hashicorp/yamux"
)

// tunnel is a connection that a supervisor has opened, in which we open streams.
type tunnel struct {
	session *yamux.Session
}

// open opens a stream. A peer that does not answer takes until ctx is done.
func (t *tunnel) open(ctx context.Context) (net.Conn, error) {
	type result struct {
		stream net.Conn
		err    error
	}
	done := make(chan result, 1)
	go func() { // ends when the session does, at the latest
		s, err := t.session.Open()
		done <- result{s, err}
	}()
	select {
	case r := <-done:
		return r.stream, r.err
	case <-ctx.Done():
		go func() {
			if r := <-done; r.stream != nil {
				_ = r.stream.Close()
			}
		}()
		return nil, context.Cause(ctx)
	}
}

// CheckTunnel refuses a supervisor that does not know the container's secret.
func (c *Controller) CheckTunnel(uuid, secret string) error {
	if !sameText(secret, AuthSecret(c.cfg.SystemRootToken, uuid)) {
		return &Error{http.StatusUnauthorized, "authentication error"}
	}
	return nil
}

// ServeTunnel makes a tunnel of a supervisor's connection: it answers 101, and
// returns when the tunnel ends. The newest tunnel of a container is the one that
// is used. An error was met before anything was answered.
func (c *Controller) ServeTunnel(w http.ResponseWriter, uuid string) error {
	end, err := c.begin(c.long)
	if err != nil {
		return err
	}
	defer end()
	w.Header().Set("X-Arvados-Internal-Url", c.cfg.InternalURL)
	peer, err := switchProtocols(w, "tunnel")
	if err != nil {
		return err
	}
	defer peer.Close()
	config := yamux.DefaultConfig()
	config.LogOutput = io.Discard // what ends a session is its error
	session, err := yamux.Server(peer, config)
	if err != nil { // only a bad configuration does that
		c.log.Error("cannot make a tunnel", "container", uuid, "error", err)
		return nil
	}
	defer session.Close()
	t := &tunnel{session}
	c.mu.Lock()
	c.tunnels[uuid] = t
	c.mu.Unlock()
	c.log.Debug("tunnel", "container", uuid, "from", peer.RemoteAddr().String())
	select {
	case <-session.CloseChan():
	case <-c.ctx.Done():
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.tunnels[uuid] == t {
		delete(c.tunnels, uuid)
	}
	return nil
}

// switchTimeout bounds the sending of a 101.
const switchTimeout = 30 * time.Second

// switchProtocols answers 101 with the headers of w and takes over the
// connection, without its deadlines.
func switchProtocols(w http.ResponseWriter, protocol string) (net.Conn, error) {
	raw, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return nil, &Error{http.StatusInternalServerError, fmt.Sprintf("connection upgrade failed: %v", err)}
	}
	h := w.Header()
	h.Set("Connection", "upgrade")
	h.Set("Upgrade", protocol)
	_ = raw.SetDeadline(time.Now().Add(switchTimeout))
	if _, err = buffered.WriteString("HTTP/1.1 101 Switching Protocols\r\n"); err == nil {
		err = h.Write(buffered)
	}
	if err == nil {
		_, err = buffered.WriteString("\r\n")
	}
	if err == nil {
		err = buffered.Flush()
	}
	if err = errors.Join(err, raw.SetDeadline(time.Time{})); err != nil {
		// The client is gone, and nobody can be told: the first use fails too.
		_ = raw.Close()
	}
	return &bufferedConn{Conn: raw, r: buffered.Reader}, nil
}

// bufferedConn is a connection of which some has been read already.
type bufferedConn struct {
	net.Conn
	r *bufio.Reader
}

func (b *bufferedConn) Read(p []byte) (int, error) { return b.r.Read(p) }

// CloseWrite ends one direction, if the connection can do that.
func (b *bufferedConn) CloseWrite() error { return closeWrite(b.Conn) }

func closeWrite(c net.Conn) error {
	if h, ok := c.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return c.Close()
}

// relay carries bytes both ways until both sides have ended, or one is broken,
// or ctx is done; then both are closed.
func relay(ctx context.Context, a, b net.Conn) {
	var once sync.Once
	cut := func() { once.Do(func() { _ = a.Close(); _ = b.Close() }) }
	defer cut()
	defer context.AfterFunc(ctx, cut)()
	var wg sync.WaitGroup
	carry := func(to, from net.Conn) {
		if _, err := io.Copy(to, from); err != nil {
			cut()
		} else if err := closeWrite(to); err != nil {
			cut()
		}
	}
	wg.Go(func() { carry(a, b) })
	wg.Go(func() { carry(b, a) })
	wg.Wait()
}
