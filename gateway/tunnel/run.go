package tunnel

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"time"

	"github.com/hashicorp/yamux"

	"crunch-oci/internal/redact"
)

// Config is what Run needs.
type Config struct {
	// Host is the controller's "host" or "host:port", 443 if absent.
	Host  string
	Token string // the dispatcher's
	// TLS are the settings towards the controller; nil: the defaults.
	TLS *tls.Config
	// UUID and Secret are the container's.
	UUID, Secret string

	// Up is called whenever a tunnel stands, with the controller's
	// X-Arvados-Internal-Url, which may be empty. It must not block.
	Up func(internalURL string)
	// Serve gets every connection that the controller opens, in a goroutine of
	// its own that must not outlive ctx by much.
	Serve func(net.Conn)
	// Logf gets the first failure, changes of reason, and recovery.
	Logf func(format string, args ...any)

	// Retry is the wait after a first failure; 0 means 5 s.
	Retry time.Duration

	timing timing // for tests
}

// timing of the tunnel.
type timing struct {
	setup      time.Duration // bounds dialling, and then TLS and the exchange of headers
	first, max time.Duration // waits between attempts
	brief      time.Duration // a tunnel that has stood for less is a failure too
	remind     time.Duration // a reason that persists is logged again after so long
}

var defaultTiming = timing{
	setup: 30 * time.Second,
	first: 5 * time.Second, max: time.Minute,
	brief:  time.Second,
	remind: time.Hour,
}

// Run keeps a tunnel to the controller until ctx is done, and returns when
// everything in it has been closed.
func Run(ctx context.Context, c Config) {
	if c.timing == (timing{}) {
		c.timing = defaultTiming
	}
	if c.Retry != 0 {
		c.timing.first = c.Retry
	}
	var hide redact.Redactor
	hide.Hide(c.Secret, c.Token)
	news := reporter{logf: c.Logf, remind: c.timing.remind}
	wait := backoff{first: c.timing.first, max: c.timing.max}
	for {
		began := time.Now()
		stood, err := c.once(ctx, &news)
		if ctx.Err() != nil {
			return
		}
		if stood && time.Since(began) >= c.timing.brief {
			wait.reset()
		}
		news.failed(hide.Redact(err.Error()))
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait.next()):
		}
	}
}

// once makes a tunnel and serves it to its end. stood tells whether there was
// one.
func (c *Config) once(ctx context.Context, news *reporter) (stood bool, err error) {
	conn, internalURL, err := c.connect(ctx)
	if err != nil {
		return false, fmt.Errorf("error creating gateway tunnel: %w", err)
	}
	defer conn.Close()
	config := yamux.DefaultConfig()
	config.LogOutput = io.Discard // what matters comes back as an error
	session, err := yamux.Client(conn, config)
	if err != nil {
		return false, fmt.Errorf("error creating gateway tunnel: %w", err)
	}
	var handed sync.WaitGroup
	defer handed.Wait()
	defer session.Close()
	stop := context.AfterFunc(ctx, func() { session.Close() })
	defer stop()

	c.Up(internalURL)
	news.recovered()
	for {
		stream, err := session.AcceptStream()
		if err != nil {
			return true, fmt.Errorf("the tunnel has ended: %w", err)
		}
		handed.Go(func() { c.Serve(&connection{stream}) })
	}
}

// connection is a stream that says in messages what it is.
type connection struct{ *yamux.Stream }

// Read says that a deadline has passed in a way that TLS understands as no harm:
// net/http uses one to interrupt a read, and goes on with the connection.
func (c *connection) Read(p []byte) (int, error) {
	n, err := c.Stream.Read(p)
	if errors.Is(err, yamux.ErrTimeout) {
		err = os.ErrDeadlineExceeded
	}
	return n, err
}

// RemoteAddr names the stream.
func (c *connection) RemoteAddr() net.Addr { return address(c.StreamID()) }

type address uint32

func (a address) Network() string { return "tunnel" }
func (a address) String() string  { return fmt.Sprintf("tunnel connection %d", uint32(a)) }

// backoff is the time between attempts: at least first, doubled by every
// failure, spread so that a controller that comes back does not meet all its
// nodes at once.
type backoff struct {
	first, max time.Duration
	failures   int
}

func (b *backoff) reset() { b.failures = 0 }

func (b *backoff) next() time.Duration {
	d := b.first
	for range b.failures {
		if d = 2 * d; d >= b.max {
			break
		}
	}
	b.failures++
	// The upper third is drawn by lot.
	d = min(d, b.max*2/3)
	return d + rand.N(d/2+1)
}

// reporter tells the operator what has changed, instead of a line per attempt.
type reporter struct {
	logf   func(string, ...any)
	remind time.Duration

	down   string // the reason logged last, "" if the tunnel is up
	last   string // the same, but for a recovery
	when   time.Time
	silent int // failures not logged since
}

func (r *reporter) failed(reason string) {
	if reason == r.last && time.Since(r.when) < r.remind {
		r.silent++
		return
	}
	again := ""
	if reason == r.last && r.silent > 0 {
		again = fmt.Sprintf(" (%d times since the last message)", r.silent+1)
	}
	r.logf("runTunnel: %s%s", reason, again)
	r.down, r.last, r.when, r.silent = reason, reason, time.Now(), 0
}

func (r *reporter) recovered() {
	if r.down != "" {
		r.logf("runTunnel: the tunnel is up again")
		r.down = ""
	}
}
