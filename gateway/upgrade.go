package gateway

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

// serveUpgrade relays a connection whose two ends have agreed to speak something
// else, until both have said their last.
func (f *forwarder) serveUpgrade(x *exchange, reply *http.Response) {
	defer reply.Body.Close()
	service, ok := reply.Body.(io.ReadWriter)
	agreed := reply.Header.Get("Upgrade")
	if !ok || x.upgrade == "" || x.service == nil || !strings.EqualFold(agreed, x.upgrade) {
		x.fail(fmt.Errorf("the service has switched to protocol %q where %q was asked for", shorten(agreed), shorten(x.upgrade)))
		return
	}
	if x.body != nil && !x.body.ended() {
		x.fail(errors.New("the service has switched protocols before the request was over"))
		return
	}
	client, buffered, err := x.rc.Hijack()
	if err != nil {
		x.fail(fmt.Errorf("connection upgrade failed: %w", err))
		return
	}
	defer client.Close()
	x.replace(reply.Header)
	x.w.Header().Set("Connection", "Upgrade")
	x.w.Header().Set("Upgrade", agreed)
	if writeSwitching(client, x.w.Header()) != nil {
		return
	}

	// The server's shutdown closes the client's connection.
	var both sync.WaitGroup
	far := &halfConn{Conn: x.service, r: service}
	near := &halfConn{Conn: client, r: withBuffered(client, buffered.Reader)}
	both.Go(func() { f.pump(far, near) })
	both.Go(func() { f.pump(near, far) })
	both.Wait()
}

// halfConn is one end of an upgraded connection.
type halfConn struct {
	net.Conn
	r io.Reader // what has been buffered, then the connection

	mu      sync.Mutex
	patient time.Duration // not 0: how long it may be silent
}

// Read is net.Conn's, with the other end's patience.
func (c *halfConn) Read(p []byte) (int, error) {
	c.mu.Lock()
	if c.patient != 0 {
		c.SetReadDeadline(time.Now().Add(c.patient))
	}
	c.mu.Unlock()
	return c.r.Read(p)
}

// hurry lets Read fail after so long a silence, also one that has begun.
func (c *halfConn) hurry(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.patient = d
	c.SetReadDeadline(time.Now().Add(d))
}

// pump copies to the end of one direction and passes the end on. A failure ends
// both directions.
func (f *forwarder) pump(to, from *halfConn) {
	buffer := f.buffers.Get().(*[32 << 10]byte)
	defer f.buffers.Put(buffer)
	_, err := io.CopyBuffer(struct{ io.Writer }{to.Conn}, struct{ io.Reader }{from}, buffer[:])
	if err == nil {
		err = closeWrite(to.Conn)
	}
	if err != nil {
		to.Close()
		from.Close()
		return
	}
	// Who has closed its end for good looks the same as who only has no more to
	// say; a silent other end would keep the connection for ever.
	to.hurry(f.halfClosed)
}
