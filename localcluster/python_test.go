package localcluster

import (
	"os"
	"os/exec"
	"testing"
)

// Arvados' Python tools make their methods from the discovery document, with
// Google's API client library: what it makes of ours works.
func TestClientFromDiscovery(t *testing.T) {
	c := start(t, Options{NoSync: true})
	cmd := exec.CommandContext(t.Context(), "/usr/bin/python3", "testdata/client.py")
	cmd.Env = append(os.Environ(), c.Env()...)
	if out, err := cmd.CombinedOutput(); err != nil || string(out) != "fine\n" {
		t.Errorf("%v\n%s", err, out)
	}
}
