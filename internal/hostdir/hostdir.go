// Package hostdir reaches files below one directory of the host whose content
// a container may have written: a name is resolved component by component from
// a directory descriptor, no symbolic link is ever followed, no ".." accepted,
// and no other file system entered, so nothing a container leaves behind leads
// anywhere else.
//
// Names are slash-separated paths relative to the directory, "." for the
// directory itself. They may be longer than PATH_MAX.
package hostdir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// ErrBadName says that a name is empty, absolute, not clean, or has a "..".
var ErrBadName = errors.New("not a clean relative path")

// Dir is an open directory of the host. It is safe for concurrent use.
type Dir struct {
	fd   int
	name string
}

// Open opens the directory at the absolute host path name. Links in name are
// followed, except as its last component: name is the supervisor's own.
func Open(name string) (*Dir, error) {
	fd, err := retry(func() (int, error) {
		return unix.Open(name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return &Dir{fd: fd, name: name}, nil
}

// Close releases the descriptor; files opened through d stay open.
func (d *Dir) Close() error { return unix.Close(d.fd) }

// Path is the host path of name, for messages only.
func (d *Dir) Path(name string) string { return filepath.Join(d.name, name) }

// OpenFile opens name with the open(2) flags of package unix; O_NOFOLLOW and
// O_CLOEXEC are added. perm is used with O_CREAT and subject to the umask.
func (d *Dir) OpenFile(name string, flags int, perm uint32) (*os.File, error) {
	fd, err := d.open(name, flags, perm)
	if err != nil {
		return nil, d.pathError("open", name, err)
	}
	return os.NewFile(uintptr(fd), d.Path(name)), nil
}

// Lstat reads the attributes of name itself.
func (d *Dir) Lstat(name string) (unix.Stat_t, error) {
	var st unix.Stat_t
	err := d.atParent(name, func(dirfd int, base string) error {
		return unix.Fstatat(dirfd, base, &st, unix.AT_SYMLINK_NOFOLLOW)
	})
	return st, d.pathError("lstat", name, err)
}

// Readlink returns the literal target of the symbolic link name.
func (d *Dir) Readlink(name string) (string, error) {
	// Longer targets than PATH_MAX do not exist (symlink(2)).
	buf := make([]byte, unix.PathMax+1)
	var n int
	err := d.atParent(name, func(dirfd int, base string) (err error) {
		n, err = unix.Readlinkat(dirfd, base, buf)
		return err
	})
	if err != nil {
		return "", d.pathError("readlink", name, err)
	}
	return string(buf[:n]), nil
}

// Entry is an entry of a directory.
type Entry struct {
	Name string
	Mode uint32 // st_mode
	Size int64  // bytes
}

// List returns the entries of the directory name in byte order of their names.
// What vanishes meanwhile is left out.
func (d *Dir) List(name string) ([]Entry, error) {
	f, err := d.OpenFile(name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return nil, d.pathError("readdir", name, err)
	}
	slices.Sort(names)
	list := make([]Entry, 0, len(names))
	for _, entry := range names {
		var st unix.Stat_t
		err := interrupted(func() error { return unix.Fstatat(int(f.Fd()), entry, &st, unix.AT_SYMLINK_NOFOLLOW) })
		if err == unix.ENOENT {
			continue
		}
		if err != nil {
			return nil, d.pathError("lstat", path.Join(name, entry), err)
		}
		list = append(list, Entry{entry, st.Mode, st.Size})
	}
	return list, nil
}

// atParent calls f with a descriptor of name's parent directory and the last
// component.
func (d *Dir) atParent(name string, f func(dirfd int, base string) error) error {
	if name == "." {
		return interrupted(func() error { return f(d.fd, ".") })
	}
	if err := check(name); err != nil {
		return err
	}
	parent, base := path.Split(name)
	dirfd := d.fd
	if parent != "" {
		fd, err := d.open(strings.TrimSuffix(parent, "/"), unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		dirfd = fd
	}
	return interrupted(func() error { return f(dirfd, base) })
}

// longest is how much of a name is given to one system call; the rest of a
// longer one is resolved from the directory reached.
const longest = unix.PathMax - 256 - 1

func (d *Dir) open(name string, flags int, perm uint32) (int, error) {
	if err := check(name); err != nil {
		return -1, err
	}
	fd := d.fd
	for len(name) > longest {
		cut := strings.LastIndexByte(name[:longest], '/')
		if cut < 0 {
			cut = strings.IndexByte(name, '/')
		}
		if cut < 0 {
			break // one component: the kernel says that it is too long
		}
		next, err := openBeneath(fd, name[:cut], unix.O_PATH|unix.O_DIRECTORY, 0)
		if fd != d.fd {
			unix.Close(fd)
		}
		if err != nil {
			return -1, err
		}
		fd, name = next, name[cut+1:]
	}
	got, err := openBeneath(fd, name, flags, perm)
	if fd != d.fd {
		unix.Close(fd)
	}
	return got, err
}

// noOpenat2 remembers that this kernel (before 5.6) or its seccomp filter has
// no openat2.
var noOpenat2 atomic.Bool

const resolve = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV

func openBeneath(dirfd int, name string, flags int, perm uint32) (int, error) {
	flags |= unix.O_NOFOLLOW | unix.O_CLOEXEC
	if !noOpenat2.Load() {
		how := unix.OpenHow{Flags: uint64(flags), Resolve: resolve}
		if flags&unix.O_CREAT != 0 {
			how.Mode = uint64(perm)
		}
		fd, err := retry(func() (int, error) { return unix.Openat2(dirfd, name, &how) })
		if err != unix.ENOSYS && err != unix.EPERM {
			return fd, err
		}
		if err == unix.EPERM && openat2Works(dirfd) {
			return fd, err
		}
		noOpenat2.Store(true)
	}
	return openStepwise(dirfd, name, flags, perm)
}

// openat2Works tells a file that may not be opened from a filter that refuses
// the system call.
func openat2Works(dirfd int) bool {
	fd, err := retry(func() (int, error) {
		return unix.Openat2(dirfd, ".", &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: resolve})
	})
	if err == nil {
		unix.Close(fd)
	}
	return err == nil
}

// openStepwise does what openat2 does, one component at a time: a component is
// a plain name, O_NOFOLLOW refuses links, and a change of device is refused.
func openStepwise(dirfd int, name string, flags int, perm uint32) (int, error) {
	var st unix.Stat_t
	if err := unix.Fstat(dirfd, &st); err != nil {
		return -1, err
	}
	dev, fd := st.Dev, dirfd
	for {
		component, rest, more := strings.Cut(name, "/")
		how := flags
		if more {
			how = unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
		}
		next, err := retry(func() (int, error) { return unix.Openat(fd, component, how, perm) })
		if fd != dirfd {
			unix.Close(fd)
		}
		if err == nil {
			if err = unix.Fstat(next, &st); err == nil && st.Dev != dev {
				err = unix.EXDEV
			}
			if err != nil {
				unix.Close(next)
			}
		}
		if err != nil {
			return -1, err
		}
		if !more {
			return next, nil
		}
		fd, name = next, rest
	}
}

// check refuses every name that is not its own cleaned form or that climbs.
func check(name string) error {
	if name == "" || name[0] == '/' || name == ".." || strings.HasPrefix(name, "../") ||
		strings.IndexByte(name, 0) >= 0 || path.Clean(name) != name {
		return fmt.Errorf("%q: %w", name, ErrBadName)
	}
	return nil
}

func (d *Dir) pathError(op, name string, err error) error {
	if err == nil {
		return nil
	}
	return &fs.PathError{Op: op, Path: d.Path(name), Err: err}
}

// retry repeats f while it is interrupted by a signal, or while openat2 says
// that the tree changed below it.
func retry(f func() (int, error)) (int, error) {
	for {
		n, err := f()
		if err != unix.EINTR && err != unix.EAGAIN {
			return n, err
		}
	}
}

func interrupted(f func() error) error {
	for {
		if err := f(); err != unix.EINTR {
			return err
		}
	}
}
