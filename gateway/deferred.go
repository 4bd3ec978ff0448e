package gateway

import (
	"context"
	"fmt"
	"net"
	"sync/atomic"
)

// Deferred is a Target that is known later: the gateway runs long before there
// is a container. Its zero value is ready.
type Deferred struct{ target atomic.Pointer[Target] }

// Set makes t the container. From then on it answers; nil takes it away again.
func (d *Deferred) Set(t Target) {
	if t == nil {
		d.target.Store(nil)
		return
	}
	d.target.Store(&t)
}

// Dial implements Target.
func (d *Deferred) Dial(ctx context.Context, port int) (net.Conn, error) {
	if t := d.target.Load(); t != nil {
		return (*t).Dial(ctx, port)
	}
	return nil, fmt.Errorf("%w: the container has not been started", ErrNoAddress)
}

// Exec implements Target.
func (d *Deferred) Exec(ctx context.Context, c Command) (Process, error) {
	if t := d.target.Load(); t != nil {
		return (*t).Exec(ctx, c)
	}
	return nil, &ExecError{Code: 1, Text: "the container has not been started"}
}
