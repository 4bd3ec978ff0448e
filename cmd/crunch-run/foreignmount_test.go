package main_test

import (
	"testing"

	"crunch-oci/arvados"
)

// A site may serve the inputs with another program, which is told nothing that
// arv-mount is not told. Here it is our own, under another name.
func TestForeignKeepMount(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	c := startCluster(t, n)
	in := c.store(t, map[string][]byte{"f": []byte("input\n")})
	uuid := c.submit(t, c.storeTools(t), sh("cat /in/f"), attrs{"mounts": attrs{
		"/out": attrs{"kind": "tmp", "capacity": 1 << 30},
		"/in":  attrs{"kind": "collection", "portable_data_hash": in},
	}})
	p := n.start(t, run{args: []string{uuid}, env: append(c.supervisorEnv(), `CRUNCH_RUN_KEEP_MOUNT=["`+program+`","keep-mount"]`)})
	record := c.finished(t, n, p, uuid, 0, arvados.StateComplete)
	if out := stamped(t, c.log(t, record, "stdout.txt")); out != "input\n" {
		t.Errorf("stdout %q", out)
	}
}
