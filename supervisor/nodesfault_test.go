package supervisor

import (
	"errors"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"

	"crunch-oci/imagestore"
	"crunch-oci/oci"
)

// Text that users control must not take nodes out of service.
func TestNodesFault(t *testing.T) {
	const full = "no space left on device"
	for name, c := range map[string]struct {
		err  error
		node bool
	}{
		"a command of that name": {fmt.Errorf("could not start container: %w", &oci.StartError{Command: full, Reason: `exec: "` + full + `": not found`}), false},
		"a layer entry":          {fmt.Errorf("unpack layer: entry %q: %w", "x: "+full, imagestore.ErrMalformed), false},
		"a bad request":          {fmt.Errorf("user %q: %w", full, oci.ErrRequest), false},
		"a full disk":            {fmt.Errorf("write layer: %w", unix.ENOSPC), true},
		"a layer too big for it": {fmt.Errorf("%w: %w", imagestore.ErrLimit, unix.ENOSPC), true},
		"a full disk, as text":   {errors.New("write /x: " + full), true},
		"something else":         {errors.New("boom"), false},
	} {
		if got := isNodesFault(c.err); got != c.node {
			t.Errorf("%s: %v", name, got)
		}
	}
}
