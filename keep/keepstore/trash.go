package keepstore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// trash moves a block out of sight: to HASH.trash.DEADLINE, from where untrash
// takes it back, or for good if trash has no lifetime. A block younger than the
// signature TTL stays, without an error: somebody holds a promise that it is
// there. If mtime is not zero the block also stays unless that is its time
// stamp.
func (d *directory) trash(_ context.Context, hash string, mtimeNS int64) error {
	defer d.lock()()
	f, fi, err := d.openLocked(hash)
	if err != nil {
		return err
	}
	defer f.Close() // ends the lock
	if mtimeNS != 0 && fi.ModTime().UnixNano() != mtimeNS || time.Since(fi.ModTime()) < d.ttl {
		return nil
	}
	if d.lifetime == 0 {
		return os.Remove(f.Name())
	}
	deadline := time.Now().Add(d.lifetime).Unix()
	return os.Rename(f.Name(), fmt.Sprintf("%s.trash.%d", f.Name(), deadline))
}

// untrash brings back the copy of a block with the earliest deadline. Its time
// stamp is the old one: it must not take the place of a copy that somebody has
// written since, which is promised to stay.
func (d *directory) untrash(_ context.Context, hash string) error {
	defer d.lock()()
	found, err := filepath.Glob(d.path(hash) + ".trash.*")
	if err != nil {
		return err
	}
	sort.Strings(found)
	for _, name := range found {
		switch err := renameNew(name, d.path(hash)); {
		case errors.Is(err, fs.ErrExist):
			return nil
		case !errors.Is(err, fs.ErrNotExist):
			return err
		}
	}
	return d.absent(fs.ErrNotExist)
}

// renameNew renames a file unless there is one with that name, which is
// fs.ErrExist.
func renameNew(from, to string) error {
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	if err == unix.EINVAL || err == unix.ENOSYS {
		// Not every file system can (NFS cannot), but then it has links.
		if err := os.Link(from, to); err != nil {
			return err
		}
		return os.Remove(from)
	}
	if err != nil {
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
	}
	return nil
}

// emptyTrash removes trash past its deadline, and temporary files whose writer
// died.
func (d *directory) emptyTrash(ctx context.Context) error {
	now := time.Now()
	return d.walk(ctx, "", func(dir, name string) error {
		path := filepath.Join(dir, name)
		if strings.HasPrefix(name, "tmp") {
			if fi, err := os.Lstat(path); err != nil || now.Sub(fi.ModTime()) < staleTemp {
				return nil
			}
		} else if !trashExpired(name, now) {
			return nil
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	})
}

func trashExpired(name string, now time.Time) bool {
	hash, deadline, ok := strings.Cut(name, ".trash.")
	if !ok || len(hash) != 32 || !isHex(hash) {
		return false
	}
	n, err := strconv.ParseInt(deadline, 10, 64)
	return err == nil && n <= now.Unix()
}

func (d *directory) close() {}

// deviceID tells volumes on the same storage apart from others: the UUID of
// the file system and the path in it, or host name and path where no UUID is
// known.
func (d *directory) deviceID() string {
	host, _ := os.Hostname()
	fallback := host + ":" + d.root
	var st unix.Stat_t
	if unix.Stat(d.root, &st) != nil {
		return fallback
	}
	const byUUID = "/dev/disk/by-uuid"
	links, err := os.ReadDir(byUUID)
	if err != nil {
		return fallback
	}
	for _, l := range links {
		var dev unix.Stat_t
		if unix.Stat(filepath.Join(byUUID, l.Name()), &dev) == nil && dev.Rdev == st.Dev {
			if path, ok := pathInFilesystem(d.root, st.Dev); ok {
				return l.Name() + path
			}
		}
	}
	return fallback
}

// pathInFilesystem translates a path as this process sees it to one from the
// root of the file system on device dev. See proc_pid_mountinfo(5).
func pathInFilesystem(path string, dev uint64) (string, bool) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", false
	}
	want := fmt.Sprintf("%d:%d", unix.Major(dev), unix.Minor(dev))
	best, result := -1, ""
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) < 5 || f[2] != want {
			continue
		}
		root, point := f[3], f[4]
		rel, err := filepath.Rel(point, path)
		if err != nil || rel == ".." || strings.HasPrefix(rel, "../") || len(point) <= best {
			continue
		}
		best, result = len(point), filepath.Join(root, rel)
	}
	return result, best >= 0
}
