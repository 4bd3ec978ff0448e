package imagestore

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"crunch-oci/internal/idmap"
)

// MountRootfs mounts the image on dir as an overlay whose changes go to upper.
// work is the overlay's own scratch directory, on the same file system as upper.
// All three are made if they do not exist; upper and work must be empty, and
// are for this mount only: it is volatile, which means that what was written is
// lost with the machine, and that unmounting does not wait for a disk.
//
// The root directory has the owner, times and mode that the image gives it, but
// can always be read and entered by everybody: Docker shows it as 0755 whatever
// the image says, and there are images packed from a directory with mode 0700.
func MountRootfs(s *Snapshot, dir, upper, work string) error {
	return mountRootfs(s, s.lower, dir, upper, work, idmap.Range{})
}

func mountRootfs(s *Snapshot, lower []string, dir, upper, work string, ids idmap.Range) error {
	for _, d := range []string{dir, upper, work} {
		if err := os.Mkdir(d, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return fmt.Errorf("mount image: %w", err)
		}
	}
	if err := copyMetadata(s.rootDir, upper, 0o555); err != nil {
		return fmt.Errorf("mount image: %w", err)
	}
	if !ids.IsZero() {
		if err := giveMapped(upper, ids); err != nil {
			return fmt.Errorf("mount image: %w", err)
		}
	}
	o := overlay{lower: lower, upper: upper, work: work, options: overlayOptions()}
	if s.MountLabel != "" {
		o.options = append(o.options, [2]string{"context", s.MountLabel})
	}
	err := o.mountNew(dir)
	if errors.Is(err, errOldKernel) {
		err = o.mountOld(dir)
	}
	if err != nil {
		return fmt.Errorf("mount an overlay of %d layers on %s (changes in %s%s): %w", len(o.lower), dir, upper, onNetwork(upper), err)
	}
	return nil
}

// onNetwork says so where the directory is on a kind of file system that the
// kernel is known to refuse as upper directory with a bare "invalid argument".
func onNetwork(dir string) string {
	var st unix.Statfs_t
	if unix.Statfs(dir, &st) != nil {
		return ""
	}
	name, ok := map[int64]string{
		unix.NFS_SUPER_MAGIC: "NFS", unix.OVERLAYFS_SUPER_MAGIC: "an overlay", unix.FUSE_SUPER_MAGIC: "FUSE",
		unix.SMB2_SUPER_MAGIC: "SMB", 0x0bd00bd0: "Lustre", 0x47504653: "GPFS", unix.CEPH_SUPER_MAGIC: "Ceph",
	}[st.Type]
	if !ok {
		return ""
	}
	return ", which is on " + name + ": use a local file system"
}

// Unmount takes the overlay off dir. Where something in it is still in use it
// vanishes from dir at once, and entirely with its last user.
func Unmount(dir string) error {
	err := unix.Unmount(dir, unix.UMOUNT_NOFOLLOW)
	if err == unix.EBUSY {
		err = unix.Unmount(dir, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH)
	}
	if err != nil {
		return &os.PathError{Op: "unmount", Path: dir, Err: err}
	}
	return nil
}

// overlay is one mount to be made.
type overlay struct {
	lower       []string // the topmost first
	upper, work string
	options     [][2]string
}

// overlayOptions turns off what a distribution may have turned on and what
// Docker turns off as well: with an inode index, lower directories shared by
// several mounts are refused; metadata-only copies need an attribute that the
// layers could have forged.
func overlayOptions() [][2]string {
	var out [][2]string
	for _, p := range []string{"index", "metacopy"} {
		v, err := os.ReadFile("/sys/module/overlay/parameters/" + p)
		if err == nil && strings.HasPrefix(string(v), "Y") {
			out = append(out, [2]string{p, "off"})
		}
	}
	return out
}

// errOldKernel says that the kernel lacks a call or option of mountNew.
var errOldKernel = errors.New("kernel is too old for the new mount interface")

// mountNew uses fsopen(2) and friends (Linux 5.2), which give the kernel's own
// words on failure, with one lowerdir+ per layer (Linux 6.7), for which there is
// no limit on the length of all names together.
func (o overlay) mountNew(dir string) error {
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err == unix.ENOSYS || err == unix.EPERM && os.Geteuid() == 0 {
		return errOldKernel // EPERM: a seccomp profile that does not know the call
	}
	if err != nil {
		return &os.SyscallError{Syscall: "fsopen", Err: err}
	}
	defer unix.Close(fs)
	if takesAnyOption(fs) {
		return errOldKernel
	}
	var held descriptors
	defer held.close()
	set := func(key, path string) error {
		p, err := held.short(path)
		if err != nil {
			return err
		}
		return unix.FsconfigSetString(fs, key, p)
	}
	for i, l := range o.lower {
		if err := set("lowerdir+", l); err != nil {
			if i == 0 && err == unix.EINVAL {
				return errOldKernel
			}
			return kernelSays(fs, "layer "+l, err)
		}
	}
	if err := set("upperdir", o.upper); err != nil {
		return kernelSays(fs, "upper directory", err)
	}
	if err := set("workdir", o.work); err != nil {
		return kernelSays(fs, "work directory", err)
	}
	for _, kv := range o.options {
		if err := unix.FsconfigSetString(fs, kv[0], kv[1]); err != nil {
			return kernelSays(fs, kv[0], err)
		}
	}
	if err := unix.FsconfigSetFlag(fs, "volatile"); err != nil {
		return kernelSays(fs, "volatile", err)
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return kernelSays(fs, "create", err)
	}
	m, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return kernelSays(fs, "fsmount", err)
	}
	defer unix.Close(m)
	if err := unix.MoveMount(m, "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return &os.PathError{Op: "move_mount", Path: dir, Err: err}
	}
	return nil
}

// takesAnyOption tells whether the kernel looks at options only when the mount is
// made, as the overlay did before Linux 6.5. Such a kernel does not know lowerdir+
// and says no more than "invalid argument".
func takesAnyOption(fs int) bool {
	err := unix.FsconfigSetFlag(fs, "no_overlay_has_this_option")
	messages(fs) // of that
	return err == nil
}

// messages reads what the kernel left in the mount context.
func messages(fs int) (said []string) {
	buf := make([]byte, 8<<10)
	for {
		n, err := unix.Read(fs, buf)
		if err != nil || n == 0 {
			return said
		}
		said = append(said, strings.TrimSpace(strings.TrimPrefix(string(buf[:n]), "e ")))
	}
}

// kernelSays adds the kernel's messages to an error.
func kernelSays(fs int, what string, err error) error {
	said := messages(fs)
	if len(said) == 0 {
		return fmt.Errorf("%s: %w (the kernel's log may say more)", what, err)
	}
	return fmt.Errorf("%s: %w (kernel: %s)", what, err, strings.Join(said, "; "))
}

// descriptors are held open for as long as their paths are in use.
type descriptors []int

func (d *descriptors) close() {
	for _, fd := range *d {
		_ = unix.Close(fd)
	}
}

func (d *descriptors) open(path string) (int, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: path, Err: err}
	}
	*d = append(*d, fd)
	return fd, nil
}

// short gives a name for the directory path that fsconfig(2) takes: below 256
// bytes, and without what the overlay's option parser gives a meaning to.
func (d *descriptors) short(path string) (string, error) {
	if len(path) < 256 && !strings.ContainsAny(path, `\:,`) {
		return path, nil
	}
	fd, err := d.open(path)
	if err != nil {
		return "", err
	}
	return "/proc/self/fd/" + strconv.Itoa(fd), nil
}

// mountOld uses mount(2), whose options must fit into one page. The layers are
// therefore named by descriptors, relative to /proc/thread-self/fd.
func (o overlay) mountOld(dir string) error {
	var held descriptors
	defer held.close()
	var names []string
	for _, path := range append(slices.Clone(o.lower), o.upper, o.work, dir) {
		fd, err := held.open(path)
		if err != nil {
			return err
		}
		names = append(names, strconv.Itoa(fd))
	}
	lower, rest := names[:len(o.lower)], names[len(o.lower):]
	options := "lowerdir=" + strings.Join(lower, ":") + ",upperdir=" + rest[0] + ",workdir=" + rest[1]
	for _, kv := range o.options {
		if strings.Contains(kv[1], ",") { // a label
			kv[1] = `"` + kv[1] + `"`
		}
		options += "," + kv[0] + "=" + kv[1]
	}
	if len(options)+len(",volatile") >= os.Getpagesize() {
		return fmt.Errorf("%d layers are more than this kernel can mount: %w", len(lower), unix.E2BIG)
	}
	return mountByDescriptors(rest[2], options)
}

// mountByDescriptors mounts an overlay on target. Like the directories in options,
// target is the number of an open descriptor.
func mountByDescriptors(target, options string) error {
	done := make(chan error, 1)
	go func() {
		// Never unlocked: the thread, which has a working directory of its own, ends
		// with the goroutine.
		runtime.LockOSThread()
		done <- func() error {
			if err := unix.Unshare(unix.CLONE_FS); err != nil {
				return &os.SyscallError{Syscall: "unshare", Err: err}
			}
			if err := unix.Chdir("/proc/thread-self/fd"); err != nil {
				return &os.PathError{Op: "chdir", Path: "/proc/thread-self/fd", Err: err}
			}
			err := unix.Mount("overlay", target, "overlay", 0, options+",volatile")
			if err == unix.EINVAL { // before Linux 5.10
				err = unix.Mount("overlay", target, "overlay", 0, options)
			}
			if err != nil {
				return &os.SyscallError{Syscall: "mount", Err: fmt.Errorf("%w (the kernel's log may say more)", err)}
			}
			return nil
		}()
	}()
	return <-done
}
