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
	// Drop, if set, is given each value when the last caller has ceased to use
	// it.
	Drop func(T)

	mu      sync.Mutex
	closed  bool
	byKey   map[string]*call[T]
	running sync.WaitGroup
}

// call is one under way. It ends early when nobody waits for it any more.
type call[T any] struct {
	key, variant string
	cancel       context.CancelFunc
	waiting      int  // callers, until they have ceased to use the value
	over         bool // value and err are set

	done  chan struct{}
	value T
	err   error
}

// Do returns what get returns for key. get's context ends with life, or when
// every caller's context has ended. The variant is the way the caller asks: who
// shares a call that was made another way, and failed, asks again in its own.
func (g *Group[T]) Do(ctx, life context.Context, key, variant string, get func(context.Context) (T, error)) (value T, err error) {
	err = g.Use(ctx, life, key, variant, get, func(v T) error { value = v; return nil })
	return value, err
}

// Use is Do for values that are dropped: it calls use with the value.
func (g *Group[T]) Use(ctx, life context.Context, key, variant string, get func(context.Context) (T, error), use func(T) error) error {
	for {
		c := g.join(ctx, life, key, variant, get)
		select {
		case <-c.done:
		case <-ctx.Done():
			g.leave(c)
			return ctx.Err()
		}
		err := c.err
		if err == nil {
			err = use(c.value)
		}
		g.leave(c)
		if c.err != nil && c.variant != variant && c.err != ErrClosed {
			continue
		}
		return err
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
		c.err, c.over = ErrClosed, true
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
		c.over = true
		unused := c.waiting == 0
		g.mu.Unlock()
		close(c.done)
		if unused {
			g.drop(c)
		}
	}()
	return c
}

// leave takes a caller off c. After the last one the work is of no use, and who
// comes now starts anew.
func (g *Group[T]) leave(c *call[T]) {
	g.mu.Lock()
	c.waiting--
	last := c.waiting == 0
	if last {
		c.cancel()
		if g.byKey[c.key] == c {
			delete(g.byKey, c.key)
		}
	}
	unused := last && c.over
	g.mu.Unlock()
	if unused {
		g.drop(c)
	}
}

func (g *Group[T]) drop(c *call[T]) {
	if g.Drop != nil && c.err == nil {
		g.Drop(c.value)
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
