package wire

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"crunch-oci/internal/hostdir"
	"crunch-oci/oci"
	"crunch-oci/supervisor/rundir"
)

// What a run owns outside its runtime directory (rundir.Thing.Kind).
const (
	ownsDir       = "dir"       // a scratch directory
	ownsContainer = "container" // a container, by its state directory
)

// cleanupTimeout bounds the killing of what a dead run left alive, and the
// cleaning up after all dead runs at the start of another.
const cleanupTimeout = 10 * time.Second

// removers remove what a dead run owned.
var removers = rundir.Removers{
	ownsDir: hostdir.RemoveAll,
	ownsContainer: func(ctx context.Context, dir string) error {
		ctx, cancel := context.WithTimeout(ctx, cleanupTimeout)
		defer cancel()
		rt := oci.Runtime{StateDir: filepath.Dir(dir)}
		return rt.Cleanup(ctx, filepath.Base(dir))
	},
}

// sweep cleans up after supervisors that died. Schedulers other than the cloud
// dispatcher never ask for it, so every start does. What cannot be removed now
// is said, and left for the next.
func sweep(ctx context.Context, j Job) {
	ctx, cancel := context.WithTimeout(ctx, cleanupTimeout)
	defer cancel()
	cleaned, err := rundir.Sweep(ctx, j.Site.RuntimeDir, removers)
	for _, name := range cleaned {
		fmt.Fprintf(j.Stderr, "%s: cleaned up after the dead supervisor of %s\n", j.UUID, name)
	}
	if err != nil {
		fmt.Fprintf(j.Stderr, "%s: %v\n", j.UUID, err)
	}
}
