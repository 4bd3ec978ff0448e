package keep

import (
	"errors"
	"strconv"
	"strings"
)

// The readers of locators in a cluster do not agree on what one is. ParseLocator
// is the strict rule; these are the others, for the programs that stand in for
// an API server or a keepstore.

// IsAPILocator tells whether the API server accepts s as a block token of a
// manifest: the strict rule with the size optional and unbounded.
func IsAPILocator(s string) bool {
	rest, ok := cutHash(s, false)
	if !ok {
		return false
	}
	if len(rest) > 1 && rest[0] == '+' && rest[1] >= '0' && rest[1] <= '9' {
		for rest = rest[2:]; rest != "" && rest[0] >= '0' && rest[0] <= '9'; rest = rest[1:] {
		}
	}
	return validHints(rest)
}

// ErrNoSuchPath says that a URL path is not a block path at all, as opposed to
// ErrInvalidLocator: keepstore answers both with 400 but with different texts.
var ErrNoSuchPath = errors.New("not a block path")

// PathLocator is a locator as a keepstore reads it from a request path.
type PathLocator struct {
	// Text is the whole locator as sent, Hash its first 32 digits.
	Text, Hash string
	// Size is the first hint if it is an integer, else 0 with HasSize false.
	// It may be negative: the sender's claim is not checked here.
	Size    int64
	HasSize bool
	// Signed and Remote tell whether a hint begins with A or with R.
	Signed, Remote bool
}

// ParsePathLocator reads the path of a block request, without its leading
// slash, by keepstore's rule. The error is ErrNoSuchPath or ErrInvalidLocator.
func ParsePathLocator(s string) (PathLocator, error) {
	rest, ok := cutHash(s, true)
	if !ok || rest != "" && rest[0] != '+' {
		return PathLocator{}, ErrNoSuchPath
	}
	p := PathLocator{Text: s, Hash: s[:hashLen]}
	if rest == "" {
		return p, nil
	}
	for i, hint := range strings.Split(rest[1:], "+") {
		switch {
		case hint == "":
			return PathLocator{}, ErrInvalidLocator
		case i == 0:
			if n, err := strconv.ParseInt(hint, 10, 64); err == nil {
				p.Size, p.HasSize = n, true
				continue
			}
		case hint[0] >= '0' && hint[0] <= '9':
			return PathLocator{}, ErrInvalidLocator
		}
		switch hint[0] {
		case 'A':
			p.Signed = true
		case 'R':
			p.Remote = true
		}
	}
	return p, nil
}
