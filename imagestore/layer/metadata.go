package layer

import (
	"archive/tar"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// metadata is what is set on an inode beside its content.
type metadata struct {
	mode     uint32 // permission bits with set-user-ID, set-group-ID, sticky
	uid, gid int
	mtime    time.Time
	xattrs   []xattr
}

type xattr struct{ name, value string }

// paxXattr is the prefix of the PAX records in which GNU tar, Docker and all
// the others keep extended attributes.
const paxXattr = "SCHILY.xattr."

// foreignXattrs say something about the machine an image was built on; setting
// them here would be wrong or fail, as they do on every other engine.
var foreignXattrs = map[string]bool{
	"security.selinux": true,
	"security.ima":     true,
	"security.evm":     true,
	"system.nfs4_acl":  true,
}

// overlayXattrs steer the overlay file system. In an image they are data (of
// containers inside containers) and must not steer ours: one more "overlay."
// is how kernels since 6.7 escape them, and older ones ignore.
const overlayXattrs = "trusted.overlay."

// maxXattr is the kernel's bound on one value (XATTR_SIZE_MAX).
const maxXattr = 64 << 10

// maxKept bounds what is remembered of the extended attributes of directories
// until they are set, in bytes of memory.
const maxKept = 16 << 20

// metadata is metadataOf, and takes the attributes from the budget: on some file
// systems they take as much room as content does.
func (x *extractor) metadata(h *tar.Header) (metadata, error) {
	m, skipped, err := metadataOf(h)
	x.res.SkippedXattrs += skipped
	for _, a := range m.xattrs {
		if err == nil && len(a.value) > maxXattr {
			err = fmt.Errorf("%w of what one file can have in extended attributes: %s (%d bytes) does not fit", ErrLimit, printable(a.name), len(a.value))
		}
		if err == nil {
			err = x.spend(len(a.name) + len(a.value))
		}
	}
	return m, err
}

func metadataOf(h *tar.Header) (m metadata, skippedXattrs int, err error) {
	// The last identifier means "leave as it is" to chown.
	if h.Uid < 0 || int64(h.Uid) >= math.MaxUint32 || h.Gid < 0 || int64(h.Gid) >= math.MaxUint32 {
		return m, 0, fmt.Errorf("%w: owner %d:%d does not fit Linux", ErrMalformed, h.Uid, h.Gid)
	}
	m = metadata{mode: uint32(h.Mode & 0o7777), uid: h.Uid, gid: h.Gid, mtime: h.ModTime}
	for k, v := range h.PAXRecords {
		name, ok := strings.CutPrefix(k, paxXattr)
		if !ok {
			continue
		}
		if foreignXattrs[name] {
			skippedXattrs++
			continue
		}
		if rest, ok := strings.CutPrefix(name, overlayXattrs); ok {
			name = overlayXattrs + "overlay." + rest
		}
		m.xattrs = append(m.xattrs, xattr{name, v})
	}
	// PAX records come as a map. Where an inode has no room for all of the
	// attributes, which of them is missing must not be chance.
	slices.SortFunc(m.xattrs, func(a, b xattr) int { return strings.Compare(a.name, b.name) })
	return m, skippedXattrs, nil
}

// times gives access and modification time; layers rarely have the former.
func (m *metadata) times() [2]unix.Timespec {
	var ts unix.Timespec // of the root of an empty layer: the epoch
	if !m.mtime.IsZero() {
		ts = unix.Timespec{Sec: m.mtime.Unix(), Nsec: int64(m.mtime.Nanosecond())}
	}
	return [2]unix.Timespec{ts, ts}
}

// anyMode is the mode of a file of which none is known: metadata never has it.
const anyMode = ^uint32(0)

// apply sets m on the file or directory fd, which this process has made and which
// has the given mode, or anyMode. The order matters: a change of owner clears
// set-user-ID bits and file capabilities.
func (x *extractor) apply(fd int, mode uint32, m metadata) error {
	if m.uid != 0 || m.gid != 0 {
		if err := unix.Fchown(fd, m.uid, m.gid); err != nil {
			return fmt.Errorf("set owner: %w", err)
		}
	}
	if m.mode != mode {
		if err := unix.Fchmod(fd, m.mode); err != nil {
			return fmt.Errorf("set mode: %w", err)
		}
	}
	for _, a := range m.xattrs {
		if err := x.xattrResult(fd, a, unix.Fsetxattr(fd, a.name, []byte(a.value), 0)); err != nil {
			return err
		}
	}
	return setTimes(fd, m.times())
}

// setTimes is futimens(3), which package unix has not: by descriptor, so that no
// name is looked up.
func setTimes(fd int, ts [2]unix.Timespec) error {
	_, _, errno := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(fd), 0, uintptr(unsafe.Pointer(&ts)), 0, 0, 0)
	if errno != 0 {
		return fmt.Errorf("set time: %w", errno)
	}
	return nil
}

// applyAt is apply for what cannot be opened: links and special files.
func (x *extractor) applyAt(dirfd int, base string, m metadata, isLink bool) error {
	if m.uid != 0 || m.gid != 0 {
		if err := unix.Fchownat(dirfd, base, m.uid, m.gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return fmt.Errorf("set owner: %w", err)
		}
	}
	if !isLink { // links have no mode
		if err := unix.Fchmodat(dirfd, base, m.mode, 0); err != nil {
			return fmt.Errorf("set mode: %w", err)
		}
	}
	if len(m.xattrs) > 0 {
		// There is no call by descriptor and name before Linux 6.13; the name is
		// one component, and lsetxattr does not follow it.
		p := "/proc/self/fd/" + strconv.Itoa(dirfd) + "/" + base
		for _, a := range m.xattrs {
			if err := x.xattrResult(dirfd, a, unix.Lsetxattr(p, a.name, []byte(a.value), 0)); err != nil {
				return err
			}
		}
	}
	ts := m.times()
	if err := unix.UtimesNanoAt(dirfd, base, ts[:], unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("set time: %w", err)
	}
	return nil
}

// xattrResult forgives what other engines forgive: an attribute that the file
// system (ENOTSUP) or the kind of inode (EPERM: user.* on a link or device)
// does not take. A lost file capability is a program that fails later, so
// that one is an error. fd is any file of the file system.
func (x *extractor) xattrResult(fd int, a xattr, err error) error {
	switch {
	case err == nil:
		return nil
	case err == unix.ENOTSUP && !strings.HasPrefix(a.name, "security.capability"),
		err == unix.EPERM && strings.HasPrefix(a.name, "user."):
		x.res.SkippedXattrs++
		return nil
	}
	return XattrError(a.name, len(a.value), func(st *unix.Statfs_t) error { return unix.Fstatfs(fd, st) }, err)
}

// XattrError words the failure err to set an extended attribute of size bytes on
// the file system of statfs. ENOSPC is what ext4 and btrfs say when an inode
// cannot hold the attribute beside its others, on however empty a disk; E2BIG
// and ERANGE are the bounds of the kernel on values and names (xattr(7)). No
// machine would take such a layer: that is ErrLimit.
func XattrError(name string, size int, statfs func(*unix.Statfs_t) error, err error) error {
	if err == unix.E2BIG || err == unix.ERANGE || err == unix.ENOSPC && hasRoom(statfs) {
		return fmt.Errorf("%w of what one file can have in extended attributes: %s (%d bytes) does not fit",
			ErrLimit, printable(name), size)
	}
	return fmt.Errorf("set extended attribute %s: %w", printable(name), err)
}

// xattrRoom is more than one extended attribute takes of a file system: a value
// of at most 64 KiB (XATTR_SIZE_MAX), and the blocks that lead to it.
const xattrRoom = 256 << 10

// hasRoom tells whether the file system of statfs has room for one more extended
// attribute, and for the inode in which ext4 may put it.
func hasRoom(statfs func(*unix.Statfs_t) error) bool {
	var st unix.Statfs_t
	if err := retry(func() error { return statfs(&st) }); err != nil {
		return false // then what the kernel said first stands
	}
	return st.Bavail >= xattrRoom/uint64(st.Bsize) && (st.Files == 0 || st.Ffree > 0)
}
