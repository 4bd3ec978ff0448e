package keep

import (
	"context"
	"fmt"
	"io/fs"
	"sync"
)

// flights lets those who want the same block at the same time share one fetch.
// The zero value is ready to use.
type flights struct {
	mu      sync.Mutex
	closed  bool
	byHash  map[string]*flight
	running sync.WaitGroup
}

// flight is a fetch under way. It ends early when nobody waits for it any more.
type flight struct {
	loc     Locator
	cancel  context.CancelFunc
	waiting int

	done chan struct{}
	data []byte
	err  error
}

// fetch returns what get returns for the block. get's context ends with life, or
// when every caller's context has ended.
func (f *flights) fetch(ctx, life context.Context, loc Locator, get func(context.Context, Locator) ([]byte, error)) ([]byte, error) {
	for {
		fl := f.join(ctx, life, loc, get)
		select {
		case <-fl.done:
		case <-ctx.Done():
			f.leave(fl)
			return nil, ctx.Err()
		}
		f.leave(fl)
		if fl.err != nil && fl.loc != loc && fl.err != errClosed {
			// The other one asked with another signature, which may have been
			// the reason: ask again with ours.
			continue
		}
		return fl.data, fl.err
	}
}

func (f *flights) join(ctx, life context.Context, loc Locator, get func(context.Context, Locator) ([]byte, error)) *flight {
	f.mu.Lock()
	defer f.mu.Unlock()
	hash := loc.Hash()
	if fl := f.byHash[hash]; fl != nil {
		fl.waiting++
		return fl
	}
	fl := &flight{loc: loc, waiting: 1, cancel: func() {}, done: make(chan struct{})}
	if f.closed {
		fl.err = errClosed
		close(fl.done)
		return fl
	}
	// Values of the first caller's context go along, its end does not.
	fetchCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(life, cancel)
	fl.cancel = cancel
	if f.byHash == nil {
		f.byHash = make(map[string]*flight)
	}
	f.byHash[hash] = fl
	f.running.Add(1)
	go func() {
		defer f.running.Done()
		defer stop()
		defer cancel()
		fl.data, fl.err = get(fetchCtx, loc)
		f.mu.Lock()
		if f.byHash[hash] == fl {
			delete(f.byHash, hash)
		}
		f.mu.Unlock()
		close(fl.done)
	}()
	return fl
}

// leave takes a caller off fl. After the last one the fetch is of no use, and
// who comes now starts a new one.
func (f *flights) leave(fl *flight) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if fl.waiting--; fl.waiting == 0 {
		fl.cancel()
		if hash := fl.loc.Hash(); f.byHash[hash] == fl {
			delete(f.byHash, hash)
		}
	}
}

// has tells whether the block is being fetched.
func (f *flights) has(loc Locator) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.byHash[loc.Hash()] != nil
}

// close makes further fetches fail and returns when none is under way. The
// caller ends them through the life context.
func (f *flights) close() {
	f.mu.Lock()
	f.closed = true
	f.mu.Unlock()
	f.running.Wait()
}

var errClosed = fmt.Errorf("block store: %w", fs.ErrClosed)
