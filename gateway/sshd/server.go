package sshd

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/cpu"

	"crunch-oci/gateway"
)

// Limits bound what clients can take up. They are all known to the cluster, but
// not all of their programs are well-behaved.
type Limits struct {
	// Handshake is the time until a client must be logged in.
	Handshake time.Duration
	// Channels is the number of sessions and forwarded connections at a time, of
	// all connections together. Each can make this process keep 2 MiB of what
	// its client sends and nobody reads.
	Channels int
}

// DefaultLimits hold for a Config without some of its own.
var DefaultLimits = Limits{Handshake: 30 * time.Second, Channels: 256}

// Config is what a Server needs.
type Config struct {
	Target gateway.Target
	// Logf writes a line for the operator, from any goroutine.
	Logf func(format string, args ...any)
	// Limits are DefaultLimits unless set.
	Limits Limits
}

// Server serves SSH on connections that it is given; it implements
// gateway.SSHServer.
type Server struct {
	target   gateway.Target
	logf     func(format string, args ...any)
	limits   Limits
	ssh      *ssh.ServerConfig
	channels chan struct{} // one for each that is open
	sessions atomic.Int64  // numbers them

	// Terminals whose users have gone, and their commands not.
	mu       sync.Mutex
	closed   bool
	detached map[gateway.Process]struct{}
	drains   sync.WaitGroup
}

// New returns a server with a new host key, which is the same for all its
// connections: clients remember it.
func New(c Config) (*Server, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make an SSH host key: %w", err)
	}
	signer, err := ssh.NewSignerFromKey(key)
	if err != nil {
		return nil, fmt.Errorf("make an SSH host key: %w", err)
	}
	if c.Limits.Handshake == 0 {
		c.Limits.Handshake = DefaultLimits.Handshake
	}
	if c.Limits.Channels == 0 {
		c.Limits.Channels = DefaultLimits.Channels
	}
	if c.Logf == nil {
		c.Logf = func(string, ...any) {}
	}
	s := &Server{
		target: c.Target, logf: c.Logf, limits: c.Limits, ssh: authentication(),
		channels: make(chan struct{}, c.Limits.Channels),
		detached: make(map[gateway.Process]struct{}),
	}
	s.ssh.AddHostKey(signer)
	return s, nil
}

// authentication lets everybody in, as the reference does (gateway.md section
// 5.2): the method "none" for every name, and for clients that insist on another
// one, any password or key of user "_".
func authentication() *ssh.ServerConfig {
	anyone := func(c ssh.ConnMetadata) (*ssh.Permissions, error) {
		if c.User() != "_" {
			return nil, errors.New("log in without authentication")
		}
		return nil, nil
	}
	return &ssh.ServerConfig{
		Config:            ssh.Config{Ciphers: ciphers()},
		NoClientAuth:      true,
		PasswordCallback:  func(c ssh.ConnMetadata, _ []byte) (*ssh.Permissions, error) { return anyone(c) },
		PublicKeyCallback: func(c ssh.ConnMetadata, _ ssh.PublicKey) (*ssh.Permissions, error) { return anyone(c) },
		ServerVersion:     "SSH-2.0-crunch-run",
	}
}

// ciphers leaves out the one that OpenSSH likes best where the processor has
// instructions for the others, which are several times as fast then.
func ciphers() []string {
	all := ssh.SupportedAlgorithms().Ciphers
	if cpu.X86.HasAES && cpu.X86.HasPCLMULQDQ || cpu.ARM64.HasAES && cpu.ARM64.HasPMULL {
		all = slices.DeleteFunc(slices.Clone(all), func(name string) bool { return name == ssh.CipherChaCha20Poly1305 })
	}
	return all
}

// ServeConn implements gateway.SSHServer. Sessions that their users have detached
// from go on.
func (s *Server) ServeConn(ctx context.Context, conn net.Conn, o gateway.SSHOptions) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	// Not by a deadline alone, which not every connection heeds.
	late := time.AfterFunc(s.limits.Handshake, cancel)
	counted := &countedConn{Conn: conn}
	client, channels, requests, err := ssh.NewServerConn(counted, s.ssh)
	inTime := late.Stop()
	if err != nil {
		// Every client looks first whether there is a server, and says nothing.
		if counted.read.Load() > 0 {
			s.logf("shell: SSH handshake failed: %s", handshakeError(err, inTime))
		}
		return
	}
	if !inTime {
		_ = client.Close()
		return
	}
	var work sync.WaitGroup
	defer work.Wait()
	defer client.Close() // which ends all that is waited for
	defer cancel()
	// Requests that do not belong to a channel: all are refused.
	work.Go(func() { ssh.DiscardRequests(requests) })
	for c := range channels {
		s.serveChannel(ctx, &work, c, o)
	}
}

func (s *Server) serveChannel(ctx context.Context, work *sync.WaitGroup, c ssh.NewChannel, o gateway.SSHOptions) {
	serve := map[string]func(context.Context, ssh.NewChannel, gateway.SSHOptions){
		"session":      s.serveSession,
		"direct-tcpip": s.serveForward,
	}[c.ChannelType()]
	if serve == nil {
		_ = c.Reject(ssh.UnknownChannelType, fmt.Sprintf("unsupported channel type %q", clip(c.ChannelType())))
		return
	}
	select {
	case s.channels <- struct{}{}:
	default:
		_ = c.Reject(ssh.ResourceShortage, fmt.Sprintf("too many sessions and forwarded connections (%d) in this container", s.limits.Channels))
		return
	}
	work.Go(func() {
		serve(ctx, c, o)
	})
}

// release ends what serveChannel has counted.
func (s *Server) release() { <-s.channels }

// Close hangs up the terminals that were detached from and waits until nothing is
// left of them, or ctx is done. Connections are ended by their contexts.
func (s *Server) Close(ctx context.Context) error {
	s.mu.Lock()
	s.closed = true
	for p := range s.detached {
		_ = p.Close()
	}
	s.mu.Unlock()
	done := make(chan struct{})
	go func() { defer close(done); s.drains.Wait() }()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("end detached shells: %w", context.Cause(ctx))
	}
}

// countedConn counts what is read.
type countedConn struct {
	net.Conn
	read atomic.Int64
}

func (c *countedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.read.Add(int64(n))
	return n, err
}

// handshakeError words an error whose text the client may have chosen.
func handshakeError(err error, inTime bool) string {
	if !inTime {
		return "it took too long"
	}
	return fmt.Sprintf("%q", clip(err.Error()))
}

// clip shortens foreign text.
func clip(s string) string {
	const longest = 200
	if len(s) > longest {
		return s[:longest] + "..."
	}
	return s
}
