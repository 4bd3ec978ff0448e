package local

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/docker/go-units"
	"golang.org/x/sys/unix"
)

// reserveSize is how much of the disk is kept for the log and the final records,
// so that a container that fills it cannot take them along, in bytes. Keep takes
// nothing when less than 64 MiB are free (spec: keep section 11).
const reserveSize = 128 << 20

// reserve is disk space that is given back when the container has ended.
type reserve struct{ path string }

// newReserve makes sure that there is room for size bytes and the reserve in
// dir, and takes the latter.
func newReserve(dir string, size int64) (*reserve, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return nil, &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	if free := int64(st.Bavail) * st.Bsize; free < size+2*reserveSize {
		return nil, tooLittleRoom(dir, free, size+2*reserveSize)
	}
	f, err := os.OpenFile(filepath.Join(dir, "reserve"), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	r := &reserve{f.Name()}
	err = unix.Fallocate(int(f.Fd()), 0, 0, reserveSize)
	if errors.Is(err, unix.EOPNOTSUPP) {
		err = nil // this file system cannot: then there is no reserve
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("reserve disk space in %s: %w", dir, err), r.release())
	}
	return r, nil
}

func tooLittleRoom(dir string, free, need int64) error {
	return fmt.Errorf("only %s are free in %s, and storing image and inputs takes %s: set TMPDIR to a directory with more room",
		units.BytesSize(float64(free)), dir, units.BytesSize(float64(need)))
}

// release gives the space back. A second release does nothing.
func (r *reserve) release() error {
	if err := os.Remove(r.path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// checkWritable finds out, before hours of work, whether results can be written
// to dir, which is made.
func checkWritable(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, ".crunch-run.")
	if err != nil {
		return err
	}
	return errors.Join(f.Close(), os.Remove(f.Name()))
}
