package arvados

import (
	"context"
	"net/http"
	"sync"
	"time"
)

const (
	initialConcurrency = 8
	// quietPeriod is how long no new request starts after a 503.
	quietPeriod = time.Second
)

// limiter bounds the requests under way to one API server, by all clients of
// this process, and adapts the bound to what the server bears (spec:
// arvados-api section 5): a 503 halves it, a success raises it by a tenth, up
// to twice the concurrency ever seen.
type limiter struct {
	mu         sync.Mutex
	limit      int
	current    int
	peak       int
	quietUntil time.Time
	// changed is closed, and replaced, when current falls or limit rises.
	changed chan struct{}
}

func newLimiter() *limiter {
	return &limiter{limit: initialConcurrency, changed: make(chan struct{})}
}

var limiters struct {
	mu     sync.Mutex
	byHost map[string]*limiter
}

// limiterFor returns the process-wide limiter of an API host.
func limiterFor(host string) *limiter {
	limiters.mu.Lock()
	defer limiters.mu.Unlock()
	l := limiters.byHost[host]
	if l == nil {
		if limiters.byHost == nil {
			limiters.byHost = map[string]*limiter{}
		}
		l = newLimiter()
		limiters.byHost[host] = l
	}
	return l
}

// acquire waits until a request may start. Each acquire is followed by one
// release.
func (l *limiter) acquire(ctx context.Context, clock Clock) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		l.mu.Lock()
		quiet := l.quietUntil.Sub(clock.Now())
		if quiet <= 0 && l.current < l.limit {
			l.current++
			l.peak = max(l.peak, l.current)
			l.mu.Unlock()
			return nil
		}
		changed := l.changed
		l.mu.Unlock()
		if quiet > 0 {
			if err := clock.Sleep(ctx, quiet); err != nil {
				return err
			}
			continue
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// release ends a request that was answered with status, or not at all (0).
func (l *limiter) release(status int, clock Clock) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.current--
	switch {
	case status == http.StatusServiceUnavailable:
		now := clock.Now()
		// The requests that were under way together fail together; that is
		// one overload, not many.
		if !now.Before(l.quietUntil) {
			l.limit = max(1, l.limit/2)
		}
		l.quietUntil = now.Add(quietPeriod)
	case status >= 200 && status < 400:
		raised := min(l.limit+max(1, l.limit/10), 2*l.peak)
		l.limit = max(l.limit, raised)
	}
	close(l.changed)
	l.changed = make(chan struct{})
}
