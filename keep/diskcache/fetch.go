package diskcache

import (
	"context"
	"crypto/md5"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"crunch-oci/keep"
)

// watchOther is how often we look whether another process has finished the block
// that it is fetching.
const watchOther = 20 * time.Millisecond

// stuckAfter is how long it may fetch nothing before we do it ourselves.
var stuckAfter = 5 * time.Second

// get opens the block in the directory, or fetches it.
func (c *Cache) get(ctx context.Context, loc keep.Locator) (*block, error) {
	if b := c.openVerified(loc); b != nil {
		return b, nil
	}
	c.mu.Lock()
	broken := time.Now().Before(c.broken)
	c.mu.Unlock()
	if broken {
		return nil, errNoDisk
	}
	for try := 0; ; try++ {
		b, err := c.fetch(ctx, loc)
		if err == nil || !isDisk(err) {
			return b, err
		}
		noRoom := errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)
		if noRoom && try == 0 && c.dir.makeRoom(2*loc.Size(), c.letGo) {
			continue
		}
		c.mu.Lock()
		c.broken = time.Now().Add(brokenFor)
		c.mu.Unlock()
		c.warn("block cache on disk takes no more blocks for now, they are held in memory: %v", err)
		return nil, errNoDisk
	}
}

// diskError is one of our disk and not of Keep's.
type diskError struct{ err error }

func (e *diskError) Error() string { return e.err.Error() }
func (e *diskError) Unwrap() error { return e.err }

func isDisk(err error) bool {
	var d *diskError
	return errors.As(err, &d)
}

// openVerified opens a block that is in the directory. nil means that there is
// none that can be used.
func (c *Cache) openVerified(loc keep.Locator) *block {
	f, err := c.dir.open(loc.Hash())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		if err = verify(f, loc); err == nil {
			touch(f)
			return &block{hash: loc.Hash(), file: f, size: loc.Size(), touched: time.Now()}
		}
		_ = f.Close()
	}
	if errors.Is(err, keep.ErrChecksum) {
		c.mu.Lock()
		c.stats.Damaged++
		c.mu.Unlock()
	}
	c.warn("block cache: %s cannot be used, fetching the block again: %v", c.dir.path(loc.Hash()), err)
	return nil
}

// verify checks the length and the MD5 of a file.
func verify(f *os.File, loc keep.Locator) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.Size() != loc.Size() {
		return fmt.Errorf("%w: it has %d bytes instead of %d", keep.ErrChecksum, info.Size(), loc.Size())
	}
	_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_SEQUENTIAL) // and what follows is none the worse without
	sum, piece := md5.New(), make([]byte, 256<<10)
	if _, err := io.CopyBuffer(struct{ io.Writer }{sum}, struct{ io.Reader }{io.NewSectionReader(f, 0, info.Size())}, piece); err != nil {
		return err
	}
	_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_NORMAL)
	if hex.EncodeToString(sum.Sum(nil)) != loc.Hash() {
		return fmt.Errorf("%w: bad checksum", keep.ErrChecksum)
	}
	return nil
}

// fetch gets the block from Keep into the directory, unless another process is
// about to. Errors of the disk are a *diskError.
func (c *Cache) fetch(ctx context.Context, loc keep.Locator) (*block, error) {
	t, err := c.dir.begin(loc.Hash())
	if errors.Is(err, errBusy) {
		if c.await(ctx, loc) {
			if b := c.openVerified(loc); b != nil {
				return b, nil
			}
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		// The other one failed, or is stuck, or works for somebody whom Keep
		// refuses the block: we do it on our own.
		t, err = c.dir.beginAlone(loc.Hash())
	}
	if err != nil {
		return nil, &diskError{err}
	}
	defer t.abandon()
	if err := t.reserve(loc.Size()); err != nil {
		return nil, &diskError{err}
	}
	disk := &diskWriter{to: t.file}
	if err := c.cfg.Source.CopyBlock(ctx, loc, disk); err != nil {
		if disk.err != nil {
			return nil, &diskError{disk.err}
		}
		return nil, err
	}
	c.mu.Lock()
	c.stats.Fetched += loc.Size()
	c.mu.Unlock()
	return c.finish(t, loc)
}

// diskWriter remembers the error of a file.
type diskWriter struct {
	to  *os.File
	err error
}

func (w *diskWriter) WriteAt(p []byte, off int64) (int, error) {
	n, err := w.to.WriteAt(p, off)
	if err != nil {
		w.err = err
	}
	return n, err
}

// finish puts a block that is complete in its place.
func (c *Cache) finish(t *temp, loc keep.Locator) (*block, error) {
	if err := t.commit(loc.Hash(), loc.Size()); err != nil {
		return nil, &diskError{err}
	}
	if c.dir.added(loc.Size()) {
		c.dir.tidy(c.letGo)
	}
	return &block{hash: loc.Hash(), file: t.file, size: loc.Size(), fetched: true, touched: time.Now()}, nil
}

// await returns when the other process has finished with the block, well or
// not, and says whether the block may be there now.
func (c *Cache) await(ctx context.Context, loc keep.Locator) bool {
	ticker := time.NewTicker(watchOther)
	defer ticker.Stop()
	progress, at := int64(-1), time.Now()
	for {
		select {
		case <-ctx.Done():
			return false
		case now := <-ticker.C:
			written, busy := c.dir.progress(loc.Hash())
			switch {
			case !busy:
				return true
			case written != progress:
				progress, at = written, now
			case now.Sub(at) > stuckAfter:
				return false
			}
		}
	}
}

// keep stores a block that was written to Keep, if that is possible.
func (c *Cache) keep(loc keep.Locator, data []byte) {
	c.mu.Lock()
	no := c.closed || c.dir == nil || time.Now().Before(c.broken) || c.byHash[loc.Hash()] != nil
	c.mu.Unlock()
	if no || int64(len(data)) != loc.Size() || c.dir.has(loc.Hash()) {
		return
	}
	t, err := c.dir.begin(loc.Hash())
	if err != nil {
		return
	}
	defer t.abandon()
	if t.reserve(loc.Size()) != nil {
		return
	}
	if _, err := t.file.WriteAt(data, 0); err != nil {
		return
	}
	if b, err := c.finish(t, loc); err == nil {
		c.insert(b)
	}
}
