package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"
)

// stopSignals turns signals into cancellations, once, for the whole program. The
// first TERM, INT, QUIT or HUP ends stop, with a cause that names it. With
// terminal set, somebody watches, and the second signal ends ctx; a dispatcher's
// repeated signals only say the same again. release gives the signals back.
func stopSignals(terminal bool) (ctx, stop context.Context, release func()) {
	ctx, stop, _, release = watchSignals(terminal)
	return ctx, stop, release
}

// watchSignals is stopSignals for those who also want to hear of repetitions:
// next returns a channel that is closed at the next signal, whichever it is.
func watchSignals(terminal bool) (ctx, stop context.Context, next func() <-chan struct{}, release func()) {
	var more announcer
	ctx, giveUp := context.WithCancelCause(context.Background())
	stop, stopNow := context.WithCancelCause(ctx)
	signals := make(chan os.Signal, 4)
	// Also those that a shell has told its background jobs to ignore.
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT)
	if !signal.Ignored(syscall.SIGHUP) { // nohup(1)
		signal.Notify(signals, syscall.SIGHUP)
	}
	// Asking for it makes writing to a closed stdout or stderr an error instead
	// of the end of the program. Ignoring it would do that to the container too.
	// The others are a dispatcher's: USR1 asks for the log before there is one,
	// USR2 for prices before anybody reads them. Neither must end the container.
	survived := make(chan os.Signal, 1)
	signal.Notify(survived, syscall.SIGPIPE, syscall.SIGUSR1, syscall.SIGUSR2)
	done := make(chan struct{})
	go func() {
		for {
			select {
			case sig := <-signals:
				if terminal && stop.Err() != nil {
					giveUp(fmt.Errorf("caught signal again: %v", sig))
				}
				more.announce() // first, so that who hears of the stop can wait for the next
				stopNow(fmt.Errorf("caught signal: %v", sig))
			case <-done:
				return
			}
		}
	}()
	return ctx, stop, more.next, func() {
		signal.Stop(signals)
		signal.Stop(survived)
		close(done)
		giveUp(nil)
	}
}

// announcer tells any number of listeners of an event that may come again.
type announcer struct {
	mu     sync.Mutex
	coming chan struct{} // closed at the next event; nil: nobody has asked
}

func (a *announcer) next() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.coming == nil {
		a.coming = make(chan struct{})
	}
	return a.coming
}

func (a *announcer) announce() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.coming != nil {
		close(a.coming)
		a.coming = nil
	}
}
