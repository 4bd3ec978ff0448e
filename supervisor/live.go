package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"crunch-oci/keep"
	"crunch-oci/supervisor/mounts"
)

// New collections in the FUSE mount (spec: mounts-and-output sections 3 and 8):
// the only part of the mount that this process touches itself, because nothing
// else knows what is in them. A server that does not answer must not hang it.

// liveRecord is the hidden file that stores a new collection and tells what is
// in it.
const liveRecord = ".arvados#collection"

var (
	errNoMount   = errors.New("the FUSE server has ended, and what was in new collections is lost")
	errNotStored = errors.New("the FUSE server could not store it, see arv-mount.txt")
	errMountHung = errors.New("the FUSE server does not answer")
)

// liveTimeout bounds how long the FUSE server may take to store what it has in
// memory, which is a few blocks at most, with all its retries; openTimeout, how
// long it may take for what needs no Keep.
const (
	liveTimeout = 15 * time.Minute
	openTimeout = time.Minute
)

// onMount calls f, which touches the FUSE mount, and returns when it does, when
// ctx ends, or when the server has ended. f may then go on in the background
// until its server has ended, which stopMount sees to.
func onMount[T any](ctx context.Context, r *run, f func() (T, error), abandon func(T)) (T, error) {
	type result struct {
		value T
		err   error
	}
	var none T
	if r.inputs.mount == nil {
		return none, errNoMount
	}
	done := make(chan result)
	gone := make(chan struct{})
	defer close(gone)
	go func() {
		v, err := f()
		select {
		case done <- result{v, err}:
		case <-gone:
			if err == nil {
				abandon(v)
			}
		}
	}()
	select {
	case res := <-done:
		return res.value, res.err
	case <-r.inputs.mount.Exited():
		return none, errNoMount
	case <-ctx.Done():
		return none, fmt.Errorf("%w: %w", errMountHung, context.Cause(ctx))
	}
}

// stageOutput copies into the output directory what the container may change
// there.
func (r *run) stageOutput(ctx context.Context) error {
	plan := r.inputs.plan
	if !plan.OutputIsCollection {
		return plan.StageOutput(ctx, r.inputs.from)
	}
	_, err := onMount(ctx, r, func() (struct{}, error) {
		return struct{}{}, plan.StageOutput(ctx, r.inputs.from)
	}, func(struct{}) {})
	return err
}

// createOutputFile makes the file for stdout or stderr.
func (r *run) createOutputFile(ctx context.Context, file *mounts.OutputFile) (*os.File, error) {
	plan := r.inputs.plan
	if !plan.OutputIsCollection {
		return plan.CreateOutputFile(file)
	}
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	return onMount(ctx, r, func() (*os.File, error) {
		return plan.CreateOutputFile(file)
	}, func(f *os.File) { _ = f.Close() })
}

// liveCollection stores the new collection that is mounted at target, and
// returns what is in it.
func (r *run) liveCollection(ctx context.Context, target string) (*keep.Collection, error) {
	dir, ok := r.inputs.plan.NewCollectionAt(target)
	if !ok {
		return nil, fmt.Errorf("no new collection is mounted at %q", target)
	}
	ctx, cancel := context.WithTimeout(ctx, liveTimeout)
	defer cancel()
	text, err := onMount(ctx, r, func() ([]byte, error) {
		return os.ReadFile(filepath.Join(dir, liveRecord))
	}, func([]byte) {})
	if errors.Is(err, syscall.EIO) {
		return nil, fmt.Errorf("%w: %w", errNotStored, err)
	}
	if err != nil {
		return nil, err
	}
	var record struct {
		ManifestText *string `json:"manifest_text"`
	}
	if err := json.Unmarshal(text, &record); err != nil {
		return nil, fmt.Errorf("%s: %w", liveRecord, err)
	}
	if record.ManifestText == nil {
		return nil, fmt.Errorf("%s has no manifest_text", liveRecord)
	}
	return keep.NewCollection(*record.ManifestText, nil)
}
