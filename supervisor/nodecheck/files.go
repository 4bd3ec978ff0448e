package nodecheck

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/docker/go-units"
	"golang.org/x/sys/unix"
)

// Free space, in bytes and files, below which a node is not fit, or soon will
// not be.
const (
	tooFew, few           = 1 << 30, 10 << 30
	tooFewFiles, fewFiles = 10_000, 100_000
)

// space judges what is free where dir is.
func (c *checker) space(what, dir, setting string) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		c.fail("", "%s: statfs %s: %v", what, dir, err)
		return
	}
	free := int64(st.Bavail) * st.Bsize
	text := fmt.Sprintf("%s: %s free on %s", what, units.BytesSize(float64(free)), kind(st.Type))
	advice := fmt.Sprintf("free some space there, or point %s elsewhere", setting)
	level := OK
	switch {
	case free < tooFew:
		level = Failure
	case free < few:
		level = Warning
	}
	// File systems without a fixed number of inodes say 0.
	if st.Files > 0 && st.Ffree < fewFiles {
		text += fmt.Sprintf(", room for %d files only", st.Ffree)
		level = Warning
		if st.Ffree < tooFewFiles || free < tooFew {
			level = Failure
		}
	}
	if level == OK {
		advice = ""
	}
	c.add(level, advice, "%s", text)
}

// kind names a file system.
func kind(magic int64) string {
	names := map[int64]string{
		unix.EXT4_SUPER_MAGIC: "ext4", unix.XFS_SUPER_MAGIC: "xfs", unix.BTRFS_SUPER_MAGIC: "btrfs", unix.TMPFS_MAGIC: "tmpfs",
		unix.NFS_SUPER_MAGIC: "NFS", unix.OVERLAYFS_SUPER_MAGIC: "overlay", unix.F2FS_SUPER_MAGIC: "f2fs", 0x2fc12fc1: "zfs",
		unix.FUSE_SUPER_MAGIC: "FUSE", unix.SMB2_SUPER_MAGIC: "SMB", 0x0bd00bd0: "Lustre", 0x47504653: "GPFS", unix.CEPH_SUPER_MAGIC: "Ceph",
	}
	if n, ok := names[magic]; ok {
		return n
	}
	return fmt.Sprintf("a file system of type %#x", magic)
}

// existing is dir, or the part of it that exists.
func existing(dir string) string {
	for {
		if fi, err := os.Stat(dir); err == nil && fi.IsDir() || dir == "/" {
			return dir
		}
		dir = filepath.Dir(dir)
	}
}

func imageStore(c *checker) {
	if c.SiteErr != nil {
		return
	}
	c.tryDir("image store", c.Site.StoreDir, "store-dir")
}

func temporaryFiles(c *checker) {
	if fi, err := os.Stat(c.TempDir); err != nil || !fi.IsDir() {
		c.fail("make the directory, or set TMPDIR", "temporary files: %s is not a directory", c.TempDir)
		return
	}
	c.tryDir("temporary files", c.TempDir, "TMPDIR")
}

// tryDir writes below a directory, or where it will be made.
func (c *checker) tryDir(what, dir, setting string) bool {
	at := existing(dir)
	if fi, err := os.Lstat(dir); err == nil && !fi.IsDir() && at != dir {
		c.fail("remove the file, or set "+setting, "%s: %s is not a directory", what, dir)
		return false
	}
	trial, remove, err := c.NewDir(at)
	if err == nil {
		err = errors.Join(os.WriteFile(filepath.Join(trial, "file"), []byte("x"), 0o600), remove())
	}
	if err != nil {
		c.fail("make it writable for root, or set "+setting, "%s: cannot write in %s: %v", what, at, err)
		return false
	}
	if at != dir {
		what += fmt.Sprintf(" (%s will be made)", dir)
	} else {
		what += " " + dir
	}
	c.space(what, at, setting)
	return true
}

// stateDirs are those of the node's own state: small, and lost with a reboot.
func stateDirs(c *checker) {
	if c.SiteErr != nil {
		return
	}
	at := existing(c.Site.RuntimeDir)
	trial, remove, err := c.NewDir(at)
	if err == nil {
		err = remove()
	}
	var st unix.Statfs_t
	switch {
	case err != nil:
		c.fail("make it writable for root, or set runtime-dir", "runtime directory %s: %v", c.Site.RuntimeDir, err)
	case unix.Statfs(at, &st) == nil && st.Type != unix.TMPFS_MAGIC:
		c.warn("set runtime-dir to a directory on a tmpfs, such as /run", "runtime directory %s is on %s: after a reboot it shows runs that are long gone", c.Site.RuntimeDir, kind(st.Type))
	default:
		c.ok("runtime directory %s", c.Site.RuntimeDir)
	}
	_ = trial
	if fi, err := os.Stat(c.Site.LockDir); err != nil || !fi.IsDir() {
		c.fail("mkdir -p "+c.Site.LockDir, "directory of run locks %s is missing: no container can be started with -detach", c.Site.LockDir)
	} else if err := unix.Access(c.Site.LockDir, unix.W_OK); err != nil {
		c.fail("make it writable for root", "directory of run locks %s: %v", c.Site.LockDir, err)
	}
	broken := filepath.Join(c.Site.LockDir, "crunch-run-broken")
	if _, err := os.Lstat(broken); err == nil {
		c.fail("find out why (the log of the last container says it), then remove the file", "an earlier run has marked this node as broken: %s", broken)
	}
}

// fuse opens the device and mounts a file system that nobody serves, and that
// nobody will look at.
func fuse(c *checker) {
	const device = "/dev/fuse"
	const module = "modprobe fuse (and list it in /etc/modules-load.d)"
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		advice := module
		if errors.Is(err, os.ErrPermission) {
			advice = "allow the device in this container or unit (DeviceAllow=/dev/fuse rw)"
		}
		c.fail(advice, "%v: containers with inputs cannot run", err)
		return
	}
	defer f.Close()
	dir, remove, err := c.NewDir(existing(c.TempDir))
	if err != nil {
		c.note("%s can be opened; a mount was not tried: %v", device, err)
		return
	}
	err = unix.Mount("crunch-run-check", dir, "fuse", unix.MS_NOSUID|unix.MS_NODEV, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", f.Fd()))
	if err == nil {
		err = unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	}
	if err = errors.Join(err, remove()); err != nil {
		c.fail(module, "a FUSE mount fails: %v", err)
		return
	}
	c.ok("%s, and a mount", device)
}

// supported tells whether the kernel knows a type of file system by now.
func supported(fs string) bool {
	text, err := os.ReadFile("/proc/filesystems")
	return err == nil && slices.Contains(fields(string(text)), fs)
}
