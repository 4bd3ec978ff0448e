// Package controller is the part of an Arvados controller that reaches into
// running containers: it finds the way to a container's gateway, proves who it
// is and asks for the same proof, and carries shells, ports and logs over it
// (gateway.md sections 3, 9 and 10). Who may do that is decided elsewhere.
package controller

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"log/slog"
	"net/http"
	"sync"

	"golang.org/x/sync/semaphore"
)

// DefaultMaxTunnels is how many tunnels and shells there may be at a time: the
// default of API.MaxGatewayTunnels.
const DefaultMaxTunnels = 1000

// maxProxied is how many requests to ports and logs are carried at a time.
const maxProxied = 500

// Config of a Controller. All fields but the last two must be set.
type Config struct {
	// SystemRootToken is the key to all gateways.
	SystemRootToken string
	// InternalURL names this process among the controllers of the cluster. It
	// is what a supervisor publishes to say that its tunnel ends here.
	InternalURL string
	// MaxTunnels bounds tunnels and shells together; 0 means DefaultMaxTunnels.
	MaxTunnels int
	Log        *slog.Logger // nil: discard
}

// Controller holds the tunnels of one controller process. Its methods may be
// called from several goroutines.
type Controller struct {
	cfg     Config
	log     *slog.Logger
	long    *semaphore.Weighted // tunnels and shells
	proxied *semaphore.Weighted // requests to ports and logs

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	busy   sync.WaitGroup // whoever serves a connection

	mu      sync.Mutex
	tunnels map[string]*tunnel // by container
}

// New makes a Controller, which its owner closes.
func New(cfg Config) *Controller {
	if cfg.MaxTunnels <= 0 {
		cfg.MaxTunnels = DefaultMaxTunnels
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	c := &Controller{
		cfg: cfg, log: cfg.Log, tunnels: map[string]*tunnel{},
		long: semaphore.NewWeighted(int64(cfg.MaxTunnels)), proxied: semaphore.NewWeighted(maxProxied),
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	return c
}

// Close cuts all connections to containers and waits for their end; later ones
// are refused.
func (c *Controller) Close() {
	c.mu.Lock()
	c.cancel()
	c.mu.Unlock()
	c.busy.Wait()
}

// begin takes one of the places. end gives it back.
func (c *Controller) begin(places *semaphore.Weighted) (end func(), err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ctx.Err() != nil {
		return nil, &Error{http.StatusServiceUnavailable, "the cluster is shutting down"}
	}
	if !places.TryAcquire(1) {
		return nil, &Error{http.StatusServiceUnavailable, "too many connections to containers"}
	}
	c.busy.Add(1)
	return func() { places.Release(1); c.busy.Done() }, nil
}

// Error is a refusal that the client is told about.
type Error struct {
	Status int // of HTTP
	Text   string
}

func (e *Error) Error() string { return e.Text }

// AuthSecret is the secret that a container's gateway and the controllers share:
// GatewayAuthSecret (gateway.md section 3).
func AuthSecret(systemRootToken, uuid string) string { return sign(systemRootToken, []byte(uuid)) }

// sign is HMAC-SHA256 in hex; keys are the bytes of the text.
func sign(key string, message []byte) string {
	h := hmac.New(sha256.New, []byte(key))
	h.Write(message)
	return hex.EncodeToString(h.Sum(nil))
}

func sameText(a, b string) bool { return hmac.Equal([]byte(a), []byte(b)) }
