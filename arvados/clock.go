package arvados

import (
	"context"
	"time"
)

// Clock is the time a Client lives in. Tests give one whose Sleep returns at
// once, so that ten minutes of retries take none.
type Clock interface {
	Now() time.Time
	// Sleep returns nil after d, or the context's error as soon as ctx ends.
	// Now has then moved on by at least d.
	Sleep(ctx context.Context, d time.Duration) error
}

type realClock struct{}

func (realClock) Now() time.Time { return time.Now() }

func (realClock) Sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
