package diskcache

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	suffix   = ".keepcacheblock"
	dirMode  = 0o700
	fileMode = 0o600
)

// errBusy says that another process is fetching the block.
var errBusy = errors.New("being fetched by another process")

// DefaultDir is the directory that Arvados' own programs use:
// /var/cache/arvados/keep if it can be made, else the one in the home directory.
func DefaultDir() string {
	const system = "/var/cache/arvados/keep"
	if os.MkdirAll(system, dirMode) == nil && unix.Access(system, unix.W_OK) == nil {
		return system
	}
	if home, err := os.UserHomeDir(); err == nil {
		return filepath.Join(home, ".cache/arvados/keep")
	}
	return system
}

// dir is the directory.
type dir struct {
	root   string
	budget *os.File // locked; says what we may add

	limit Limit

	mu       sync.Mutex
	estimate int64 // bytes in the directory: as last counted, and what we added
	allowed  int64 // bytes that may be there, as last counted
	since    int64 // bytes added since
}

func openDir(root string, limit Limit) (*dir, error) {
	if root == "" {
		root = DefaultDir()
	}
	made := os.MkdirAll(filepath.Join(root, "tmp"), dirMode)
	if made != nil && !errors.Is(made, unix.EROFS) {
		return nil, made
	}
	// Whoever else could write there could change a block after it was
	// verified.
	var st unix.Stat_t
	if err := unix.Stat(root, &st); err != nil {
		if made != nil {
			return nil, made // the cause
		}
		return nil, &os.PathError{Op: "stat", Path: root, Err: err}
	}
	if int(st.Uid) != os.Geteuid() || st.Mode&0o022 != 0 {
		return nil, fmt.Errorf("%s belongs to user %d with mode %#o: it must be our own (user %d) and not be writable by others",
			root, st.Uid, st.Mode&0o7777, os.Geteuid())
	}
	d := &dir{root: root, limit: limit}
	if err := d.register(); err != nil && !errors.Is(err, unix.EROFS) {
		return nil, err
	}
	if d.budget != nil {
		d.tidy(func(int64) {})
	}
	return d, nil
}

func (d *dir) path(hash string) string { return filepath.Join(d.root, hash[:3], hash+suffix) }
func (d *dir) temp(name string) string { return filepath.Join(d.root, "tmp", name) }

func (d *dir) has(hash string) bool {
	_, err := os.Lstat(d.path(hash))
	return err == nil
}

// open opens a block and locks it against eviction. What it contains has not
// been looked at.
func (d *dir) open(hash string) (*os.File, error) {
	f, err := os.OpenFile(d.path(hash), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if err := lockOurs(f); err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// lockOurs locks a file that nobody else can change.
func lockOurs(f *os.File) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return &os.PathError{Op: "fstat", Path: f.Name(), Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || int(st.Uid) != os.Geteuid() || st.Mode&0o022 != 0 {
		return errNotOurs
	}
	if flock(f, unix.LOCK_SH) != nil {
		return fs.ErrNotExist // it is being evicted
	}
	if err := unix.Fstat(int(f.Fd()), &st); err != nil || st.Nlink == 0 {
		return fs.ErrNotExist // it has been
	}
	return nil
}

var errNotOurs = errors.New("it is not a file that only we can change")

// temp is a block on its way, a locked file.
type temp struct {
	d    *dir
	file *os.File
	path string
	done bool
}

// begin starts a block under the name by which other processes see that it is
// being fetched. errBusy means that one of them is fetching it.
func (d *dir) begin(hash string) (*temp, error) {
	for {
		path := d.temp(hash + ".tmp")
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, fileMode)
		if errors.Is(err, fs.ErrNotExist) {
			// Somebody has removed the directory.
			if err = os.MkdirAll(filepath.Dir(path), dirMode); err == nil {
				continue
			}
		}
		if err != nil {
			return nil, err
		}
		if err := flock(f, unix.LOCK_EX); err != nil {
			_ = f.Close()
			return nil, errBusy
		}
		if !sameFile(f, path) {
			_ = f.Close() // it was finished, or swept, before we had the lock
			if d.has(hash) {
				return nil, errBusy
			}
			continue
		}
		if err := f.Truncate(0); err != nil { // left by somebody who died
			_ = f.Close()
			return nil, err
		}
		return &temp{d: d, file: f, path: path}, nil
	}
}

// beginAlone starts a block that others take no notice of.
func (d *dir) beginAlone(hash string) (*temp, error) {
	f, err := os.CreateTemp(filepath.Join(d.root, "tmp"), hash+".*.tmp")
	if err != nil {
		return nil, err
	}
	_ = flock(f, unix.LOCK_EX) // fails only if it was swept at this moment
	return &temp{d: d, file: f, path: f.Name()}, nil
}

// progress tells how much of a block another process has, and whether it is
// still at it.
func (d *dir) progress(hash string) (written int64, busy bool) {
	f, err := os.OpenFile(d.temp(hash+".tmp"), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return 0, false
	}
	defer f.Close()
	if flock(f, unix.LOCK_SH) == nil {
		return 0, false
	}
	var st unix.Stat_t
	if unix.Fstat(int(f.Fd()), &st) != nil {
		return 0, false
	}
	// Its space is reserved from the start; what changes is the time.
	return st.Mtim.Nano(), true
}

// reserve makes sure that there is room for size bytes.
func (t *temp) reserve(size int64) error {
	err := unix.Fallocate(int(t.file.Fd()), 0, 0, size)
	if err == unix.EOPNOTSUPP || err == unix.ENOSYS {
		return nil // then writing shows it
	}
	if err != nil {
		return &os.PathError{Op: "fallocate", Path: t.path, Err: err}
	}
	return nil
}

// commit gives the block its name. It stays open, and safe from eviction.
func (t *temp) commit(hash string, size int64) error {
	if err := t.file.Truncate(size); err != nil {
		return err
	}
	path := t.d.path(hash)
	err := os.Rename(t.path, path)
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.Mkdir(filepath.Dir(path), dirMode); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		err = os.Rename(t.path, path)
	}
	if err != nil {
		return err
	}
	t.done = true
	_ = flock(t.file, unix.LOCK_SH)
	return nil
}

// abandon removes the file unless it was committed.
func (t *temp) abandon() {
	if !t.done {
		_ = os.Remove(t.path) // while we have the lock
		_ = t.file.Close()
	}
}

// flock locks without waiting.
func flock(f *os.File, how int) error {
	for {
		if err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB); err != unix.EINTR {
			return err
		}
	}
}

func sameFile(f *os.File, path string) bool {
	a, err1 := f.Stat()
	b, err2 := os.Lstat(path)
	return err1 == nil && err2 == nil && os.SameFile(a, b)
}

// touch sets the access time, by which blocks are evicted and which the kernel
// itself hardly updates (relatime, noatime).
func touch(f *os.File) {
	times := []unix.Timespec{unix.NsecToTimespec(time.Now().UnixNano()), {Nsec: unix.UTIME_OMIT}}
	// On a read-only file system it fails, and there is no eviction either.
	_ = unix.UtimesNanoAt(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", f.Fd()), times, 0)
}

// maxOpenFiles is how many blocks are held open: a fortieth of what may be.
func maxOpenFiles() int {
	var lim unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &lim) != nil {
		return 25
	}
	if lim.Cur > 400_000 {
		return 10_000
	}
	return max(int(lim.Cur/40), 8)
}
