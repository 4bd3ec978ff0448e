package manifests

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"crunch-oci/keep"
)

// segment is a piece of a file: part of one block.
type segment struct {
	locator     string
	block, size int64 // size of the block
	off         int64
}

// Tree is the files of a manifest by path, for putting manifests together.
// Locators keep their hints.
type Tree struct {
	root dir
}

type dir struct {
	dirs  map[string]*dir
	files map[string][]segment
}

// NewTree reads a manifest that Check has accepted. It fails if a file reaches
// beyond the blocks of its stream, which Check does not look at.
func NewTree(text string) (*Tree, error) {
	t := &Tree{}
	return t, t.Add("", text)
}

// Add lays the files of a manifest below the directory prefix (names
// separated by slashes, "" for the top). A file that is there already is
// replaced.
func (t *Tree) Add(prefix, text string) error {
	fresh := map[*dir]map[string]bool{} // files already replaced in this call
	for _, line := range strings.Split(strings.TrimSuffix(text, "\n"), "\n") {
		if line == "" {
			continue
		}
		tokens := strings.Split(line, " ")
		var blocks []segment
		var starts []int64
		var length int64
		i := 1
		for ; i < len(tokens) && keep.IsAPILocator(tokens[i]); i++ {
			size, err := strconv.ParseInt(sizeOf(tokens[i]), 10, 64)
			if err != nil || size > math.MaxInt64-length {
				return fmt.Errorf("block without a usable size in stream %q", clip(tokens[0]))
			}
			blocks = append(blocks, segment{locator: tokens[i], block: size})
			starts = append(starts, length)
			length += size
		}
		for _, token := range tokens[i:] {
			f := strings.SplitN(token, ":", 3)
			pos, err1 := strconv.ParseInt(f[0], 10, 64)
			size, err2 := strconv.ParseInt(f[1], 10, 64)
			if err1 != nil || err2 != nil || size > 0 && (pos > length || size > length-pos) {
				return fmt.Errorf("file %q reaches beyond its stream", clip(token))
			}
			path := prefix + "/" + keep.UnescapeName(tokens[0]) + "/" + keep.UnescapeName(f[2])
			d, name := t.root.walk(path)
			if name == "." {
				continue
			}
			if fresh[d] == nil {
				fresh[d] = map[string]bool{}
			}
			if d.files == nil {
				d.files = map[string][]segment{}
			}
			if !fresh[d][name] {
				fresh[d][name] = true
				d.files[name] = nil
			}
			// The first block that ends behind pos.
			b, _ := slices.BinarySearchFunc(starts, pos, func(start, pos int64) int {
				if start <= pos {
					return -1
				}
				return 1
			})
			for b--; size > 0; b++ {
				s := blocks[b]
				s.off = pos - starts[b]
				s.size = min(size, s.block-s.off)
				if s.size > 0 {
					d.files[name] = append(d.files[name], s)
					pos, size = pos+s.size, size-s.size
				}
			}
		}
	}
	return nil
}

func sizeOf(locator string) string {
	_, size, _ := strings.Cut(withoutHints(locator), "+")
	return size
}

// walk finds or makes the directory of a path, and returns its last part.
func (d *dir) walk(path string) (*dir, string) {
	parts := strings.Split(path, "/")
	last := parts[len(parts)-1]
	for _, p := range parts[:len(parts)-1] {
		if p == "" || p == "." {
			continue
		}
		if d.dirs == nil {
			d.dirs = map[string]*dir{}
		}
		if d.dirs[p] == nil {
			d.dirs[p] = &dir{}
		}
		d = d.dirs[p]
	}
	return d, last
}

// OnlyFile returns the name of the file when there is exactly one, at the top,
// and no directory.
func (t *Tree) OnlyFile() (string, bool) {
	if len(t.root.dirs) > 0 || len(t.root.files) != 1 {
		return "", false
	}
	return sortedKeys(t.root.files)[0], true
}

// Manifest writes the tree: one stream for each directory, each block once in
// a stream, in the order of its first use by the files in byte order. That is
// what the real server makes of log collections (captures run-*.json).
func (t *Tree) Manifest() string {
	var b strings.Builder
	t.root.write(&b, ".")
	return b.String()
}

func (d *dir) write(b *strings.Builder, name string) {
	if len(d.files) > 0 {
		starts := map[string]int64{} // by locator
		var length int64
		var blocks, files strings.Builder
		for _, f := range sortedKeys(d.files) {
			escaped := keep.EscapeName(f)
			pos, size := int64(0), int64(0)
			flush := func() { fmt.Fprintf(&files, " %d:%d:%s", pos, size, escaped) }
			for i, s := range d.files[f] {
				start, ok := starts[s.locator]
				if !ok {
					start = length
					starts[s.locator] = start
					length += s.block
					blocks.WriteString(" " + s.locator)
				}
				switch at := start + s.off; {
				case i == 0:
					pos, size = at, s.size
				case at == pos+size:
					size += s.size
				default:
					flush()
					pos, size = at, s.size
				}
			}
			flush()
		}
		if length == 0 {
			blocks.WriteString(" d41d8cd98f00b204e9800998ecf8427e+0")
		}
		b.WriteString(name + blocks.String() + files.String() + "\n")
	}
	for _, n := range sortedKeys(d.dirs) {
		d.dirs[n].write(b, name+"/"+keep.EscapeName(n))
	}
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
