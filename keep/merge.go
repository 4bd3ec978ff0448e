package keep

import (
	"context"
	"slices"
	"time"
)

// Merge makes the changes that led from the manifest base to the manifest
// upstream here, too, where they do not concern what was changed here since
// base. A file or directory for which both sides have something new stays as it
// is here; upstream's goes beside it under the name
//
//	NAME~YYYYMMDD-HHMMSS~conflict~
//
// with the time at in UTC, as the reference does it (spec keep.md section 12).
// Their paths are returned. What upstream removed stays where it was changed
// here, and what was removed here stays away unless upstream has changed it.
//
// A file that is open for writing counts as changed. Files that are replaced or
// removed stay usable through their handles. Nothing is stored. Errors wrap
// ErrInvalidManifest; nothing has been changed then.
func (c *Collection) Merge(base, upstream string, at time.Time) (conflicts []string, err error) {
	from, to := newDir("."), newDir(".")
	if err := parseManifest(from, base); err != nil {
		return nil, err
	}
	if err := parseManifest(to, upstream); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	m := merger{c: c, at: at.UTC()}
	m.dir(c.root, from, to)
	return m.conflicts, nil
}

// merger holds what is shared between the directories of a merge. The caller has
// the collection's lock.
type merger struct {
	c         *Collection
	at        time.Time
	conflicts []string
}

// dir merges a directory. from and to, which may be nil, are its old and new
// state upstream; nodes of to become ours.
func (m *merger) dir(local, from, to *node) {
	names := make(map[string]struct{})
	for _, d := range []*node{from, to} {
		if d != nil {
			for name := range d.dir.entries {
				names[name] = struct{}{}
			}
		}
	}
	sorted := make([]string, 0, len(names))
	for name := range names {
		sorted = append(sorted, name)
	}
	slices.Sort(sorted)
	for _, name := range sorted {
		var old, now *node
		if from != nil {
			old = from.child(name)
		}
		if to != nil {
			now = to.child(name)
		}
		if isFile(old) && isFile(now) && m.same(old, now) {
			continue
		}
		m.entry(local, local.child(name), old, now)
	}
}

// entry merges one entry of the directory parent: from old to now upstream, here
// it is l. Each may be nil.
func (m *merger) entry(parent, l, old, now *node) {
	switch {
	case now == nil:
		m.gone(l, old)
	case l == nil && isDir(old) && isDir(now):
		// Removed here. Only what upstream has changed in it comes back.
		if !m.sameTree(old, now) {
			l = newDir(now.name)
			m.c.insert(parent, l)
			m.dir(l, old, now)
			m.removeEmpty(l)
		}
	case l == nil && isFile(old) && isFile(now):
		m.conflict(parent, now)
	case l == nil:
		m.c.insert(parent, now)
	case isDir(l) && isDir(now):
		if isFile(old) {
			old = nil
		}
		m.dir(l, old, now)
	case isFile(l) && isFile(now) && m.same(l, now):
	default:
		if isDir(l) && isDir(old) {
			m.dir(l, old, nil)
		}
		if m.unchanged(l, old) || isDir(l) && isDir(old) && len(l.dir.entries) == 0 {
			m.c.insert(parent, now) // in its place
			return
		}
		m.conflict(parent, now)
	}
}

// gone removes what upstream has removed, as far as it is unchanged here.
func (m *merger) gone(l, old *node) {
	switch {
	case l == nil:
	case m.unchanged(l, old):
		m.c.detach(l)
	case isDir(l) && isDir(old):
		m.dir(l, old, nil)
		m.removeEmpty(l)
	}
}

func (m *merger) removeEmpty(dir *node) {
	if len(dir.dir.entries) == 0 {
		m.c.detach(dir)
	}
}

// conflict puts n beside the entry of its name.
func (m *merger) conflict(parent, n *node) {
	name := n.name
	for at := m.at; ; at = at.Add(time.Second) {
		n.name = name + at.Format("~20060102-150405~conflict~")
		if parent.child(n.name) == nil {
			break
		}
	}
	m.c.insert(parent, n)
	m.conflicts = append(m.conflicts, n.path())
}

// unchanged tells whether the file l, of ours, is what old was, and will be:
// nobody is about to write to it.
func (m *merger) unchanged(l, old *node) bool {
	return isFile(l) && isFile(old) && l.writers == 0 && m.same(l, old)
}

// same tells whether two files consist of the same parts of the same blocks.
// Data that is not stored yet is like nothing else.
func (m *merger) same(a, b *node) bool {
	if a.size() != b.size() {
		return false
	}
	x, ok := m.segments(a)
	if !ok {
		return false
	}
	y, ok := m.segments(b)
	return ok && slices.EqualFunc(x, y, func(a, b Segment) bool {
		return a.Offset == b.Offset && a.Length == b.Length && a.Locator.Hash() == b.Locator.Hash()
	})
}

// segments lists the parts of blocks of a file, those that touch joined.
func (m *merger) segments(n *node) (list []Segment, stored bool) {
	for _, e := range m.c.fill(n.extents) {
		if e.src.data != nil {
			return nil, false
		}
		e.segments(func(s Segment) bool {
			if i := len(list) - 1; i >= 0 && list[i].Locator.Hash() == s.Locator.Hash() && list[i].Offset+list[i].Length == s.Offset {
				list[i].Length += s.Length
			} else {
				list = append(list, s)
			}
			return true
		})
	}
	return list, true
}

func (m *merger) sameTree(a, b *node) bool {
	if isFile(a) != isFile(b) {
		return false
	}
	if isFile(a) {
		return m.same(a, b)
	}
	if len(a.dir.entries) != len(b.dir.entries) {
		return false
	}
	for name, e := range a.dir.entries {
		if other := b.child(name); other == nil || !m.sameTree(e, other) {
			return false
		}
	}
	return true
}

func isFile(n *node) bool { return n != nil && n.dir == nil }
func isDir(n *node) bool  { return n != nil && n.dir != nil }

// Localize makes copies of blocks that only another cluster has signed (+R
// hints): the API server refuses a manifest with such locators. It does nothing
// if the store is no Localizer.
func (c *Collection) Localize(ctx context.Context) error {
	localizer, ok := c.blocks.(Localizer)
	if !ok {
		return nil
	}
	remote := make(map[string]Locator)
	c.mu.RLock()
	c.eachStored(func(b *placedBlock) {
		if b.loc.IsRemote() {
			remote[b.loc.Hash()] = b.loc
		}
	})
	c.mu.RUnlock()
	if len(remote) == 0 {
		return nil
	}
	for hash, loc := range remote {
		local, err := localizer.LocalLocator(ctx, loc)
		if err != nil {
			return err
		}
		remote[hash] = local
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.eachStored(func(b *placedBlock) {
		if local, ok := remote[b.loc.Hash()]; ok && b.loc.IsRemote() {
			b.loc = local
		}
	})
	return nil
}
