package supervisor

import (
	"context"
	"errors"
	"fmt"

	"crunch-oci/arvados"
	"crunch-oci/supervisor/capture"
	"crunch-oci/supervisor/mounts"
	"crunch-oci/supervisor/unfinished"
)

// captureOutput saves what is in the output directory as a collection
// (spec: mounts-and-output section 9). A container
// with API access may have set its own output, which then counts.
func (r *run) captureOutput(ctx context.Context, result *output) (err error) {
	if r.record.RuntimeConstraints.API {
		var now arvados.Container
		err := r.insistIfComplete(ctx, func(ctx context.Context) (err error) {
			now, err = r.Records.GetContainer(ctx, r.UUID)
			return err
		})
		if err != nil {
			return fmt.Errorf("look whether the container has set its output: %w", err)
		}
		if now.Output != "" {
			result.pdh = now.Output
			return nil
		}
	}
	var manifest string
	err = r.insistIfComplete(ctx, func(ctx context.Context) (err error) {
		manifest, err = r.captureOnce(ctx)
		return err
	})
	if err != nil {
		return err
	}
	result.kept = unfinished.NewCollection(manifest, "", r.record.OutputStorageClasses)
	if r.delivery.away {
		r.flushLog(ctx)
	}
	r.keepResult(result.kept, "") // before anything that may take long
	err = r.insistIfComplete(ctx, func(ctx context.Context) (err error) {
		result.pdh, err = r.account.SaveCollection(ctx, "output for "+r.UUID, manifest)
		return err
	})
	if err != nil {
		return fmt.Errorf("error creating output collection: %w", err)
	}
	result.kept.PDH = result.pdh
	if r.final == arvados.StateCancelled {
		r.Log.Printf("partial output is in the trashed collection %s", result.pdh)
	}
	return nil
}

// captureOnce writes the output to Keep and returns its manifest.
func (r *run) captureOnce(ctx context.Context) (manifest string, err error) {
	out, err := r.account.NewCollection()
	if err != nil {
		return "", fmt.Errorf("make output collection: %w", err)
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	r.inputs.from.forget() // an earlier attempt may be days ago
	return capture.Run(ctx, capture.Config{
		Mounts: r.record.Mounts, SecretMounts: r.inputs.secrets,
		OutputPath: r.record.OutputPath, OutputGlob: r.record.OutputGlob,
		HostDir:     r.inputs.plan.OutputDir,
		OtherBinds:  r.otherBinds(),
		Collections: r.inputs.from,
		Live:        r.liveCollection,
		Blocks:      r.account.Localizer(),
		Log:         r.Log,
	}, out)
}

// flushLog brings the log to Keep at least, so that what is kept on the node is
// all of it.
func (r *run) flushLog(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, captureLogTimeout)
	defer cancel()
	if err := r.Log.Flush(ctx); err != nil {
		r.Log.Printf("error saving log collection: %v", err)
	}
}

// output is what the container has written.
type output struct {
	pdh  string // of the collection in the API; "": there is none
	kept *unfinished.Collection
}

// insistIfComplete is insist for the results of a container that has done its
// work. Those of one that was stopped are not worth the node's time.
func (r *run) insistIfComplete(ctx context.Context, f func(context.Context) error) error {
	if r.final != arvados.StateComplete {
		return f(ctx)
	}
	return r.insist(ctx, "CaptureOutput", false, f)
}

// otherBinds are the targets of binds that no record names.
func (r *run) otherBinds() (targets []string) {
	for _, b := range r.inputs.plan.Binds {
		if b.Kind == mounts.BindCABundle {
			targets = append(targets, b.Target)
		}
	}
	return targets
}
