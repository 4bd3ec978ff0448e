package main_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"crunch-oci/imagestore"
	"crunch-oci/imagestore/archive"

	"golang.org/x/sys/unix"
)

// manyFiles is an image with a layer of its own, which takes a while to remove
// and to read, on one that all have in common.
func manyFiles(name string, files int) testImage {
	common, own := newLayer().dir("d").file("d/common", "common"), newLayer()
	for i := range files {
		own.file(fmt.Sprintf("%s/%d/%d", name, i/100, i), name)
	}
	return testImage{layers: [][]byte{common.bytes(), own.bytes()}, tag: name + ":latest"}
}

// fillStore unpacks images into the node's store, as a supervisor does, and holds
// the first of them if hold is set.
func fillStore(t *testing.T, n *node, hold bool, images ...testImage) (held *imagestore.Snapshot) {
	t.Helper()
	s, err := imagestore.Open(n.store(), imagestore.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close(context.Background())
	for i, m := range images {
		raw := m.dockerSave()
		snap, err := s.Unpack(t.Context(), imagestore.Key{ID: m.id()}, func(ctx context.Context) (*archive.Image, error) {
			return archive.Open(ctx, bytes.NewReader(raw), int64(len(raw)), archive.Options{WantID: m.id()})
		}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if hold && i == 0 {
			held = snap
			t.Cleanup(func() { held.Close() })
			continue
		}
		if err := snap.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return held
}

// image runs "crunch-run image" and expects the exit status.
func (n *node) image(t testing.TB, status int, args ...string) result {
	t.Helper()
	res := n.run(t, append([]string{"image"}, args...)...)
	if res.code != status || strings.Contains(res.stderr, "goroutine") || status != 0 && res.stdout == "" && strings.Count(res.stderr, "\n") != 1 {
		t.Errorf("image %q: exit status %d, want %d\nstdout: %s\nstderr: %s", args, res.code, status, res.stdout, res.stderr)
	}
	return res
}

// complete gives the ids of the images that would be used as they are.
func (n *node) complete(t testing.TB) map[string]bool {
	t.Helper()
	var list struct {
		Images []struct {
			ID       string `json:"id"`
			Complete bool   `json:"complete"`
		} `json:"images"`
	}
	res := n.image(t, 0, "list", "--json")
	if err := json.Unmarshal([]byte(res.stdout), &list); err != nil {
		t.Fatal(err)
	}
	found := make(map[string]bool)
	for _, img := range list.Images {
		if img.Complete {
			found[img.ID] = true
		}
	}
	return found
}

// layerCount counts everything in layers/, whoever put it there.
func (n *node) layerCount(t testing.TB) int {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(n.store(), "layers"))
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// A command that is killed at any moment loses no image in use, leaves no image
// that looks complete and is not, and the next one cleans up.
func TestImageCommandsKilled(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	used, second, third := manyFiles("used", 50), manyFiles("second", 400), manyFiles("third", 400)
	fillStore(t, n, true, used, second, third)
	rounds := 8
	if os.Getenv("CRUNCH_RUN_TEST_LONG") != "" {
		rounds = 200
	}
	const spread = 40 // ms: the program starts in about 15, and removes in about 20
	for i := range rounds {
		args := [][]string{{"prune", "--all"}, {"prune", "--all", "--json"}, {"verify", "--remove"}, {"inspect", "used", "second"}}[i%4]
		p := n.start(t, run{args: append([]string{"image"}, args...)})
		timer := time.NewTimer(time.Duration(rand.IntN(spread)) * time.Millisecond)
		select {
		case <-timer.C:
			_ = p.cmd.Process.Signal(syscall.SIGKILL) // or it has ended
		case <-p.done:
		}
		p.wait(t)
		found := n.complete(t)
		if !found[used.id()] {
			t.Fatalf("%q killed: the image in use is gone: %v", args, found)
		}
		if res := n.image(t, 0, "verify"); strings.Contains(res.stdout, "damaged") {
			t.Errorf("%q killed:\n%s", args, res.stdout)
		}
		fillStore(t, n, false, second, third)
	}
	n.image(t, 0, "prune", "--all")
	if found := n.complete(t); len(found) != 1 || n.layerCount(t) != 2 {
		t.Errorf("left: images %v, %d layers; want those of the image in use", found, n.layerCount(t))
	}
}

// Several at once neither fail nor disturb each other, nor what is in use.
func TestImageCommandsTogether(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	used := manyFiles("used", 50)
	fillStore(t, n, true, used, manyFiles("second", 1000), manyFiles("third", 1000))
	var all sync.WaitGroup
	for _, args := range [][]string{{"prune", "--all"}, {"prune", "--all"}, {"prune", "--to", "1MiB"}, {"list"}, {"list", "--json"}} {
		all.Go(func() { n.image(t, 0, args...) })
	}
	all.Wait()
	if found := n.complete(t); len(found) != 1 || !found[used.id()] || n.layerCount(t) != 2 {
		t.Errorf("left: images %v, %d layers; want those of the image in use", found, n.layerCount(t))
	}
	if res := n.image(t, 1, "prune", "used"); !strings.Contains(res.stderr, "is in use") {
		t.Errorf("prune of an image in use: %+v", res)
	}
}

// Containers start from an image while it is being pruned all the time: it is
// unpacked again, or stays.
func TestPruneDuringStarts(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	path := filepath.Join(n.dir, "image.tar")
	writeFile(t, path, toolsImage(t).dockerSave())
	stop := make(chan struct{})
	var pruning sync.WaitGroup
	pruning.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				n.image(t, 0, "prune", "--all")
			}
		}
	})
	defer pruning.Wait()
	defer close(stop)
	for range 4 {
		// All of the image can be read to the end.
		res := n.local(t, "--image", path, "--", "sh", "-c", "cat /bin/busybox /bin/probe | wc -c; probe self >/dev/null && echo fine")
		if !strings.HasSuffix(res.stdout, "fine\n") {
			t.Errorf("started during prune: %+v", res)
		}
	}
}

// A store that cannot be written to can be looked at; what would change it says
// why it cannot.
func TestImageCommandsOnReadOnlyStore(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	m := manyFiles("only", 20)
	fillStore(t, n, false, m)
	const readOnly = "mount --bind $NODE/store $NODE/store; mount -o remount,bind,ro $NODE/store; exec crunch-run image "
	for _, tt := range []struct {
		args   string
		status int
		stdout string
		stderr string
	}{
		{"list", 0, "only:latest", ""},
		{"inspect only", 0, `"only:latest"`, ""},
		{"verify", 0, "only:latest: good", ""},
		{"prune --all --dry-run", 0, "would remove 1 images, 2 layers", ""},
		{"prune --all", 1, "", "read-only file system"},
		{"prune only", 1, "", "read-only file system"},
	} {
		res := n.inNamespace(t, "", readOnly+tt.args)
		if res.code != tt.status || !strings.Contains(res.stdout, tt.stdout) || !strings.Contains(res.stderr, tt.stderr) || tt.stderr == "" && res.stderr != "" || strings.Count(res.stderr, "\n") > 1 {
			t.Errorf("image %s: %+v", tt.args, res)
		}
	}
	if found := n.complete(t); !found[m.id()] {
		t.Error("the image is gone")
	}
}

// On a full disk images can be looked at and removed.
func TestImageCommandsOnFullDisk(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	fillStore(t, n, false, manyFiles("one", 20), manyFiles("two", 20))
	res := n.inNamespace(t, "", `
		mkdir $NODE/full; mount -t tmpfs -o size=8m none $NODE/full; cp -a $NODE/store/. $NODE/full; mount --bind $NODE/full $NODE/store
		dd if=/dev/zero of=$NODE/full/filler bs=64k 2>/dev/null || true
		test $(df --output=avail $NODE/full | tail -1) = 0
		crunch-run image list | grep -c latest
		crunch-run image inspect one >/dev/null
		crunch-run image prune one
		crunch-run image prune --all
		ls $NODE/full/layers $NODE/full/images $NODE/full/tmp
		umount $NODE/store $NODE/full; rmdir $NODE/full`)
	if res.code != 0 || res.stderr != "" || !strings.HasPrefix(res.stdout, "2\nremoved ") || strings.Count(res.stdout, "removed 1 images") != 2 || strings.Contains(res.stdout, ".json") {
		t.Errorf("%+v", res)
	}
}

// Whatever has become of the store's own files, each command answers, and the
// image is unpacked again when it is wanted, unless nothing of it was lost.
func TestImageCommandsOnDamagedStore(t *testing.T) {
	t.Parallel()
	m := manyFiles("only", 5)
	own := digestOf(m.layers[1])
	write := func(text string) func(string) error {
		return func(p string) error { return os.WriteFile(p, []byte(text), 0o600) }
	}
	put := func(mk func(string) error) func(string) error {
		return func(p string) error {
			if err := os.RemoveAll(p); err != nil {
				return err
			}
			return mk(p)
		}
	}
	kinds := map[string]func(string) error{
		"empty": write(""), "no JSON": write("\x00\xff{"), "another kind of JSON": write(`["layers"]`), "null": write("null"),
		"deep JSON": write(strings.Repeat("[", 1<<20)), "gone": os.RemoveAll,
		"pipe":      put(func(p string) error { return unix.Mkfifo(p, 0o600) }),
		"directory": put(func(p string) error { return os.Mkdir(p, 0o700) }),
		"dangling":  put(func(p string) error { return os.Symlink("nowhere", p) }),
		"loop":      put(func(p string) error { return os.Symlink(filepath.Base(p), p) }),
		"endless":   put(func(p string) error { return os.Symlink("/dev/zero", p) }),
	}
	for _, file := range []string{"images/" + strings.TrimPrefix(m.id(), "sha256:") + ".json", "layers/" + own + "/state.json", "layers/" + own + "/facts.json", "layers/" + own + "/fs", "layers/" + own} {
		t.Run(strings.SplitN(file, "/", 2)[0]+" "+filepath.Base(file)[:2], func(t *testing.T) {
			t.Parallel()
			n := newNode(t)
			for kind, damage := range kinds {
				fillStore(t, n, false, m)
				path := filepath.Join(n.store(), file)
				if st, err := os.Lstat(path); err == nil && st.IsDir() {
					// What is written as a file here must first lose the directory.
					damage = put(damage)
				}
				if err := damage(path); err != nil {
					t.Fatal(err)
				}
				for _, args := range [][]string{{"list"}, {"list", "--json"}, {"inspect", "only"}, {"verify"}, {"verify", "--remove"}, {"prune", "--to", "1TiB"}, {"prune", "--all"}, {"list"}} {
					res := n.run(t, append([]string{"image"}, args...)...)
					if res.code > 1 || strings.Contains(res.stderr, "goroutine") || args[0] == "list" && res.code != 0 || args[0] == "prune" && res.code != 0 {
						t.Errorf("%s is %s: image %q: %+v", file, kind, args, res)
					}
				}
				// What stands in the way of a layer must not.
				fillStore(t, n, false, m)
				if !n.complete(t)[m.id()] {
					t.Errorf("%s was %s: the image cannot be unpacked again", file, kind)
				}
				if res := n.image(t, 0, "verify"); !strings.Contains(res.stdout, "good") {
					t.Errorf("%s was %s: %+v", file, kind, res)
				}
			}
		})
	}
}

// What is no store is said to be none, in one line, and stays as it is.
func TestImageCommandsElsewhere(t *testing.T) {
	t.Parallel()
	for what, tt := range map[string]struct {
		mk   func(*node) error
		says string
	}{
		"a file":             {func(n *node) error { return os.WriteFile(n.store(), nil, 0o600) }, "not a directory"},
		"a pipe":             {func(n *node) error { return unix.Mkfifo(n.store(), 0o600) }, "not a directory"},
		"a dangling link":    {func(n *node) error { return os.Symlink("nowhere", n.store()) }, "store"},
		"with a linked part": {func(n *node) error { return os.MkdirAll(n.store(), 0o700) }, "layers is no directory"},
		"somebody else's": {func(n *node) error {
			d := filepath.Join(n.store(), "layers")
			if err := os.MkdirAll(d, 0o700); err != nil {
				return err
			}
			return os.Chown(d, 12345, 0)
		}, "belongs to user 12345"},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			n := newNode(t)
			if err := os.RemoveAll(n.store()); err != nil {
				t.Fatal(err)
			}
			if err := tt.mk(n); err != nil {
				t.Fatal(err)
			}
			if what == "with a linked part" {
				if err := os.Symlink("/etc", filepath.Join(n.store(), "layers")); err != nil {
					t.Fatal(err)
				}
			}
			before, _ := os.Lstat(n.store())
			for _, args := range [][]string{{"list"}, {"verify"}, {"inspect", "x"}, {"prune", "--all"}} {
				if res := n.image(t, 1, args...); !strings.Contains(res.stderr, tt.says) {
					t.Errorf("image %q: %+v, want %q", args, res, tt.says)
				}
			}
			if after, err := os.Lstat(n.store()); err != nil || after.Mode() != before.Mode() {
				t.Errorf("the store became %v, %v", after, err)
			}
			// For the look at what is left behind.
			if err := os.RemoveAll(n.store()); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// Wrong arguments are said to be that, and nothing is done.
func TestImageCommandLine(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	m := manyFiles("only", 3)
	fillStore(t, n, false, m)
	for _, args := range [][]string{
		{}, {"remove"}, {"--all"}, {"prune", "--al"}, {"prune", "--to", "0"}, {"prune", "--to", "-1GiB"}, {"prune", "--to", "1e99TiB"}, {"prune", "--to"},
		{"prune", "--all", "--unused-for", "30d"}, {"prune", "--unused-for", "30"}, {"prune", "--unused-for", "-1h"}, {"prune", "--unused-for", "0d"}, {"prune", "--unused-for", "999999999d"}, {"prune", "--unused-for", "NaNd"},
		{"prune", "--dry-run=perhaps"}, {"verify", "--all"}, {"inspect"}, {"inspect", "--json", "--remove", "x"}, {"list", "a", "b"},
	} {
		if res := n.image(t, 2, args...); res.stdout != "" {
			t.Errorf("image %q: %+v", args, res)
		}
	}
	for _, args := range [][]string{
		{"prune", ""}, {"prune", "onl"}, {"prune", "only:"}, {"prune", "only:older"}, {"prune", "../../etc"}, {"prune", "sha256:"}, {"prune", m.id()[:10]}, {"prune", "only", "nosuch"},
		{"verify", "nosuch"}, {"inspect", "*"}, {"inspect", strings.Repeat("x", 1<<16)},
	} {
		n.image(t, 1, args...)
	}
	if !n.complete(t)[m.id()] {
		t.Error("the image is gone")
	}
}
