package arvados

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"time"
)

var (
	errRedirect = errors.New("redirect not followed: it leads to another host, changes the method, or never ends")
	errSilent   = errors.New("no complete answer in time")
)

// maxErrorBody bounds what is read of an answer that reports an error, in
// bytes.
const maxErrorBody = 1 << 20

// Client calls one API server with one token. It is immutable.
type Client struct {
	cfg       Config
	transport *http.Transport
	http      *http.Client
	limiter   *limiter
	secrets   []string
	random    func() float64
}

// NewClient checks cfg and makes a client; it does not connect yet. A missing
// host or token is ErrNoHost or ErrNoToken.
func NewClient(cfg Config) (*Client, error) {
	if err := checkHost(cfg.Host); err != nil {
		return nil, err
	}
	if err := checkToken(cfg.Token); err != nil {
		return nil, err
	}
	for _, root := range cfg.KeepServices {
		if err := checkKeepService(root); err != nil {
			return nil, err
		}
	}
	tlsConfig, err := cfg.TLS()
	if err != nil {
		return nil, err
	}
	if cfg.Budget <= 0 {
		cfg.Budget = DefaultBudget
	}
	if cfg.AttemptTimeout <= 0 {
		cfg.AttemptTimeout = DefaultAttemptTimeout
	}
	if cfg.MaxResponse <= 0 {
		cfg.MaxResponse = DefaultMaxResponse
	}
	if cfg.Clock == nil {
		cfg.Clock = realClock{}
	}
	// The server speaks HTTP/1.1 (spec: arvados-api section 1).
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	transport := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		TLSClientConfig:       tlsConfig,
		TLSHandshakeTimeout:   30 * time.Second,
		ExpectContinueTimeout: time.Second,
		IdleConnTimeout:       90 * time.Second,
		MaxIdleConnsPerHost:   initialConcurrency,
		Protocols:             &protocols,
	}
	return &Client{
		cfg:       cfg,
		transport: transport,
		http:      &http.Client{Transport: transport, CheckRedirect: checkRedirect},
		limiter:   limiterFor(cfg.Host),
		secrets:   secretsOf(cfg.Token),
		random:    rand.Float64,
	}, nil
}

// checkRedirect lets a server move a path, and nothing more: the token goes to
// no other host, and an update does not turn into a read.
func checkRedirect(req *http.Request, via []*http.Request) error {
	if len(via) >= 10 || req.URL.Host != via[0].URL.Host || req.URL.Scheme != "https" || req.Method != via[0].Method {
		return errRedirect
	}
	return nil
}

// WithToken returns a client for the same server with another token. The two
// share connections and the limit of concurrent requests.
func (c *Client) WithToken(token string) *Client {
	d := *c
	d.cfg.Token = token
	d.secrets = secretsOf(token)
	return &d
}

// WithBudget returns a client whose calls may take longer, or less long, to
// succeed.
func (c *Client) WithBudget(budget time.Duration) *Client {
	d := *c
	d.cfg.Budget = budget
	return &d
}

// auxiliary returns a client for calls whose loss costs little.
func (c *Client) auxiliary() *Client { return c.WithBudget(min(c.cfg.Budget, AuxiliaryBudget)) }

// Host returns the API host as configured.
func (c *Client) Host() string { return c.cfg.Host }

// Close closes idle connections, also those of clients made by WithToken.
func (c *Client) Close() { c.transport.CloseIdleConnections() }

// String keeps the token out of logs.
func (c *Client) String() string { return c.cfg.String() }

// GoString keeps the token out of logs.
func (c *Client) GoString() string { return c.cfg.String() }

// Call makes one API call, repeating it as often as the retry policy says
// (spec: arvados-api section 5), and decodes the answer into dst unless that is
// nil. Numbers that end up in an any are json.Number. path is relative to
// /arvados/v1/ unless it starts with a slash; what comes from elsewhere must
// have been escaped by the caller. Every error is an *Error.
func (c *Client) Call(ctx context.Context, method, path string, params map[string]any, dst any) error {
	clock := c.cfg.Clock
	start := clock.Now()
	req, err := newRequest(method, path, params)
	fail := func(e *Error, attempts int) error {
		e.Method, e.Path, e.RequestID, e.secrets = method, req.path, req.id, c.secrets
		e.Attempts, e.Elapsed = attempts, clock.Now().Sub(start)
		return e
	}
	if err == nil {
		err = checkToken(c.cfg.Token)
	}
	if err != nil {
		return fail(&Error{Err: err}, 0)
	}
	deadline := start.Add(c.cfg.Budget)
	var last *Error
	for n := 0; ; n++ {
		e := c.attempt(ctx, req, deadline, dst)
		if e == nil {
			return nil
		}
		if ctx.Err() != nil && (e.retryable || e.Status == 0) {
			return fail(interrupted(ctx, e, last), n+1)
		}
		if errors.Is(e.Err, errSilent) && last != nil && !clock.Now().Before(deadline) {
			// The budget ended this attempt: what went wrong before says more.
			return fail(last, n+1)
		}
		last = e
		d := wait(n, e, c.cfg.Budget, clock.Now(), c.random())
		if !e.retryable || n >= maxRetries || !clock.Now().Add(d).Before(deadline) {
			return fail(last, n+1)
		}
		if c.cfg.OnRetry != nil {
			fail(e, n+1)
			c.cfg.OnRetry(Retry{Err: e, Wait: d})
		}
		if err := clock.Sleep(ctx, d); err != nil {
			return fail(interrupted(ctx, e, last), n+1)
		}
	}
}

// interrupted is the error of a call whose context ended: the reason for that,
// with the last real answer beside it.
func interrupted(ctx context.Context, e, last *Error) *Error {
	cause := ctx.Err()
	if c := context.Cause(ctx); c != cause {
		cause = fmt.Errorf("%w: %w", cause, c)
	}
	if last == nil {
		last = e
	}
	if last.Status != 0 {
		cause = fmt.Errorf("%w (the last answer was %d)", cause, last.Status)
	}
	return &Error{Err: cause}
}

// attempt sends req once. It returns nil on success.
func (c *Client) attempt(ctx context.Context, req *request, deadline time.Time, dst any) *Error {
	clock := c.cfg.Clock
	remaining := func() time.Duration { return max(deadline.Sub(clock.Now()), time.Millisecond) }
	ctx, cancel := context.WithTimeoutCause(ctx, remaining(), errSilent)
	defer cancel()
	if err := c.limiter.acquire(ctx, clock); err != nil {
		return &Error{Err: fmt.Errorf("%w: too many other requests are under way", errSilent), retryable: true}
	}
	status := 0
	defer func() { c.limiter.release(status, clock) }()

	limit := min(c.cfg.AttemptTimeout, remaining())
	ctx, cancelAttempt := context.WithTimeoutCause(ctx, limit, errSilent)
	defer cancelAttempt()
	broken := func(err error) *Error {
		if context.Cause(ctx) == errSilent {
			err = fmt.Errorf("%w (%s)", errSilent, limit.Round(time.Millisecond))
		}
		return &Error{Err: err, retryable: retryableTransport(err)}
	}

	hreq, err := req.http(ctx, c.cfg.Host, c.cfg.Token)
	if err != nil {
		return &Error{Err: err}
	}
	resp, err := c.http.Do(hreq)
	if err != nil {
		// The url.Error around it repeats method and URL.
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err
		}
		return broken(err)
	}
	defer resp.Body.Close()
	status = resp.StatusCode

	if status == http.StatusNoContent && dst == nil {
		return nil
	}
	if status != http.StatusOK {
		body, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
		return &Error{
			Status:     status,
			Texts:      errorTexts(body, c.secrets),
			retryable:  retryableStatus(status),
			retryAfter: resp.Header.Get("Retry-After"),
		}
	}
	if dst == nil {
		// The status is the answer, also if not all of it arrives, unless it is
		// somebody else's, such as the login page of a network.
		body, err := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
		if text := bytes.TrimSpace(body); err == nil && (len(text) == 0 || text[0] != '{') {
			return &Error{Err: errBroken, retryable: true}
		}
		return nil
	}
	if resp.ContentLength > c.cfg.MaxResponse {
		return broken(fmt.Errorf("%w: %d bytes, the limit is %d", errTooLarge, resp.ContentLength, c.cfg.MaxResponse))
	}
	body := &boundedReader{r: resp.Body, left: c.cfg.MaxResponse}
	switch err := decodeAnswer(body, dst); {
	case body.err != nil:
		return broken(fmt.Errorf("read answer: %w", body.err))
	case err != nil:
		return &Error{Err: err, retryable: errors.Is(err, errBroken)}
	}
	return nil
}
