package mounts

import (
	"fmt"
	"path"
	"path/filepath"
	"strings"

	"crunch-oci/arvados"
)

// Collection is a file or directory in a collection.
type Collection struct {
	// ID is a portable data hash or a UUID. "" is a new, empty collection.
	ID string
	// Path is clean and relative to the collection's root, "." for all.
	Path string
}

func (c Collection) String() string { return path.Join(c.ID, c.Path) }

// collection reads which collection and which path in it a mount means. The
// result is safe to join to a host path: the API server has checked neither.
func (t target) collection() (Collection, error) {
	c := Collection{ID: t.PortableDataHash, Path: t.Path}
	switch {
	case t.UUID != "" && t.PortableDataHash != "":
		return c, errUUIDAndPDH
	case t.UUID != "":
		if !arvados.ValidUUID(t.UUID, arvados.TypeCollection) {
			return c, fmt.Errorf("mount %q: %q is not the uuid of a collection", t.given, t.UUID)
		}
		c.ID = t.UUID
	case t.PortableDataHash != "":
		// "<pdh>/dir/file" is accepted, and replaces the path.
		if id, p, ok := strings.Cut(t.PortableDataHash, "/"); ok {
			c = Collection{ID: id, Path: p}
		}
		if !arvados.ValidPDH(c.ID) {
			return c, fmt.Errorf("mount %q: %q is not a portable data hash", t.given, c.ID)
		}
	default:
		return Collection{Path: "."}, nil
	}
	c.Path = path.Clean(strings.TrimLeft(c.Path, "/"))
	if c.Path == ".." || strings.HasPrefix(c.Path, "../") || strings.IndexByte(c.Path, 0) >= 0 {
		return c, fmt.Errorf("mount %q: path %q leads out of the collection", t.given, t.Path)
	}
	return c, nil
}

// addCollection plans a collection mount (section 3).
func (p *planner) addCollection(t target, rel string, inOutput bool) error {
	c, err := t.collection()
	if err != nil {
		return err
	}
	atOutput := t.path == p.plan.OutputPath
	switch {
	case t.Writable && t.UUID != "":
		return errWritableUUID
	case t.Writable && t.PortableDataHash != "" && !inOutput:
		return errWritablePDH
	}
	source := filepath.Join(p.plan.KeepDir, "by_id", c.ID, c.Path)
	if c.ID == "" {
		source = filepath.Join(p.plan.KeepDir, newCollectionName(p.plan.NewCollections))
		p.plan.NewCollections++
	}
	p.plan.ByUUID = p.plan.ByUUID || t.UUID != ""
	p.need(input{Collection: c, source: source})
	if t.Writable && inOutput {
		p.plan.Staged = append(p.plan.Staged, Staged{Path: rel, Collection: c, source: source})
		return nil
	}
	if t.Writable && atOutput {
		p.plan.OutputDir, p.plan.OutputIsCollection = source, true
	}
	p.bind(Bind{Source: source, Target: t.path, ReadOnly: !t.Writable, Kind: BindCollection})
	return nil
}

// need notes what CheckInputs has to ask for; new collections exist anyway.
func (p *planner) need(in input) {
	if in.ID != "" {
		p.plan.inputs = append(p.plan.inputs, in)
	}
}
