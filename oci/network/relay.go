package network

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"
)

const dnsPort = 53

// relayAddr is where a container finds the relay, on its own loopback: where
// Docker has its name server.
var relayAddr = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 11}), dnsPort)

const (
	// relayPatience is how long a query waits for its answer; resolvers repeat it
	// sooner (resolv.conf(5): after 5 s).
	relayPatience = 10 * time.Second
	// relayLimit bounds the queries, and the connections, in progress.
	relayLimit = 64
	// maxDatagram is the largest that there is.
	maxDatagram = 64 << 10
)

// relay forwards a container's DNS queries to a server on the host's loopback, which
// the container cannot reach, and the answers back. It does not look into them.
type relay struct {
	servers []netip.AddrPort
	udp     *net.UDPConn
	tcp     *net.TCPListener
	ctx     context.Context
	cancel  context.CancelFunc
	wg      sync.WaitGroup
}

// startRelay listens in the network namespace ns, until close.
func startRelay(ns *os.File, servers []netip.AddrPort) (*relay, error) {
	r := &relay{servers: servers}
	err := inside(ns, func() (err error) {
		if r.udp, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(relayAddr)); err != nil {
			return err
		}
		if r.tcp, err = net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(relayAddr)); err != nil {
			return errors.Join(err, r.udp.Close())
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("pass on the container's questions for names: %w", err)
	}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	r.wg.Go(r.serveUDP)
	r.wg.Go(r.serveTCP)
	return r, nil
}

// close ends the relay and all that is in progress.
func (r *relay) close() error {
	r.cancel()
	err := errors.Join(r.udp.Close(), r.tcp.Close())
	r.wg.Wait()
	return err
}

func (r *relay) serveUDP() {
	slots := make(chan struct{}, relayLimit)
	buf := make([]byte, maxDatagram)
	for r.ctx.Err() == nil {
		n, from, err := r.udp.ReadFromUDPAddrPort(buf)
		if err != nil {
			r.pause()
			continue
		}
		select {
		case slots <- struct{}{}:
		default:
			continue // too many at a time; resolvers ask again
		}
		question := append([]byte(nil), buf[:n]...)
		r.wg.Go(func() {
			defer func() { <-slots }()
			if answer, err := r.exchange(question); err == nil {
				_, _ = r.udp.WriteToUDPAddrPort(answer, from)
			}
		})
	}
}

// pause follows a failed read or accept. Some errors, such as EMFILE, come back at once
// for as long as they last.
func (r *relay) pause() {
	t := time.NewTimer(100 * time.Millisecond)
	defer t.Stop()
	select {
	case <-t.C:
	case <-r.ctx.Done():
	}
}

// exchange asks the servers in turn.
func (r *relay) exchange(question []byte) (answer []byte, err error) {
	for _, server := range r.servers {
		if answer, err = r.askOne(server, question); err == nil {
			return answer, nil
		}
	}
	return nil, err
}

func (r *relay) askOne(server netip.AddrPort, question []byte) ([]byte, error) {
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(server))
	if err != nil {
		return nil, err
	}
	defer c.Close()
	defer context.AfterFunc(r.ctx, func() { _ = c.Close() })()
	if err := c.SetDeadline(time.Now().Add(relayPatience / time.Duration(len(r.servers)))); err != nil {
		return nil, err
	}
	if _, err := c.Write(question); err != nil {
		return nil, err
	}
	buf := make([]byte, maxDatagram)
	n, err := c.Read(buf)
	return buf[:n], err
}

func (r *relay) serveTCP() {
	slots := make(chan struct{}, relayLimit)
	for r.ctx.Err() == nil {
		c, err := r.tcp.AcceptTCP()
		if err != nil {
			r.pause()
			continue
		}
		select {
		case slots <- struct{}{}:
		default:
			_ = c.Close()
			continue
		}
		r.wg.Go(func() {
			defer func() { <-slots }()
			r.splice(c)
		})
	}
}

// splice connects a connection with the first server that accepts it.
func (r *relay) splice(c *net.TCPConn) {
	defer c.Close()
	defer context.AfterFunc(r.ctx, func() { _ = c.Close() })()
	for _, server := range r.servers {
		dialer := net.Dialer{Timeout: relayPatience}
		up, err := dialer.DialContext(r.ctx, "tcp", server.String())
		if err != nil {
			continue
		}
		defer up.Close()
		defer context.AfterFunc(r.ctx, func() { _ = up.Close() })()
		deadline := time.Now().Add(2 * relayPatience)
		if c.SetDeadline(deadline) != nil || up.SetDeadline(deadline) != nil {
			return
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			_, _ = io.Copy(up, c)
			_ = up.(*net.TCPConn).CloseWrite()
		})
		_, _ = io.Copy(c, up)
		_ = c.CloseWrite()
		wg.Wait()
		return
	}
}
