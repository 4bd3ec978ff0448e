package wire

import (
	"context"
	"errors"
	"fmt"
	"net"

	"crunch-oci/gateway"
	"crunch-oci/oci"
)

// Inside returns a container as the gateway sees it.
func Inside(c *oci.Container) gateway.Target { return inside{c} }

type inside struct{ container *oci.Container }

// Dial implements gateway.Target.
func (i inside) Dial(ctx context.Context, port int) (net.Conn, error) {
	conn, err := i.container.Dial(ctx, port)
	var ended *oci.ExecError
	if errors.Is(err, oci.ErrHostNetwork) || errors.As(err, &ended) {
		return nil, fmt.Errorf("%w: %w", gateway.ErrNoAddress, err)
	}
	return conn, err
}

// Exec implements gateway.Target.
func (i inside) Exec(ctx context.Context, c gateway.Command) (gateway.Process, error) {
	q := oci.ExecRequest{Args: c.Args, Env: c.Env, User: c.User}
	if c.Terminal != nil {
		size := oci.TerminalSize(*c.Terminal)
		q.Terminal = &size
	}
	s, err := i.container.Exec(ctx, q)
	var refused *oci.ExecError
	if errors.As(err, &refused) {
		return nil, &gateway.ExecError{Code: refused.Code, Text: refused.Text}
	}
	if err != nil {
		return nil, err // not s: a nil *Session is no nil Process
	}
	return process{s}, nil
}

// process is a command of a session as the gateway sees it.
type process struct{ *oci.Session }

// Resize implements gateway.Process.
func (p process) Resize(size gateway.WindowSize) error {
	return p.Session.Resize(oci.TerminalSize(size))
}

// Wait implements gateway.Process.
func (p process) Wait(ctx context.Context) (int, error) {
	status, err := p.Session.Wait(ctx)
	return status.Code, err
}
