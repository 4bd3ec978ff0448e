package keepstore

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// newFile is a block on its way into a directory volume: a file with a temporary
// name, until commit.
type newFile struct {
	*os.File
	d    *directory
	hash string
	made bool // its directory is new
	done bool // it has its final name
}

// create begins to store a block. The caller calls discard in the end. errFull:
// there is no space.
func (d *directory) create(hash string) (*newFile, error) {
	if err := d.checkSpace(); err != nil {
		return nil, err
	}
	w := &newFile{d: d, hash: hash}
	dir := filepath.Join(d.root, hash[:3])
	if err := os.Mkdir(dir, 0o755); err == nil {
		w.made = true
	} else if !errors.Is(err, fs.ErrExist) {
		return nil, d.diskError(err)
	}
	var err error
	w.File, err = os.OpenFile(filepath.Join(dir, "tmp"+hash+strconv.FormatUint(rand.Uint64(), 36)), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, d.diskError(err)
	}
	return w, nil
}

// commit gives the file its final name when it is on disk, and returns when the
// name is, too. A block that is there already is replaced.
func (w *newFile) commit() error {
	if err := w.install(); err != nil {
		return w.d.diskError(err)
	}
	return nil
}

func (w *newFile) install() error {
	if err := futimes(w.File, time.Now()); err != nil {
		return err
	}
	if !w.d.noSync {
		if err := w.Sync(); err != nil {
			return err
		}
	}
	if err := w.d.install(w.Name(), w.hash); err != nil {
		return err
	}
	w.done = true
	if w.made {
		if err := w.d.syncDir(w.d.root); err != nil {
			return err
		}
	}
	return w.d.syncDir(filepath.Dir(w.Name()))
}

// content reads the first size bytes again. Its errors are errUnavailable.
func (w *newFile) content(size int) io.Reader {
	return diskReader{io.NewSectionReader(w, 0, int64(size))}
}

type diskReader struct{ r io.Reader }

func (d diskReader) Read(p []byte) (int, error) {
	n, err := d.r.Read(p)
	if err != nil && err != io.EOF {
		err = errUnavailable
	}
	return n, err
}

// discard closes the file, and removes it unless it was committed.
func (w *newFile) discard() {
	w.Close()
	if !w.done {
		os.Remove(w.Name())
	}
}

// write implements volume. A file gets its final name only when it is on disk,
// and its name is on disk before write returns. An existing file is replaced.
func (d *directory) write(ctx context.Context, hash string, data []byte) error {
	defer d.lock()()
	w, err := d.create(hash)
	if err != nil {
		return err
	}
	defer w.discard()
	const step = 4 << 20 // between looks at ctx
	for len(data) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := w.Write(data[:min(step, len(data))])
		if err != nil {
			return d.diskError(err)
		}
		data = data[n:]
	}
	return w.commit()
}

// install gives a finished file its final name. Who trashes a block looks at its
// time stamp and then renames whatever has its name: a copy that is there is
// therefore replaced only under the lock that trash holds meanwhile.
func (d *directory) install(tmp, hash string) error {
	for {
		old, err := os.OpenFile(d.path(hash), os.O_RDWR|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_NOFOLLOW, 0)
		if errors.Is(err, fs.ErrNotExist) {
			if err := renameNew(tmp, d.path(hash)); !errors.Is(err, fs.ErrExist) {
				return err
			}
			continue
		}
		if err != nil {
			return os.Rename(tmp, d.path(hash)) // it is nothing that could be trashed
		}
		there, err := func() (bool, error) {
			defer old.Close() // ends the lock
			if err := flock(old); err != nil {
				return false, err
			}
			fi, err := old.Stat()
			if err != nil {
				return false, err
			}
			if now, err := os.Lstat(d.path(hash)); err != nil || !os.SameFile(fi, now) {
				return false, nil
			}
			return true, os.Rename(tmp, d.path(hash))
		}()
		if there || err != nil {
			return err
		}
	}
}
