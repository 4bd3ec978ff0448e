package mount

import (
	"slices"
	"strings"

	"crunch-oci/keep"
)

// tree is the shape of a collection, laid out so that serving 58,000 files
// needs neither locks nor allocations: one array, in which the entries of a
// directory follow each other in byte order of their names. An entry is known
// by its index; 0 is the root.
type tree struct {
	entries []entry
}

// entry is a file or a directory.
type entry struct {
	name   string
	size   int64 // of a file, in bytes
	parent uint32
	first  uint32 // of a directory: index of its first entry
	count  uint32 // of a directory: number of its entries
	dir    bool
}

// newTree lays out a collection that will not change.
func newTree(c *keep.Collection) (*tree, error) {
	t := &tree{entries: []entry{{dir: true}}}
	for i := 0; i < len(t.entries); i++ {
		if !t.entries[i].dir {
			continue
		}
		list, err := c.ReadDir(t.path(uint32(i)))
		if err != nil {
			return nil, err
		}
		t.entries[i].first, t.entries[i].count = uint32(len(t.entries)), uint32(len(list))
		t.entries = slices.Grow(t.entries, len(list))
		for _, info := range list {
			t.entries = append(t.entries, entry{name: info.Name(), size: info.Size(), parent: uint32(i), dir: info.IsDir()})
		}
	}
	t.entries = slices.Clip(t.entries)
	return t, nil
}

// path returns the name of an entry as the collection knows it.
func (t *tree) path(i uint32) string {
	if i == 0 {
		return "."
	}
	e := &t.entries[i]
	if e.parent == 0 {
		return e.name
	}
	return t.path(e.parent) + "/" + e.name
}

// lookup finds a name in a directory.
func (t *tree) lookup(dir uint32, name string) (uint32, bool) {
	d := &t.entries[dir]
	i, ok := slices.BinarySearchFunc(t.entries[d.first:d.first+d.count], name, func(e entry, name string) int {
		return strings.Compare(e.name, name)
	})
	return d.first + uint32(i), ok
}
