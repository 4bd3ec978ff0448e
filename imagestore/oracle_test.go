package imagestore

import (
	"context"
	"encoding/json"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"crunch-oci/imagestore/archive"
	"crunch-oci/imagestore/internal/treetest"

	"golang.org/x/sys/unix"
)

// The oracles: what other programs, and the kernel, make of a tarball. None of
// them has a line of code in common with this package.

// unpackedFile is what this package makes of a tarball: a mounted root directory.
func unpackedFile(t *testing.T, name, wantID string) string {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	s := openStore(t, t.TempDir())
	snap, err := s.Unpack(t.Context(), Key{ID: wantID, Source: name}, func(ctx context.Context) (*archive.Image, error) {
		return archive.Open(ctx, f, st.Size(), archive.Options{WantID: wantID, Scratch: s.Scratch()})
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { snap.Close() })
	return mount(t, snap)
}

// withoutRoot leaves out the root directory, about which programs differ; see
// TestRootDirectory.
func withoutRoot(tree map[string]string) map[string]string {
	delete(tree, ".")
	return tree
}

// byTheKernel extracts each layer with GNU tar into a directory of its own,
// turns the whiteouts into those of overlayfs, and lets the kernel put one on
// top of the other. skopeo says which layers the image has: it has put them into
// the directory image in work.
func byTheKernel(t *testing.T, work string) map[string]string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(work, "image/manifest.json"))
	if err != nil {
		t.Fatal(err)
	}
	var m struct {
		Layers []struct{ Digest string }
	}
	if err := json.Unmarshal(raw, &m); err != nil || len(m.Layers) == 0 {
		t.Fatalf("%s: %v", raw, err)
	}
	var lower []string
	seen := make(map[string]bool)
	for i := len(m.Layers) - 1; i >= 0; i-- {
		hex := strings.TrimPrefix(m.Layers[i].Digest, "sha256:")
		if seen[hex] {
			continue // the kernel takes no directory twice; what is lower is hidden
		}
		seen[hex] = true
		dir := filepath.Join(work, hex)
		mustMkdir(t, dir)
		run(t, work, "tar", "-x", "-p", "--delay-directory-restore", "--same-owner", "--numeric-owner", "--xattrs", "--xattrs-include=*", "-C", dir, "-f", "image/"+hex)
		kernelWhiteouts(t, dir)
		lower = append(lower, dir)
	}
	if len(lower) == 1 { // an overlay of one is none
		empty := filepath.Join(work, "empty")
		mustMkdir(t, empty)
		lower = append(lower, empty)
	}
	m2 := filepath.Join(work, "m")
	mustMkdir(t, m2)
	return withoutRoot(plainOverlay(t, m2, lower, "", "", func() map[string]string { return list(t, m2, treetest.Options{}) }))
}

// kernelWhiteouts turns the .wh. files in dir into what overlayfs has for them
// (Documentation/filesystems/overlayfs.rst, "whiteouts and opaque directories").
func kernelWhiteouts(t *testing.T, dir string) {
	t.Helper()
	var hidden []string
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err == nil && strings.HasPrefix(d.Name(), ".wh.") {
			hidden = append(hidden, p)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range hidden {
		parent, base := filepath.Split(p)
		var st unix.Stat_t
		if err := unix.Lstat(parent, &st); err != nil {
			t.Fatal(err)
		}
		if err := os.RemoveAll(p); err != nil {
			t.Fatal(err)
		}
		var err error
		if base == ".wh..wh..opq" {
			err = unix.Setxattr(parent, "trusted.overlay.opaque", []byte("y"), 0)
		} else if !strings.HasPrefix(base, ".wh..wh.") {
			err = unix.Mknod(filepath.Join(parent, strings.TrimPrefix(base, ".wh.")), unix.S_IFCHR, 0)
			if err == unix.EEXIST { // an entry of the same layer
				err = nil
			}
		}
		if err != nil {
			t.Fatalf("%s: %v", p, err)
		}
		if err := unix.UtimesNanoAt(unix.AT_FDCWD, parent, []unix.Timespec{st.Atim, st.Mtim}, 0); err != nil {
			t.Fatal(err)
		}
	}
}

// byUmoci is "umoci unpack" of the image. It cannot be asked for the times of
// directories: they are those of its own last change there.
func byUmoci(t *testing.T, work string) map[string]string {
	t.Helper()
	run(t, work, "skopeo", "copy", "-q", "dir:image", "oci:oci:v1")
	run(t, work, "umoci", "unpack", "--image", "oci:v1", "bundle")
	return withoutRoot(list(t, filepath.Join(work, "bundle/rootfs"), treetest.Options{IgnoreDirTimes: true}))
}

// run runs a program to its end and gives what it prints.
func run(t testing.TB, dir string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%q: %v: %s", args, err, out)
	}
	return string(out)
}
