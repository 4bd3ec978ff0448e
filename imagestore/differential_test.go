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

	"crunch-oci/imagestore/internal/imagetest"
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
