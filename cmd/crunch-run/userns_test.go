package main_test

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"crunch-oci/arvados"
)

// newMappedNode is a node that gives containers unprivileged ids. Its temporary
// files are, as usual, where everybody may pass.
func newMappedNode(t testing.TB) *node {
	t.Helper()
	dir := t.TempDir()
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	if st.Type == unix.TMPFS_MAGIC { // has idmapped mounts from Linux 6.3 on only
		disk, err := os.MkdirTemp("/var/tmp", "crunch-run-test")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.RemoveAll(disk) })
		dir = filepath.Join(disk, "node")
	}
	n := newNodeIn(t, dir)
	n.env = append(n.env, "CRUNCH_RUN_USER_NAMESPACE=300000:65536")
	for _, d := range []string{n.dir, filepath.Dir(n.dir)} {
		if err := os.Chmod(d, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	return n
}

// A node that gives containers unprivileged ids runs the same images with the same
// inputs to the same outputs.
func TestUserNamespace(t *testing.T) {
	t.Parallel()
	n := newMappedNode(t)
	c := startCluster(t, n)
	image := c.storeTools(t)
	input := c.store(t, map[string][]byte{"dir/in.txt": []byte("input\n")})
	script := untilTold + `cat /in/dir/in.txt /conf; touch /in/dir/x 2>/dev/null && echo "input is writable"
		stat -c %u:%g /bin/busybox /out /conf /; echo data > /out/result.txt; mkdir /out/dir; echo staged >> /out/copy/in.txt; cat /out/copy/in.txt >/out/dir/copy.txt
		echo changed >> /etc/passwd && rm -r /bin/rm; id -u; grep CapEff /proc/self/status | tr -d '\t'; cat /proc/self/cwd/result.txt`
	uuid := c.submit(t, image, sh(script), attrs{
		"cwd": "/out",
		"mounts": attrs{
			"/out":      attrs{"kind": "tmp", "capacity": 1 << 20},
			"/out/copy": attrs{"kind": "collection", "portable_data_hash": input, "path": "dir", "writable": true},
			"/in":       attrs{"kind": "collection", "portable_data_hash": input},
			"/conf":     attrs{"kind": "text", "content": "configured\n"},
		},
	})
	p := c.supervise(t, n, uuid)
	root := insideContainer(t, n)
	var st unix.Stat_t
	if err := unix.Stat(filepath.Dir(root), &st); err != nil {
		t.Fatal(err)
	}
	if st.Uid != 300000 {
		t.Errorf("the container's root is user %d of the host", st.Uid)
	}
	if left, err := filepath.Glob(filepath.Join(n.tmp(), "*", "work.layers", "*")); err != nil || len(left) > 0 {
		t.Errorf("idmapped layers are still mounted: %v, %v", left, err)
	}
	release(t, n)
	record := c.finished(t, n, p, uuid, 0, arvados.StateComplete)
	want := "input\nconfigured\n0:0\n0:0\n0:0\n0:0\n0\nCapEff:00000000a80425fb\ndata\n"
	if got := stamped(t, c.log(t, record, "stdout.txt")); got != want {
		t.Errorf("got %q, want %q; stderr %s", got, want, c.log(t, record, "stderr.txt"))
	}
	if got := c.files(t, record.Output); got["result.txt"] != "data\n" || got["dir/copy.txt"] != "input\nstaged\n" {
		t.Errorf("output %q", got)
	}
	// The layers, which other containers share, are as they were.
	err := filepath.WalkDir(n.store(), func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		if st.Uid >= 300000 {
			t.Errorf("%s belongs to %d", path, st.Uid)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// With ranges for several containers each has one for itself, for as long as it runs.
func TestUserNamespaceRanges(t *testing.T) {
	t.Parallel()
	n := newMappedNode(t)
	n.env = append(n.env, "CRUNCH_RUN_USER_NAMESPACE=300000:65536:2")
	c := startCluster(t, n)
	image := c.storeTools(t)
	const first, second = "300000 65536\n", "365536 65536\n"
	const script = "read a ids </proc/self/uid_map; echo $ids; read a ids </proc/self/gid_map; echo $ids; touch /new; stat -c %u /bin/busybox /new /out"
	submit := func(wait string) string {
		return c.submit(t, image, sh(wait+script), attrs{"mounts": attrs{"/out": attrs{"kind": "tmp", "capacity": 1 << 20}}})
	}
	check := func(uuid, ids string) {
		t.Helper()
		record := c.container(t, uuid)
		if got, want := stamped(t, c.log(t, record, "stdout.txt")), ids+ids+"0\n0\n0\n"; got != want {
			t.Errorf("state %s, got %q, want %q; stderr %s", record.State, got, want, c.log(t, record, "stderr.txt"))
		}
	}
	waiting := submit(untilTold)
	p := c.supervise(t, n, waiting)
	insideContainer(t, n)
	meanwhile := submit("")
	if code := c.supervise(t, n, meanwhile).wait(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	check(meanwhile, second)
	// Settings that are changed meanwhile do not give its ids to others.
	n.env[len(n.env)-1] = "CRUNCH_RUN_USER_NAMESPACE=310000:65536:2"
	meanwhile = submit("")
	if code := c.supervise(t, n, meanwhile).wait(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	check(meanwhile, "375536 65536\n")
	for setting, says := range map[string]string{
		"310000:65536":   "all ranges of user ids are in use by containers that began before the setting was changed",
		"300000:65536:1": "all ranges of user ids are in use (there are 1:",
	} {
		n.env[len(n.env)-1] = "CRUNCH_RUN_USER_NAMESPACE=" + setting
		refused := c.supervise(t, n, submit(""))
		if code := refused.wait(t); code != 1 || !strings.Contains(refused.stderr.String(), says) {
			t.Errorf("%s: exit code %d, %s", setting, code, refused.stderr.String())
		}
	}
	release(t, n)
	c.finished(t, n, p, waiting, 0, arvados.StateComplete)
	check(waiting, first)
}

// What a user namespace makes impossible is refused by name, and the container is
// left to nodes that can.
func TestUserNamespaceRefuses(t *testing.T) {
	t.Parallel()
	n := newMappedNode(t)
	c := startCluster(t, n)
	image := c.storeTools(t)
	uuid := c.submit(t, image, sh("true"), attrs{"runtime_constraints": attrs{"API": true, "vcpus": 1, "ram": 64 << 20}})
	record := c.finished(t, n, c.supervise(t, n, uuid, "-container-network-mode=host"), uuid, 1, arvados.StateQueued)
	if log := c.log(t, record, "crunch-run.txt"); !strings.Contains(log, "the host's network is not possible in a user namespace") {
		t.Error(log)
	}
	uuid = c.submit(t, image, sh("true"), attrs{"runtime_constraints": attrs{"vcpus": 1, "ram": 64 << 20,
		"gpu": attrs{"stack": "cuda", "device_count": 1, "driver_version": "12.0", "hardware_target": []string{"9.0"}, "vram": 1 << 30}}})
	record = c.finished(t, n, c.supervise(t, n, uuid), uuid, 1, arvados.StateQueued)
	if log := c.log(t, record, "crunch-run.txt"); !strings.Contains(log, "not possible in a user namespace") {
		t.Error(log)
	}
	// Nobody but root may enter what leads to the temporary files.
	if err := os.Chmod(n.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	uuid = c.submit(t, image, sh("true"), nil)
	record = c.finished(t, n, c.supervise(t, n, uuid), uuid, 1, arvados.StateQueued)
	if log := c.log(t, record, "crunch-run.txt"); !strings.Contains(log, n.dir+" is closed to others (mode 0700): choose another TMPDIR") {
		t.Error(log)
	}
}

// A store on a file system that cannot show other ids is named, with what to do.
func TestUserNamespaceNeedsIDMappedMounts(t *testing.T) {
	t.Parallel()
	n := newMappedNode(t)
	// An overlay is one that cannot, whatever the kernel's version.
	upper, work := filepath.Join(n.dir, "store-upper"), filepath.Join(n.dir, "store-work")
	for _, d := range []string{upper, work} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	n.prefix = []string{"unshare", "--mount", "sh", "-c",
		fmt.Sprintf("mount -t overlay x -o lowerdir=%s,upperdir=%s,workdir=%s %s && exec \"$@\"", strconv.Quote(n.store()), upper, work, n.store()), "sh"}
	c := startCluster(t, n)
	uuid := c.submit(t, c.storeTools(t), sh("true"), nil)
	marked := filepath.Join(n.dir, "marked")
	writeFile(t, marked+".sh", []byte("#!/bin/sh\ntouch "+marked+"\n"))
	if err := os.Chmod(marked+".sh", 0o755); err != nil {
		t.Fatal(err)
	}
	record := c.finished(t, n, c.supervise(t, n, uuid, "-broken-node-hook="+marked+".sh"), uuid, 1, arvados.StateQueued)
	if log := c.log(t, record, "crunch-run.txt"); !strings.Contains(log, "Error suggests node is unable to run containers") || !strings.Contains(log, "put store-dir on another one, or switch the setting user-namespace off") {
		t.Error(log)
	}
}

func TestCheckOfUserNamespaces(t *testing.T) {
	t.Parallel()
	n := newMappedNode(t)
	res := n.run(t, "check", "--timeout=1m")
	if !strings.Contains(res.stdout, "image store with the ids of user namespaces") || !strings.Contains(res.stdout, "a container was run") {
		t.Errorf("%s%s", res.stdout, res.stderr)
	}
	if err := os.Chmod(n.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if res := n.run(t, "check", "--timeout=1m"); res.code == 0 || !strings.Contains(res.stdout, n.dir+" is closed to others") {
		t.Errorf("exit code %d, %s%s", res.code, res.stdout, res.stderr)
	}
}

// The output may be a new collection there, too, also for somebody else than root.
func TestUserNamespaceCollectionOutput(t *testing.T) {
	t.Parallel()
	n := newMappedNode(t)
	c := startCluster(t, n)
	image := c.storeTools(t)
	uuid := c.submit(t, image, sh("echo data >/out/f && mkdir /out/d && echo more >>/out/f && mv /out/f /out/d/f; probe as 1000 sh -c 'echo theirs >/out/d/theirs'; echo said"), attrs{
		"mounts": attrs{
			"/out":   attrs{"kind": "collection", "writable": true},
			"stdout": attrs{"kind": "file", "path": "/out/stdout.txt"},
		},
	})
	record := c.finished(t, n, c.supervise(t, n, uuid), uuid, 0, arvados.StateComplete)
	want := map[string]string{"d/f": "data\nmore\n", "d/theirs": "theirs\n", "stdout.txt": "said\n"}
	if got := c.files(t, record.Output); !maps.Equal(got, want) {
		t.Errorf("output %q, want %q; stderr %s", got, want, c.log(t, record, "stderr.txt"))
	}
}
