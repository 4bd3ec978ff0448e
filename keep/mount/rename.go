package mount

import (
	"context"
	"errors"
	"io/fs"
	"strings"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"crunch-oci/keep"
)

// Rename implements fuse.RawFileSystem. The kernel lets only one request at a time
// move something to another directory.
func (s *server) Rename(cancel <-chan struct{}, input *fuse.RenameIn, oldName, newName string) fuse.Status {
	defer s.stats.done(opRename, time.Now())
	from, st := s.writableDir(input.NodeId, oldName)
	if !st.Ok() {
		return st
	}
	to, st := s.writableDir(input.Newdir, newName)
	switch {
	case !st.Ok():
		return st
	case input.Flags&^unix.RENAME_NOREPLACE != 0:
		return fuse.EINVAL
	}
	ctx, end := s.request(cancel, &input.InHeader)
	defer end()
	r := rename{from: from.file, to: to.file, oldName: oldName, newName: newName, replace: input.Flags&unix.RENAME_NOREPLACE == 0}
	if from.live != to.live {
		return s.renameAcross(ctx, r, from.live, to.live)
	}
	if st := s.move(ctx, r); !st.Ok() {
		return st
	}
	return s.saveChange(cancel, &input.InHeader, s.liveOf(to.file))
}

type rename struct {
	from, to         keep.Node
	oldName, newName string
	replace          bool
}

func (s *server) move(ctx context.Context, r rename) fuse.Status {
	err := r.from.Rename(ctx, r.oldName, r.to, r.newName, r.replace)
	var errno syscall.Errno
	if err != nil && !errors.As(err, &errno) {
		return s.writeError(s.liveOf(r.to), err)
	}
	return status(err)
}

// renameAcross moves something to another collection. If both have records, the
// one where it is now is saved first, so that one of them has it at any time:
// when that fails, everything is as before. Nobody else saves them meanwhile.
func (s *server) renameAcross(ctx context.Context, r rename, src, dst *live) fuse.Status {
	locked, err := lockBoth(ctx, src.origin, dst.origin)
	if err != nil {
		return fuse.EINTR
	}
	defer func() {
		for _, o := range locked {
			o.release()
		}
	}()
	if len(locked) == 1 && src.origin != nil && dst.origin != nil {
		return fuse.Status(syscall.EXDEV) // one collection, shown twice
	}
	moved, err := r.from.Lookup(r.oldName)
	if err != nil {
		return status(err)
	}
	replaced, absent := r.to.Lookup(r.newName)
	if st := s.move(ctx, r); !st.Ok() {
		return st
	}
	dst.changed(true)
	undo := func() {
		// What fails here has been overtaken by what others have saved.
		if now, err := r.to.Lookup(r.newName); err == nil && now == moved {
			_ = r.to.Rename(ctx, r.newName, r.from, r.oldName, false)
		} else if !moved.Linked() {
			_ = r.from.Restore(r.oldName, moved)
		}
		if absent == nil {
			_ = r.to.Restore(r.newName, replaced)
		}
		src.changed(true)
		dst.changed(true)
	}
	if dst.origin != nil {
		if err := s.saveHeld(ctx, dst); err != nil {
			undo()
			return s.saveStatus(ctx, dst, err)
		}
	}
	src.changed(true)
	if src.origin == nil {
		return fuse.OK
	}
	err = s.saveHeld(ctx, src)
	if !errors.Is(err, fs.ErrPermission) {
		s.saveStatus(ctx, src, err) // it is tried again
		return fuse.OK
	}
	undo()
	if dst.origin != nil {
		s.saveStatus(ctx, dst, s.saveHeld(ctx, dst))
	}
	return s.saveStatus(ctx, src, err)
}

// lockBoth acquires the locks of two records, always in the same order, and each
// once. Either may be nil.
func lockBoth(ctx context.Context, a, b *origin) (locked []*origin, err error) {
	if a != nil && b != nil && strings.Compare(a.uuid, b.uuid) > 0 {
		a, b = b, a
	}
	if a != nil && b != nil && a.lock == b.lock {
		b = nil
	}
	for _, o := range []*origin{a, b} {
		if o == nil {
			continue
		}
		if err := o.acquire(ctx); err != nil {
			for _, o := range locked {
				o.release()
			}
			return nil, err
		}
		locked = append(locked, o)
	}
	return locked, nil
}
