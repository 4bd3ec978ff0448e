// Package glob matches paths against the patterns of a container's
// output_glob (specification mounts-and-output.md, section 11).
//
// A pattern is expanded into alternatives without braces, and each alternative
// split into path components, which are matched one to one except for "**".
// Within a component the work is done by regular expressions without
// backtracking, so that no pattern makes matching slow.
package glob

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Set is a list of patterns. The empty Set matches everything.
type Set struct {
	patterns []pattern
	all      bool
}

// pattern is one alternative, split at slashes.
type pattern []component

// ErrTooComplex says that a pattern has too many alternatives.
var ErrTooComplex = errors.New("too many alternatives in braces")

// Compile reads patterns. An invalid one matches nothing and is no error; the
// only error is ErrTooComplex.
func Compile(patterns []string) (Set, error) {
	s := Set{all: len(patterns) == 0}
	for _, text := range patterns {
		alternatives, err := expand(text, 0)
		if err == errInvalid {
			continue
		}
		if err != nil {
			return Set{}, fmt.Errorf("output_glob pattern %q: %w", text, err)
		}
		parsed := make([]pattern, 0, len(alternatives))
		for _, alternative := range alternatives {
			if p, err := parse(alternative); err == nil {
				parsed = append(parsed, p)
			}
		}
		if len(parsed) == len(alternatives) {
			s.patterns = append(s.patterns, parsed...)
		}
	}
	return s, nil
}

// All reports whether there are no patterns, so that everything matches.
func (s Set) All() bool { return s.all }

// Match reports whether a directory, or else a file, is kept for itself: its
// path is relative to the output root. A leading slash is ignored.
func (s Set) Match(path string, isDir bool) bool {
	if s.all {
		return true
	}
	names := split(path)
	return slices.ContainsFunc(s.patterns, func(p pattern) bool { return p.match(names, isDir) })
}

// CouldMatchBelow reports whether something inside the directory path could
// match. It may say yes although nothing can, never the reverse.
func (s Set) CouldMatchBelow(path string) bool {
	if s.all {
		return true
	}
	names := split(path)
	return slices.ContainsFunc(s.patterns, func(p pattern) bool { return p.couldMatchBelow(names) })
}

func split(path string) []string { return strings.Split(strings.TrimPrefix(path, "/"), "/") }

// match compares component by component. As only the latest "**" can need to
// take one more name, there is at most one place to go back to.
func (p pattern) match(names []string, isDir bool) bool {
	i, n := 0, 0
	backI, backN := -1, 0
	for {
		switch {
		case i < len(p) && p[i].any:
			if i == len(p)-1 && i > 0 {
				// A trailing "/**" means everything below a
				// directory, and the directory itself.
				if n < len(names) || isDir {
					return true
				}
				break
			}
			i++
			backI, backN = i, n
			continue
		case i < len(p) && n < len(names) && p[i].match(names[n]):
			i, n = i+1, n+1
			continue
		case i == len(p) && n == len(names):
			return true
		}
		if backI < 0 || backN >= len(names) {
			return false
		}
		backN++
		i, n = backI, backN
	}
}

func (p pattern) couldMatchBelow(names []string) bool {
	depth := len(names)
	if slices.ContainsFunc(p[:min(depth, len(p))], func(c component) bool { return c.any }) {
		return true
	}
	if len(p) <= depth {
		return false
	}
	for i, name := range names {
		if !p[i].match(name) {
			return false
		}
	}
	return true
}
