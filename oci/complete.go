package oci

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strings"

	pathrs "github.com/cyphar/filepath-securejoin/pathrs-lite"
	"golang.org/x/sys/unix"
)

// CompleteRoot makes what Docker adds to every root: the directories that the image
// declares as volumes (VOLUME in a Dockerfile) and does not have, /etc/mtab, and
// /.dockerenv, by which programs tell that they are in a container. They go into the
// container's own layer of the root, and are discarded with it as Docker's anonymous
// volumes are. Where something is mounted, nothing is missing; what the image has
// stays, whatever it is, but for links where each container's own files in /etc are
// mounted, and whatever is no directory where the kernel's file systems are: these
// Docker takes away, and a link may lead to where nothing can be mounted, or into
// another mount.
func CompleteRoot(req Request) error {
	root, err := os.OpenFile(req.RootfsPath, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("root directory: %w", err)
	}
	defer root.Close()
	c := completion{root: root, owner: 0}
	if first, ok := req.Confinement.IDs.Host(0); ok {
		c.owner = int(first)
	}
	covered := func(dir string) bool {
		return slices.ContainsFunc(req.Mounts, func(m Mount) bool { return within(dir, path.Clean(m.Target)) })
	}
	var errs []error
	for _, f := range etcFiles {
		if !covered(f.target) {
			errs = append(errs, c.clear(f.target, func(kind uint32) bool { return kind == unix.S_IFLNK }))
		}
	}
	for _, dir := range []string{"/proc", "/sys", "/dev"} {
		errs = append(errs, c.clear(dir, func(kind uint32) bool { return kind != unix.S_IFDIR }))
	}
	for _, name := range slices.Sorted(maps.Keys(req.Image.Volumes)) {
		dir := path.Join("/", name)
		kernels := within(dir, "/proc") || within(dir, "/sys") || within(dir, "/dev")
		if kernels || covered(dir) || strings.IndexByte(dir, 0) >= 0 {
			continue
		}
		if err := c.directory(dir); err != nil {
			errs = append(errs, fmt.Errorf("make the image's volume %q: %w", dir, err))
		}
	}
	if !covered("/etc/mtab") {
		errs = append(errs, c.directory("/etc"), c.leaf("/etc", "mtab", func(fd int) error { return unix.Symlinkat("/proc/mounts", fd, "mtab") }))
	}
	errs = append(errs, c.leaf("/", ".dockerenv", func(fd int) error { return unix.Mknodat(fd, ".dockerenv", unix.S_IFREG|0o755, 0) }))
	return errors.Join(errs...)
}

// completion adds to a root. Links never lead out of it.
type completion struct {
	root  *os.File
	owner int // of what is made, user and group
}

// directory makes what is missing of dir, one directory after the other.
func (c completion) directory(dir string) error {
	for end := 1; end <= len(dir); end++ {
		if end < len(dir) && dir[end] != '/' {
			continue
		}
		there, err := pathrs.OpenatInRoot(c.root, dir[:end])
		if err == nil {
			_ = there.Close()
			continue
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return inTheWay(err)
		}
		if err := c.leaf(path.Dir(dir[:end]), path.Base(dir[:end]), func(fd int) error { return unix.Mkdirat(fd, path.Base(dir[:end]), 0o755) }); err != nil {
			return err
		}
	}
	return nil
}

// clear removes what is at name, not following a link, if it is of an unwanted kind.
func (c completion) clear(name string, unwanted func(kind uint32) bool) error {
	d, err := pathrs.OpenatInRoot(c.root, path.Dir(name))
	if err != nil {
		return inTheWay(err)
	}
	defer d.Close()
	fd, base := int(d.Fd()), path.Base(name)
	var st unix.Stat_t
	if err := unix.Fstatat(fd, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return inTheWay(err)
	}
	if !unwanted(st.Mode & unix.S_IFMT) {
		return nil
	}
	return unix.Unlinkat(fd, base, 0)
}

// leaf calls f to make name in dir, which is there or cannot be, unless name is there.
func (c completion) leaf(dir, name string, f func(dirfd int) error) error {
	d, err := pathrs.OpenatInRoot(c.root, dir)
	if err != nil {
		return inTheWay(err)
	}
	defer d.Close()
	fd := int(d.Fd())
	if err := f(fd); err != nil {
		return inTheWay(err)
	}
	return unix.Fchownat(fd, name, c.owner, c.owner, unix.AT_SYMLINK_NOFOLLOW)
}

// inTheWay forgives what cannot be made because of what the image has there: the
// thing itself, files, links that lead nowhere.
func inTheWay(err error) error {
	for _, reason := range []error{unix.ENOTDIR, unix.EEXIST, unix.ENOENT, unix.ELOOP, unix.ENAMETOOLONG} {
		if errors.Is(err, reason) {
			return nil
		}
	}
	return err
}
