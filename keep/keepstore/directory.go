package keepstore

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// minFree is the free space in bytes below which a volume is full.
	minFree = 64 << 20
	// fullFor is how long the link Root/full is believed.
	fullFor = time.Hour
	// staleTemp is the age at which a temporary file has lost its writer: far
	// above any request time-out.
	staleTemp = time.Hour
)

// directory is a Directory volume (spec keep.md section 11): the block with
// hash H is the file Root/<first 3 digits of H>/H, whose mtime is the time it
// was last written or touched. Several processes, also of other makes, may use
// one directory at the same time; a file with a final name is complete.
type directory struct {
	root   string
	noSync bool
	// ttl is the age below which a block is never trashed.
	ttl time.Duration
	// lifetime of trash; 0 means that trashing unlinks.
	lifetime time.Duration
	serial   *sync.Mutex // nil unless Serialize
}

func (d *directory) path(hash string) string {
	return filepath.Join(d.root, hash[:3], hash)
}

// lacks tells whether there is nothing at all under a block's name.
func (d *directory) lacks(hash string) bool {
	_, err := os.Lstat(d.path(hash))
	return errors.Is(err, fs.ErrNotExist)
}

func (d *directory) lock() func() {
	if d.serial == nil {
		return func() {}
	}
	d.serial.Lock()
	return d.serial.Unlock
}

// open returns the file of a block, whose content is still to be verified, and
// its size in bytes. A block that is not there is fs.ErrNotExist; so is
// nothing else.
func (d *directory) open(hash string, flag int) (*os.File, int64, error) {
	f, err := os.OpenFile(d.path(hash), flag|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, 0, d.absent(err)
	}
	fi, err := f.Stat()
	switch {
	case err != nil:
	case !fi.Mode().IsRegular():
		err = fmt.Errorf("%s: not a regular file", f.Name())
	case fi.Size() > maxBlockSize:
		err = errTooLarge
	default:
		return f, fi.Size(), nil
	}
	f.Close()
	return nil, 0, err
}

// absent makes fs.ErrNotExist another error if the whole volume is not there: its
// blocks are not lost, and nobody must take them for that.
func (d *directory) absent(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(d.root); err != nil {
			return fmt.Errorf("%w: %v", errUnavailable, err)
		}
	}
	return err
}

// hashBuffers are for reading files; 256 KiB is where larger buffers stop to
// be faster.
var hashBuffers = sync.Pool{New: func() any { b := make([]byte, 256<<10); return &b }}

// verify reads f from its start and fails with errChecksum unless it has size
// bytes whose MD5 is hash. The file offset is 0 again afterwards.
func verify(ctx context.Context, f *os.File, size int64, hash string) error {
	bp := hashBuffers.Get().(*[]byte)
	defer hashBuffers.Put(bp)
	sum := md5.New()
	var pos int64
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := f.ReadAt(*bp, pos)
		sum.Write((*bp)[:n])
		pos += int64(n)
		if err == io.EOF || err == nil && n == 0 {
			break
		}
		if err != nil {
			return err
		}
	}
	if pos != size {
		return fmt.Errorf("%w: %s changed its size while it was read", errChecksum, f.Name())
	}
	if hex.EncodeToString(sum.Sum(nil)) != hash {
		return errChecksum
	}
	return nil
}

// openVerified implements volume: the kernel will send the file from its page
// cache, where it is once it has been verified.
func (d *directory) openVerified(ctx context.Context, hash string) (io.ReadCloser, int64, error) {
	defer d.lock()()
	f, size, err := d.open(hash, os.O_RDONLY)
	if err != nil {
		return nil, 0, err
	}
	if err := verify(ctx, f, size, hash); err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, size, nil
}

// refresh implements volume.
func (d *directory) refresh(ctx context.Context, hash string, data []byte) (bool, error) {
	defer d.lock()()
	f, err := d.touchLocked(hash)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errTooLarge) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	same, err := equal(ctx, f, data)
	if err != nil {
		return false, err
	}
	if same {
		return true, d.syncName(f)
	}
	fi, err := f.Stat()
	if err != nil {
		return false, err
	}
	switch err := verify(ctx, f, fi.Size(), hash); {
	case err == nil:
		return false, errCollision
	case errors.Is(err, errChecksum):
		return false, nil
	default:
		return false, err
	}
}

func equal(ctx context.Context, f *os.File, data []byte) (bool, error) {
	bp := hashBuffers.Get().(*[]byte)
	defer hashBuffers.Put(bp)
	var pos int
	for {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		n, err := f.ReadAt(*bp, int64(pos))
		if n > len(data)-pos || !bytes.Equal((*bp)[:n], data[pos:pos+n]) {
			return false, nil
		}
		pos += n
		if err == io.EOF {
			return pos == len(data), nil
		}
		if err != nil {
			return false, err
		}
	}
}

// touch implements volume.
func (d *directory) touch(_ context.Context, hash string) error {
	defer d.lock()()
	f, err := d.touchLocked(hash)
	if err != nil {
		return err
	}
	defer f.Close()
	return d.syncName(f)
}

// syncName makes the time stamp and the name of an open block survive a power cut:
// whoever wrote the block may not have come to that yet.
func (d *directory) syncName(f *os.File) error {
	if d.noSync {
		return nil
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return d.syncDir(filepath.Dir(f.Name()))
}

// touchLocked opens a block, under the lock that a trasher also takes, and
// sets its time stamp to now: from then on it is safe for the signature TTL.
func (d *directory) touchLocked(hash string) (*os.File, error) {
	f, _, err := d.openLocked(hash)
	if err != nil {
		return nil, err
	}
	if err := futimes(f, time.Now()); err != nil {
		f.Close()
		return nil, err
	}
	// Everyone else may go on; the file stays open for the caller.
	return f, unix.Flock(int(f.Fd()), unix.LOCK_UN)
}

// openLocked opens a block for writing and locks the file that has the name
// when the lock is there: a file that was trashed or replaced while we waited
// is not the block any more.
func (d *directory) openLocked(hash string) (*os.File, os.FileInfo, error) {
	for {
		f, _, err := d.open(hash, os.O_RDWR)
		if err != nil {
			return nil, nil, err
		}
		fi, err := f.Stat()
		if err == nil {
			err = flock(f)
		}
		var now os.FileInfo
		if err == nil {
			now, err = os.Stat(d.path(hash))
		}
		if err != nil {
			f.Close()
			return nil, nil, err
		}
		if os.SameFile(fi, now) {
			return f, now, nil
		}
		f.Close()
	}
}

func flock(f *os.File) error {
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if err != unix.EINTR {
			return os.NewSyscallError("flock "+f.Name(), err)
		}
	}
}

func futimes(f *os.File, t time.Time) error {
	tv := []unix.Timespec{unix.NsecToTimespec(t.UnixNano()), unix.NsecToTimespec(t.UnixNano())}
	// The path through /proc follows the open file, not the name, which may
	// have become another file's.
	err := unix.UtimesNanoAt(unix.AT_FDCWD, "/proc/self/fd/"+strconv.Itoa(int(f.Fd())), tv, 0)
	return os.NewSyscallError("utimensat "+f.Name(), err)
}

func (d *directory) syncDir(dir string) error {
	if d.noSync {
		return nil
	}
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// diskError turns "no space" into errFull and leaves a note for others.
func (d *directory) diskError(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w: %w", errFull, err)
	}
	return err
}

// checkSpace fails with errFull while the link Root/full, whose target is the
// Unix time at which the volume was found full, is younger than an hour, or if
// there is too little space now.
func (d *directory) checkSpace() error {
	link := filepath.Join(d.root, "full")
	target, linkErr := os.Readlink(link)
	if since, err := strconv.ParseInt(target, 10, 64); linkErr == nil && err == nil {
		if age := time.Since(time.Unix(since, 0)); age >= 0 && age < fullFor {
			return errFull
		}
	}
	var st unix.Statfs_t
	if err := unix.Statfs(d.root, &st); err != nil {
		return &fs.PathError{Op: "statfs", Path: d.root, Err: err}
	}
	if st.Bavail*uint64(st.Bsize) >= minFree {
		if linkErr == nil {
			os.Remove(link) // out of date; if it stays nobody is misled
		}
		return nil
	}
	// Best effort: without the link everybody finds out for himself.
	tmp := link + ".tmp" + strconv.FormatUint(rand.Uint64(), 36)
	if os.Symlink(strconv.FormatInt(time.Now().Unix(), 10), tmp) == nil {
		if os.Rename(tmp, link) != nil {
			os.Remove(tmp)
		}
	}
	return errFull
}
