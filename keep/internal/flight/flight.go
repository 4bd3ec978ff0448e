// Package flight lets those who want the same thing at the same time share the
// work of getting it.
package flight

import (
	"context"
	"fmt"
	"io/fs"
	"sync"
)

// ErrClosed is what Do returns after Close. It is fs.ErrClosed.
var ErrClosed = fmt.Errorf("block store: %w", fs.ErrClosed)

// Group is a set of calls under way, known by their keys. The zero value is
// ready to use.
type Group[T any] struct {
	mu      sync.Mutex
	closed  bool
	byKey   map[string]*call[T]
	running sync.WaitGroup
}

// call is one under way. It ends early when nobody waits for it any more.
type call[T any] struct {
	key, variant string
	cancel       context.CancelFunc
	waiting      int

	done  chan struct{}
	value T
	err   error
}

// Do returns what get returns for key. get's context ends with life, or when
// every caller's context has ended. The variant is the way the caller asks: who
// shares a call that was made another way, and failed, asks again in its own.
func (g *Group[T]) Do(ctx, life context.Context, key, variant string, get func(context.Context) (T, error)) (T, error) {
	for {
		c := g.join(ctx, life, key, variant, get)
		select {
		case <-c.done:
		case <-ctx.Done():
			g.leave(c)
			var none T
			return none, ctx.Err()
		}
		g.leave(c)
		if c.err != nil && c.variant != variant && c.err != ErrClosed {
			continue
		}
		return c.value, c.err
	}
}

func (g *Group[T]) join(ctx, life context.Context, key, variant string, get func(context.Context) (T, error)) *call[T] {
	g.mu.Lock()
	defer g.mu.Unlock()
	if c := g.byKey[key]; c != nil {
		c.waiting++
		return c
	}
	c := &call[T]{key: key, variant: variant, waiting: 1, cancel: func() {}, done: make(chan struct{})}
	if g.closed {
		c.err = ErrClosed
		close(c.done)
		return c
	}
	// Values of the first caller's context go along, its end does not.
	getCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(life, cancel)
	c.cancel = cancel
	if g.byKey == nil {
		g.byKey = make(map[string]*call[T])
	}
	g.byKey[key] = c
	g.running.Add(1)
	go func() {
		defer g.running.Done()
		defer stop()
		defer cancel()
		c.value, c.err = get(getCtx)
		g.mu.Lock()
		if g.byKey[key] == c {
			delete(g.byKey, key)
		}
		g.mu.Unlock()
		close(c.done)
	}()
	return c
}

// leave takes a caller off c. After the last one the work is of no use, and who
// comes now starts anew.
func (g *Group[T]) leave(c *call[T]) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if c.waiting--; c.waiting == 0 {
		c.cancel()
		if g.byKey[c.key] == c {
			delete(g.byKey, c.key)
		}
	}
}

// Waiting tells how many callers wait for key.
func (g *Group[T]) Waiting(key string) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	if c := g.byKey[key]; c != nil {
		return c.waiting
	}
	return 0
}

// Close makes further calls fail and returns when none is under way. The caller
// ends them through the life context.
func (g *Group[T]) Close() {
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()
	g.running.Wait()
}
