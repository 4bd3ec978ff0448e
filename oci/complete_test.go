package oci_test

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"crunch-oci/internal/idmap"
	"crunch-oci/oci"
)

// Docker mounts something on every VOLUME of an image, so its programs find a
// directory there; and it adds two files.
func TestCompleteRoot(t *testing.T) {
	host, unchanged := hostTree(t)
	root := makeRootfs(t)
	must(t, os.MkdirAll(filepath.Join(root, "has/it"), 0o700))
	write(t, filepath.Join(root, "file"), "x")
	must(t, os.Symlink("/has", filepath.Join(root, "link")))
	must(t, os.Symlink("../../../../../../../../"+host, filepath.Join(root, "out")))
	must(t, os.Symlink("/no/where", filepath.Join(root, "dangling")))
	req := newRequest(t, newID(), "")
	req.RootfsPath = root
	req.Mounts = []oci.Mount{{Source: host, Target: "/mounted/"}}
	req.Confinement.IDs = idmap.Range{First: 100000, Count: 65536}
	req.Image.Volumes = make(map[string]struct{})
	for _, v := range []string{
		"/a/b/c", "relative/", "/link/new", "/has/it", "/../up", "/mounted/below", "/proc/x", "/dev/x", "/sys/x", "/",
		"/file", "/file/below", "/out/new", "/dangling", "/dangling/below", "/x\x00y", "",
	} {
		req.Image.Volumes[v] = struct{}{}
	}
	must(t, oci.CompleteRoot(req))
	unchanged()
	for path, owner := range map[string]uint32{
		"a": 100000, "a/b": 100000, "a/b/c": 100000, "relative": 100000, "has/new": 100000, "up": 100000, "has/it": 0,
	} {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(root, path), &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR || st.Uid != owner || st.Gid != owner {
			t.Errorf("%s: %v, mode %o, owner %d:%d, want %d", path, err, st.Mode, st.Uid, st.Gid, owner)
		}
	}
	for _, path := range []string{"mounted/below", "proc/x", "dev/x", "sys/x", "no"} {
		if _, err := os.Lstat(filepath.Join(root, path)); err == nil {
			t.Errorf("%s has been made", path)
		}
	}
	if to, err := os.Readlink(filepath.Join(root, "etc/mtab")); err != nil || to != "/proc/mounts" {
		t.Errorf("/etc/mtab: %q, %v", to, err)
	}
	if info, err := os.Lstat(filepath.Join(root, ".dockerenv")); err != nil || !info.Mode().IsRegular() || info.Size() != 0 {
		t.Errorf("/.dockerenv: %v, %v", info, err)
	}
	if b, err := os.ReadFile(filepath.Join(root, "file")); err != nil || string(b) != "x" {
		t.Errorf("a file in the way: %q, %v", b, err)
	}
	if err := unix.Mount("tmpfs", filepath.Join(root, "has"), "tmpfs", unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	defer func() { must(t, unix.Unmount(filepath.Join(root, "has"), 0)) }()
	req.Image.Volumes = map[string]struct{}{"/has/new": {}}
	if err := oci.CompleteRoot(req); err == nil {
		t.Error("a directory that cannot be made is not missed")
	}
}

// What the image has stays; what leads out of it leads nowhere.
func TestCompleteRootKeeps(t *testing.T) {
	host, unchanged := hostTree(t)
	req := newRequest(t, newID(), "")
	req.RootfsPath = t.TempDir()
	must(t, os.Symlink("../../../../../../../.."+host, filepath.Join(req.RootfsPath, "etc")))
	must(t, os.Symlink(host+"/x", filepath.Join(req.RootfsPath, ".dockerenv")))
	must(t, oci.CompleteRoot(req))
	must(t, os.Remove(filepath.Join(req.RootfsPath, "etc")))
	must(t, os.Mkdir(filepath.Join(req.RootfsPath, "etc"), 0o755))
	write(t, filepath.Join(req.RootfsPath, "etc/mtab"), "the image's")
	must(t, oci.CompleteRoot(req))
	if b, err := os.ReadFile(filepath.Join(req.RootfsPath, "etc/mtab")); err != nil || string(b) != "the image's" {
		t.Errorf("/etc/mtab: %q, %v", b, err)
	}
	unchanged()
}
