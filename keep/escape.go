package keep

import (
	"strings"
	"unicode/utf8"
)

// EscapeName writes a stream or file name for a manifest: the bytes 0x00-0x20,
// ":" and "\" become "\" and three octal digits; nothing else changes.
func EscapeName(name string) string {
	return string(appendEscaped(nil, name, false))
}

// appendEscaped appends the escaped name. With utf8Only it also escapes every
// byte that is not part of a UTF-8 sequence: the API server takes UTF-8 text
// only, and a JSON encoder would turn two different names into the same one,
// with which their files would be concatenated.
func appendEscaped(b []byte, name string, utf8Only bool) []byte {
	for i := 0; i < len(name); {
		c := name[i]
		if c >= utf8.RuneSelf {
			r, n := utf8.DecodeRuneInString(name[i:])
			if utf8Only && r == utf8.RuneError && n == 1 {
				b = appendOctal(b, c)
			} else {
				b = append(b, name[i:i+n]...)
			}
			i += n
			continue
		}
		if c <= ' ' || c == ':' || c == '\\' {
			b = appendOctal(b, c)
		} else {
			b = append(b, c)
		}
		i++
	}
	return b
}

func appendOctal(b []byte, c byte) []byte {
	return append(b, '\\', '0'+c>>6, '0'+c>>3&7, '0'+c&7)
}

// UnescapeName undoes EscapeName in one pass from the left: "\\" becomes "\",
// "\NNN" the byte of that octal number up to 377. Any other backslash stays.
func UnescapeName(s string) string {
	i := strings.IndexByte(s, '\\')
	if i < 0 {
		return s
	}
	b := make([]byte, 0, len(s))
	for {
		b = append(b, s[:i]...)
		s = s[i:]
		switch {
		case len(s) >= 2 && s[1] == '\\':
			b, s = append(b, '\\'), s[2:]
		case len(s) >= 4 && s[1] >= '0' && s[1] <= '3' && isOctal(s[2]) && isOctal(s[3]):
			b, s = append(b, (s[1]-'0')<<6|(s[2]-'0')<<3|(s[3]-'0')), s[4:]
		default:
			b, s = append(b, '\\'), s[1:]
		}
		if i = strings.IndexByte(s, '\\'); i < 0 {
			return string(append(b, s...))
		}
	}
}

func isOctal(c byte) bool { return c >= '0' && c <= '7' }
