package supervisor

import (
	"strings"
	"testing"
)

// A container may run for longer than block signatures last: its output has
// those that the API gives when it is captured, not those from before the start.
func TestOutputHasNewSignatures(t *testing.T) {
	w := newWorld(t)
	pdh := w.store("INPUT", "data", []byte("input"))
	w.mount("/out/in", map[string]any{"kind": "collection", "portable_data_hash": pdh})
	const signature = "+A0123456789abcdef0123456789abcdef01234567@ffffffff"
	w.runtime.program = func(*guest) int {
		w.api.mu.Lock()
		defer w.api.mu.Unlock()
		w.api.collections[pdh] = strings.Replace(w.api.collections[pdh], " 0:", signature+" 0:", 1)
		return 0
	}
	w.run()
	w.ends("Complete", 0, "")
	if got := w.api.collections[w.api.output]; !strings.Contains(got, signature) {
		t.Errorf("saved as %q", got)
	}
}
