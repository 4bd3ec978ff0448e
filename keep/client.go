package keep

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"time"

	"crunch-oci/keep/internal/flight"
)

const (
	// DefaultRetries is how many more rounds a client makes over the services
	// after the first, unless configured otherwise.
	DefaultRetries = 2
	// DefaultReplication is the number of copies where nobody says otherwise.
	DefaultReplication = 2
)

// ClientConfig says how a Client finds Keep and what it asks for.
type ClientConfig struct {
	// Services tells where blocks are. Required.
	Services ServiceLister
	// Order puts services into the order in which a block is looked for and
	// written; nil means ProbeOrder.
	Order func(hash string, services []Service) []Service
	// Token is sent with every request, as it is. Block signatures are bound
	// to this exact spelling. Required.
	Token string

	// DefaultReplication is the number of copies of a written block unless the
	// call says otherwise: defaultCollectionReplication of the discovery
	// document. 0 means 2.
	DefaultReplication int
	// StorageClasses are wanted for written blocks unless the call says
	// otherwise. If there are none, DefaultStorageClasses are, those marked
	// Default in the exported configuration.
	StorageClasses        []string
	DefaultStorageClasses []string

	// Retries is the number of rounds after the first: 0 means DefaultRetries,
	// a negative one none.
	Retries int
	// RetryDelay returns how long to wait before the round with that number,
	// the first retry being 1. nil means a random time below 2 s, 4 s, 8 s,
	// 16 s, then 20 s.
	RetryDelay func(round int) time.Duration
	// ReadRetries and ReadRetryDelay are the same for reading blocks. 0 and nil
	// mean what is above.
	ReadRetries    int
	ReadRetryDelay func(round int) time.Duration

	// HTTPClient, if set, is used as it is; otherwise the client makes its own
	// with limits that suit the kind of service.
	HTTPClient *http.Client
	// IdleTimeout ends an attempt that has sent and received nothing for so
	// long. 0 means 20 s for disk services, 5 min for others.
	IdleTimeout time.Duration
	// TLS says which certificates of https services are believed, the same as
	// for the API server. nil means those signed by one of the system's roots.
	TLS *tls.Config
	// RequestID returns a value for X-Request-Id. nil means random ones.
	RequestID func() string
}

// Client is a BlockStore that speaks the Keep protocol over HTTP. It may be used
// from several goroutines.
type Client struct {
	cfg    ClientConfig
	disk   *http.Client
	proxy  *http.Client
	shared flight.Group[[]byte]

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
}

var _ interface {
	BlockStore
	Localizer
} = (*Client)(nil)

// ErrNoServices says that the list of Keep services is empty, or for writing
// that all are read-only.
var ErrNoServices = errors.New("no Keep services available: check ARVADOS_KEEP_SERVICES or the API server's list of keep services")

// NewClient checks the configuration; it makes no connection.
func NewClient(cfg ClientConfig) (*Client, error) {
	switch {
	case cfg.Services == nil:
		return nil, errors.New("keep client: no service list given")
	case cfg.Token == "":
		return nil, errors.New("keep client: no API token given")
	case strings.ContainsFunc(cfg.Token, func(r rune) bool { return r <= ' ' || r > '~' }):
		return nil, errors.New("keep client: API token has characters that cannot be sent")
	case cfg.DefaultReplication < 0:
		return nil, fmt.Errorf("keep client: replication %d", cfg.DefaultReplication)
	}
	if cfg.DefaultReplication == 0 {
		cfg.DefaultReplication = DefaultReplication
	}
	cfg.Retries = cmp.Or(cfg.Retries, DefaultRetries)
	cfg.ReadRetries = cmp.Or(cfg.ReadRetries, cfg.Retries)
	if cfg.Order == nil {
		cfg.Order = ProbeOrder
	}
	if cfg.RetryDelay == nil {
		cfg.RetryDelay = retryDelay
	}
	if cfg.ReadRetryDelay == nil {
		cfg.ReadRetryDelay = cfg.RetryDelay
	}
	if cfg.RequestID == nil {
		cfg.RequestID = randomRequestID
	}
	if len(cfg.StorageClasses) == 0 {
		cfg.StorageClasses = cfg.DefaultStorageClasses
	}
	c := &Client{cfg: cfg, disk: cfg.HTTPClient, proxy: cfg.HTTPClient}
	if cfg.HTTPClient == nil {
		c.disk = newHTTPClient(diskLimits, cfg.TLS)
		c.proxy = newHTTPClient(proxyLimits, cfg.TLS)
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	return c, nil
}

// Close ends fetches under way and closes idle connections.
func (c *Client) Close() error {
	c.cancel()
	c.shared.Close()
	c.disk.CloseIdleConnections()
	c.proxy.CloseIdleConnections()
	return nil
}

// round describes one pass over the services.
type round struct {
	services []Service // in probe order
	number   int       // 0 for the first
	disk     bool      // all listed are keepstores
}

// rounds calls try until it says that it is done or the retries are used up. It
// fetches the service list for each round and sleeps between them.
func (c *Client) rounds(ctx context.Context, hash string, try func(round) (done bool)) error {
	return c.roundsOf(ctx, hash, c.cfg.Retries, c.cfg.RetryDelay, try)
}

func (c *Client) roundsOf(ctx context.Context, hash string, retries int, delay func(round int) time.Duration, try func(round) (done bool)) error {
	for n := 0; ; n++ {
		services, err := c.cfg.Services.KeepServices(ctx)
		if err != nil {
			return fmt.Errorf("list Keep services: %w", err)
		}
		r := round{services: c.cfg.Order(hash, uniqueServices(services)), number: n, disk: allDisks(services)}
		if try(r) || n >= retries {
			return ctx.Err()
		}
		timer := time.NewTimer(delay(n + 1))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
	}
}

func allDisks(services []Service) bool {
	return !slices.ContainsFunc(services, func(s Service) bool { return s.Type != "disk" })
}

// retryDelay spreads clients that failed at the same moment.
func retryDelay(round int) time.Duration {
	const most = 20 * time.Second
	limit := min(2*time.Second<<min(round-1, 10), most)
	return time.Millisecond + mathrand.N(limit-time.Millisecond)
}

// randomRequestID returns an id of the form that Arvados services make.
func randomRequestID() string {
	const base36 = "0123456789abcdefghijklmnopqrstuvwxyz"
	var b [20]byte
	rand.Read(b[:])
	for i, c := range b {
		b[i] = base36[int(c)%len(base36)]
	}
	return "req-" + string(b[:])
}
