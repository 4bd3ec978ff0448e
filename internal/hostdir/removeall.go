package hostdir

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// ErrMounted says that something is still mounted below a directory that was to
// be removed.
var ErrMounted = errors.New("a file system is still mounted here")

// RemoveAll removes the directory at the absolute host path name with all its
// content, and is content if there is none. It never enters another file
// system: with a stuck FUSE mount left inside, removing would otherwise delete
// through the mount. Such a place is reported as ErrMounted; everything else is
// removed all the same.
//
// It stops soon after ctx is done, with its cause; what is left then is removed
// by another call.
func RemoveAll(ctx context.Context, name string) error {
	d, err := Open(name)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	defer d.Close()
	r := remover{ctx: ctx, root: d}
	r.empty(d.fd, name, 0)
	if ctx.Err() != nil {
		r.fail(fmt.Errorf("remove %s: %w", name, context.Cause(ctx)))
	}
	if err := errors.Join(r.errs...); err != nil {
		return err
	}
	if err := os.Remove(name); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	return nil
}

type remover struct {
	ctx   context.Context // of the one call that the remover is for
	root  *Dir
	moved int
	errs  []error
}

// deepest is how many directories are open at once. A container can nest
// directories until descriptors or the stack run out; deeper ones are moved up
// to the root first.
const deepest = 100

// empty removes everything in the directory dirfd and reports whether it could.
// It gives up when the context is done, for the caller of all to report.
func (r *remover) empty(dirfd int, name string, depth int) bool {
	failed := make(map[string]bool)
	for r.ctx.Err() == nil {
		names, err := r.list(dirfd)
		if err != nil {
			return r.fail(fmt.Errorf("read directory %s: %w", name, err))
		}
		progress := false
		for _, base := range names {
			if failed[base] {
				continue
			}
			if r.ctx.Err() != nil {
				return false
			}
			progress = true
			if !r.remove(dirfd, base, name+"/"+base, depth) {
				failed[base] = true
			}
		}
		// Directories moved up while the root was listed, and what did
		// not fit into one batch, appear in the next listing.
		if !progress {
			return len(failed) == 0
		}
	}
	return false
}

func (r *remover) remove(dirfd int, base, name string, depth int) bool {
	err := interrupted(func() error { return unix.Unlinkat(dirfd, base, 0) })
	switch err {
	case nil, unix.ENOENT:
		return true
	case unix.EISDIR, unix.EPERM, unix.EBUSY:
	default:
		return r.fail(fmt.Errorf("remove %s: %w", name, err))
	}
	if interrupted(func() error { return unix.Unlinkat(dirfd, base, unix.AT_REMOVEDIR) }) == nil {
		return true
	}
	if depth >= deepest {
		if err := r.moveUp(dirfd, base); err != nil {
			return r.fail(fmt.Errorf("remove %s: move it up: %w", name, err))
		}
		return true
	}
	fd, err := openBeneath(dirfd, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NONBLOCK, 0)
	if err == unix.EXDEV {
		err = ErrMounted
	}
	if err != nil {
		return r.fail(fmt.Errorf("remove %s: %w", name, err))
	}
	all := r.empty(fd, name, depth+1)
	unix.Close(fd)
	if !all {
		return false
	}
	if err := interrupted(func() error { return unix.Unlinkat(dirfd, base, unix.AT_REMOVEDIR) }); err != nil {
		return r.fail(fmt.Errorf("remove %s: %w", name, err))
	}
	return true
}

// moveUp moves a directory to the root, under a name that is free: a call that
// was stopped has left some.
func (r *remover) moveUp(dirfd int, base string) error {
	for {
		r.moved++
		to := ".moved-" + strconv.Itoa(os.Getpid()) + "-" + strconv.Itoa(r.moved)
		err := interrupted(func() error { return unix.Renameat(dirfd, base, r.root.fd, to) })
		if err != unix.EEXIST && err != unix.ENOTEMPTY && err != unix.ENOTDIR {
			return err
		}
	}
}

// list opens the directory anew, because dirfd may be for reference only
// (O_PATH) and its offset is shared.
func (r *remover) list(dirfd int) ([]string, error) {
	fd, err := retry(func() (int, error) {
		return unix.Openat(dirfd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), r.root.name)
	defer f.Close()
	// A bounded batch: a directory may hold millions of names.
	names, err := f.Readdirnames(100_000)
	if err == io.EOF {
		err = nil
	}
	return names, err
}

// reported bounds the list of failures: one stuck mount is news, a million
// unreadable files are not.
const reported = 20

func (r *remover) fail(err error) bool {
	if len(r.errs) < reported {
		r.errs = append(r.errs, err)
	}
	return false
}
