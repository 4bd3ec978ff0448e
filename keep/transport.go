package keep

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"

	"golang.org/x/net/http/httpproxy"
)

// limits are the time limits for one kind of service. There is none for a whole
// transfer: 64 MiB over a slow but working line is not an error.
type limits struct {
	connect   time.Duration // doubled each round
	tls       time.Duration
	keepAlive time.Duration
	idle      time.Duration // without a byte in either direction
}

var (
	diskLimits  = limits{connect: 2 * time.Second, tls: 4 * time.Second, keepAlive: 180 * time.Second, idle: 20 * time.Second}
	proxyLimits = limits{connect: 30 * time.Second, tls: 10 * time.Second, keepAlive: 120 * time.Second, idle: 5 * time.Minute}
)

const maxConnect = 30 * time.Second

// A transfer is given up if it moves less than lowSpeed bytes per second on
// average over lowSpeedTime, as the Python client does.
const (
	lowSpeed     = 32768
	lowSpeedTime = 256 * time.Second
)

// roundKey is the context key of the round number, from which the dialer
// computes how much patience it has.
type roundKey struct{}

// newHTTPClient makes a client; config may be nil, for the system's roots.
func newHTTPClient(l limits, config *tls.Config) *http.Client {
	dialer := net.Dialer{KeepAlive: l.keepAlive}
	// HTTPS_PROXY is the way to a keepproxy outside, as it is to the API.
	// Keepstores, and a block server on this node, are in the cluster.
	var proxy func(*http.Request) (*url.URL, error)
	if l == proxyLimits {
		fromEnv := httpproxy.FromEnvironment().ProxyFunc()
		proxy = func(r *http.Request) (*url.URL, error) {
			if r.URL.Scheme != "https" {
				return nil, nil
			}
			return fromEnv(r.URL)
		}
	}
	t := &http.Transport{
		Proxy: proxy,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			n, _ := ctx.Value(roundKey{}).(int)
			ctx, cancel := context.WithTimeout(ctx, min(l.connect<<min(n, 10), maxConnect))
			defer cancel()
			c, err := dialer.DialContext(ctx, network, addr)
			if tcp, ok := c.(*net.TCPConn); ok {
				return conn{tcp}, nil
			}
			return c, err
		},
		TLSHandshakeTimeout: l.tls,
		TLSClientConfig:     config.Clone(),
		MaxIdleConns:        100,
		MaxIdleConnsPerHost: 100,
		IdleConnTimeout:     90 * time.Second,
		DisableCompression:  true, // Content-Length must be that of the block
		ReadBufferSize:      64 << 10,
	}
	return &http.Client{
		Transport: t,
		// A redirect would take the token elsewhere.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

var (
	errIdle     = errors.New("no data sent or received for too long")
	errLowSpeed = errors.New("transfer too slow")
)

// watchdog cancels an attempt that makes no progress.
type watchdog struct {
	idle   time.Duration
	cancel context.CancelCauseFunc

	mu    sync.Mutex
	moved int64 // bytes since the last look at the speed
	timer *time.Timer
	speed *time.Timer
}

// newWatchdog returns a context that ends when the attempt stalls; its cause says
// why. stop must be called.
func newWatchdog(ctx context.Context, idle time.Duration) (context.Context, *watchdog) {
	ctx, cancel := context.WithCancelCause(ctx)
	w := &watchdog{idle: idle, cancel: cancel}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.timer = time.AfterFunc(idle, func() { cancel(errIdle) })
	w.speed = time.AfterFunc(lowSpeedTime, w.checkSpeed)
	return ctx, w
}

// progress reports that n bytes were sent or received.
func (w *watchdog) progress(n int) {
	if n <= 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.moved += int64(n)
	w.timer.Reset(w.idle)
}

func (w *watchdog) checkSpeed() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.moved < lowSpeed*int64(lowSpeedTime/time.Second) {
		w.cancel(errLowSpeed)
		return
	}
	w.moved = 0
	w.speed.Reset(lowSpeedTime)
}

func (w *watchdog) stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.timer.Stop()
	w.speed.Stop()
	w.cancel(nil)
}
