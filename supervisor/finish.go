package supervisor

import (
	"context"
	"errors"
	"fmt"
	"time"

	"crunch-oci/arvados"
)

// requeueLogTimeout bounds the saving of the log before the container goes back
// to the queue. Dispatchers wait two minutes for a supervisor to end.
const requeueLogTimeout = 30 * time.Second

// requeueLogGrace is what that saving may still take once the supervisor has been
// told to stop.
const requeueLogGrace = 3 * time.Second

// captureLogTimeout bounds the saving of the log before the output is captured,
// which is worth it only for those who watch: all is saved again in the end.
const captureLogTimeout = 2 * time.Minute

// finish is the final phase (spec: lifecycle section 3): it brings home what
// there is, cleans up, and sends the final state. err is what ended the steps.
// It returns the first error met.
func (r *run) finish(ctx context.Context, err error) error {
	first := &firstError{err: err}
	defer r.Log.Printf("crunch-run finished")
	if r.final == arvados.StateQueued {
		r.requeue(ctx)
		return first.err
	}
	// Looked at only now: a stop signal that comes later finds everything done.
	if r.stop.Err() != nil && r.container.stopReason == "" {
		r.container.stopReason = context.Cause(r.stop).Error()
		r.Log.Printf("%s", r.container.stopReason)
	}
	if r.container.stopReason != "" {
		r.final = arvados.StateCancelled
	}
	r.delivery.complete = r.final == arvados.StateComplete
	if err := r.endContainer(ctx); err != nil {
		r.demote(first, "Run", err)
	}

	var output output
	if r.inputs.ready && !r.taken.Load() {
		if !r.delivery.away {
			r.publishInPassing(ctx, captureLogTimeout)
		}
		if err := r.captureOutput(ctx, &output); err != nil {
			r.demote(first, "CaptureOutput", err)
		}
	}
	r.stopHostStats(ctx)

	// From here on messages go to stderr only: the saved log ends with the state.
	logPDH, err := r.saveFinalLog(ctx, &output)
	if err != nil {
		r.demote(first, "CommitLogs", err)
	}
	// Before the final update: a container reported Complete has let go of its
	// mounts. What cannot be undone is said, and changes nothing.
	r.cleanUp(ctx)
	if err := r.sendFinal(ctx, logPDH, output.pdh); err != nil {
		r.demote(first, "UpdateContainerFinal", err)
	}
	return first.err
}

// firstError keeps the first error it is given.
type firstError struct{ err error }

func (f *firstError) add(err error) {
	if f.err == nil {
		f.err = err
	}
}

// demote logs err, and makes Cancelled of a Complete that it spoils.
func (r *run) demote(first *firstError, what string, err error) {
	r.Log.Printf("error in %s: %v", what, err)
	first.add(err)
	if r.final == arvados.StateComplete {
		r.final = arvados.StateCancelled
	}
}

// requeue gives the container back to the dispatcher. The log, which tells the
// user why, is accepted while the record is Locked; the state alone is sent
// afterwards, because the server refuses a cost with it (spec: lifecycle
// section 16). Failures leave the container Locked, and the dispatcher copes.
func (r *run) requeue(ctx context.Context) {
	r.stopHostStats(ctx)
	save, giveUp := context.WithCancel(ctx)
	detach := context.AfterFunc(r.stop, func() {
		grace := time.NewTimer(requeueLogGrace)
		defer grace.Stop()
		select {
		case <-grace.C:
			giveUp()
		case <-save.Done():
		}
	})
	r.publishInPassing(save, requeueLogTimeout)
	detach()
	giveUp()
	r.cleanUp(ctx)
	if err := r.Records.UpdateContainer(ctx, r.UUID, map[string]any{"state": arvados.StateQueued}); err != nil {
		r.Log.Printf("error giving container back to the queue: %v", err)
	}
}

// publishInPassing saves the log where that is not what matters: a Keep or API
// that does not answer, perhaps the very reason for giving up, must not keep a
// container from the queue, nor its output from being saved.
func (r *run) publishInPassing(ctx context.Context, limit time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if _, err := r.Log.Publish(ctx); err != nil {
		r.Log.Printf("error saving log collection: %v", err)
	}
}

// endContainer makes sure that nothing of the container is alive when its output
// is captured, and that the log has everything from it, also after an error.
func (r *run) endContainer(ctx context.Context) error {
	c := &r.container
	if c.process == nil {
		return nil
	}
	err := r.killContainer(ctx)
	if c.stats != nil {
		err = errors.Join(err, c.stats.stop(ctx))
	}
	return errors.Join(err, c.streams.close(ctx))
}

func (r *run) cleanUp(ctx context.Context) {
	if err := r.undo.Run(ctx); err != nil {
		r.Log.Printf("While cleaning up: %v", err)
	}
}

// setRunning tells the API that user code may run from now on.
func (r *run) setRunning(ctx context.Context) error {
	address := ""
	if r.Gateway != nil {
		address = r.Gateway.Address()
	}
	err := r.Records.UpdateContainer(ctx, r.UUID, map[string]any{
		"state":           arvados.StateRunning,
		"gateway_address": address,
		"log":             r.firstLog,
	})
	if err != nil {
		return fmt.Errorf("set container state to Running: %w", err)
	}
	if r.Gateway != nil {
		r.Gateway.AddressRecorded(address)
	}
	return nil
}

// exitCodeTimeout bounds an update that the final one repeats.
const exitCodeTimeout = 15 * time.Second

// recordExitCode publishes the exit code as soon as it is known. The final
// update repeats it, so failing here loses nothing.
func (r *run) recordExitCode(ctx context.Context) error {
	if r.exitCode == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, exitCodeTimeout)
	defer cancel()
	if r.container.oom != "" {
		if err := r.warn(ctx, warning{source: "memory", text: "container ran out of memory", detail: r.container.oom}); err != nil {
			r.Log.Printf("error updating container runtime_status: %v", err)
		}
	}
	if err := r.Records.UpdateContainer(ctx, r.UUID, map[string]any{"exit_code": *r.exitCode}); err != nil {
		r.Log.Printf("ignoring error updating exit_code: %v", err)
		r.delivery.away = mayPass(err) || errors.Is(err, context.DeadlineExceeded)
	}
	return nil
}

// saveFinalLog saves the log for good, and the results on the node's disk before
// and after that: before, because it may take long.
func (r *run) saveFinalLog(ctx context.Context, out *output) (pdh string, err error) {
	r.keepResult(out.kept, "")
	save := func(ctx context.Context) (err error) {
		pdh, err = r.Log.Final(ctx, r.final)
		return err
	}
	if r.final == arvados.StateComplete {
		err = r.insist(ctx, "CommitLogs", false, save)
	} else {
		err = save(ctx)
	}
	r.keepResult(out.kept, pdh)
	return pdh, err
}

// saveFirstLog makes the log collection, so that Running can name it.
func (r *run) saveFirstLog(ctx context.Context) error {
	pdh, err := r.Log.Save(ctx)
	if err != nil {
		return err
	}
	r.firstLog = pdh
	return nil
}
