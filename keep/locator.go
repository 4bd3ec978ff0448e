package keep

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// MaxBlockSize is the largest size of a block in bytes.
const MaxBlockSize = 1 << 26

// maxLocatorSize bounds the size hint a manifest may carry, as the reference
// reader does. It is wider than MaxBlockSize so that a damaged manifest can
// still be listed; reading such a block fails.
const maxLocatorSize = 1<<31 - 1

const (
	hashLen   = 32
	emptyHash = "d41d8cd98f00b204e9800998ecf8427e"
	emptyText = emptyHash + "+0"
)

// EmptyLocator names the block of no bytes. Every store holds it.
var EmptyLocator = Locator{text: emptyText}

// ErrInvalidLocator says that a text is not a block locator.
var ErrInvalidLocator = errors.New("invalid block locator")

// Locator names a block: HASH+SIZE and hints. Except for the zero value it is
// always well formed, because ParseLocator is the only source of one. Two
// locators name the same block if their Hash is equal; comparing them with ==
// also compares hints, for example two signatures of one block.
type Locator struct {
	text string
	size int64
}

// ParseLocator reads a locator by the strict rule of the manifest format: 32
// hexadecimal digits, "+" and the size in decimal, then any number of hints, a
// capital letter each with letters, digits, "@", "_" and "-" after it. A size
// beyond 31 bits is refused too. Errors wrap ErrInvalidLocator and do not
// repeat hints, which may hold a signature.
func ParseLocator(s string) (Locator, error) {
	rest, ok := cutHash(s, false)
	if !ok || rest == "" || rest[0] != '+' {
		return Locator{}, locatorError(s, "want 32 hexadecimal digits, +, size")
	}
	digits, hints := rest[1:], ""
	if i := strings.IndexByte(digits, '+'); i >= 0 {
		digits, hints = digits[:i], digits[i:]
	}
	size, ok := parseDecimal(digits)
	if !ok || size > maxLocatorSize {
		return Locator{}, locatorError(s, "size hint missing or not a number below 2147483648")
	}
	if !validHints(hints) {
		return Locator{}, locatorError(s, "malformed hint")
	}
	return Locator{text: s, size: size}, nil
}

// locatorError shows only what cannot be secret: the part before the first
// hint.
func locatorError(s, why string) error {
	if i := strings.IndexByte(s, '+'); i >= 0 {
		s = s[:i] + "+..."
	}
	const most = 40
	if len(s) > most {
		s = s[:most] + "..."
	}
	return fmt.Errorf("%w %q: %s", ErrInvalidLocator, s, why)
}

// Hash returns the 32 digits that identify the block, in lower case.
func (l Locator) Hash() string {
	if l.text == "" {
		return ""
	}
	return strings.ToLower(l.text[:hashLen])
}

// Size returns the number of bytes in the block.
func (l Locator) Size() int64 { return l.size }

// String returns the locator as it was parsed. It may hold a signature: do not
// put it into a message; use WithoutHints for that.
func (l Locator) String() string { return l.text }

// IsZero tells whether l is the zero value, which names no block.
func (l Locator) IsZero() bool { return l.text == "" }

// IsEmptyBlock tells whether l names the block of no bytes.
func (l Locator) IsEmptyBlock() bool { return l.size == 0 && l.Hash() == emptyHash }

// WithoutHints returns HASH+SIZE, the part that enters a portable data hash.
func (l Locator) WithoutHints() Locator {
	if l.text == "" {
		return l
	}
	if i := strings.IndexByte(l.text[hashLen+1:], '+'); i >= 0 {
		l.text = l.text[:hashLen+1+i]
	}
	return l
}

// WithoutSignature returns l without permission signatures of the local
// cluster (+A hints), as the API server stores it. Other hints are kept.
func (l Locator) WithoutSignature() Locator {
	l.text = stripLocatorSignatures(l.text)
	return l
}

// Hints returns the hints after the size, without their "+".
func (l Locator) Hints() []string {
	rest := l.text[len(l.WithoutHints().text):]
	if rest == "" {
		return nil
	}
	return strings.Split(rest[1:], "+")
}

// SignedUntil returns when the permission signature expires, the local
// cluster's or that of the one where the block is. ok is false if there is none.
func (l Locator) SignedUntil() (expiry time.Time, ok bool) {
	for _, h := range l.Hints() {
		if prefix := len("Rzzzzz-"); len(h) > prefix && h[0] == 'R' && h[prefix-1] == '-' {
			h = "A" + h[prefix:]
		}
		if len(h) != 1+sigLen+1+expiryLen || h[0] != 'A' || h[1+sigLen] != '@' {
			continue
		}
		unix, err := strconv.ParseInt(h[1+sigLen+1:], 16, 64)
		if err != nil {
			continue
		}
		return time.Unix(unix, 0), true
	}
	return time.Time{}, false
}

// IsRemote tells whether the block is signed by another cluster (+R hint), so
// that a copy must be made before the local cluster accepts it in a manifest.
func (l Locator) IsRemote() bool {
	for _, h := range l.Hints() {
		if h[0] == 'R' {
			return true
		}
	}
	return false
}

// clone returns l with its own copy of the text, so that it does not keep the
// manifest alive from which it was cut.
func (l Locator) clone() Locator {
	l.text = strings.Clone(l.text)
	return l
}

// cutHash splits the 32 hexadecimal digits off the front of s.
func cutHash(s string, lowerOnly bool) (rest string, ok bool) {
	if len(s) < hashLen {
		return "", false
	}
	for i := range hashLen {
		c := s[i]
		switch {
		case c >= '0' && c <= '9', c >= 'a' && c <= 'f':
		case c >= 'A' && c <= 'F' && !lowerOnly:
		default:
			return "", false
		}
	}
	return s[hashLen:], true
}

// validHints checks (+[A-Z][A-Za-z0-9@_-]*)*.
func validHints(s string) bool {
	for i := 0; i < len(s); {
		if s[i] != '+' {
			return false
		}
		i++
		if i == len(s) || s[i] < 'A' || s[i] > 'Z' {
			return false
		}
		for i++; i < len(s) && isHintByte(s[i]); i++ {
		}
	}
	return true
}

func isHintByte(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' ||
		c == '@' || c == '_' || c == '-'
}

// parseDecimal reads digits only: no sign, no space, not empty, within 63 bits.
func parseDecimal(s string) (int64, bool) {
	if s == "" {
		return 0, false
	}
	var n int64
	for i := range len(s) {
		d := int64(s[i]) - '0'
		if d < 0 || d > 9 || n > (1<<63-1-d)/10 {
			return 0, false
		}
		n = n*10 + d
	}
	return n, true
}
