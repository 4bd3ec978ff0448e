package main_test

import (
	"maps"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"crunch-oci/arvados"
)

// The output may be a new collection: what programs do to it reaches Keep
// without a copy on the node's disk, with what is mounted below it, and without
// secrets. A scratch collection elsewhere is not saved.
func TestCollectionOutput(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	c := startCluster(t, n)
	image := c.storeTools(t)
	pdh := c.store(t, map[string][]byte{"a.txt": []byte("A"), "sub/b.txt": []byte("B")})
	request := c.request(t, image, sh(`
		cat >/out/input.txt
		echo hello >/out/f; echo there >>/out/f
		mkdir -p d/e d/empty; echo x >d/e/old; mv d/e/old d/e/new; rm -r d/e/none 2>/dev/null
		echo gone >gone; rm gone
		dd if=/dev/zero of=sparse bs=1 count=0 seek=300M 2>/dev/null
		cat /in/a.txt sub/b.txt /scratch/none 2>/dev/null
		echo s >/scratch/s && cat /scratch/s
		! echo no >/empty/x 2>/dev/null || exit 3
		echo changed >>staged/a.txt; echo more >>text.txt; cat secret.txt >/dev/null
		! ln -s f link 2>/dev/null || exit 4
		ls -a
	`), attrs{
		"mounts": attrs{
			"/out":            attrs{"kind": "collection", "writable": true},
			"/out/sub":        attrs{"kind": "collection", "portable_data_hash": pdh, "path": "sub"},
			"/out/deep/er/in": attrs{"kind": "collection", "portable_data_hash": pdh},
			"/out/staged":     attrs{"kind": "collection", "portable_data_hash": pdh, "writable": true},
			"/out/text.txt":   attrs{"kind": "text", "content": "text\n"},
			"/in":             attrs{"kind": "collection", "portable_data_hash": pdh},
			"/scratch":        attrs{"kind": "collection", "writable": true},
			"/empty":          attrs{"kind": "collection"},
			"stdin":           attrs{"kind": "collection", "portable_data_hash": pdh, "path": "a.txt"},
			"stdout":          attrs{"kind": "file", "path": "/out/logs/stdout.txt"},
		},
		"secret_mounts": attrs{"/out/secret.txt": attrs{"kind": "text", "content": "s3cr3t-w0rd\n"}},
	})
	c.lock(t, request.ContainerUUID)
	p := c.supervise(t, n, request.ContainerUUID)
	record := c.finished(t, n, p, request.ContainerUUID, 0, arvados.StateComplete)
	if record.ExitCode == nil || *record.ExitCode != 0 {
		t.Fatalf("exit code %v: %s", record.ExitCode, c.log(t, record, "stderr.txt"))
	}
	coll := c.collection(t, record.Output)
	if info, err := coll.Stat("sparse"); err != nil || info.Size() != 300<<20 {
		t.Errorf("sparse file: %v %v", info, err)
	}
	if err := coll.Remove("sparse"); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"f": "hello\nthere\n", "input.txt": "A", "d/e/new": "x\n", "sub/b.txt": "B",
		"deep/er/in/a.txt": "A", "deep/er/in/sub/b.txt": "B",
		"staged/a.txt": "Achanged\n", "staged/sub/b.txt": "B", "text.txt": "text\nmore\n",
		"logs/stdout.txt": "ABs\n.\n..\nd\ndeep\nf\ninput.txt\nlogs\nsecret.txt\nsparse\nstaged\nsub\ntext.txt\n",
	}
	got := make(map[string]string)
	for name := range want {
		got[name] = c.file(t, record.Output, name)
	}
	if !maps.Equal(got, want) {
		t.Errorf("output %q\nwant %q", got, want)
	}
	if info, err := coll.Stat("d/empty"); err != nil || !info.IsDir() {
		t.Errorf("empty directory: %v %v", info, err)
	}
	for _, name := range []string{"secret.txt", "gone", "s"} {
		if _, err := coll.Stat(name); err == nil {
			t.Errorf("%s is in the output", name)
		}
	}
	if log := c.log(t, record, "crunch-run.txt"); !strings.Contains(log, "--mount-tmp tmp0 --mount-tmp tmp1 --mount-tmp tmp2") || !strings.Contains(log, `copying "*"`) {
		t.Errorf("log %s", log)
	}
	n.mustBeClean(t)
}

// If the FUSE server dies, so does what was in the collection: the run ends, with
// the reason, and leaves nothing behind.
func TestCollectionOutputLost(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	c := startCluster(t, n)
	uuid := c.submit(t, c.storeTools(t), sh("echo x >f; "+untilTold+"true"), attrs{
		"mounts": attrs{"/out": attrs{"kind": "collection", "writable": true}},
	})
	p := c.supervise(t, n, uuid)
	waitFor(t, "state Running", func() bool { return c.container(t, uuid).State == arvados.StateRunning })
	killed := false
	for _, proc := range n.processes() {
		if strings.Contains(proc.command, "keep-mount") {
			killed = syscall.Kill(proc.pid, syscall.SIGKILL) == nil
		}
	}
	if !killed {
		t.Error("there is no FUSE server")
	}
	record := c.finished(t, n, p, uuid, 1, arvados.StateCancelled)
	if log := c.log(t, record, "crunch-run.txt"); !strings.Contains(log, "the FUSE server has ended, and what was in new collections is lost") {
		t.Errorf("log %s", log)
	}
	if _, err := os.Stat(filepath.Join(n.tmp(), uuid)); err == nil {
		t.Error("files are left")
	}
	n.mustBeClean(t)
}
