package supervisor

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"crunch-oci/arvados"
	"crunch-oci/imagestore"
	"crunch-oci/imagestore/archive"
)

// A new image is written to the disk while the container runs; after a reboot
// it is still believed.
func TestImageIsSynced(t *testing.T) {
	w := newWorld(t)
	w.timers(time.Minute)
	durable := false
	w.runtime.program = func(g *guest) int {
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			states, _ := filepath.Glob(filepath.Join(w.dir, "store/layers/*/state.json"))
			durable = len(states) > 0
			for _, name := range states {
				text, _ := os.ReadFile(name)
				durable = durable && strings.Contains(string(text), `"durable":true`)
			}
			if durable {
				return 0
			}
			select {
			case <-tick.C:
			case <-g.killed:
				return 137
			}
		}
	}
	w.run()
	w.ends(arvados.StateComplete, 0, "")
	if !durable {
		t.Error("the image was not synced")
	}
}

// A run that ends before does not wait until it is time.
func TestImageOfShortRunIsNotWaitedFor(t *testing.T) {
	w := newWorld(t)
	w.timers() // none is ever over
	w.run()
	w.ends(arvados.StateComplete, 0, "")
}

// busyImages are being unpacked by another supervisor.
type busyImages struct{ Images }

func (i busyImages) Unpack(ctx context.Context, key imagestore.Key, open func(context.Context) (*archive.Image, error), progress func(imagestore.Progress)) (*imagestore.Snapshot, error) {
	for _, waiting := range []bool{true, true, false, true} {
		progress(imagestore.Progress{Waiting: waiting})
	}
	return i.Images.Unpack(ctx, key, open, progress)
}

// That a run waits for another one's unpacking can be read in its log, once.
func TestWaitingForAnotherUnpackIsLogged(t *testing.T) {
	const line = "Waiting for another supervisor on this node, which is unpacking the same image\n"
	for _, busy := range []bool{true, false} {
		t.Run(fmt.Sprint(busy), func(t *testing.T) {
			w, want := newWorld(t), 0
			if busy {
				w.sup.Images, want = busyImages{w.sup.Images}, 1
			}
			w.run()
			w.ends(arvados.StateComplete, 0, "")
			if n := strings.Count(w.messages(), line); n != want {
				t.Errorf("said %d times:\n%s", n, w.messages())
			}
		})
	}
}
