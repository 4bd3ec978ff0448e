package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

// stopSignals turns signals into cancellations, once, for the whole program. The
// first TERM, INT or QUIT ends stop, with a cause that names it; the second ends
// ctx, when second is set (repeated signals of a dispatcher say the same again,
// a second Ctrl-C says more). release gives the signals back.
func stopSignals(second bool) (ctx, stop context.Context, release func()) {
	ctx, giveUp := context.WithCancelCause(context.Background())
	stop, stopNow := context.WithCancelCause(ctx)
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT)
	done := make(chan struct{})
	go func() {
		for {
			select {
			case sig := <-signals:
				if second && stop.Err() != nil {
					giveUp(fmt.Errorf("caught signal again: %v", sig))
				}
				stopNow(fmt.Errorf("caught signal: %v", sig))
			case <-done:
				return
			}
		}
	}()
	return ctx, stop, func() {
		signal.Stop(signals)
		close(done)
		giveUp(nil)
	}
}
