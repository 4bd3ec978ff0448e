package nodecheck

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"crunch-oci/internal/idmap"
)

// tryMapping mounts the image store's file system with the ids of containers, and
// looks whether these could reach the temporary files.
func (c *checker) tryMapping(lower, scratch string) {
	ns, err := idmap.Range{First: c.Site.UserNamespaceFirst, Count: c.Site.UserNamespaceCount}.Namespace()
	if err != nil {
		c.fail("raise /proc/sys/user/max_user_namespaces, or set user-namespace: off", "the site wants user namespaces: %v", err)
		return
	}
	defer ns.Close()
	if err := overlayMapped(lower, scratch, ns); err != nil {
		c.fail("put store-dir on ext4, xfs or btrfs, with Linux 5.19 or later, or set user-namespace: off", "the site wants user namespaces, but the image store cannot be mounted with other ids: %v", err)
		return
	}
	for dir := filepath.Dir(scratch); dir != "/"; dir = filepath.Dir(dir) {
		if fi, err := os.Stat(dir); err == nil && fi.Mode()&0o001 == 0 {
			c.fail("choose another TMPDIR, or chmod o+x "+dir, "the site wants user namespaces, but %s is closed to others: containers could not reach their root directory", dir)
			return
		}
	}
	c.ok("image store with the ids of user namespaces")
}

// overlayMapped mounts an overlay of lower with the ids of ns, and takes it off
// again: there are kernels that can map ids, and have no overlays of what is
// mapped (before 5.19).
func overlayMapped(lower, scratch string, ns *os.File) (err error) {
	view, dir := filepath.Join(scratch, "mapped"), filepath.Join(scratch, "of-mapped")
	if err := errors.Join(os.Mkdir(view, 0o700), os.Mkdir(dir, 0o700)); err != nil {
		return err
	}
	tree, err := unix.OpenTree(unix.AT_FDCWD, lower, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("open_tree", err)
	}
	defer unix.Close(tree)
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(ns.Fd())}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return os.NewSyscallError("mount_setattr", err)
	}
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, view, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return os.NewSyscallError("move_mount", err)
	}
	off := func(root string) {
		err = errors.Join(err, os.NewSyscallError("umount2", unix.Unmount(root, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)))
	}
	defer off(view)
	root, err := mountOverlay(view, dir)
	if err != nil {
		return fmt.Errorf("an overlay of it: %w", err)
	}
	off(root)
	return err
}
