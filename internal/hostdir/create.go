package hostdir

import (
	"os"
	"path"

	"golang.org/x/sys/unix"
)

// Mkdir creates the directory name with exactly mode, whatever the umask. Its
// parent must exist; name must not.
func (d *Dir) Mkdir(name string, mode uint32) error {
	err := d.atParent(name, func(dirfd int, base string) error {
		if err := unix.Mkdirat(dirfd, base, mode&0o700); err != nil {
			return err
		}
		return chmodDir(dirfd, base, mode)
	})
	return d.pathError("mkdir", name, err)
}

// MkdirAll creates name and its missing parents, each with exactly mode. What
// exists already is left as it is and must be directories.
func (d *Dir) MkdirAll(name string, mode uint32) error {
	if name == "." {
		return nil
	}
	if err := check(name); err != nil {
		return d.pathError("mkdir", name, err)
	}
	fd, err := d.open(name, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err == nil {
		return unix.Close(fd)
	}
	if err != unix.ENOENT {
		return d.pathError("mkdir", name, err)
	}
	if err := d.MkdirAll(path.Dir(name), mode); err != nil {
		return err
	}
	return d.Mkdir(name, mode)
}

// Create creates the regular file name with exactly mode, whatever the umask,
// and opens it for writing. It fails if name exists.
func (d *Dir) Create(name string, mode uint32) (*os.File, error) {
	f, err := d.OpenFile(name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Fchmod(int(f.Fd()), mode); err != nil {
		f.Close()
		return nil, d.pathError("chmod", name, err)
	}
	return f, nil
}

// Remove unlinks name, which is no directory.
func (d *Dir) Remove(name string) error {
	err := d.atParent(name, func(dirfd int, base string) error {
		return unix.Unlinkat(dirfd, base, 0)
	})
	return d.pathError("unlink", name, err)
}

// chmodDir sets the mode of a directory through a descriptor, because
// fchmodat(2) would follow a link.
func chmodDir(dirfd int, base string, mode uint32) error {
	fd, err := openBeneath(dirfd, base, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Fchmod(fd, mode)
}
