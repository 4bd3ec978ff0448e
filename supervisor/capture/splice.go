package capture

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"crunch-oci/arvados"
	"crunch-oci/keep"
)

// collectionPath returns the ID of a read-only collection mount and the path in
// it. The portable data hash may carry a path, which then counts. A mount
// without either is an empty collection.
func collectionPath(m arvados.Mount) (id, src string) {
	id, src = m.PortableDataHash, m.Path
	if id == "" {
		id = m.UUID
	}
	if id == "" {
		return arvados.EmptyPDH, "."
	}
	if pdh, p, ok := strings.Cut(id, "/"); ok {
		id, src = pdh, p
	}
	return id, path.Join(".", path.Clean("/" + src)[1:])
}

// splice puts src of coll at p, in place of what an outer mount put there, and
// drops what the globs do not keep.
func (s *scan) splice(p place, coll *keep.Collection, src, target string) error {
	if _, err := coll.Stat(src); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return fs.ErrNotExist
		}
		return err
	}
	if p.dest != "." {
		if err := s.clear(p.dest); err != nil {
			return err
		}
	}
	if err := s.out.Splice(p.dest, coll, src); err != nil {
		return err
	}
	if err := s.dropMountPoints(p); err != nil {
		return err
	}
	if s.globs.All() {
		return nil
	}
	info, err := s.out.Stat(p.dest)
	if err != nil {
		return err
	}
	kept, err := s.filter(p.dest, info.IsDir())
	if err != nil || kept {
		return err
	}
	return s.dropEmptyParents(p.dest)
}

// dropEmptyParents undoes clear for a mount of which nothing was kept.
func (s *scan) dropEmptyParents(dest string) error {
	for dir := path.Dir(dest); dir != "." && !s.globs.Match(dir, true); dir = path.Dir(dir) {
		if list, err := s.out.ReadDir(dir); err != nil || len(list) > 0 {
			return err
		}
		if err := s.out.Remove(dir); err != nil {
			return err
		}
	}
	return nil
}

// clear makes room for a mount at dest.
func (s *scan) clear(dest string) error {
	if err := s.out.RemoveAll(dest); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return s.out.MkdirAll(path.Dir(dest))
}

// dropMountPoints removes from a live collection what only the container engine
// put there, to mount something over it: secrets never reach Keep, and mounts
// that are excluded or filtered leave no trace.
func (s *scan) dropMountPoints(p place) error {
	for _, target := range s.table.below(p.path) {
		m := s.table.mounts[target]
		if s.table.isMountPoint(target) || s.table.isStaged(target, m) && m.ExcludeFromOutput {
			if err := s.drop(p, target); err != nil {
				return err
			}
		}
	}
	for _, others := range []map[string]bool{s.table.secrets, s.table.other} {
		for target := range others {
			if err := s.drop(p, target); err != nil {
				return err
			}
		}
	}
	return nil
}

// drop removes what is at the container path target, if that is below p.
func (s *scan) drop(p place, target string) error {
	rel, ok := strings.CutPrefix(target, strings.TrimSuffix(p.path, "/")+"/")
	if !ok {
		return nil
	}
	err := s.out.RemoveAll(path.Join(p.dest, rel))
	if errors.Is(err, fs.ErrNotExist) || isNotDir(err) {
		return nil
	}
	return err
}

// filter drops what the globs do not keep at or below dest, and reports whether
// anything is left.
func (s *scan) filter(dest string, isDir bool) (kept bool, err error) {
	if isDir {
		list, err := s.out.ReadDir(dest)
		if err != nil {
			return false, err
		}
		for _, e := range list {
			k, err := s.filter(path.Join(dest, e.Name()), e.IsDir())
			if err != nil {
				return false, err
			}
			kept = kept || k
		}
	}
	if kept || dest == "." || s.globs.Match(dest, isDir) {
		return true, nil
	}
	if err := s.out.RemoveAll(dest); err != nil {
		return false, fmt.Errorf("remove %q from output collection: %w", dest, err)
	}
	return false, nil
}
