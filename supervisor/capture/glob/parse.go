package glob

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"
)

var errInvalid = errors.New("invalid pattern")

// component matches one path component.
type component struct {
	any     bool // "**": any number of components
	literal string
	re      *regexp.Regexp // nil: literal
}

func (c component) match(name string) bool {
	if c.re == nil {
		return name == c.literal
	}
	return c.re.MatchString(name)
}

// maxAlternatives and maxExpanded (bytes) bound what the braces of a pattern may
// expand to, maxNesting how many of them may contain or follow one another.
const (
	maxAlternatives = 4096
	maxExpanded     = 1 << 20
	maxNesting      = 64
)

// expand replaces braces by the alternatives they stand for, as shells do.
func expand(text string, nesting int) ([]string, error) {
	open := indexUnescaped(text, 0, "{")
	if open < 0 {
		return []string{text}, nil
	}
	if nesting == maxNesting {
		return nil, ErrTooComplex
	}
	var bounds []int // of the alternatives: "{", each ",", "}"
	depth := 0
	for i := open; ; i++ {
		if i = indexUnescaped(text, i, "{,}"); i < 0 {
			return nil, errInvalid
		}
		switch text[i] {
		case '{':
			depth++
		case '}':
			depth--
		}
		if depth == 0 || depth == 1 && (text[i] == ',' || i == open) {
			bounds = append(bounds, i)
		}
		if depth == 0 {
			break
		}
	}
	prefix, rest := text[:open], text[bounds[len(bounds)-1]+1:]
	suffixes, err := expand(rest, nesting+1)
	if err != nil {
		return nil, err
	}
	var all []string
	size := 0
	for i := 1; i < len(bounds); i++ {
		inner, err := expand(text[bounds[i-1]+1:bounds[i]], nesting+1)
		if err != nil {
			return nil, err
		}
		if len(inner)*len(suffixes) > maxAlternatives-len(all) {
			return nil, ErrTooComplex
		}
		for _, in := range inner {
			for _, suffix := range suffixes {
				all = append(all, prefix+in+suffix)
				if size += len(all[len(all)-1]); size > maxExpanded {
					return nil, ErrTooComplex
				}
			}
		}
	}
	return all, nil
}

// indexUnescaped returns the index at or after from of the first byte in chars
// that is neither escaped nor in a character class, or -1.
func indexUnescaped(text string, from int, chars string) int {
	for i := from; i < len(text); i++ {
		switch c := text[i]; {
		case strings.IndexByte(chars, c) >= 0:
			return i
		case c == '\\':
			i++
		case c == '[':
			_, n := scanClass(text[i:])
			if n < 0 {
				return -1
			}
			i += n - 1
		}
	}
	return -1
}

// parse splits one alternative into components.
func parse(text string) (pattern, error) {
	var p pattern
	for {
		c, n, err := parseComponent(text)
		if err != nil {
			return nil, err
		}
		p = append(p, c)
		if n == len(text) {
			return p, nil
		}
		text = text[n+1:]
	}
}

// parseComponent reads up to the next slash or the end.
func parseComponent(text string) (c component, n int, err error) {
	var re, literal strings.Builder
	isLiteral := true
	add := func(expr string) {
		isLiteral = false
		re.WriteString(expr)
	}
loop:
	for n < len(text) {
		switch text[n] {
		case '/':
			break loop
		case '*':
			add(`.*`)
			n++
		case '?':
			add(`.`)
			n++
		case '[':
			expr, length := scanClass(text[n:])
			if length < 0 {
				return c, 0, errInvalid
			}
			add(expr)
			n += length
		case '\\':
			n++
			if n == len(text) {
				return c, 0, errInvalid
			}
			if text[n] == '/' {
				break loop // an escaped slash separates as any other
			}
			fallthrough
		default:
			_, length := utf8.DecodeRuneInString(text[n:])
			literal.WriteString(text[n : n+length])
			re.WriteString(regexp.QuoteMeta(text[n : n+length]))
			n += length
		}
	}
	switch {
	case text[:n] == "**":
		return component{any: true}, n, nil
	case isLiteral:
		return component{literal: literal.String()}, n, nil
	}
	if c.re, err = regexp.Compile(`(?s)\A` + re.String() + `\z`); err != nil {
		return c, 0, errInvalid
	}
	return c, n, nil
}

// scanClass reads a character class at the start of text and returns it as a
// regular expression and its length, or -1 if it is invalid. No class matches
// a slash, which a component does not contain anyway.
func scanClass(text string) (expr string, n int) {
	n = 1
	negated := n < len(text) && (text[n] == '!' || text[n] == '^')
	if negated {
		n++
	}
	var ranges []rune // pairs
	next := func() (r rune, ok bool) {
		if n < len(text) && text[n] == '\\' {
			n++
		}
		if n >= len(text) {
			return 0, false
		}
		r, length := utf8.DecodeRuneInString(text[n:])
		n += length
		return r, true
	}
	for n < len(text) && text[n] != ']' {
		lo, ok := next()
		if !ok {
			return "", -1
		}
		hi := lo
		if n+1 < len(text) && text[n] == '-' && text[n+1] != ']' {
			n++
			if hi, ok = next(); !ok {
				return "", -1
			}
		}
		ranges = append(ranges, lo, hi)
	}
	if n >= len(text) || len(ranges) == 0 {
		return "", -1
	}
	return classExpr(ranges, negated), n + 1
}

func classExpr(ranges []rune, negated bool) string {
	var b strings.Builder
	b.WriteByte('[')
	if negated {
		b.WriteByte('^')
	}
	for pair := range slices.Chunk(ranges, 2) {
		if pair[0] <= pair[1] { // "z-a" is empty
			fmt.Fprintf(&b, `\x{%x}-\x{%x}`, pair[0], pair[1])
		}
	}
	if b.Len() == 1 {
		return `[^\x{0}-\x{10ffff}]`
	}
	if b.Len() == 2 && negated {
		return `.`
	}
	b.WriteByte(']')
	return b.String()
}
