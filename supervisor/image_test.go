package supervisor

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"crunch-oci/arvados"
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
