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

// What Docker takes away: images have it, and nothing can be mounted on it.
func TestCompleteRootClears(t *testing.T) {
	host, unchanged := hostTree(t)
	req := newRequest(t, newID(), "grep -q localhost /etc/hosts && [ ! -L /etc/resolv.conf ] && [ -L /etc/hostname ] && [ -d /proc/1 ] && [ -c /dev/null ] && [ -d /sys/kernel ] && ls /run /tmp")
	root := req.RootfsPath
	must(t, os.MkdirAll(filepath.Join(root, "etc"), 0o755))
	for _, dir := range []string{"proc", "sys", "dev"} {
		must(t, os.RemoveAll(filepath.Join(root, dir)))
	}
	write(t, filepath.Join(root, "proc"), "a file")
	must(t, os.Symlink(host, filepath.Join(root, "sys")))
	must(t, os.Symlink("/tmp", filepath.Join(root, "dev")))
	must(t, os.Symlink("/run", filepath.Join(root, "etc/hosts")))
	must(t, os.Symlink("resolv.conf", filepath.Join(root, "etc/resolv.conf")))
	must(t, os.Symlink("/own", filepath.Join(root, "etc/hostname")))
	must(t, os.MkdirAll(filepath.Join(root, "run"), 0o755))
	own := filepath.Join(t.TempDir(), "own")
	write(t, own, "x")
	req.Mounts = append(req.Mounts, oci.Mount{Source: own, Target: "/etc/hostname"})
	must(t, oci.CompleteRoot(req))
	b, status := run(t, req, nil)
	if status.Code != 0 || b.stdout.String() != "/run:\n\n/tmp:\n" {
		t.Errorf("%v, %q, %q", status, b.stdout, b.stderr)
	}
	unchanged()
}
