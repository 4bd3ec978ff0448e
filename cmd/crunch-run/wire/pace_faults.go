//go:build faults

package wire

import (
	"context"
	"time"

	"crunch-oci/arvados"
	"crunch-oci/keep"
	"crunch-oci/supervisor"
)

// haste is how much faster policy waits go by in the program that "make faults"
// builds: two minutes of an API that is away take 1.2 s.
const haste = 100

// hastyClock is real time, but haste times faster.
type hastyClock struct{ began time.Time }

func (c hastyClock) Now() time.Time { return c.began.Add(haste * time.Since(c.began)) }

func (c hastyClock) Sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d / haste)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func paceAPI(cfg arvados.Config) arvados.Config {
	cfg.Clock = hastyClock{time.Now()}
	return cfg
}

func paceKeep(cfg keep.ClientConfig) keep.ClientConfig {
	delay := cfg.RetryDelay
	cfg.RetryDelay = func(round int) time.Duration { return delay(round) / haste }
	if read := cfg.ReadRetryDelay; read != nil {
		cfg.ReadRetryDelay = func(round int) time.Duration { return read(round) / haste }
	}
	return cfg
}

func pace(s *supervisor.Supervisor) {
	s.After = func(d time.Duration) <-chan time.Time { return time.After(d / haste) }
}
