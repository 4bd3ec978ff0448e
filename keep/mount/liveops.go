package mount

import (
	"errors"
	"io"
	"os"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"crunch-oci/keep"
)

// Requests for writable collections (spec keep.md section 12). What they cannot
// do: symbolic and hard links (ENOSYS), devices, FIFOs and sockets (ENOTSUP),
// extended attributes (EOPNOTSUPP).
// Modes and owners are not stored: changing them is accepted without effect.

// status is what a program is told of an error about names.
func status(err error) fuse.Status {
	if err == nil {
		return fuse.OK
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return fuse.Status(errno)
	}
	return fuse.EIO
}

// writableDir finds the directory for a request that changes it. The status is
// OK if it can be changed.
func (s *server) writableDir(node uint64, names ...string) (place, fuse.Status) {
	p, ok := s.find(node)
	switch {
	case !ok:
		return p, fuse.Status(syscall.ESTALE)
	case !s.opts.ReadWrite:
		s.done(p)
		return p, fuse.EROFS
	case p.live == nil:
		s.done(p)
		return p, fuse.EPERM
	case p.isRecord():
		return p, fuse.ENOTDIR
	case p.live.denied():
		return p, fuse.EPERM
	case p.live.gone(p.file):
		return p, fuse.Status(syscall.ESTALE)
	}
	for _, name := range names {
		if p.node == p.live.base+liveRoot && name == recordName {
			return p, fuse.EPERM
		}
		if len(name) > nameMax {
			return p, fuse.Status(syscall.ENAMETOOLONG)
		}
	}
	return p, fuse.OK
}

func (s *server) lookupLive(dir place, name string, out *fuse.EntryOut) fuse.Status {
	if dir.node == dir.live.base+liveRoot && name == recordName {
		p, _ := dir.live.find(liveRecord)
		s.answer(p, true, dir, out)
		out.SetAttrTimeout(0) // its size changes when it is opened
		return fuse.OK
	}
	n, err := dir.file.Lookup(name)
	if err != nil && !errors.Is(err, syscall.ENOENT) {
		return status(err)
	}
	if err != nil {
		return s.answer(place{}, false, dir, out)
	}
	return s.answer(s.know(n), true, dir, out)
}

// attrLive describes a node of a live collection.
func (s *server) attrLive(p place, out *fuse.Attr) {
	if p.isRecord() {
		var size int
		if text := p.live.record.Load(); text != nil {
			size = len(*text)
		}
		mtime := s.started
		if o := p.live.origin; o != nil {
			mtime = o.record.Load().ModifiedAt
		}
		s.fillAttr(p, syscall.S_IFREG|0o444, int64(size), mtime, out)
		return
	}
	perm := uint32(0o777)
	if !s.opts.ReadWrite {
		perm = 0o555
	}
	info := p.file.Stat()
	if info.IsDir() {
		s.fillAttr(p, syscall.S_IFDIR|perm, 0, info.ModTime(), out)
	} else {
		s.fillAttr(p, syscall.S_IFREG|perm, info.Size(), info.ModTime(), out)
	}
	if !p.file.Linked() {
		out.Nlink = 0
	}
}

// openLive opens a file or the record.
func (s *server) openLive(cancel <-chan struct{}, p place, input *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	h := &handle{place: p}
	writing := input.Flags&(syscall.O_WRONLY|syscall.O_RDWR) != 0
	switch {
	case p.isRecord() && writing:
		return fuse.EPERM
	case p.isRecord():
		ctx, end := s.request(cancel, &input.InHeader)
		defer end()
		text, err := s.recordText(ctx, p.live)
		if err != nil {
			return s.writeError(p.live, err)
		}
		h.data = text
		out.OpenFlags = fuse.FOPEN_DIRECT_IO | fuse.FOPEN_NOFLUSH
	case writing && !s.opts.ReadWrite:
		return fuse.EROFS
	case writing && p.live.denied():
		return fuse.EPERM
	default:
		f, err := p.file.Open(openFlags(input.Flags))
		if err != nil {
			return status(err)
		}
		// A merge does not replace what is open for writing.
		if writing && p.live.gone(p.file) {
			_ = f.Close()
			return fuse.Status(syscall.ESTALE)
		}
		h.file, h.writes = f, writing
		if input.Flags&syscall.O_TRUNC != 0 {
			s.changed(p.file, false)
		}
		out.OpenFlags = fuse.FOPEN_KEEP_CACHE
		if !writing {
			out.OpenFlags |= fuse.FOPEN_NOFLUSH
		}
	}
	out.Fh = s.addHandle(h)
	return fuse.OK
}

// openFlags are the flags for keep. A file that is written to may be read, too,
// by the kernel, to complete a page. O_APPEND is the kernel's business: it sends
// the offset.
func openFlags(flags uint32) int {
	if flags&(syscall.O_WRONLY|syscall.O_RDWR) == 0 {
		return os.O_RDONLY
	}
	return os.O_RDWR | int(flags)&os.O_TRUNC
}

// Create implements fuse.RawFileSystem.
func (s *server) Create(cancel <-chan struct{}, input *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	defer s.stats.done(opCreate, time.Now())
	dir, st := s.writableDir(input.NodeId, name)
	if !st.Ok() {
		return st
	}
	n, err := dir.file.Create(name)
	if errors.Is(err, syscall.EEXIST) && input.Flags&syscall.O_EXCL == 0 {
		n, err = dir.file.Lookup(name)
	}
	if err != nil {
		return status(err)
	}
	s.changed(n, false)
	p := s.know(n)
	open := fuse.OpenIn{InHeader: input.InHeader, Flags: input.Flags}
	if st := s.openLive(cancel, p, &open, &out.OpenOut); !st.Ok() {
		s.liveNodes.forget(uint32(p.node), 1)
		return st
	}
	return s.answer(p, true, dir, &out.EntryOut)
}

// Mknod implements fuse.RawFileSystem.
func (s *server) Mknod(cancel <-chan struct{}, input *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	defer s.stats.done(opCreate, time.Now())
	if kind := input.Mode & syscall.S_IFMT; kind != syscall.S_IFREG && kind != 0 {
		return fuse.Status(syscall.ENOTSUP)
	}
	return s.make(input.NodeId, name, out, keep.Node.Create)
}

// Mkdir implements fuse.RawFileSystem.
func (s *server) Mkdir(cancel <-chan struct{}, input *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	defer s.stats.done(opMkdir, time.Now())
	return s.make(input.NodeId, name, out, keep.Node.Mkdir)
}

func (s *server) make(node uint64, name string, out *fuse.EntryOut, how func(keep.Node, string) (keep.Node, error)) fuse.Status {
	dir, st := s.writableDir(node, name)
	if !st.Ok() {
		return st
	}
	n, err := how(dir.file, name)
	if err != nil {
		return status(err)
	}
	s.changed(n, true)
	return s.answer(s.know(n), true, dir, out)
}

// Unlink implements fuse.RawFileSystem.
func (s *server) Unlink(cancel <-chan struct{}, header *fuse.InHeader, name string) fuse.Status {
	defer s.stats.done(opUnlink, time.Now())
	return s.remove(cancel, header, name, false)
}

// Rmdir implements fuse.RawFileSystem.
func (s *server) Rmdir(cancel <-chan struct{}, header *fuse.InHeader, name string) fuse.Status {
	defer s.stats.done(opRmdir, time.Now())
	return s.remove(cancel, header, name, true)
}

func (s *server) remove(cancel <-chan struct{}, header *fuse.InHeader, name string, isDir bool) fuse.Status {
	dir, st := s.writableDir(header.NodeId, name)
	if !st.Ok() {
		return st
	}
	if err := dir.file.Remove(name, isDir); err != nil {
		return status(err)
	}
	return s.saveChange(cancel, header, s.liveOf(dir.file))
}

// SetAttr implements fuse.RawFileSystem. What cannot be refused without harm is
// accepted and does nothing: chmod and chown, which tar and cp do after copying,
// and in what cannot be written to, utimes.
func (s *server) SetAttr(cancel <-chan struct{}, input *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	defer s.stats.done(opSetattr, time.Now())
	p, ok := s.find(input.NodeId)
	if !ok {
		return fuse.Status(syscall.ESTALE)
	}
	defer s.done(p)
	writable := p.live != nil && s.opts.ReadWrite && !p.isRecord()
	if input.Valid&fuse.FATTR_SIZE != 0 {
		if !writable {
			return fuse.EROFS
		}
		if p.live.denied() {
			return fuse.EPERM
		}
		if _, open := input.GetFh(); !open && p.live.gone(p.file) {
			return fuse.Status(syscall.ESTALE)
		}
		if err := p.file.Truncate(int64(min(input.Size, 1<<62))); err != nil {
			return status(err)
		}
		s.changed(p.file, true)
	}
	if writable && input.Valid&(fuse.FATTR_MTIME|fuse.FATTR_MTIME_NOW) != 0 {
		t := time.Now()
		if input.Valid&fuse.FATTR_MTIME_NOW == 0 {
			t = time.Unix(int64(input.Mtime), int64(input.Mtimensec))
		}
		p.file.SetModTime(t)
	}
	out.SetTimeout(s.validity(p))
	s.attr(p, &out.Attr)
	return fuse.OK
}

// Write implements fuse.RawFileSystem.
func (s *server) Write(cancel <-chan struct{}, input *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	defer s.stats.done(opWrite, time.Now())
	h := s.handle(input.Fh)
	if h == nil || h.file == nil {
		return 0, fuse.EBADF
	}
	ctx, end := s.request(cancel, &input.InHeader)
	defer end()
	n, err := h.file.WriteAtContext(ctx, data, int64(input.Offset))
	if err != nil {
		var errno syscall.Errno
		l := s.liveOf(h.place.file)
		if errors.As(err, &errno) && l.files.Err() == nil {
			return 0, fuse.Status(errno) // EFBIG
		}
		return 0, s.writeError(l, err)
	}
	s.changed(h.place.file, false)
	s.stats.writtenBytes.Add(int64(n))
	return uint32(n), fuse.OK
}

// readLive reads a file of a live collection.
func (s *server) readLive(cancel <-chan struct{}, h *handle, input *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	ctx, end := s.request(cancel, &input.InHeader)
	defer end()
	l := s.liveOf(h.place.file)
	s.freshenLive(ctx, l)
	n, err := h.file.ReadAtContext(ctx, buf, int64(input.Offset))
	// Not errors.Is: a connection that was cut off is an EOF, too, inside.
	if err != nil && err != io.EOF {
		return nil, s.readFailure(ctx, l.name+"/"+h.place.file.Path(), int64(input.Offset)+int64(n), err)
	}
	s.stats.readBytes.Add(int64(n))
	return fuse.ReadResultData(buf[:n]), fuse.OK
}

// Fallocate implements fuse.RawFileSystem. Space is not reserved: nobody can
// promise that Keep has it.
func (s *server) Fallocate(cancel <-chan struct{}, input *fuse.FallocateIn) fuse.Status {
	h := s.handle(input.Fh)
	if h == nil || h.file == nil {
		return fuse.EBADF
	}
	off, length := int64(input.Offset), int64(input.Length)
	var err error
	switch mode := input.Mode &^ unix.FALLOC_FL_KEEP_SIZE; mode {
	case unix.FALLOC_FL_PUNCH_HOLE, unix.FALLOC_FL_ZERO_RANGE:
		err = h.file.Zero(off, length)
	case 0:
	default:
		return fuse.Status(syscall.EOPNOTSUPP)
	}
	if err == nil && input.Mode&unix.FALLOC_FL_KEEP_SIZE == 0 {
		err = h.file.Extend(off + length)
	}
	s.changed(h.place.file, false)
	return status(err)
}

// Flush implements fuse.RawFileSystem: close(2) saves what has a record, and says
// whether what was written before has gone wrong since.
func (s *server) Flush(cancel <-chan struct{}, input *fuse.FlushIn) fuse.Status {
	defer s.stats.done(opFlush, time.Now())
	h := s.handle(input.Fh)
	if h == nil || h.file == nil {
		return fuse.OK
	}
	l := s.liveOf(h.place.file)
	if l.origin != nil {
		if !h.writes {
			return fuse.OK
		}
		ctx, end := s.request(cancel, &input.InHeader)
		defer end()
		return s.saveNow(ctx, l)
	}
	if err := l.files.Err(); err != nil {
		return s.writeError(l, err)
	}
	return fuse.OK
}

// Fsync implements fuse.RawFileSystem: what has a record is saved. A new collection ends with the mount
// whatever is stored of it, so that storing a small block each time would help
// nobody; but if uploads have failed, they are tried again now.
func (s *server) Fsync(cancel <-chan struct{}, input *fuse.FsyncIn) fuse.Status {
	h := s.handle(input.Fh)
	if h == nil || h.live == nil || h.isRecord() {
		return fuse.OK
	}
	l := s.liveOf(h.place.file)
	if l.origin == nil && l.files.Err() == nil {
		return fuse.OK
	}
	ctx, end := s.request(cancel, &input.InHeader)
	defer end()
	if l.origin != nil {
		return s.saveNow(ctx, l)
	}
	if _, err := l.files.MarshalManifest(ctx); err != nil {
		return s.writeError(l, err)
	}
	return fuse.OK
}

// FsyncDir implements fuse.RawFileSystem.
func (s *server) FsyncDir(cancel <-chan struct{}, input *fuse.FsyncIn) fuse.Status {
	return s.Fsync(cancel, input)
}

// readDirLive passes the entries of a directory from offset i on to add. They are
// those of when the reading began, less what has been removed since.
func (s *server) readDirLive(h *handle, i uint64, add func(e fuse.DirEntry, p place, dots bool) bool) {
	if i == 2 || h.names.Load() == nil {
		list := h.place.file.List()
		h.names.Store(&list)
	}
	list := *h.names.Load()
	for ; i-2 < uint64(len(list)); i++ {
		e := list[i-2]
		if now, err := h.place.file.Lookup(e.Name); err != nil || now != e.Node || !listable(e.Name) {
			// The kernel would take a name that is gone for one that is there.
			continue
		}
		p := place{live: h.live, file: e.Node} // which the kernel may not want to know
		mode := uint32(syscall.S_IFREG)
		if e.Node.IsDir() {
			mode = syscall.S_IFDIR
		}
		if !add(fuse.DirEntry{Name: e.Name, Mode: mode, Ino: p.ino(), Off: i + 1}, p, false) {
			return
		}
	}
}
