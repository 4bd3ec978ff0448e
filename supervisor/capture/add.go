package capture

import (
	"context"
	"fmt"
	"path"

	"crunch-oci/arvados"
	"crunch-oci/keep"
)

// place is something to be output: a cleaned container path without links in
// it, and where it goes.
type place struct {
	path  string
	dest  string // in the output collection, "." for the root
	links int    // symbolic links followed to get here
}

// child is an entry of the directory at p.
func (p place) child(name string) place {
	return place{path: path.Join(p.path, name), dest: path.Join(p.dest, name), links: p.links}
}

// add outputs what the container saw at p, mounts below it included.
func (s *scan) add(ctx context.Context, p place) error {
	return s.addOne(ctx, p, true)
}

// addOne is add; without below it leaves out the mounts below p.
func (s *scan) addOne(ctx context.Context, p place, below bool) error {
	target, m, ok := s.table.containing(p.path)
	switch {
	case s.table.isSecret(p.path, target):
		return nil
	case !ok:
		return fmt.Errorf("cannot output file %q: not in any mount", p.path)
	case m.ExcludeFromOutput:
		return s.addBelow(ctx, p, below)
	case s.cannotMatch(p):
		s.Log.Printf("not copying %q because contents cannot match output globs", s.shown(p))
		return nil
	case s.table.isLocal(p.path) && m.Kind != "json" && m.Kind != "text":
		// The mounts first: their log lines come before those of files.
		if err := s.addBelow(ctx, p, below); err != nil {
			return err
		}
		return s.addLocal(ctx, p)
	case m.Kind == "tmp":
		return fmt.Errorf("cannot output file %q: it is in the temporary directory %q, which is not part of the output", p.path, target)
	case m.Kind != "collection":
		return fmt.Errorf("%q: unsupported mount %q in output (kind is %q)", p.path, target, m.Kind)
	}
	if err := s.addCollection(ctx, p, target, m); err != nil {
		return err
	}
	return s.addBelow(ctx, p, below)
}

// cannotMatch reports whether nothing that p could turn out to be would match.
// What lies outside the output path is only known by what a link makes of it,
// and filtered then.
func (s *scan) cannotMatch(p place) bool {
	return p.dest != "." && s.table.inOutput(p.path) &&
		!s.globs.CouldMatchBelow(p.dest) && !s.globs.Match(p.dest, false) && !s.globs.Match(p.dest, true)
}

// shown is how p is named when it is not copied: a link by its own name.
func (s *scan) shown(p place) string {
	if p.links > 0 {
		return p.dest
	}
	return s.table.rel(p.path)
}

// addBelow outputs the mounts below p, outermost first: deeper ones replace what
// the outer one put there.
func (s *scan) addBelow(ctx context.Context, p place, below bool) error {
	if !below {
		return nil
	}
	for _, target := range s.table.below(p.path) {
		m := s.table.mounts[target]
		if m.Kind == "json" || m.Kind == "text" || m.Kind == "collection" && m.Writable {
			continue // ordinary files in the local directory
		}
		if !s.table.inOutput(target) && m.Kind != "collection" && m.Kind != "tmp" {
			continue // never mounted
		}
		at := place{
			path:  target,
			dest:  path.Join(p.dest, path.Clean("./"+target[len(p.path):])),
			links: p.links,
		}
		if err := s.addOne(ctx, at, false); err != nil {
			return err
		}
	}
	return nil
}

// addCollection takes over a file or directory of a collection by reference.
func (s *scan) addCollection(ctx context.Context, p place, target string, m arvados.Mount) error {
	if m.Writable {
		live, err := s.live(ctx, target)
		if err != nil {
			return err
		}
		src := path.Clean("./" + p.path[len(target):])
		s.Log.Printf("copying %q", s.table.rel(p.path))
		return s.splice(p, live, src, target)
	}
	id, src := collectionPath(m)
	src = path.Join(src, path.Clean("./"+p.path[len(target):]))
	coll, ok := s.collections[id]
	s.Log.Printf("copying %q from %s/%s", s.table.rel(p.path), id, src)
	if !ok {
		var err error
		if id == arvados.EmptyPDH {
			coll, err = keep.NewCollection("", nil)
		} else {
			coll, err = s.Collections.OpenCollection(ctx, id)
		}
		if err != nil {
			return fatalError{fmt.Errorf("collection %s: %w", id, err)}
		}
		s.collections[id] = coll
	}
	return s.splice(p, coll, src, target)
}

func (s *scan) live(ctx context.Context, target string) (*keep.Collection, error) {
	if s.Live == nil {
		return nil, fmt.Errorf("cannot read the collection at %q: there is no way to it", target)
	}
	coll, ok := s.collections[target]
	if !ok {
		var err error
		if coll, err = s.Live(ctx, target); err != nil {
			return nil, fatalError{fmt.Errorf("read collection at %q: %w", target, err)}
		}
		s.collections[target] = coll
	}
	return coll, nil
}
