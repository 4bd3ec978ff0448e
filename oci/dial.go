package oci

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// ErrHostNetwork is returned by Dial if the container uses the host's network:
// what listens there is not the container's.
var ErrHostNetwork = errors.New("container has no IP address distinct from host")

func (r *runningContainer) dial(ctx context.Context, port int) (net.Conn, error) {
	if port < 1 || port > 65535 {
		return nil, fmt.Errorf("connect to the container: port %d is not between 1 and 65535", port)
	}
	ns, err := r.networkNamespace()
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	type answer struct {
		conn net.Conn
		err  error
	}
	// The thread enters the namespace, and for that reason ends with the
	// goroutine.
	got := make(chan answer, 1)
	go func() {
		runtime.LockOSThread()
		var a answer
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			a.err = fmt.Errorf("enter the container's network: %w", os.NewSyscallError("setns", err))
		} else {
			a.conn, a.err = dialHere(ctx, port)
		}
		got <- a
	}()
	a := <-got
	if a.err == nil && r.alive() != nil {
		_ = a.conn.Close()
		return nil, errEnded
	}
	return a.conn, a.err
}

// Dial connects to a TCP port in the container's network namespace: by its
// loopback addresses, where also services are found that listen on nothing else,
// then by its other ones. The error is ErrHostNetwork if the namespace is the
// host's, an *ExecError if the container does not run.
func (c *Container) Dial(ctx context.Context, port int) (net.Conn, error) {
	if c.running == nil {
		return nil, errEnded
	}
	return c.running.dial(ctx, port)
}

// networkNamespace opens the container's network namespace, which is not the
// host's.
func (r *runningContainer) networkNamespace() (*os.File, error) {
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", r.pid))
	if err == nil && r.alive() != nil {
		// Reaped: the number may have been another's when it was opened.
		_ = ns.Close()
		return nil, errEnded
	}
	if err != nil {
		return nil, errEnded
	}
	// /proc/self is the main thread, which never enters another namespace.
	own, err := os.Stat("/proc/self/ns/net")
	var theirs os.FileInfo
	if err == nil {
		theirs, err = ns.Stat()
	}
	if err == nil && os.SameFile(own, theirs) {
		err = ErrHostNetwork
	}
	if err != nil {
		_ = ns.Close()
		return nil, err
	}
	return ns, nil
}

// dialHere connects to a port of the network namespace that the calling thread
// is in. A socket belongs to the namespace of the thread that makes it, which
// for an address that needs no resolving is the calling one.
func dialHere(ctx context.Context, port int) (net.Conn, error) {
	var first error
	try := func(addresses []string) net.Conn {
		for _, ip := range addresses {
			address := net.JoinHostPort(ip, strconv.Itoa(port))
			conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
			if err == nil {
				return conn
			}
			if first == nil {
				first = fmt.Errorf("%s: %w", address, reason(err))
			}
		}
		return nil
	}
	conn := try([]string{"127.0.0.1", "::1"})
	if conn == nil {
		conn = try(ownAddresses())
	}
	switch {
	case conn != nil:
		return conn, nil
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	}
	return nil, first
}

// reason leaves out of a network error what its reader knows.
func reason(err error) error {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return err
}

// ownAddresses returns the addresses, other than loopback ones, of the interfaces
// in the calling thread's network namespace.
func ownAddresses() []string {
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		return nil
	}
	var v4, v6 []string
	for _, a := range addresses {
		n, ok := a.(*net.IPNet)
		if !ok || !n.IP.IsGlobalUnicast() {
			continue
		}
		if ip := n.IP.To4(); ip != nil {
			v4 = append(v4, ip.String())
		} else {
			v6 = append(v6, n.IP.String())
		}
	}
	return append(v4, v6...)
}
