package mount

import (
	"context"
	"errors"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"crunch-oci/keep"
)

// nameMax is the longest name that every supported kernel takes (FUSE_NAME_MAX,
// include/linux/fuse.h before 6.15).
const nameMax = 1024

// handle is an open file or directory.
type handle struct {
	place        // holds a reference
	data  []byte // content that is not in Keep
	// entries lists fixed directories and projects, which may change while read.
	entries []dirEntry
	// file is open in a writable collection; names are the entries of a
	// directory there, when its listing began.
	file   *keep.File
	writes bool // file is open for writing
	names  atomic.Pointer[[]keep.Entry]

	segments atomic.Pointer[segments]
	ahead    readAhead
}

// segments are the parts of blocks that make up a file.
type segments struct {
	from *signed // the manifest they are of
	list []keep.Segment
	off  []int64 // where each begins in the file
}

func (s *server) addHandle(h *handle) uint64 {
	id := s.nextHandle.Add(1)
	s.handleMu.Lock()
	defer s.handleMu.Unlock()
	s.handles[id] = h
	return id
}

func (s *server) handle(id uint64) *handle {
	s.handleMu.RLock()
	defer s.handleMu.RUnlock()
	return s.handles[id]
}

func (s *server) dropHandle(id uint64) {
	s.handleMu.Lock()
	h := s.handles[id]
	delete(s.handles, id)
	s.handleMu.Unlock()
	if h != nil {
		if h.file != nil {
			_ = h.file.Close() // says only whether it was open
			if o := s.liveOf(h.place.file).origin; o != nil && h.writes && !o.clean() {
				o.wanted.Store(true) // pages of a mapping come after close(2)
			}
		}
		s.done(h.place)
	}
}

// Open implements fuse.RawFileSystem.
func (s *server) Open(cancel <-chan struct{}, input *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	defer s.stats.done(opOpen, time.Now())
	p, ok := s.find(input.NodeId)
	switch {
	case !ok:
		return fuse.Status(syscall.ESTALE)
	case p.isDir():
		s.done(p)
		return fuse.Status(syscall.EISDIR)
	case p.live != nil:
		return s.openLive(cancel, p, input, out)
	case input.Flags&(syscall.O_WRONLY|syscall.O_RDWR) != 0:
		s.done(p)
		return fuse.EPERM
	}
	h := &handle{place: p}
	// The kernel keeps what it has read for later openers: the content of a
	// node never changes, because a collection with new content gets new nodes.
	// It need not tell us when the file is closed, as nothing is written.
	out.OpenFlags = fuse.FOPEN_KEEP_CACHE | fuse.FOPEN_NOFLUSH
	switch {
	case p.fixed != nil:
		h.data = p.fixed.data
	case p.isRecord():
		// Signatures in it change, so each opener gets it anew.
		ctx, end := s.request(cancel, &input.InHeader)
		h.data = recordJSON(s.locators(ctx, p.snap).record)
		end()
		out.OpenFlags = fuse.FOPEN_DIRECT_IO | fuse.FOPEN_NOFLUSH
	default:
		ctx, end := s.request(cancel, &input.InHeader)
		s.freshen(ctx, p.snap.coll)
		end()
	}
	out.Fh = s.addHandle(h)
	return fuse.OK
}

// Release implements fuse.RawFileSystem.
func (s *server) Release(cancel <-chan struct{}, input *fuse.ReleaseIn) {
	defer s.stats.done(opRelease, time.Now())
	s.dropHandle(input.Fh)
}

// Read implements fuse.RawFileSystem.
func (s *server) Read(cancel <-chan struct{}, input *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	defer s.stats.done(opRead, time.Now())
	h := s.handle(input.Fh)
	if h == nil || h.isDir() {
		return nil, fuse.EBADF
	}
	if h.file != nil {
		return s.readLive(cancel, h, input, buf)
	}
	off := int64(input.Offset)
	if h.data != nil {
		data := h.data[min(off, int64(len(h.data))):]
		data = data[:min(len(data), len(buf))]
		s.stats.readBytes.Add(int64(len(data)))
		return fuse.ReadResultData(data), fuse.OK
	}
	size := h.snap.tree.entries[h.entry].size
	buf = buf[:max(min(int64(len(buf)), size-off), 0)]
	if len(buf) == 0 {
		return fuse.ReadResultData(nil), fuse.OK
	}
	ctx, end := s.request(cancel, &input.InHeader)
	defer end()
	if err := s.readFile(ctx, h, buf, off); err != nil {
		return nil, s.readError(ctx, h, off, err)
	}
	s.stats.readBytes.Add(int64(len(buf)))
	return fuse.ReadResultData(buf), fuse.OK
}

// readFile reads len(buf) bytes, which are in the file. If the signatures are
// refused it tries once more with new ones.
func (s *server) readFile(ctx context.Context, h *handle, buf []byte, off int64) error {
	s.freshen(ctx, h.snap.coll)
	data := s.locators(ctx, h.snap)
	err := s.readWith(ctx, data, h, buf, off)
	if err == nil || !refused(err) || s.renew(ctx, h.snap, data) != nil {
		return err
	}
	// The new signatures may turn out to be the old ones.
	var same *repeatedError
	again := s.readWith(ctx, h.snap.files.Load(), h, buf, off)
	if errors.As(again, &same) {
		return err
	}
	return again
}

func (s *server) readWith(ctx context.Context, data *signed, h *handle, buf []byte, off int64) error {
	segs, err := h.locate(data)
	if err != nil {
		return err
	}
	err = s.reader.read(ctx, segs, buf, off, &h.ahead)
	if err == nil && off+int64(len(buf)) == h.snap.tree.entries[h.entry].size {
		s.prefetchNeighbour(h, segs)
	}
	return err
}

// locate returns the segments of the file according to a manifest.
func (h *handle) locate(from *signed) (*segments, error) {
	if segs := h.segments.Load(); segs != nil && segs.from == from {
		return segs, nil
	}
	f, err := from.files.Open(h.snap.tree.path(h.entry))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	segs := &segments{from: from, list: f.Segments()}
	segs.off = make([]int64, len(segs.list))
	var pos int64
	for i, seg := range segs.list {
		segs.off[i] = pos
		pos += seg.Length
	}
	h.segments.Store(segs)
	return segs, nil
}

// readError logs why a read fails, in the words that the supervisor waits for,
// and says what the program is told.
func (s *server) readError(ctx context.Context, h *handle, off int64, err error) fuse.Status {
	return s.readFailure(ctx, h.snap.coll.id+"/"+h.snap.tree.path(h.entry), off, err)
}

func (s *server) readFailure(ctx context.Context, where string, off int64, err error) fuse.Status {
	if ctx.Err() != nil {
		return fuse.EINTR
	}
	var again *repeatedError
	if errors.As(err, &again) {
		return fuse.EIO // logged a moment ago
	}
	var re *keep.ReadError
	if errors.As(err, &re) && re.Missing() {
		s.log.errorf("%s: %v (%q at byte %d)", blockNotFound, err, where, off)
	} else {
		s.log.errorf("%s: read %q at byte %d: %v", unhandled, where, off, err)
	}
	return fuse.EIO
}

// refused tells whether a newer signature may do.
func refused(err error) bool {
	var re *keep.ReadError
	return errors.As(err, &re) && re.Refused()
}

// OpenDir implements fuse.RawFileSystem.
func (s *server) OpenDir(cancel <-chan struct{}, input *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	defer s.stats.done(opOpendir, time.Now())
	p, ok := s.find(input.NodeId)
	if !ok {
		return fuse.Status(syscall.ESTALE)
	}
	if !p.isDir() {
		s.done(p)
		return fuse.ENOTDIR
	}
	h := &handle{place: p}
	switch {
	case p.live != nil:
		ctx, end := s.request(cancel, &input.InHeader)
		s.freshenLive(ctx, p.live)
		end()
	case p.fixed != nil:
		h.entries = p.fixed.list()
	case p.proj != nil:
		ctx, end := s.request(cancel, &input.InHeader)
		l, err := s.list(ctx, p.proj)
		end()
		if err != nil {
			return s.absent(p.proj.UUID, err)
		}
		h.entries = l.entries()
	case p.snap.coll.pdh:
		out.OpenFlags = fuse.FOPEN_CACHE_DIR | fuse.FOPEN_KEEP_CACHE
	default:
		ctx, end := s.request(cancel, &input.InHeader)
		s.freshen(ctx, p.snap.coll)
		end()
		if p.entry == 0 {
			s.done(h.place)
			h.place = p.snap.coll.acquire().at(0)
		}
	}
	out.Fh = s.addHandle(h)
	return fuse.OK
}

// ReleaseDir implements fuse.RawFileSystem.
func (s *server) ReleaseDir(input *fuse.ReleaseIn) {
	defer s.stats.done(opRelease, time.Now())
	s.dropHandle(input.Fh)
}

// dirEntry is an entry of a listing.
type dirEntry struct {
	name  string
	place place
}

// list returns what a fixed directory holds now. Of collections only the inode
// number is listed: what is in them may change until the listing is read.
func (f *fixedNode) list() []dirEntry {
	var list []dirEntry
	for _, name := range f.names {
		list = append(list, dirEntry{name, f.root[name]})
	}
	if f.byID != nil {
		list = append(list, dirEntry{readmeName, f.readme})
		for _, c := range f.byID.list() {
			list = append(list, dirEntry{c.id, place{node: c.ino}})
		}
	}
	return list
}

// ReadDir implements fuse.RawFileSystem.
func (s *server) ReadDir(cancel <-chan struct{}, input *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	defer s.stats.done(opReaddir, time.Now())
	return s.readDir(input, func(e fuse.DirEntry, p place, dots bool) bool {
		return out.AddDirEntry(e)
	})
}

// ReadDirPlus implements fuse.RawFileSystem: a listing together with what a
// lookup of each name would answer, so that "ls -l" and find need no more
// requests.
func (s *server) ReadDirPlus(cancel <-chan struct{}, input *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	defer s.stats.done(opReaddir, time.Now())
	h := s.handle(input.Fh)
	return s.readDir(input, func(e fuse.DirEntry, p place, dots bool) bool {
		entry := out.AddDirLookupEntry(e)
		if entry == nil {
			return false
		}
		if p.live != nil && p.node == 0 {
			p = s.know(p.file)
		}
		if p.snap != nil || p.fixed != nil || p.live != nil {
			s.answer(p, true, h.place, entry)
		}
		return true
	})
}

// readDir passes the entries of a directory from input.Offset on to add, until
// that says that there is no more room.
func (s *server) readDir(input *fuse.ReadIn, add func(e fuse.DirEntry, p place, dots bool) bool) fuse.Status {
	h := s.handle(input.Fh)
	if h == nil || !h.isDir() {
		return fuse.EBADF
	}
	i := input.Offset
	for ; i < 2; i++ {
		e := fuse.DirEntry{Name: "..."[:i+1], Mode: syscall.S_IFDIR, Ino: h.ino(), Off: i + 1}
		if !add(e, place{}, true) {
			return fuse.OK
		}
	}
	if h.live != nil {
		s.readDirLive(h, i, add)
		return fuse.OK
	}
	if h.fixed != nil || h.proj != nil {
		for ; i-2 < uint64(len(h.entries)); i++ {
			e := h.entries[i-2]
			mode := uint32(syscall.S_IFDIR)
			if e.place.fixed != nil && !e.place.isDir() {
				mode = syscall.S_IFREG
			}
			if !add(fuse.DirEntry{Name: e.name, Mode: mode, Ino: e.place.ino(), Off: i + 1}, e.place, false) {
				return fuse.OK
			}
		}
		return fuse.OK
	}
	d := &h.snap.tree.entries[h.entry]
	for ; i-2 < uint64(d.count); i++ {
		n := d.first + uint32(i-2)
		e := &h.snap.tree.entries[n]
		if !listable(e.name) {
			continue
		}
		mode := uint32(syscall.S_IFREG)
		if e.dir {
			mode = syscall.S_IFDIR
		}
		p := h.snap.at(n)
		if !add(fuse.DirEntry{Name: e.name, Mode: mode, Ino: p.ino(), Off: i + 1}, p, false) {
			return fuse.OK
		}
	}
	return fuse.OK
}

// listable tells whether the kernel takes a name. One that it does not would
// spoil the listing of all the others.
func listable(name string) bool {
	if len(name) > nameMax {
		return false
	}
	for i := range len(name) {
		if name[i] == 0 {
			return false
		}
	}
	return true
}
