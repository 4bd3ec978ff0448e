package supervisor

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"crunch-oci/internal/giveback"
	"crunch-oci/oci"
)

// maxRunTimeGrace is the time between TERM and KILL for a container that has
// used up its maximum run time.
const maxRunTimeGrace = 10 * time.Second

// killTimeout bounds how long a killed container may take to end. It takes long
// only if the kernel waits for a file system or device on its behalf.
const killTimeout = 10 * time.Second

// hostnameLength is how much of the container's UUID is its host name: the last
// part, as Docker takes a part of its container id.
const hostnameLength = 12

// container is the process, its streams, and how it ended.
type container struct {
	process Process
	streams *streams
	stats   *reporter
	// stopReason is why it was stopped, "" if it was not.
	stopReason string
	// oom says that it ran out of memory; "": it did not.
	oom string
	// mustEnd is done when the container has to be stopped; its cause says why.
	// It is there from the container's start on.
	mustEnd context.Context
}

// createContainer opens the streams, writes the bundle, and makes the
// container, up to the point where only the user's program is missing.
func (r *run) createContainer(ctx context.Context) error {
	r.Log.Printf("Creating OCI container")
	network, err := r.Network(r.record.RuntimeConstraints.API)
	if err != nil {
		return fmt.Errorf("While creating container: %w", err)
	}
	q, err := r.bundleRequest(ctx, network.Kind)
	if err != nil {
		return fmt.Errorf("While creating container: %w", err)
	}
	spec, err := oci.NewSpec(q)
	if err != nil {
		return createError(err)
	}
	if err := oci.CompleteRoot(q); err != nil {
		return fmt.Errorf("While creating container: %w", err)
	}
	if err := r.giveFiles(); err != nil {
		return fmt.Errorf("While creating container: %w", err)
	}
	if err := r.giveGPUs(spec); err != nil {
		return createError(err)
	}
	// Not in the runtime directory, which is on a tmpfs that all supervisors and
	// the system share: /etc/hosts and its like, which the container may write
	// to, are in the bundle.
	bundle := filepath.Join(r.Scratch, "bundle")
	if err := oci.WriteBundle(bundle, spec); err != nil {
		return fmt.Errorf("While creating container: %w", err)
	}
	s, err := r.openStreams(ctx)
	if err != nil {
		return fmt.Errorf("While creating container: %w", err)
	}
	r.container.streams = s
	r.undo.Add("close streams", s.close)
	r.inputs.from.forget()
	p, err := r.Runtime.Create(ctx, r.UUID, bundle, s.stdio)
	if err != nil {
		return createError(err)
	}
	for _, w := range p.Warnings() {
		r.Log.Printf("warning: %s", w)
	}
	r.container.process = p
	r.undo.Add("delete container", func(ctx context.Context) error {
		return errors.Join(r.killContainer(ctx), bounded(ctx, killTimeout, p.Delete))
	})
	if err := r.connect(ctx, network, bundle); err != nil {
		return fmt.Errorf("While creating container: %w", err)
	}
	return r.closeGiven(ctx, s)
}

// connect gives the container its network. One whose command was found to be
// missing has no process to give it to.
func (r *run) connect(ctx context.Context, network Network, bundle string) error {
	pid := r.container.process.PID()
	if network.Connect == nil || pid == 0 {
		return nil
	}
	c, err := network.Connect(ctx, pid)
	if err != nil {
		return err
	}
	r.undo.Add("disconnect container", c.Close)
	for _, n := range c.Notes() {
		r.Log.Printf("network: %s", n)
	}
	return oci.SetNames(bundle, c.Names())
}

// createError makes the run final if the request itself is at fault: another
// node could do nothing better with it.
func createError(err error) error {
	err = fmt.Errorf("While creating container: %w", err)
	if errors.Is(err, oci.ErrRequest) {
		return cancelled(err)
	}
	return err
}

// bundleRequest says in the bundle's terms what the record asks for.
func (r *run) bundleRequest(ctx context.Context, network oci.Network) (oci.Request, error) {
	c := r.record.RuntimeConstraints
	rlimits, err := oci.HostRlimits()
	if err != nil {
		return oci.Request{}, err
	}
	mountPID := 0
	if r.inputs.mount != nil {
		mountPID = r.inputs.mount.PID()
	}
	cgroup, err := r.Cgroup(ctx, mountPID)
	if err != nil {
		return oci.Request{}, err
	}
	q := oci.Request{
		Image:       r.image.snapshot.Config.Config,
		RootfsPath:  r.image.rootfs,
		Command:     r.record.Command,
		Env:         r.environment(),
		Cwd:         r.record.Cwd,
		CgroupsPath: cgroup,
		Network:     network,
		Hostname:    r.UUID[len(r.UUID)-hostnameLength:],
		Limits:      oci.Limits{NanoCPUs: int64(c.VCPUs) * 1e9, RAM: c.RAM, PIDs: r.Limits.PIDs, Shm: r.Limits.Shm},
		Rlimits:     rlimits,
		NoSeccomp:   r.Limits.NoSeccomp,

		NoNewPrivileges: r.Limits.NoNewPrivileges,
		Confinement:     r.Limits.Confinement,
	}
	if r.Limits.IgnoreRAM {
		q.Limits.RAM = 0
	}
	for _, b := range r.inputs.plan.Binds {
		q.Mounts = append(q.Mounts, oci.Mount{Source: b.Source, Target: b.Target, ReadOnly: b.ReadOnly})
	}
	return q, nil
}

// environment is the record's, and for a container with API access what its
// Arvados clients need, which wins (spec: lifecycle section 12).
func (r *run) environment() map[string]string {
	env := make(map[string]string)
	for k, v := range r.record.Environment {
		env[k] = v
	}
	if r.record.RuntimeConstraints.API {
		for k, v := range r.APIEnv {
			env[k] = v
		}
		env["ARVADOS_API_TOKEN"] = r.token
	}
	return env
}

// startContainer lets the user's program begin. That takes for ever if it lies
// on a mount whose server does not answer, and ends as the program would.
func (r *run) startContainer(ctx context.Context) error {
	if r.stop.Err() != nil {
		return r.stopContainer(ctx, context.Cause(r.stop).Error())
	}
	r.Log.Printf("Starting container")
	r.watchReasons(ctx)
	err := r.container.process.Start(r.container.mustEnd)
	if cause := context.Cause(r.container.mustEnd); cause != nil && errors.Is(err, cause) {
		return r.stopFor(ctx, cause, nil)
	}
	if err != nil {
		return fmt.Errorf("could not start container: %w%s", err, advice(err))
	}
	if r.Observer != nil {
		r.Observer.Started(r.now())
	}
	return nil
}

// waitForContainer waits for the container's end, and brings it about if it is
// to be stopped, has run too long, or has lost its inputs.
func (r *run) waitForContainer(ctx context.Context) error {
	if r.container.stopReason != "" {
		return nil // never started
	}
	r.Log.Printf("Waiting for container to finish")
	end, giveUp := r.watchContainer(ctx)
	defer giveUp()
	settle := time.AfterFunc(settled, giveback.Memory)
	defer settle.Stop()
	select {
	case <-end.seen:
	case <-r.container.mustEnd.Done():
		if err := r.stopFor(ctx, context.Cause(r.container.mustEnd), end); err != nil {
			return err
		}
	}
	<-end.seen // killing it brought it about
	if end.err != nil {
		return fmt.Errorf("wait for container: %w", end.err)
	}
	r.exitCode = &end.status.Code
	r.reportEnd(end.status)
	return nil
}

// settled is how long after the start of its container the supervisor has little
// left to do. What the image's configuration, the start and the first save of the
// log have left as garbage is then given back to the node at once; left to
// itself the runtime of a process that allocates next to nothing keeps it for
// minutes. A short job does not pay for the collection.
const settled = 10 * time.Second

// reason is why a container is stopped, if that is not the cause of a context;
// the words are those of the log.
type reason string

const (
	timeOver  reason = "maximum run time exceeded. Stopping container."
	mountLost reason = "arv-mount exited while container is still running. Stopping container."
)

func (r reason) Error() string { return string(r) }

// watchReasons makes container.mustEnd. From here on the maximum run time counts.
func (r *run) watchReasons(ctx context.Context) {
	mustEnd, cancel := context.WithCancelCause(ctx)
	r.container.mustEnd = mustEnd
	limit, exited := r.timeLimit(), r.mountExited()
	watching := make(chan struct{})
	go func() {
		defer close(watching)
		select {
		case <-r.stop.Done():
			cancel(context.Cause(r.stop))
		case <-limit:
			cancel(timeOver)
		case <-exited:
			cancel(mountLost)
		case <-mustEnd.Done():
		}
	}()
	r.undo.Add("stop watching", func(context.Context) error {
		cancel(nil)
		<-watching
		return nil
	})
}

// stopFor stops the container because of cause, that of mustEnd. end is
// nil if its program has not begun: there is nobody to hear TERM.
func (r *run) stopFor(ctx context.Context, cause error, end *ending) error {
	switch {
	case errors.Is(cause, mountLost):
		r.noteMountEnd()
		return r.stopContainer(ctx, cause.Error())
	case end == nil, ctx.Err() != nil:
		return r.stopContainer(ctx, cause.Error())
	case errors.Is(cause, timeOver):
		// Whoever stops the run now does not want to wait either.
		hurry, cancel := mergeDone(ctx, r.stop)
		defer cancel()
		return r.stopGently(hurry, cause.Error(), maxRunTimeGrace, end)
	}
	return r.stopGently(ctx, cause.Error(), r.Limits.StopGrace, end)
}

// ending is how the container ended, once seen is closed.
type ending struct {
	seen   chan struct{}
	status oci.ExitStatus
	err    error
}

// watchContainer waits for the end of the container in the background, until
// giveUp is called. What ends the run must not end this: first the container is
// killed, and then its exit status is known.
func (r *run) watchContainer(ctx context.Context) (end *ending, giveUp context.CancelFunc) {
	ctx, giveUp = context.WithCancel(context.WithoutCancel(ctx))
	end = &ending{seen: make(chan struct{})}
	go func() {
		defer close(end.seen)
		end.status, end.err = r.container.process.Wait(ctx)
	}()
	return end, giveUp
}

// advice is what is added to a start error that the user can cure.
func advice(err error) string {
	var start *oci.StartError
	if !errors.As(err, &start) || start.Advice() == "" {
		return ""
	}
	return "\n" + start.Advice()
}

// noteStop logs why the container is stopped.
func (r *run) noteStop(reason string) {
	r.Log.Printf("%s", reason)
	r.Log.Printf("stopping container")
	r.container.stopReason = reason
}

// stopContainer ends every process of the container at once. When it returns
// without error the first one has been reaped.
//
// It is logged meanwhile: a log that cannot be written must not let it live.
func (r *run) stopContainer(ctx context.Context, reason string) error {
	killed := make(chan error, 1)
	go func() { killed <- r.killContainer(ctx) }()
	r.noteStop(reason)
	return <-killed
}

// stopGently gives the container the grace period to end after TERM, or less if
// another signal comes or ctx is done before.
func (r *run) stopGently(ctx context.Context, reason string, grace time.Duration, end *ending) error {
	if grace <= 0 {
		return r.stopContainer(ctx, reason)
	}
	again, over := r.nextSignal(), r.after(grace)
	err := r.container.process.Signal(syscall.SIGTERM)
	killed := make(chan error, 1)
	go func() {
		select {
		case <-end.seen:
		case <-over:
		case <-again:
		case <-ctx.Done():
		}
		killed <- r.killContainer(ctx)
	}()
	r.noteStop(reason)
	if err != nil && !errors.Is(err, os.ErrProcessDone) {
		r.Log.Printf("error stopping container: %v", err)
	}
	return <-killed
}

// killContainer ends every process of the container, also when the run is being
// given up. A process that is stuck in the kernel with a request to the FUSE
// server ends only with that.
func (r *run) killContainer(ctx context.Context) error {
	p := r.container.process
	err := bounded(ctx, killTimeout, p.Kill)
	if err == nil {
		return nil
	}
	r.Log.Printf("error stopping container: %v", err)
	if r.inputs.mount != nil {
		if err := r.stopMount(ctx); err != nil {
			r.Log.Printf("error stopping container: %v", err)
		}
		err = bounded(ctx, killTimeout, p.Kill)
	}
	if err != nil {
		return fmt.Errorf("stop container: %w", err)
	}
	return nil
}

// bounded calls f with a context that ends after the time given, and not with
// ctx.
func bounded(ctx context.Context, d time.Duration, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), d)
	defer cancel()
	return f(ctx)
}

// timeLimit ticks when the record's maximum run time is over, if it has one.
func (r *run) timeLimit() <-chan time.Time {
	const most = math.MaxInt64 / int64(time.Second)
	seconds := r.record.SchedulingParameters.MaxRunTime
	if seconds <= 0 {
		return nil
	}
	return r.after(time.Duration(min(seconds, most)) * time.Second)
}

// mountExited is closed when the FUSE server ends, if there is one.
func (r *run) mountExited() <-chan struct{} {
	if r.inputs.mount == nil {
		return nil
	}
	return r.inputs.mount.Exited()
}

// reportEnd says how the container ended, and why if the kernel did it.
func (r *run) reportEnd(status oci.ExitStatus) {
	r.Log.Printf("Container exited with status code %s", status)
	u := r.Meter.Usage(r.container.process)
	u.ExitCode = status.Code
	if u.OOMKilled {
		// These words make workflow runners try again with more memory, so they
		// must not appear for any other reason.
		r.container.oom = fmt.Sprintf("Container ran out of memory: the kernel killed a process in it (limit %d bytes)", r.record.RuntimeConstraints.RAM)
		r.Log.Printf("%s", r.container.oom)
	}
	if r.Observer != nil {
		r.Observer.Ended(u)
	}
}

// closeStreams brings the last bytes of the container's output into the log.
func (r *run) closeStreams(ctx context.Context) error {
	if err := r.container.streams.close(ctx); err != nil {
		return fmt.Errorf("close standard streams: %w", err)
	}
	return nil
}
