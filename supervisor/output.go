package supervisor

import (
	"context"
	"errors"
	"fmt"

	"crunch-oci/supervisor/capture"
	"crunch-oci/supervisor/mounts"
)

// captureOutput saves what is in the output directory, and returns the portable
// data hash of the collection (spec: mounts-and-output section 9). A container
// with API access may have set its own output, which then counts.
func (r *run) captureOutput(ctx context.Context) (pdh string, err error) {
	if r.record.RuntimeConstraints.API {
		now, err := r.Records.GetContainer(ctx, r.UUID)
		if err != nil {
			return "", fmt.Errorf("look whether the container has set its output: %w", err)
		}
		if now.Output != "" {
			return now.Output, nil
		}
	}
	out, err := r.account.NewCollection()
	if err != nil {
		return "", fmt.Errorf("make output collection: %w", err)
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	manifest, err := capture.Run(ctx, capture.Config{
		Mounts: r.record.Mounts, SecretMounts: r.inputs.secrets,
		OutputPath: r.record.OutputPath, OutputGlob: r.record.OutputGlob,
		HostDir:     r.inputs.plan.OutputDir,
		OtherBinds:  r.otherBinds(),
		Collections: r.inputs.from,
		Blocks:      r.account.Localizer(),
		Log:         r.Log,
	}, out)
	if err != nil {
		return "", err
	}
	pdh, err = r.account.SaveCollection(ctx, "output for "+r.UUID, manifest)
	if err != nil {
		return "", fmt.Errorf("error creating output collection: %w", err)
	}
	return pdh, nil
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
