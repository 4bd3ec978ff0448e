package supervisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"crunch-oci/arvados"
	"crunch-oci/internal/undo"
	"crunch-oci/supervisor/capture/glob"
)

// step is one line of the table of steps (spec: lifecycle section 3).
type step struct {
	name string
	do   func(*run, context.Context) error
	// onFailure is the final state if do fails, unless the error says better
	// (see verdict): Queued for trouble of this node, Cancelled for trouble
	// that any other node would meet too.
	onFailure string
}

// beforeRunning can be undone: a stop signal interrupts whichever step is at
// work, and the container is queued again.
var beforeRunning = []step{
	{"check request", (*run).checkRequest, arvados.StateCancelled},
	{"reserve GPUs", (*run).reserveGPUs, arvados.StateQueued},
	{"start host statistics", (*run).startHostStats, arvados.StateQueued},
	{"set up mounts", (*run).setUpMounts, arvados.StateCancelled},
	{"load container image", (*run).loadImage, arvados.StateCancelled},
	{"create container", (*run).createContainer, arvados.StateQueued},
	{"describe host", (*run).describeHost, arvados.StateQueued},
	{"save log", (*run).saveFirstLog, arvados.StateQueued},
}

// fromRunning cannot: the record says Running, and user code may have run.
var fromRunning = []step{
	{"start container statistics", (*run).startContainerStats, arvados.StateCancelled},
	{"start container", (*run).startContainer, arvados.StateCancelled},
	{"wait for container", (*run).waitForContainer, arvados.StateCancelled},
	{"record exit code", (*run).recordExitCode, arvados.StateCancelled},
	{"close streams", (*run).closeStreams, arvados.StateCancelled},
	{"stop container statistics", (*run).stopContainerStats, arvados.StateCancelled},
}

// run is the state of one Run: what has been learnt and made so far.
type run struct {
	*Supervisor

	began time.Time
	// stop is done when the container is to be stopped; its cause says why.
	stop context.Context

	record  arvados.Container
	account Account
	token   string // of the container

	nodeInfo  <-chan []byte // text of node-info.txt, once it is there
	inputs    inputs
	image     image
	container container
	hostStats *reporter
	gpus      GPUGrant // nil: the container has none

	// firstLog is the portable data hash of the log when Running was sent.
	firstLog string

	background *background
	costs      costs
	status     status
	pids       pids

	// undo holds what must be undone before the final update of the record.
	undo undo.Stack

	// delivery is about bringing the results home.
	delivery delivery
	// final is the state that will be sent at the end.
	final   string
	running bool // the record says Running
	// taken says that somebody else has ended the record: it takes no results.
	taken atomic.Bool
	// isRunning is the same for other goroutines, until the final update.
	isRunning atomic.Bool
	exitCode  *int // as known so far
}

// Run takes the container from Locked to its end. It returns nil when the run
// went as it should, whatever the container's exit code, and also when it was
// stopped; the first error met otherwise.
//
// When stop is done the container is stopped and the results so far are saved.
// When ctx is done everything is given up as fast as it can be; nothing is left
// on the node, but the record may not be final.
func (s *Supervisor) Run(ctx, stop context.Context) error {
	err := s.run(ctx, stop)
	if err == nil {
		return nil
	}
	return &publicError{s.Log.Redact(err.Error()), err}
}

// publicError is an error whose text, without secrets, may be printed.
type publicError struct {
	text string
	err  error
}

func (e *publicError) Error() string { return e.text }
func (e *publicError) Unwrap() error { return e.err }

func (s *Supervisor) run(ctx, stop context.Context) error {
	stop, stopNow := context.WithCancelCause(stop)
	defer stopNow(nil)
	r := &run{Supervisor: s, began: s.now(), stop: stop, final: arvados.StateQueued, background: newBackground(ctx)}
	defer r.background.end()
	r.background.run(s.Log.Run)
	r.header()
	r.loadPrices()
	r.background.run(r.watchPrices)
	r.examineHost()
	early, cancel := mergeDone(ctx, stop)
	defer cancel()
	if err := r.claim(early); err != nil {
		// Nothing is known of the record but that it is not ours: no update.
		if r.stopping(ctx) {
			return r.stoppedEarly(ctx, err)
		}
		return err
	}
	if s.NextInterruption != nil {
		r.background.run(r.watchInterruptions)
	}
	watch, endWatch := context.WithCancel(r.background.ctx)
	defer endWatch()
	r.background.run(func(context.Context) { r.watchRecord(watch, stopNow) })
	err := r.execute(ctx, early)
	endWatch()
	if err != nil {
		s.Log.Printf("error in Run: %v", err)
	}
	return r.finish(ctx, err)
}

// execute goes through the steps until one fails, and sets the final state.
func (r *run) execute(ctx, early context.Context) error {
	for _, s := range beforeRunning {
		err := r.take(s, early)
		if r.stopping(ctx) {
			return r.stoppedEarly(ctx, err)
		}
		if err != nil {
			return err
		}
	}
	// Not interrupted by a stop signal: a request cut off half-way might have
	// been obeyed.
	if err := r.setRunning(ctx); err != nil {
		r.final = arvados.StateQueued
		return err
	}
	r.running = true
	r.isRunning.Store(true)
	for _, s := range fromRunning {
		if err := r.take(s, ctx); err != nil {
			return err
		}
	}
	r.final = arvados.StateComplete
	return nil
}

// stopping reports whether the run is to be stopped or given up.
func (r *run) stopping(ctx context.Context) bool { return r.stop.Err() != nil || ctx.Err() != nil }

// stoppedEarly makes the container wait in the queue again, because the run is
// stopped. That is no failure, unless err is one of its own, or ctx is done too:
// then the queue will not hear of it.
func (r *run) stoppedEarly(ctx context.Context, err error) error {
	cause := context.Cause(r.stop)
	if ctx.Err() != nil {
		cause = context.Cause(ctx)
	}
	r.noteStop(cause.Error())
	r.final = arvados.StateQueued
	switch {
	case ctx.Err() != nil:
		return cause
	case errors.Is(err, context.Canceled), errors.Is(err, cause):
		return nil
	}
	return err
}

// take does one step.
func (r *run) take(s step, ctx context.Context) error {
	err := context.Cause(ctx)
	if err == nil {
		r.enter(s.name)
		err = s.do(r, ctx)
	}
	if err == nil {
		return nil
	}
	r.final = s.onFailure
	if r.markIfBroken(ctx, s, err) && !r.running {
		r.final = arvados.StateQueued
	}
	var v *verdict
	if errors.As(err, &v) {
		r.final = v.state
	}
	return err
}

// verdict is an error that knows which final state it should lead to.
type verdict struct {
	state string
	err   error
}

func (v *verdict) Error() string { return v.err.Error() }
func (v *verdict) Unwrap() error { return v.err }

// cancelled marks trouble that the record itself makes on every node.
func cancelled(err error) error { return &verdict{arvados.StateCancelled, err} }

// mergeDone returns a context that is done when either is, with its cause.
func mergeDone(ctx, stop context.Context) (context.Context, context.CancelFunc) {
	both, cancel := context.WithCancelCause(ctx)
	if stop.Err() != nil {
		cancel(context.Cause(stop)) // now, not soon
	}
	detach := context.AfterFunc(stop, func() { cancel(context.Cause(stop)) })
	return both, func() { detach(); cancel(nil) }
}

// header writes the lines every log begins with.
func (r *run) header() {
	r.Log.Printf("crunch-run %s started", r.Version)
	r.Log.Printf("crunch-run process has %s", r.Identity)
	r.Log.Printf("Using FUSE mount: %s", r.Mounter.Version())
	r.Log.Printf("Using container runtime: %s", r.Runtime.Version())
	r.Log.Printf("Executing container: %s", r.UUID)
	if host, err := os.Hostname(); err != nil {
		r.Log.Printf("Error getting hostname '%v'", err)
	} else {
		r.Log.Printf("Executing on host '%s'", host)
	}
}

// checkRequest refuses what this version cannot do for a container, rather than
// run it without.
func (r *run) checkRequest(context.Context) error {
	// These two, found out only when needed, would cost the whole run.
	if _, err := r.Network(r.record.RuntimeConstraints.API); err != nil {
		return &verdict{arvados.StateQueued, err} // another node may have one
	}
	if _, err := glob.Compile(r.record.OutputGlob); err != nil {
		return fmt.Errorf("output_glob: %w", err)
	}
	return nil
}

// claim learns what is to be run: steps 2 to 5 of the table. Until it has
// succeeded nothing is sent, so that whatever is wrong, the dispatcher decides.
func (r *run) claim(ctx context.Context) error {
	record, err := r.Records.GetContainer(ctx, r.UUID)
	if err != nil {
		return fmt.Errorf("error fetching container record: %w", err)
	}
	r.record = record
	auth, err := r.Records.ContainerAuth(ctx, r.UUID)
	if err != nil {
		return fmt.Errorf("error getting container token: %w", err)
	}
	r.token = auth.ContainerToken(r.UUID)
	r.Log.Hide(r.token)
	if r.account, err = r.Login(r.token, record.OutputStorageClasses); err != nil {
		return fmt.Errorf("error using container token: %w", err)
	}
	if r.inputs.secrets, err = r.account.SecretMounts(ctx, r.UUID); err != nil {
		return fmt.Errorf("error fetching secret_mounts: %w", err)
	}
	if record.State != arvados.StateLocked {
		return fmt.Errorf("dispatch error detected: container %q has state %q", r.UUID, record.State)
	}
	return nil
}
