package gateway

import (
	"context"
	"crypto/tls"
	"io/fs"
	"net"
)

// Config is what a Server needs.
type Config struct {
	// UUID of the container.
	UUID string
	// Secret is GatewayAuthSecret as the dispatcher gave it. It must not be
	// empty: without a secret there is no gateway.
	Secret string
	// Address is GatewayAddress as the dispatcher gave it, "HOST:PORT" or
	// "HOST:0". Without a host there is nothing the controller could connect to:
	// the server listens on the loopback interface and opens a Tunnel.
	Address string

	// Target is the container; nil, or a Deferred before its Set, means that
	// there is none yet.
	Target Target
	// Logs is the live log collection, read only; nil means that there is none.
	// A file only ever grows. Opened files implement io.ReaderAt or io.Seeker,
	// what Stat tells has size and modification time, directories can be read
	// (fs.ReadDirFS, or their files are fs.ReadDirFile). It is used from several
	// goroutines at once.
	Logs fs.FS
	// SSH serves shells; nil means that they are refused.
	SSH SSHServer

	// Tunnel says where the controller is.
	Tunnel Tunnel
	// OnAddress puts addr into the container's record (gateway_address). Called
	// by one goroutine at a time, for every address that differs from the one
	// the server started with; an error before AddressRecorded is as good as
	// success. It must return soon after ctx is done.
	OnAddress func(ctx context.Context, addr string) error

	// Logf writes a line for the operator. It may be called from any goroutine.
	Logf func(format string, args ...any)
}

// Tunnel says how to reach the controller, when it cannot reach us.
type Tunnel struct {
	// Host is ARVADOS_API_HOST: "host" or "host:port", 443 if absent.
	Host string
	// Token is the dispatcher's.
	Token string
	// TLS are the client's settings; nil: certificates are checked with the
	// system's roots.
	TLS *tls.Config
}

// SSHServer is the SSH side of the door.
type SSHServer interface {
	// ServeConn speaks SSH on c, which belongs to an authenticated controller,
	// until either side closes it or ctx is done. It closes c, and returns when
	// everything it has started for c has ended.
	ServeConn(ctx context.Context, c net.Conn, o SSHOptions)
}

// SSHOptions are what the controller says about a shell (gateway.md section 5.1).
type SSHOptions struct {
	// DetachKeys is the sequence as the user wrote it; "" is the default one.
	DetachKeys string
	// LoginUser is the account in the container, never empty: "root" if the
	// controller names none.
	LoginUser string
}
