package imagestore

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"crunch-oci/imagestore/archive"
	"crunch-oci/imagestore/internal/imagetest"
	. "crunch-oci/imagestore/internal/tartest"
	"crunch-oci/imagestore/internal/treetest"

	"golang.org/x/sys/unix"
)

func compare(t *testing.T, what string, want, got map[string]string) {
	t.Helper()
	for i, d := range treetest.Diff(want, got) {
		if i == 10 {
			t.Errorf("%s: and more", what)
			break
		}
		t.Errorf("%s: %s", what, d)
	}
}

func list(t *testing.T, dir string, o treetest.Options) map[string]string {
	t.Helper()
	got, err := treetest.List(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// What the kernel shows of raw layers is what it shows of ours, entry by entry.
func TestAsTheKernelShowsIt(t *testing.T) {
	seeds := 8
	if testing.Short() {
		seeds = 3
	}
	for seed := range seeds {
		for _, implicit := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d implicit=%v", seed, implicit), func(t *testing.T) {
				layers, want := randomLayers(t, uint64(seed), 4, implicit)
				snap := unpack(t, openStore(t, t.TempDir()), imagetest.Image{Layers: layers})
				compare(t, "kernel", want, list(t, mount(t, snap), treetest.Options{IgnoreDirTimes: implicit}))
			})
		}
	}
}

// The same layers, one applied after the other by GNU tar to one directory.
func TestAsTarDoes(t *testing.T) {
	for seed := range 4 {
		layers, _ := randomLayers(t, uint64(100+seed), 4, seed%2 == 1)
		root := t.TempDir()
		for _, l := range layers {
			applyWithTar(t, root, l)
		}
		if err := os.Chmod(root, 0o755); err != nil {
			t.Fatal(err)
		}
		snap := unpack(t, openStore(t, t.TempDir()), imagetest.Image{Layers: layers})
		o := treetest.Options{IgnoreDirTimes: true}
		compare(t, "tar", list(t, root, o), list(t, mount(t, snap), o))
	}
}

// applyWithTar removes what the layer hides, then extracts the rest.
func applyWithTar(t *testing.T, root string, l []byte) {
	t.Helper()
	r := tar.NewReader(bytes.NewReader(l))
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		dir, base := filepath.Split(filepath.Join(root, h.Name))
		switch {
		case base == ".wh..wh..opq":
			entries, err := os.ReadDir(dir)
			if err != nil && !errors.Is(err, os.ErrNotExist) && !strings.Contains(err.Error(), "not a directory") {
				t.Fatal(err)
			}
			for _, e := range entries {
				os.RemoveAll(filepath.Join(dir, e.Name()))
			}
		case strings.HasPrefix(base, ".wh."):
			os.RemoveAll(filepath.Join(dir, strings.TrimPrefix(base, ".wh.")))
		case h.Typeflag == tar.TypeDir && h.Name != ".":
			// What was no directory gives way (tar would complain), and what was
			// one has only the new attributes (tar would add them).
			p := filepath.Join(root, h.Name)
			if st, err := os.Lstat(p); err == nil && !st.IsDir() {
				os.Remove(p)
			} else if err == nil {
				for _, name := range mustXattrs(t, p) {
					if err := unix.Removexattr(p, name); err != nil {
						t.Fatal(err)
					}
				}
			}
		case h.Name != ".":
			os.RemoveAll(filepath.Join(root, h.Name))
		}
	}
	cmd := exec.Command("tar", "-x", "-p", "--same-owner", "--numeric-owner", "--xattrs", "--xattrs-include=*", "--exclude=.wh.*", "-C", root)
	cmd.Stdin = bytes.NewReader(l)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("tar: %v: %s", err, out)
	}
}

// The same image after other programs have had it: skopeo converts it into each
// format, umoci unpacks it and builds on it.
func TestOtherPrograms(t *testing.T) {
	need(t, "skopeo")
	need(t, "umoci")
	layers, want := randomLayers(t, 200, 4, false)
	m := imagetest.Image{Layers: append([][]byte{Tar(t, Dir("./"))}, layers...), Tags: []string{"example.org/img:latest"}}
	work := t.TempDir()
	ours := filepath.Join(work, "ours.tar")
	write := func(entries []Entry) {
		if err := os.WriteFile(ours, Tar(t, entries...), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(imagetest.DockerLegacy(m, false))
	oci := filepath.Join(work, "oci")
	run(t, work, "skopeo", "copy", "-q", "docker-archive:"+ours, "oci:oci:v1") // accepts what our generator writes
	for _, dest := range []string{"docker-archive:a.tar:example.org/img:latest", "oci-archive:b.tar:v1"} {
		run(t, work, "skopeo", "copy", "-q", "oci:oci:v1", dest)
	}
	run(t, work, "tar", "-C", oci, "-cf", "c.tar", ".")
	run(t, work, "sh", "-c", "gzip -c a.tar > d.tar.gz; zstd -q -c a.tar > e.tar.zst")
	m.Compress = "zstd"
	write(imagetest.Docker25(m))
	run(t, work, "cp", ours, "f.tar")

	for _, name := range []string{"a.tar", "b.tar", "c.tar", "d.tar.gz", "e.tar.zst", "f.tar"} {
		t.Run(name, func(t *testing.T) {
			snap := unpackFile(t, filepath.Join(work, name))
			compare(t, name, want, list(t, mount(t, snap), treetest.Options{}))
		})
	}
	// umoci's rootfs has the times of directories as they were when it removed
	// something from them.
	o := treetest.Options{IgnoreDirTimes: true}
	t.Run("umoci unpack", func(t *testing.T) {
		run(t, work, "umoci", "unpack", "--image", "oci:v1", "bundle")
		snap := unpackFile(t, filepath.Join(work, "c.tar"))
		compare(t, "umoci", list(t, filepath.Join(work, "bundle/rootfs"), o), list(t, mount(t, snap), o))
	})
	t.Run("umoci repack", func(t *testing.T) {
		root := filepath.Join(work, "bundle/rootfs")
		run(t, root, "sh", "-c", `find . -mindepth 1 -maxdepth 2 -type f | head -3 | xargs -d '\n' rm -f; rm -rf dir; mkdir -p dir/sub; echo x > dir/sub/y; ln dir/sub/y dir/z; chmod 4711 dir/z; mkdir c 2>/dev/null; : > only-new; touch -d @1700000000 dir/sub/y only-new; d=$(find . -mindepth 1 -maxdepth 1 -type d ! -name dir ! -empty | head -1); rm -rf "$d"; mkfifo "$d"; touch -d @1700000000 "$d"`)
		run(t, work, "umoci", "repack", "--image", "oci:v2", "bundle")
		run(t, work, "skopeo", "copy", "-q", "oci:oci:v2", "oci-archive:g.tar:v2")
		snap := unpackFile(t, filepath.Join(work, "g.tar"))
		compare(t, "umoci", list(t, root, o), list(t, mount(t, snap), o))
	})
}

func need(t *testing.T, program string) {
	t.Helper()
	if _, err := exec.LookPath(program); err != nil {
		t.Skipf("%s is not installed", program)
	}
}

func run(t *testing.T, dir string, args ...string) {
	t.Helper()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%q: %v: %s", args, err, out)
	}
}

// unpackFile unpacks a tarball into a store of its own.
func unpackFile(t *testing.T, name string) *Snapshot {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	s := openStore(t, t.TempDir())
	snap, err := s.Unpack(t.Context(), Key{Source: name}, opener(b, archive.Options{Scratch: s.Scratch()}), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { snap.Close() })
	return snap
}
