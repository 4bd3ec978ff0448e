package imagestore

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"crunch-oci/internal/idmap"
)

// ErrIDMap says that the store's file system, or the kernel, cannot show layers
// with other owners than they have.
var ErrIDMap = errors.New("the file system of the image store cannot be mounted with other ids (ext4, xfs and btrfs can, from Linux 5.19 on): put store-dir on another one, or switch the setting user-namespace off")

// MountMappedRootfs is MountRootfs for a container in a user namespace: what the
// image says belongs to 0 belongs to the first of ids. The layers, which other
// containers share, stay as they are; they are mounted once more, idmapped, below
// work, until the overlay has taken them over.
func MountMappedRootfs(s *Snapshot, dir, upper, work string, ids idmap.Range) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("mount image: %w", err)
		}
	}()
	ns, err := ids.Namespace()
	if err != nil {
		return err
	}
	defer ns.Close()
	views := work + ".layers"
	if err := os.Mkdir(views, 0o700); err != nil {
		return err
	}
	var lower []string
	defer func() {
		for _, view := range lower {
			err = errors.Join(err, Unmount(view), os.Remove(view))
		}
		err = errors.Join(err, os.Remove(views))
	}()
	for i, layer := range s.lower {
		view := filepath.Join(views, strconv.Itoa(i))
		if err := mountMapped(layer, view, ns); err != nil {
			return err
		}
		lower = append(lower, view)
	}
	err = mountRootfs(s, lower, dir, upper, work, ids)
	if errors.Is(err, unix.EINVAL) && onNetwork(upper) == "" {
		// So say kernels that can map the ids of layers, but not of an overlay's
		// (from 5.12 to 5.18).
		err = fmt.Errorf("%w (%w)", ErrIDMap, err)
	}
	return err
}

// mountMapped mounts directory dir on view, which is made, with the ids of ns.
func mountMapped(dir, view string, ns *os.File) error {
	tree, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return &os.PathError{Op: "open_tree", Path: dir, Err: err}
	}
	defer unix.Close(tree)
	attr := unix.MountAttr{
		Attr_set: unix.MOUNT_ATTR_IDMAP | unix.MOUNT_ATTR_RDONLY, Userns_fd: uint64(ns.Fd()),
	}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return fmt.Errorf("%w (%w)", ErrIDMap, &os.PathError{Op: "mount_setattr", Path: dir, Err: err})
	}
	if err := os.Mkdir(view, 0o700); err != nil {
		return err
	}
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, view, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return errors.Join(&os.PathError{Op: "move_mount", Path: view, Err: err}, os.Remove(view))
	}
	return nil
}

// giveMapped gives dir, which has the owner that the image says, the ids that
// this owner has on the host.
func giveMapped(dir string, ids idmap.Range) error {
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return &os.PathError{Op: "lstat", Path: dir, Err: err}
	}
	uid, ok1 := ids.Host(st.Uid)
	gid, ok2 := ids.Host(st.Gid)
	if !ok1 || !ok2 {
		return fmt.Errorf("the image's root directory belongs to %d:%d, which is not among the %d ids of the user namespace", st.Uid, st.Gid, ids.Count)
	}
	if err := os.Lchown(dir, int(uid), int(gid)); err != nil {
		return err
	}
	return unix.Chmod(dir, st.Mode&0o7777) // chown(2) clears set-user-ID and set-group-ID
}
