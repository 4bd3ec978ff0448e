// Package gateway is an authenticated door into a running container: shell,
// port forwarding, service proxy and live logs. It does not know how the
// container was made.
//
// So far it holds only what it will need from a container; the server follows.
package gateway

import (
	"context"
	"net"
)

// Target is the container behind the door.
type Target interface {
	// Dial connects to a TCP port inside the container's network namespace.
	Dial(ctx context.Context, port int) (net.Conn, error)
}
