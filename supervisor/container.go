package supervisor

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"syscall"
	"time"

	"crunch-oci/oci"
)

// maxRunTimeGrace is the time between TERM and KILL for a container that has
// used up its maximum run time.
const maxRunTimeGrace = 10 * time.Second

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
}

// createContainer opens the streams, writes the bundle, and makes the
// container, up to the point where only the user's program is missing.
func (r *run) createContainer(ctx context.Context) error {
	r.Log.Printf("Creating OCI container")
	q, err := r.bundleRequest()
	if err != nil {
		return fmt.Errorf("create container: %w", err)
	}
	spec, err := oci.NewSpec(q)
	if err != nil {
		return createError(err)
	}
	bundle := filepath.Join(r.RunDir.Path(), "bundle")
	if err := oci.WriteBundle(bundle, spec); err != nil {
		return fmt.Errorf("create container: %w", err)
	}
	s, err := r.openStreams(ctx)
	if err != nil {
		return fmt.Errorf("create container: %w", err)
	}
	r.container.streams = s
	r.undo.Add("close streams", s.close)
	p, err := r.Runtime.Create(ctx, r.UUID, bundle, s.stdio)
	if err != nil {
		return createError(err)
	}
	for _, w := range p.Warnings() {
		r.Log.Printf("warning: %s", w)
	}
	r.container.process = p
	r.undo.Add("delete container", func(ctx context.Context) error {
		return errors.Join(p.Kill(ctx), p.Delete(ctx))
	})
	return s.closeGiven()
}

// createError makes the run final if the request itself is at fault: another
// node could do nothing better with it.
func createError(err error) error {
	err = fmt.Errorf("create container: %w", err)
	if errors.Is(err, oci.ErrRequest) {
		return cancelled(err)
	}
	return err
}

// bundleRequest says in the bundle's terms what the record asks for.
func (r *run) bundleRequest() (oci.Request, error) {
	c := r.record.RuntimeConstraints
	rlimits, err := oci.HostRlimits()
	if err != nil {
		return oci.Request{}, err
	}
	network, err := r.Network(c.API)
	if err != nil {
		return oci.Request{}, err
	}
	q := oci.Request{
		Image:       r.image.snapshot.Config.Config,
		RootfsPath:  r.image.rootfs,
		Command:     r.record.Command,
		Env:         r.environment(),
		Cwd:         r.record.Cwd,
		CgroupsPath: r.CgroupsPath,
		Network:     network,
		Hostname:    r.UUID[len(r.UUID)-hostnameLength:],
		Limits:      oci.Limits{NanoCPUs: int64(c.VCPUs) * 1e9, RAM: c.RAM, PIDs: r.Limits.PIDs},
		Rlimits:     rlimits,
		NoSeccomp:   r.Limits.NoSeccomp,
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

// startContainer lets the user's program begin.
func (r *run) startContainer(ctx context.Context) error {
	if r.stop.Err() != nil {
		r.noteStop("")
		return nil
	}
	r.Log.Printf("Starting container")
	if err := r.container.process.Start(); err != nil {
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
	type result struct {
		status oci.ExitStatus
		err    error
	}
	ended := make(chan result, 1)
	waitCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		status, err := r.container.process.Wait(waitCtx)
		ended <- result{status, err}
	}()
	var res result
	select {
	case res = <-ended:
	case <-r.stop.Done():
		r.noteStop("")
		r.stopContainer(ctx, r.Limits.StopGrace)
		res = <-ended
	case <-r.timeLimit(waitCtx):
		r.noteStop("maximum run time exceeded. Stopping container.")
		r.stopContainer(ctx, maxRunTimeGrace)
		res = <-ended
	case <-r.mountExited():
		r.noteStop("arv-mount exited while container is still running. Stopping container.")
		r.stopContainer(ctx, 0)
		res = <-ended
	case <-ctx.Done():
		r.noteStop(context.Cause(ctx).Error())
		r.stopContainer(ctx, 0)
		res = <-ended
	}
	if res.err != nil {
		return fmt.Errorf("wait for container: %w", res.err)
	}
	r.exitCode = &res.status.Code
	r.reportEnd(res.status)
	return nil
}

// advice is what is added to a start error that the user can cure.
func advice(err error) string {
	var start *oci.StartError
	if !errors.As(err, &start) || start.Advice() == "" {
		return ""
	}
	return "\n" + start.Advice()
}

// noteStop logs once why the container is stopped; an empty reason stands for
// the stop request's own.
func (r *run) noteStop(reason string) {
	if reason == "" {
		reason = context.Cause(r.stop).Error()
	}
	r.Log.Printf("%s", reason)
	r.container.stopReason = reason
}

// stopContainer ends every process of the container: at once, or after TERM and
// a grace period. It does not wait for the first process to be reaped.
func (r *run) stopContainer(ctx context.Context, grace time.Duration) {
	r.Log.Printf("stopping container")
	p := r.container.process
	if grace > 0 {
		if err := p.Signal(syscall.SIGTERM); err != nil {
			r.Log.Printf("error stopping container: %v", err)
		}
		waitCtx, cancel := context.WithTimeout(ctx, grace)
		_, err := p.Wait(waitCtx)
		cancel()
		if err == nil {
			return
		}
	}
	if err := p.Kill(context.WithoutCancel(ctx)); err != nil {
		r.Log.Printf("error stopping container: %v", err)
	}
}

// timeLimit ticks when the record's maximum run time is over, if it has one.
func (r *run) timeLimit(ctx context.Context) <-chan struct{} {
	seconds := r.record.SchedulingParameters.MaxRunTime
	if seconds <= 0 {
		return nil
	}
	limited, cancel := context.WithTimeout(ctx, time.Duration(seconds)*time.Second)
	context.AfterFunc(ctx, cancel)
	return limited.Done()
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
		r.Log.Printf("Container ran out of memory: the kernel killed a process in it (limit %d bytes)", r.record.RuntimeConstraints.RAM)
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
