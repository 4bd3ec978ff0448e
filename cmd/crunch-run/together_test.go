package main_test

import (
	"path/filepath"
	"testing"
)

// TestStartedTogetherOnANewNode starts runs at the same moment on a node that
// has neither image store nor runtime directory nor the parent of the cgroups
// yet, and where the first to end remove the last again: none may fail because
// of another.
func TestStartedTogetherOnANewNode(t *testing.T) {
	t.Parallel()
	rounds := 2
	if testing.Short() {
		rounds = 1
	}
	for range rounds {
		n := newNode(t)
		image := filepath.Join(n.dir, "image.tar")
		writeFile(t, image, toolsImage(t).dockerSave())
		var all []*process
		for range 6 {
			all = append(all, n.start(t, run{args: []string{"local", "--image", image, "--", "echo", "fine"}}))
		}
		for _, p := range all {
			if code := p.wait(t); code != 0 || p.stdout.String() != "fine\n" {
				t.Errorf("exit code %d, says %q\n%s", code, p.stdout.String(), p.stderr.String())
			}
		}
	}
}
