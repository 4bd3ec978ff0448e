package supervisor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"

	"crunch-oci/arvados"
	"crunch-oci/keep"
	"crunch-oci/supervisor/joblog"
	"crunch-oci/supervisor/mounts"
)

// inputs is everything the container is given to read, and the place for what
// it writes.
type inputs struct {
	secrets map[string]arvados.Mount
	plan    *mounts.Plan
	from    *collections
	mount   Mount // nil: nothing is mounted from Keep
	failed  bool  // the FUSE server, and it has been reported
	// ready says that the mounts have been set up: there may be output.
	ready bool
}

// setUpMounts checks the record's mounts, makes directories and files, and
// starts the FUSE server if anything comes from it (spec: mounts-and-output).
func (r *run) setUpMounts(ctx context.Context) error {
	if err := r.trySetUpMounts(ctx); err != nil {
		return fmt.Errorf("While setting up mounts: %w", err)
	}
	r.inputs.ready = true
	return nil
}

func (r *run) trySetUpMounts(ctx context.Context) error {
	api := r.record.RuntimeConstraints.API
	in := mounts.Input{
		Mounts: r.record.Mounts, SecretMounts: r.inputs.secrets,
		OutputPath:           r.record.OutputPath,
		OutputStorageClasses: r.record.OutputStorageClasses,
		KeepCacheDisk:        r.record.RuntimeConstraints.KeepCacheDisk,
		KeepCacheRAM:         r.record.RuntimeConstraints.KeepCacheRAM,
		CacheDir:             r.KeepCacheDir,
		RunDir:               r.Scratch,
		AllowOther:           true,
		StatsInterval:        r.StatsInterval,
	}
	if api {
		in.CABundle = r.CABundle
	}
	plan, err := mounts.NewPlan(in)
	if err != nil {
		return err
	}
	for _, w := range plan.Warnings {
		r.Log.Printf("%s", w)
	}
	r.inputs.plan = plan
	r.inputs.from = &collections{account: r.account}
	if err := plan.Prepare(); err != nil {
		return err
	}
	if err := r.startMount(ctx); err != nil {
		return err
	}
	if err := plan.CheckInputs(ctx, r.inputs.from); err != nil {
		return err
	}
	return r.stageOutput(ctx)
}

// startMount starts the FUSE server, unless nothing would be mounted from it.
func (r *run) startMount(ctx context.Context) error {
	if !r.inputs.plan.NeedsKeepMount() {
		return nil
	}
	log, err := r.Log.Stream("arv-mount.txt", joblog.StreamOptions{Stamp: true, Redact: true, Mirror: r.Log.Stderr()})
	if err != nil {
		return err
	}
	scanner := &joblog.MountScanner{Report: r.reportMountError}
	args := r.inputs.plan.KeepMountArgs
	r.Log.Printf("Running %v", append([]string{"arv-mount"}, args...))
	m, err := r.Mounter.Start(ctx, args, r.token, log, io.MultiWriter(log, scanner), r.RunDir.LockFile())
	if err != nil {
		if _, statErr := os.Stat("/dev/fuse"); errors.Is(statErr, fs.ErrNotExist) {
			err = fmt.Errorf("%w: %w", errNoFUSE, err)
		}
		return err
	}
	r.inputs.mount = m
	r.pids.mount.Store(&m)
	r.undo.Add("stop FUSE mount", r.stopMount)
	return nil
}

// stopMount ends the FUSE server. A second call does nothing.
func (r *run) stopMount(ctx context.Context) error {
	m := r.inputs.mount
	if m == nil {
		return nil
	}
	select {
	case <-m.Exited():
		r.noteMountEnd()
	default:
	}
	r.inputs.mount = nil
	return m.Stop(ctx)
}

// noteMountEnd says, once, that the FUSE server has failed of itself.
func (r *run) noteMountEnd() {
	if err := r.inputs.mount.Err(); err != nil && !r.inputs.failed {
		r.inputs.failed = true
		r.Log.Printf("Arv-mount exit error: %v", err)
	}
}

// reportMountError publishes the first serious error of the FUSE server. It is
// called from the goroutine that reads the server's output.
func (r *run) reportMountError(pattern, line string) {
	r.warnLater(warning{source: "arv-mount", text: "arv-mount: " + pattern, detail: line})
}

// collections reads the collections of one run, each record only once before
// the container runs and once after. It never goes through the FUSE mount, which
// may hang; and it opens as many blocks as are asked for, no more.
type collections struct {
	account Account

	mu   sync.Mutex
	open map[string]*keep.Collection
}

// OpenCollection implements capture.Collections.
func (c *collections) OpenCollection(ctx context.Context, id string) (*keep.Collection, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if coll := c.open[id]; coll != nil {
		return coll, nil
	}
	coll, err := c.account.OpenCollection(ctx, id)
	if arvados.IsStatus(err, 404) {
		return nil, fmt.Errorf("collection %s: %w", id, fs.ErrNotExist)
	}
	if err != nil {
		return nil, err
	}
	if c.open == nil {
		c.open = make(map[string]*keep.Collection)
	}
	c.open[id] = coll
	return coll, nil
}

// forget makes it read the records anew. The container may run for longer than
// the signatures in them last, and what is captured of them is saved with those;
// nor is a large manifest worth the memory meanwhile. What is open stays so.
func (c *collections) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open = nil
}

// Collection implements mounts.Inputs.
func (c *collections) Collection(ctx context.Context, id string) (fs.FS, error) {
	coll, err := c.OpenCollection(ctx, id)
	if err != nil {
		return nil, err
	}
	return collectionFS{ctx, coll}, nil
}
