package main_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"crunch-oci/arvados"
)

// A site may serve the inputs with another program, which is told nothing that
// arv-mount is not told, and has a disk cache of its own. Here it is a script
// that notes what it is told and is our own server then.
func TestForeignKeepMount(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	c := startCluster(t, n)
	in := c.store(t, map[string][]byte{"f": []byte("input\n")})
	uuid := c.submit(t, c.storeTools(t), sh("cat /in/f"), attrs{"mounts": attrs{
		"/out": attrs{"kind": "tmp", "capacity": 1 << 30},
		"/in":  attrs{"kind": "collection", "portable_data_hash": in},
	}})
	told := filepath.Join(t.TempDir(), "told")
	script := filepath.Join(t.TempDir(), "arv-mount")
	writeFile(t, script, []byte("#!/bin/sh\necho \"$@\" >"+told+"; env >>"+told+"\nexec "+program+" keep-mount \"$@\"\n"))
	if err := os.Chmod(script, 0o755); err != nil {
		t.Fatal(err)
	}
	p := n.start(t, run{args: []string{"-keep-mount-command", script, uuid}, env: c.supervisorEnv()})
	record := c.finished(t, n, p, uuid, 0, arvados.StateComplete)
	if out := stamped(t, c.log(t, record, "stdout.txt")); out != "input\n" {
		t.Errorf("stdout %q", out)
	}
	text, err := os.ReadFile(told)
	if err != nil {
		t.Fatal(err)
	}
	args, env, _ := strings.Cut(string(text), "\n")
	if !strings.HasPrefix(args, "--foreground --read-write ") || !strings.Contains(args, "--disk-cache --disk-cache-dir "+n.tmp()+"/") ||
		!strings.HasSuffix(args, " --mount-by-pdh by_id --disable-event-listening --mount-by-id by_uuid "+lastWord(args)) {
		t.Errorf("arguments %q", args)
	}
	if !strings.Contains(env, "ARVADOS_API_TOKEN=v2/") || strings.Contains(env, "CRUNCH_RUN_READY_FD") {
		t.Errorf("environment %s", env)
	}
}

func lastWord(s string) string { return s[strings.LastIndex(s, " ")+1:] }
