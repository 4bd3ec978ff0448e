package wire

import (
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"time"

	"crunch-oci/cgroups"
	"crunch-oci/imagestore"
	"crunch-oci/internal/hostdir"
	"crunch-oci/oci"
	"crunch-oci/supervisor/config"
	"crunch-oci/supervisor/rundir"
	"crunch-oci/supervisor/unfinished"
)

// What a run owns outside its runtime directory (rundir.Thing.Kind).
const (
	ownsDir       = "dir"       // a scratch directory
	ownsContainer = "container" // a container, by its state directory
	ownsRoom      = "room"      // the room made for it in a cgroup, by that path
	ownsResult    = "result"    // the beginning of names of half written results
)

// cleanupTimeout bounds the killing of what a dead run left alive.
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
	ownsResult: func(_ context.Context, prefix string) error { return unfinished.RemoveTemporary(prefix) },
	ownsRoom:   func(_ context.Context, group string) error { return cgroups.Rejoin(group) },
	ownsBridge: removeBridgeThing,
	ownsCNI:    removeCNIThing,
}

// sweep cleans up after supervisors that died, beside the run: a start must not
// wait for somebody else's million files. Schedulers other than the cloud
// dispatcher never ask for it, so every run does.
type sweep struct {
	cancel context.CancelFunc
	done   chan struct{}
}

// sweepLinger is what the end of a run gives to cleaning up that still goes on:
// also on a node with short runs only, everything is removed in the end.
const sweepLinger = 2 * time.Second

// startSweep sweeps the runtime directory root. What has been removed, and what
// could not be and is left for the next, is said on stderr; it is not for the
// log of the container.
func startSweep(ctx context.Context, root string, rm rundir.Removers, stderr io.Writer, uuid string) *sweep {
	ctx, cancel := context.WithCancel(ctx)
	s := &sweep{cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(s.done)
		cleaned, err := rundir.Sweep(ctx, root, rm)
		for _, name := range cleaned {
			fmt.Fprintf(stderr, "%s: cleaned up after the dead supervisor of %s\n", uuid, name)
		}
		if err != nil && ctx.Err() == nil {
			fmt.Fprintf(stderr, "%s: %v\n", uuid, err)
		}
	}()
	return s
}

// cleanBudget bounds Clean: a dispatcher waits for it.
const cleanBudget = 2 * time.Second

// Clean removes what dead supervisors have left on this node, as much as can be
// removed in two seconds; it touches no network. The names of the runs that have
// processes nevertheless are returned.
func Clean(ctx context.Context, site config.Site, stderr io.Writer) (alive []string) {
	if os.Geteuid() != 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, cleanBudget)
	defer cancel()
	rm := maps.Clone(removers)
	found := make(chan string)
	rm[ownsContainer] = func(ctx context.Context, dir string) error {
		err := removers[ownsContainer](ctx, dir)
		if err != nil {
			select {
			case found <- filepath.Base(dir):
			case <-time.After(cleanBudget): // nobody listens any more
			}
		}
		return err
	}
	done := make(chan struct{}, 2)
	go func() {
		if _, err := rundir.Sweep(ctx, site.RuntimeDir, rm); err != nil && ctx.Err() == nil {
			fmt.Fprintln(stderr, err)
		}
		done <- struct{}{}
	}()
	go func() {
		cleanStore(ctx, site.StoreDir, stderr)
		done <- struct{}{}
	}()
	// A file system that hangs holds up those two, but not the list. They end
	// with the program.
	late := time.NewTimer(cleanBudget + cleanBudget/4)
	defer late.Stop()
	for running := 2; running > 0; {
		select {
		case <-done:
			running--
		case name := <-found:
			alive = append(alive, name)
		case <-late.C:
			return alive
		}
	}
	return alive
}

// cleanStore removes what is half unpacked, if there is a store.
func cleanStore(ctx context.Context, dir string, stderr io.Writer) {
	if _, err := os.Stat(dir); err != nil {
		return
	}
	store, err := imagestore.Open(dir, imagestore.Options{})
	if err != nil {
		fmt.Fprintln(stderr, err)
		return
	}
	store.Close(ctx)
}

// end waits for the sweep, and stops it if it takes long or ctx is done.
func (s *sweep) end(ctx context.Context) {
	t := time.NewTimer(sweepLinger)
	defer t.Stop()
	select {
	case <-s.done:
	case <-t.C:
	case <-ctx.Done():
	}
	s.cancel()
	<-s.done
}

// closeStore ends the cleaning up in the image store in the same way.
func closeStore(ctx context.Context, s *imagestore.Store) {
	ctx, cancel := context.WithTimeout(ctx, sweepLinger)
	defer cancel()
	s.Close(ctx)
}
