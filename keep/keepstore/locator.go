package keepstore

import (
	"errors"
	"strings"

	"crunch-oci/keep"
)

// isHash tells whether s begins with a block hash (32 lower-case hex digits)
// that ends there or goes on with a hint.
func isHash(s string) bool {
	return len(s) >= 32 && isHex(s[:32]) && (len(s) == 32 || s[32] == '+')
}

func isHex(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// parseLocator reads the block path of a request.
func parseLocator(path string) (keep.PathLocator, error) {
	ref, err := keep.ParsePathLocator(path)
	switch {
	case errors.Is(err, keep.ErrNoSuchPath):
		return ref, errBadRequest
	case err != nil:
		return ref, errInvalidLocator
	}
	return ref, nil
}

// logPath is a request path without signatures.
func logPath(path string) string {
	if p := strings.TrimLeft(path, "/"); !isHash(p) {
		return path
	}
	parts := strings.Split(path, "+")
	for i, p := range parts {
		if i > 0 && (strings.HasPrefix(p, "A") || strings.HasPrefix(p, "R")) {
			parts[i] = p[:1] + "..."
		}
	}
	return strings.Join(parts, "+")
}
