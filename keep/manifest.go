package keep

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"unicode/utf8"
)

// ErrInvalidManifest says that a text is not a manifest.
var ErrInvalidManifest = errors.New("invalid manifest")

var (
	errFileDirConflict = errors.New("is both a file and a directory")
	errBadName         = errors.New("name is empty, is .. or leads above the root")
)

// parseManifest adds the files and directories of a manifest to root. It is
// strict: the text must be UTF-8 and every locator well formed. Errors wrap
// ErrInvalidManifest, name the line and the file, and hold no signature.
func parseManifest(root *node, text string) error {
	if !utf8.ValidString(text) {
		return fmt.Errorf("%w: not UTF-8", ErrInvalidManifest)
	}
	p := manifestParser{root: root}
	for line := 1; text != ""; line++ {
		end := strings.IndexByte(text, '\n')
		if end < 0 {
			return fmt.Errorf("%w: line %d: no line feed at the end", ErrInvalidManifest, line)
		}
		if err := p.stream(text[:end]); err != nil {
			return fmt.Errorf("%w: line %d: %w", ErrInvalidManifest, line, err)
		}
		text = text[end+1:]
	}
	return nil
}

// manifestParser holds what is shared between the lines of a manifest.
type manifestParser struct {
	root  *node
	total int64 // bytes in all files

	// Files and their first extents are cut from larger pieces: most files
	// have exactly one extent, and a manifest may have a hundred thousand files.
	nodes   []node
	extents []extent
}

// stream reads one line, without its line feed.
func (p *manifestParser) stream(line string) error {
	name, rest, _ := strings.Cut(line, " ")
	if name == "" {
		return errors.New("no stream name")
	}
	dir, err := p.makeDirs(p.root, UnescapeName(name))
	if err != nil {
		return fmt.Errorf("stream %q: %w", clip(name), err)
	}
	src := &source{sealed: true}
	rest, err = src.parseBlocks(rest)
	if err != nil {
		return err
	}
	if dir.dir.entries == nil {
		dir.dir.entries = make(map[string]*node, strings.Count(rest, " ")+1)
	}
	for more := true; more; {
		var token string
		token, rest, more = strings.Cut(rest, " ")
		if err := p.fileToken(dir, src, token); err != nil {
			return fmt.Errorf("file token %q: %w", clip(token), err)
		}
	}
	return nil
}

// parseBlocks reads locators up to the first file token, which it leaves in
// rest.
func (s *source) parseBlocks(text string) (rest string, err error) {
	for n := 0; ; n++ {
		token, after, more := strings.Cut(text, " ")
		if strings.IndexByte(token, ':') >= 0 {
			if n == 0 {
				return "", errors.New("no block locator before the first file token")
			}
			return text, nil
		}
		loc, err := ParseLocator(token)
		if err != nil {
			return "", err
		}
		if !more {
			return "", errors.New("no file token")
		}
		if s.size > math.MaxInt64-loc.size {
			return "", errors.New("stream too long")
		}
		if loc.size > 0 {
			s.blocks = append(s.blocks, placedBlock{loc, s.size})
			s.size += loc.size
		}
		text = after
	}
}

// fileToken reads POSITION:LENGTH:NAME.
func (p *manifestParser) fileToken(dir *node, src *source, token string) error {
	posText, rest, _ := strings.Cut(token, ":")
	lenText, name, ok := strings.Cut(rest, ":")
	pos, posOK := parseDecimal(posText)
	length, lenOK := parseDecimal(lenText)
	if !ok || !posOK || !lenOK {
		return errors.New("want POSITION:LENGTH:NAME")
	}
	if length > 0 && (pos > src.size || length > src.size-pos) {
		return fmt.Errorf("beyond the end of the stream (%d bytes)", src.size)
	}
	name = UnescapeName(name)
	if i := strings.LastIndexByte(name, '/'); i >= 0 {
		var err error
		if dir, err = p.makeDirs(dir, name[:i]); err != nil {
			return err
		}
		name = name[i+1:]
	}
	switch name {
	case "", "..":
		return errBadName
	case ".":
		// The placeholder: the directory exists, that is all.
		if length != 0 {
			return errors.New("directory placeholder with a length")
		}
		return nil
	}
	f := dir.child(name)
	if f == nil {
		f = p.newFile(name)
		dir.add(f)
	} else if f.dir != nil {
		return errFileDirConflict
	}
	if length == 0 {
		return nil
	}
	if length > math.MaxInt64-p.total {
		return errors.New("files add up to more than 63 bits")
	}
	p.total += length
	if f.extents == nil {
		f.extents = p.newExtents()
	}
	f.extents = appendExtent(f.extents, src, pos, length)
	return nil
}

// makeDirs walks path from dir and creates what is missing. ".." goes up.
func (p *manifestParser) makeDirs(dir *node, path string) (*node, error) {
	depth := -1
	for more := true; more; {
		var name string
		name, path, more = strings.Cut(path, "/")
		switch name {
		case "", ".":
			continue
		case "..":
			if dir.parent == nil {
				return nil, errBadName
			}
			dir, depth = dir.parent, -1
			continue
		}
		child := dir.child(name)
		if child == nil {
			if depth < 0 {
				depth = dir.depth()
			}
			if depth++; depth > maxDepth {
				return nil, fmt.Errorf("nested deeper than %d directories", maxDepth)
			}
			child = newDir(name)
			dir.add(child)
		} else if child.dir == nil {
			return nil, errFileDirConflict
		} else {
			depth = -1
		}
		dir = child
	}
	return dir, nil
}

// clip makes a foreign text fit for a message: not huge, and without the
// signature of a locator that stands where a name should be.
func clip(s string) string {
	const most = 200
	if len(s) > most {
		s = s[:most] + "..."
	}
	return signatureHint.ReplaceAllString(s, "+$1...")
}

// parserBatch is how many nodes are allocated at once. Whoever keeps one of
// them keeps the batch, so it is not more.
const parserBatch = 256

func (p *manifestParser) newFile(name string) *node {
	if len(p.nodes) == 0 {
		p.nodes = make([]node, parserBatch)
	}
	f := &p.nodes[0]
	p.nodes = p.nodes[1:]
	f.name = name
	return f
}

// newExtents returns an empty list with room for one.
func (p *manifestParser) newExtents() []extent {
	if len(p.extents) == 0 {
		p.extents = make([]extent, parserBatch)
	}
	list := p.extents[0:0:1]
	p.extents = p.extents[1:]
	return list
}
