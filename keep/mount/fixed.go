package mount

import (
	"context"
	"slices"
	"sync"
	"syscall"
)

// fixedNode is one of the few nodes that are there from the start: the root, a
// directory of collections, or a README.
type fixedNode struct {
	data   []byte           // content of a README; nil in directories
	root   map[string]place // entries of the root; nil elsewhere
	names  []string         // the root's, in the order of the command line
	byID   *byID            // nil elsewhere
	readme place            // of a byID
}

const readmeName = "README"

func readme(d Dir) []byte {
	ids := "its portable data hash"
	if d.ByUUID {
		ids += " or its UUID"
	}
	text := "This directory shows Arvados collections as directories.\n" +
		"\n" +
		"A collection is not listed before somebody has asked for it. To reach one,\n" +
		"use " + ids + " as a directory name here, for example\n" +
		"\n" +
		"    ls 1f4b0bc7583c2a7f9102c395f4ffc5e3+45\n" +
		"\n" +
		"A collection is found if the token with which this was mounted may read it.\n"
	if d.ByUUID {
		text += "The UUID of a project or filter group is a directory of what it contains.\n"
	}
	return []byte(text)
}

// makeFixed lays out the fixed part.
func makeFixed(dirs []Dir) map[uint64]*fixedNode {
	root := &fixedNode{root: make(map[string]place)}
	fixed := map[uint64]*fixedNode{rootNode: root}
	for i, d := range dirs {
		if d.Tmp {
			continue // see addTmp
		}
		n := uint64(2 + 2*i)
		text := &fixedNode{data: readme(d)}
		dir := &fixedNode{byID: newByID(d.ByUUID), readme: place{node: n + 1, fixed: text}}
		fixed[n], fixed[n+1] = dir, text
		root.root[d.Name] = place{node: n, fixed: dir}
		root.names = append(root.names, d.Name)
	}
	return fixed
}

// byID is a directory whose entries come into being when they are looked up.
type byID struct {
	byUUID bool
	around []string // UUIDs of the projects in which it is

	mu      sync.Mutex
	loaded  map[string]*collection
	order   []string // names in loaded, so that a listing is stable
	loading map[string]*loading
}

// loading is a collection on its way.
type loading struct {
	done chan struct{}
	coll *collection
	err  error
}

func newByID(byUUID bool) *byID {
	return &byID{byUUID: byUUID, loaded: make(map[string]*collection), loading: make(map[string]*loading)}
}

// get returns the collection with that name, which it loads if need be. Callers
// that ask for the same name share one request, which goes on when they give
// up: the next one asks for it anyway.
func (s *server) get(ctx context.Context, d *byID, name string, pdh bool) (*collection, error) {
	d.mu.Lock()
	if c := d.loaded[name]; c != nil {
		d.mu.Unlock()
		return c, nil
	}
	l := d.loading[name]
	if l == nil {
		l = &loading{done: make(chan struct{})}
		d.loading[name] = l
		s.background(func(ctx context.Context) {
			l.coll, l.err = s.load(ctx, d, name, pdh)
			d.mu.Lock()
			delete(d.loading, name)
			if l.err == nil {
				d.loaded[name] = l.coll
				d.order = append(d.order, name)
			}
			d.mu.Unlock()
			close(l.done)
		})
	}
	d.mu.Unlock()
	select {
	case <-l.done:
		return l.coll, l.err
	case <-ctx.Done():
		return nil, syscall.EINTR
	case <-s.ctx.Done():
		return nil, syscall.EINTR
	}
}

// list returns the collections known by now.
func (d *byID) list() []*collection {
	d.mu.Lock()
	defer d.mu.Unlock()
	list := make([]*collection, 0, len(d.order))
	for _, name := range d.order {
		list = append(list, d.loaded[name])
	}
	return slices.Clip(list)
}

// kindOf tells what a name asks for: a portable data hash, the UUID of a
// collection or project, or nothing that can be there.
func kindOf(name string) (pdh, uuid bool) {
	if len(name) > 33 && name[32] == '+' && only(name[:32], "0123456789abcdef") && only(name[33:], "0123456789") {
		return true, false
	}
	return false, isUUID(name, "-4zz18-") || isProject(name)
}

// isUUID tells whether s is a UUID of the type with that infix.
func isUUID(s, infix string) bool {
	const alnum = "0123456789abcdefghijklmnopqrstuvwxyz"
	return len(s) == 27 && s[5:12] == infix && only(s[:5], alnum) && only(s[12:], alnum)
}

func only(s, set string) bool {
	for i := range len(s) {
		if !contains(set, s[i]) {
			return false
		}
	}
	return true
}

func contains(set string, c byte) bool {
	for i := range len(set) {
		if set[i] == c {
			return true
		}
	}
	return false
}
