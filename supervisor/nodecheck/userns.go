package nodecheck

import (
	"errors"
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
	tree, err := unix.OpenTree(unix.AT_FDCWD, lower, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err == nil {
		err = unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(ns.Fd())})
		err = errors.Join(err, unix.Close(tree))
	}
	if err != nil {
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
