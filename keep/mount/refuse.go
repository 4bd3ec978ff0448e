package mount

import (
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// Requests that would change something. Nothing that can be mounted is
// writable, so all of them are refused, each in the way spec keep.md section 12
// says: EROFS in a mount without --read-write, EPERM in one with it. What
// cannot be refused without harm is accepted and does nothing: chmod, chown and
// utimes, which tar and cp do after copying.
// (link, symlink, readlink and extended attributes are not there at all.)

func (s *server) refuse(o op) fuse.Status {
	s.stats.ops[o].count.Add(1)
	if !s.opts.ReadWrite {
		return fuse.EROFS
	}
	return fuse.EPERM
}

// SetAttr implements fuse.RawFileSystem.
func (s *server) SetAttr(cancel <-chan struct{}, input *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	defer s.stats.done(opSetattr, time.Now())
	if input.Valid&fuse.FATTR_SIZE != 0 {
		return fuse.EROFS
	}
	p, ok := s.find(input.NodeId)
	if !ok {
		return fuse.Status(syscall.ESTALE)
	}
	defer s.done(p)
	out.SetTimeout(s.validity(p))
	s.attr(p, &out.Attr)
	return fuse.OK
}

// Mknod implements fuse.RawFileSystem.
func (s *server) Mknod(cancel <-chan struct{}, input *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	if input.Mode&syscall.S_IFMT != syscall.S_IFREG && input.Mode&syscall.S_IFMT != 0 {
		return fuse.Status(syscall.ENOTSUP)
	}
	return s.refuse(opCreate)
}

// Create implements fuse.RawFileSystem.
func (s *server) Create(cancel <-chan struct{}, input *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	return s.refuse(opCreate)
}

// Mkdir implements fuse.RawFileSystem.
func (s *server) Mkdir(cancel <-chan struct{}, input *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	return s.refuse(opMkdir)
}

// Unlink implements fuse.RawFileSystem.
func (s *server) Unlink(cancel <-chan struct{}, header *fuse.InHeader, name string) fuse.Status {
	return s.refuse(opUnlink)
}

// Rmdir implements fuse.RawFileSystem.
func (s *server) Rmdir(cancel <-chan struct{}, header *fuse.InHeader, name string) fuse.Status {
	return s.refuse(opRmdir)
}

// Rename implements fuse.RawFileSystem.
func (s *server) Rename(cancel <-chan struct{}, input *fuse.RenameIn, oldName, newName string) fuse.Status {
	return s.refuse(opRename)
}

// Write implements fuse.RawFileSystem. No file can be open for writing.
func (s *server) Write(cancel <-chan struct{}, input *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	s.stats.ops[opWrite].count.Add(1)
	return 0, fuse.EBADF
}

// Flush implements fuse.RawFileSystem: there is nothing to write, and the
// kernel need not ask again.
func (s *server) Flush(cancel <-chan struct{}, input *fuse.FlushIn) fuse.Status {
	s.stats.ops[opFlush].count.Add(1)
	return fuse.ENOSYS
}
