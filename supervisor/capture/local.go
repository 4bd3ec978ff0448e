package capture

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"

	"crunch-oci/internal/hostdir"
)

var errTooManyLinked = errors.New("symbolic links to directories multiply the output beyond all measure")

// addLocal outputs a file or directory of the local output directory.
func (s *scan) addLocal(ctx context.Context, p place) error {
	st, err := s.host.Lstat(s.table.host(p.path))
	if err != nil {
		return fmt.Errorf("lstat %q: %w", p.path, err)
	}
	return s.addEntry(ctx, p, hostdir.Entry{Mode: st.Mode, Size: st.Size})
}

func (s *scan) addEntry(ctx context.Context, p place, e hostdir.Entry) error {
	if p.links > 0 {
		if s.linked--; s.linked < 0 {
			return fatalError{errTooManyLinked}
		}
	}
	switch e.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		s.addFile(file{host: s.table.host(p.path), dest: p.dest, size: e.Size})
	case unix.S_IFDIR:
		return s.addDir(ctx, p)
	case unix.S_IFLNK:
		return s.addLink(ctx, p)
	default:
		s.Log.Printf("Skipping unsupported file type (mode %o) in output dir: %q", fileMode(e.Mode), p.path)
	}
	return nil
}

func (s *scan) addFile(f file) {
	if s.globs.Match(f.dest, false) {
		s.files = append(s.files, f)
	}
}

// addDir outputs a directory entry by entry, in byte order of the names.
func (s *scan) addDir(ctx context.Context, p place) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if s.active[p.path] {
		return errLinks
	}
	s.active[p.path] = true
	defer delete(s.active, p.path)

	entries, err := s.host.List(s.table.host(p.path))
	if err != nil {
		return fmt.Errorf("read directory %q: %w", p.path, err)
	}
	if p.dest != "." && s.globs.Match(p.dest, true) {
		s.dirs = append(s.dirs, p.dest)
	}
	if len(entries) == 0 && p.dest != "." {
		s.addFile(file{dest: p.child(".keep").dest})
	}
	for _, e := range entries {
		child := p.child(e.Name)
		if s.table.secrets[child.path] || s.table.isMountPoint(child.path) || s.table.mounts[child.path].ExcludeFromOutput {
			continue
		}
		if err := s.addEntry(ctx, child, e); err != nil {
			return err
		}
	}
	return nil
}

// fileMode is the mode as log lines show it, in the bits of package fs.
func fileMode(mode uint32) fs.FileMode {
	m := fs.FileMode(mode & 0o777)
	for _, bit := range []struct {
		unix uint32
		fs   fs.FileMode
	}{{unix.S_ISUID, fs.ModeSetuid}, {unix.S_ISGID, fs.ModeSetgid}, {unix.S_ISVTX, fs.ModeSticky}} {
		if mode&bit.unix != 0 {
			m |= bit.fs
		}
	}
	switch mode & unix.S_IFMT {
	case unix.S_IFIFO:
		m |= fs.ModeNamedPipe
	case unix.S_IFSOCK:
		m |= fs.ModeSocket
	case unix.S_IFBLK:
		m |= fs.ModeDevice
	case unix.S_IFCHR:
		m |= fs.ModeDevice | fs.ModeCharDevice
	}
	return m
}
