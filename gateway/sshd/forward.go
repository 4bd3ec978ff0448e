package sshd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

	"golang.org/x/crypto/ssh"

	"crunch-oci/gateway"
)

// forwardRequest is the payload of a direct-tcpip channel (RFC 4254 section 7.2).
type forwardRequest struct {
	Host       string
	Port       uint32
	Originator string
	OriginPort uint32
}

// ownNames are the hosts that mean the container, byte for byte.
var ownNames = map[string]bool{"localhost": true, "0.0.0.0": true, "127.0.0.1": true, "::1": true, "::": true}

// serveForward connects a channel to a port in the container.
func (s *Server) serveForward(ctx context.Context, c ssh.NewChannel, _ gateway.SSHOptions) {
	defer s.release()
	var q forwardRequest
	if err := ssh.Unmarshal(c.ExtraData(), &q); err != nil {
		_ = c.Reject(ssh.ConnectionFailed, fmt.Sprintf("unmarshal direct-tcpip extradata: %v", err))
		return
	}
	if !ownNames[q.Host] {
		_ = c.Reject(ssh.Prohibited, fmt.Sprintf("cannot forward to ports on %q, only localhost", clip(q.Host)))
		return
	}
	if q.Port < 1 || q.Port > 65535 {
		_ = c.Reject(ssh.ConnectionFailed, fmt.Sprintf("port %d is not between 1 and 65535", q.Port))
		return
	}
	conn, err := s.target.Dial(ctx, int(q.Port))
	if err != nil {
		_ = c.Reject(ssh.ConnectionFailed, clip(err.Error()))
		return
	}
	defer conn.Close()
	ch, requests, err := c.Accept()
	if err != nil {
		return
	}
	var work sync.WaitGroup
	defer work.Wait()
	defer ch.Close()
	// The requests end when the client closes the channel; the port is of no use
	// to anybody then.
	work.Go(func() { ssh.DiscardRequests(requests); _ = conn.Close() })
	relay(ch, conn)
}

// relay copies both ways. The end of one direction is passed on, and the other
// goes on: who has asked may still be answered.
func relay(ch ssh.Channel, conn net.Conn) {
	var back sync.WaitGroup
	back.Go(func() {
		_, err := copyBuffered(ch, conn)
		if err != nil && !errors.Is(err, io.EOF) {
			_ = conn.Close()
		}
		_ = ch.CloseWrite()
	})
	_, _ = copyBuffered(conn, ch)
	if half, ok := conn.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite()
	}
	back.Wait()
}

// copyBuffered copies in pieces of the size of an SSH packet.
func copyBuffered(to io.Writer, from io.Reader) (int64, error) {
	b := buffers.Get().(*[]byte)
	defer buffers.Put(b)
	// Without what would choose a smaller or a larger buffer.
	return io.CopyBuffer(struct{ io.Writer }{to}, struct{ io.Reader }{from}, *b)
}

var buffers = sync.Pool{New: func() any { b := make([]byte, 32<<10); return &b }}
