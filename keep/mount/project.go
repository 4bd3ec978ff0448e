package mount

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// Projects is what the mount asks an Arvados API client about projects and
// filter groups. An error that is fs.ErrNotExist says that there is none with
// that UUID, or that the token may not read it.
type Projects interface {
	// Project reads the record of a project or filter group.
	Project(ctx context.Context, uuid string) (Item, error)
	// Contents lists the projects, filter groups and collections in one.
	Contents(ctx context.Context, uuid string) ([]Item, error)
}

// Item is a project, filter group or collection, as listings have it.
type Item struct {
	UUID, Name string
	ModifiedAt time.Time
}

// project is the directory of a project: what it contains, by name. Each
// directory of a project has collections of its own, because the kernel takes one
// node for one place.
type project struct {
	Item
	node, ino uint64
	byID      *byID // what of it was looked up

	lock    chan struct{} // held while the listing is read
	fetched atomic.Int64  // Unix nanoseconds of the latest attempt
	listing atomic.Pointer[listing]
}

// listing is what a project contains.
type listing struct {
	names []string // in byte order
	items map[string]Item
}

func isProject(uuid string) bool { return isUUID(uuid, "-j7d0g-") }

func (s *server) loadProject(ctx context.Context, d *byID, uuid string) (*collection, error) {
	if s.backend.Projects == nil {
		return nil, fs.ErrNotExist
	}
	item, err := s.backend.Projects.Project(ctx, uuid)
	if err != nil {
		return nil, err
	}
	p := &project{Item: item, ino: s.inodes(1), byID: newByID(true), lock: make(chan struct{}, 1)}
	p.byID.around = append(slices.Clip(d.around), uuid)
	p.node = s.nodes.add(region{proj: p})
	return &collection{id: uuid, ino: p.ino, proj: p}, nil
}

func (p *project) place() place { return place{node: p.node, proj: p} }

// list returns what p contains, read again when RefreshTime has passed. If that
// fails, what was there stays, unless the project is gone.
func (s *server) list(ctx context.Context, p *project) (*listing, error) {
	recent := func() *listing {
		if l := p.listing.Load(); l != nil && since(&p.fetched) <= s.opts.RefreshTime {
			return l
		}
		return nil
	}
	if l := recent(); l != nil {
		return l, nil
	}
	select {
	case p.lock <- struct{}{}:
		defer func() { <-p.lock }()
	case <-ctx.Done():
		return nil, syscall.EINTR
	}
	if l := recent(); l != nil {
		return l, nil // somebody else was faster
	}
	items, err := s.backend.Projects.Contents(ctx, p.UUID)
	switch old := p.listing.Load(); {
	case ctx.Err() != nil:
		return nil, syscall.EINTR
	case err != nil && (old == nil || isAbsent(err)):
		return nil, err
	case err != nil:
		s.log.warningf("project %s cannot be read again, using what was read before: %v", p.UUID, err)
		p.fetched.Store(time.Now().UnixNano())
		return old, nil
	}
	p.fetched.Store(time.Now().UnixNano())
	// A filter group may contain itself, and what it is in: who goes through all
	// directories would never come to an end.
	items = slices.DeleteFunc(items, func(i Item) bool { return slices.Contains(p.byID.around, i.UUID) })
	l := newListing(items, s.backend.SlashSubstitute)
	p.listing.Store(l)
	return l, nil
}

// newListing gives each item a name that a file can have. Where that leaves two
// with one name, or a filter group has two, projects keep theirs, then the item
// with the lower UUID; to the others' names their UUIDs are added.
func newListing(items []Item, slash string) *listing {
	items = slices.Clone(items)
	slices.SortFunc(items, func(a, b Item) int {
		if p, q := isProject(a.UUID), isProject(b.UUID); p != q {
			if p {
				return -1
			}
			return 1
		}
		return cmp.Compare(a.UUID, b.UUID)
	})
	l := &listing{items: make(map[string]Item, len(items))}
	var again []Item
	add := func(name string, item Item) bool {
		if _, taken := l.items[name]; taken || !listable(name) {
			return false
		}
		l.items[name] = item
		l.names = append(l.names, name)
		return true
	}
	for _, item := range items {
		if !add(fileName(item.Name, slash), item) {
			again = append(again, item)
		}
	}
	for _, item := range again {
		if !add(fileName(item.Name, slash)+" ("+item.UUID+")", item) {
			add(item.UUID, item)
		}
	}
	slices.Sort(l.names)
	return l
}

// fileName is the name that a project or collection has as a directory. slash
// stands for slashes; it is "_" unless it can be part of a name.
func fileName(name, slash string) string {
	if slash == "" || strings.ContainsAny(slash, "/\x00") {
		slash = "_"
	}
	name = strings.ReplaceAll(name, "/", slash)
	switch name {
	case "", ".":
		return "_"
	case "..":
		return "__"
	}
	return name
}

// lookupProject finds a name in a project.
func (s *server) lookupProject(ctx context.Context, dir place, name string, out *fuse.EntryOut) fuse.Status {
	l, err := s.list(ctx, dir.proj)
	if err != nil {
		return s.absent(dir.proj.UUID, err)
	}
	item, ok := l.items[name]
	if !ok {
		return s.answer(place{}, false, dir, out)
	}
	c, err := s.get(ctx, dir.proj.byID, item.UUID, false)
	return s.answerCollection(ctx, c, item.UUID, err, dir, out)
}

// absent says what a program is told when a collection or project cannot be shown.
func (s *server) absent(id string, err error) fuse.Status {
	kind := "collection"
	if isProject(id) {
		kind = "project"
	}
	switch {
	case errors.Is(err, syscall.EINTR):
		return fuse.EINTR
	case isAbsent(err):
		s.log.warningf("%s %s: not found, or not readable with this token: %v", kind, id, err)
		return fuse.ENOENT
	}
	s.log.errorf("%s %s cannot be shown: %v", kind, id, err)
	return fuse.EIO
}

// entries is what a program that lists the project is told.
func (l *listing) entries() []dirEntry {
	list := make([]dirEntry, len(l.names))
	for i, name := range l.names {
		list[i] = dirEntry{name, place{node: unknownIno}}
	}
	return list
}

// unknownIno is the inode number in listings of what was not looked up (libfuse's
// FUSE_UNKNOWN_INO).
const unknownIno = 0xffffffff
