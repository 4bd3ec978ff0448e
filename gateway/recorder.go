package gateway

import (
	"context"
	"sync"
	"time"
)

const (
	// recordTimeout bounds one update of the container's record.
	recordTimeout = 2 * time.Minute
	// recordRetry is the wait after a failed one; it doubles up to recordRetryMax.
	recordRetry    = 5 * time.Second
	recordRetryMax = 5 * time.Minute
)

// recorder keeps gateway_address in the container's record up to date, without
// anybody waiting for it (gateway.md sections 2 and 14.13).
//
// The API takes the address only in state Running, and the update to Running
// carries it. Updates before that are sent once, in case the container is
// Running already; later ones are repeated until they succeed.
type recorder struct {
	update func(ctx context.Context, addr string) error
	logf   func(string, ...any)
	wake   chan struct{}
	retry  time.Duration // the first wait after a failure

	mu      sync.Mutex
	current string
	running bool
	inAPI   string // what the record has, as far as we know
	tried   string // the last one sent, whatever came of it
}

func newRecorder(initial string, update func(context.Context, string) error, logf func(string, ...any)) *recorder {
	return &recorder{update: update, logf: logf, wake: make(chan struct{}, 1), retry: recordRetry, current: initial, inAPI: initial, tried: initial}
}

func (r *recorder) address() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.current
}

// change makes addr the address.
func (r *recorder) change(addr string) {
	r.mu.Lock()
	r.current = addr
	r.mu.Unlock()
	r.look()
}

// recorded is Server.AddressRecorded.
func (r *recorder) recorded(addr string) {
	r.mu.Lock()
	r.running = true
	r.inAPI = addr
	if r.tried != addr {
		// One of our own updates may have overtaken that one, or the other way
		// round. Which one came last only another one can tell.
		r.inAPI = ""
	}
	r.mu.Unlock()
	r.look()
}

func (r *recorder) look() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// due is the address to send now.
func (r *recorder) due() (addr string, due, running bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.running {
		due = r.current != r.inAPI
	} else {
		due = r.current != r.tried
	}
	if due {
		r.tried = r.current
	}
	return r.current, due, r.running
}

// run sends updates until ctx is done.
func (r *recorder) run(ctx context.Context) {
	if r.update == nil {
		return
	}
	wait := r.retry
	var again <-chan time.Time
	failed := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.wake:
		case <-again:
		}
		again = nil
		addr, due, running := r.due()
		if !due {
			continue
		}
		one, cancel := context.WithTimeout(ctx, recordTimeout)
		err := r.update(one, addr)
		cancel()
		if ctx.Err() != nil {
			return
		}
		switch {
		case err == nil:
			r.mu.Lock()
			r.inAPI = addr
			r.mu.Unlock()
			wait, failed = r.retry, false
			r.look() // it may have changed meanwhile
		case running:
			if !failed {
				r.logf("error updating gateway_address (will be tried again): %v", err)
			}
			failed = true
			again = time.After(wait)
			wait = min(2*wait, recordRetryMax)
		}
	}
}
