package supervisor

import (
	"context"
	"errors"
	"fmt"
	"time"

	"crunch-oci/arvados"
	"crunch-oci/keep"
	"crunch-oci/supervisor/unfinished"
)

// DefaultFinalTimeout is how long a supervisor with a result waits for an API
// that does not answer.
const DefaultFinalTimeout = 24 * time.Hour

// finalPause is the time between two tries of a call that ends at once.
const finalPause = time.Minute

// delivery brings the results of a run to the API, however long that is away.
// Losing them would turn a finished container into a cancelled one.
type delivery struct {
	// overdue ticks when it has been tried for long enough; nil until the first
	// try has failed.
	overdue <-chan time.Time
	// givenUp says that it has been too long, or that a signal ended it.
	givenUp bool
	result  unfinished.Result
	kept    *unfinished.Kept // nil: it could not be written, or need not be
	// away says that the API has not answered lately: what can be left out is.
	away bool
	// complete says that the container has done its work, whatever has gone
	// wrong since.
	complete bool
}

// errEnded says that the record has been ended, or taken over, by somebody else.
type errEnded struct{ state string }

func (e *errEnded) Error() string {
	return fmt.Sprintf("the container's record has state %q already, by somebody else's doing", e.state)
}

// insist calls f until it succeeds, or fails for another reason than that the
// API is away: after each such failure it waits until the API answers a simple
// question. With always set it goes on also while the API does answer, if f's
// error may pass. The end of the time allowed, or a stop signal that comes after
// the first failure, ends it too, and makes every later f a short one.
func (r *run) insist(ctx context.Context, what string, always bool, f func(context.Context) error) error {
	if r.delivery.givenUp {
		ctx, cancel := context.WithTimeout(ctx, lastTryTimeout)
		defer cancel()
		return f(ctx)
	}
	err := f(ctx)
	for again := 0; mayPass(err) && ctx.Err() == nil; again++ {
		r.Log.Printf("error in %s: %v -- trying again", what, err)
		if r.delivery.overdue == nil && r.delivery.kept != nil {
			if err := r.delivery.kept.Sync(); err != nil { // this may take a while
				r.Log.Printf("warning: %v", err)
			}
		}
		if r.delivery.overdue == nil {
			r.delivery.overdue = r.after(r.finalTimeout())
		}
		signal := r.nextSignal()
		answered, waitErr := r.awaitAPI(ctx, err, signal)
		if waitErr == nil && answered && !always && again > 0 {
			return err // it answers, and yet it cannot do this
		}
		if waitErr == nil {
			var again error
			if again = r.interruptible(ctx, signal, f); !errors.Is(again, errInterrupted) {
				err = again
				continue
			}
			waitErr = errInterrupted
		}
		r.delivery.givenUp = true
		return fmt.Errorf("%w (%w)", err, waitErr)
	}
	return err
}

// lastTryTimeout bounds a call that is made although the API is given up.
const lastTryTimeout = 10 * time.Second

func (r *run) finalTimeout() time.Duration {
	if r.FinalTimeout > 0 {
		return r.FinalTimeout
	}
	return DefaultFinalTimeout
}

var (
	errOverdue     = errors.New("given up: the API has not answered for too long")
	errInterrupted = errors.New("given up because of a signal")
)

// awaitAPI returns when there is reason to try again after err: the API has
// answered a question, or the time for the next try has come. Its error is the
// reason not to.
func (r *run) awaitAPI(ctx context.Context, err error, signal <-chan struct{}) (answered bool, _ error) {
	for {
		if err := r.mayWait(signal); err != nil {
			return false, err
		}
		var now arvados.Container
		lookErr := r.interruptible(ctx, signal, func(ctx context.Context) (err error) {
			now, err = r.Records.GetContainer(ctx, r.UUID)
			return err
		})
		switch {
		case errors.Is(lookErr, errInterrupted):
			return false, errInterrupted
		case lookErr == nil && r.isTaken(now.State):
			return true, &errEnded{now.State}
		case !mayPass(lookErr):
			answered = true // also if it is an answer that does not help
		default:
			err = lookErr
		}
		if soon(err) {
			if err := r.pause(ctx, signal); err != nil {
				return answered, err
			}
		}
		if answered {
			return true, nil
		}
	}
}

// mayWait tells whether it is worth waiting still.
func (r *run) mayWait(signal <-chan struct{}) error {
	select {
	case <-r.delivery.overdue:
		return errOverdue
	case <-signal:
		return errInterrupted
	default:
		return nil
	}
}

// pause keeps calls that fail at once from being repeated in a hurry.
func (r *run) pause(ctx context.Context, signal <-chan struct{}) error {
	select {
	case <-r.after(finalPause):
		return nil
	case <-r.delivery.overdue:
		return errOverdue
	case <-signal:
		return errInterrupted
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// interruptible calls f with a context that ends when a signal comes, which is
// then the error: a call may be tried for minutes.
func (r *run) interruptible(ctx context.Context, signal <-chan struct{}, f func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		select {
		case <-signal:
			cancel(errInterrupted)
		case <-ctx.Done():
		}
	}()
	err := f(ctx)
	cancel(nil)
	<-watched
	if err != nil && errors.Is(context.Cause(ctx), errInterrupted) {
		return errInterrupted
	}
	return err
}

// isTaken tells whether a record in that state is none of ours any more.
func (r *run) isTaken(state string) bool {
	if r.running {
		return state != arvados.StateRunning
	}
	return state != arvados.StateLocked
}

// mayPass reports whether err says that the API or Keep could not be asked,
// rather than that it refused.
func mayPass(err error) bool {
	if err == nil || errors.Is(err, context.Canceled) {
		return false
	}
	var fromAPI *arvados.Error
	if errors.As(err, &fromAPI) {
		return fromAPI.Temporary() || fromAPI.Status == 0
	}
	if errors.Is(err, errNotStored) {
		return true
	}
	var fromKeep *keep.ServiceError
	return errors.As(err, &fromKeep) && fromKeep.Temporary()
}

// soon tells whether a call has ended without being tried more than once.
func soon(err error) bool {
	var e *arvados.Error
	return errors.As(err, &e) && e.Attempts < 2
}

// nextSignal is closed at the next stop signal from now on.
func (r *run) nextSignal() <-chan struct{} {
	if r.NextSignal == nil {
		return nil
	}
	return r.NextSignal()
}

// keepResult writes down what has been achieved so far. Not being able to is no
// reason to fail: it is for the case that everything else does.
func (r *run) keepResult(output *unfinished.Collection, logPDH string) {
	if r.Unfinished == "" {
		return
	}
	d := &r.delivery
	d.result = unfinished.Result{
		UUID: r.UUID, APIHost: r.APIHost, SavedAt: r.now().UTC(), State: r.final, ExitCode: r.exitCode, Cost: r.cost(),
		Output: output,
	}
	if d.complete && output != nil {
		d.result.State = arvados.StateComplete // that it could not be saved is why it is here
	}
	if manifest, ok := r.Log.Manifest(); ok {
		d.result.Log = unfinished.NewCollection(manifest, logPDH, r.record.OutputStorageClasses)
	}
	var err error
	if d.kept == nil {
		d.kept, err = r.Unfinished.Keep(d.result)
	} else {
		err = d.kept.Update(d.result)
	}
	if err != nil {
		r.Log.Printf("warning: %v", err)
	}
}

// sendFinal sends the final state with everything that belongs to it. The exit
// code is always there, null when none is known.
func (r *run) sendFinal(ctx context.Context, logPDH, output string) error {
	r.isRunning.Store(false)
	attrs := map[string]any{
		"state":     r.final,
		"exit_code": nil,
		"cost":      r.cost(),
	}
	if r.exitCode != nil {
		attrs["exit_code"] = *r.exitCode
	}
	if logPDH != "" {
		attrs["log"] = logPDH
	}
	if r.final == arvados.StateComplete && output != "" {
		attrs["output"] = output
	}
	err := r.insist(ctx, "UpdateContainerFinal", true, func(ctx context.Context) error {
		err := r.Records.UpdateContainer(ctx, r.UUID, attrs)
		if mayPass(err) {
			r.noteReason(err)
		}
		return err
	})
	if arvados.IsStatus(err, 401, 403, 404, 422) {
		err = r.whoEndedIt(ctx, err)
	}
	return r.closeDelivery(err)
}

// whoEndedIt finds out whether the final update was refused because the record
// is final already: by somebody else, or by an attempt whose answer got lost.
func (r *run) whoEndedIt(ctx context.Context, refusal error) error {
	now, err := r.Records.GetContainer(ctx, r.UUID)
	if err != nil || !r.isTaken(now.State) {
		return refusal
	}
	return &errEnded{now.State}
}

// noteReason writes down why the results are still here.
func (r *run) noteReason(reason error) {
	d := &r.delivery
	if d.kept == nil || d.result.Reason != "" {
		return
	}
	d.result.Reason = r.Log.Redact(reason.Error())
	if err := errors.Join(d.kept.Update(d.result), d.kept.Sync()); err != nil {
		r.Log.Printf("warning: %v", err)
	}
}

// closeDelivery ends the delivery: what the API has need not be kept. A record
// that somebody else has ended is no failure of this run, but its output might
// still be wanted.
func (r *run) closeDelivery(err error) error {
	d := &r.delivery
	var ended *errEnded
	switch {
	case errors.As(err, &ended) && ended.state == r.final && (r.final == arvados.StateComplete || !d.complete):
		r.Log.Printf("%v: nothing more to do", ended)
		err = nil
	case errors.As(err, &ended):
		r.Log.Printf("%v: not changing it to %s", ended, r.final)
		err = nil
		if d.complete && d.kept != nil {
			d.result.Reason = ended.Error()
			return errors.Join(r.leaveResult(), err)
		}
	case err != nil:
		if d.kept != nil {
			d.result.Reason = r.Log.Redact(err.Error())
			return errors.Join(err, r.leaveResult())
		}
		return err
	case d.complete && r.final != arvados.StateComplete && d.kept != nil && d.result.Output != nil:
		// The work is done, and cannot be had by running it once more for nothing.
		d.result.Reason = "the container has ended as " + r.final + " because its output or log could not be saved: see its log"
		return r.leaveResult()
	}
	if d.kept != nil {
		if err := d.kept.Remove(); err != nil {
			r.Log.Printf("warning: %v", err)
		}
		d.kept = nil
	}
	return err
}

// leaveResult leaves what has been kept to an operator.
func (r *run) leaveResult() error {
	d := &r.delivery
	if err := errors.Join(d.kept.Update(d.result), d.kept.Sync()); err != nil {
		r.Log.Printf("warning: %v", err)
	}
	r.Log.Printf("the results are kept in %s: see crunch-run unfinished list", d.kept.Path())
	err := d.kept.Close()
	d.kept = nil
	return err
}
