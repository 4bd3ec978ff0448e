package arvados

import (
	"crypto/rand"
	"regexp"
	"strings"
)

// The middle part of a UUID says what it names (spec: arvados-api section 1).
const (
	TypeCollection       = "4zz18"
	TypeContainer        = "dz642"
	TypeContainerRequest = "xvhdp"
	TypeToken            = "gj3su"
	TypeUser             = "tpzed"
	TypeGroup            = "j7d0g"
	TypeLink             = "o0j2j"
	TypeLog              = "57u5n"
	TypeKeepService      = "bi6l4"
)

// EmptyPDH is the portable data hash of a collection without files.
const EmptyPDH = "d41d8cd98f00b204e9800998ecf8427e+0"

var pdhPattern = regexp.MustCompile(`^[0-9a-f]{32}\+[0-9]+$`)

// ValidPDH reports whether s is a portable data hash without further hints.
func ValidPDH(s string) bool { return pdhPattern.MatchString(s) }

// ValidUUID reports whether s has the form of a UUID of the given type
// (TypeContainer and so on), or of any type if typ is "". Nothing else may
// become part of a path or file name.
func ValidUUID(s, typ string) bool {
	if len(s) != 27 || s[5] != '-' || s[11] != '-' {
		return false
	}
	for i := 0; i < len(s); i++ {
		if i != 5 && i != 11 && !isBase36(s[i]) {
			return false
		}
	}
	return typ == "" || s[6:11] == typ
}

func isBase36(c byte) bool { return '0' <= c && c <= '9' || 'a' <= c && c <= 'z' }

// newRequestID returns "req-" and 20 base-36 digits.
func newRequestID() string {
	const digits = "0123456789abcdefghijklmnopqrstuvwxyz"
	var id strings.Builder
	id.WriteString("req-")
	var buf [32]byte
	for {
		rand.Read(buf[:]) // never fails since Go 1.24
		for _, b := range buf {
			// 252 is the largest multiple of 36 in a byte.
			if b < 252 {
				id.WriteByte(digits[b%36])
				if id.Len() == 24 {
					return id.String()
				}
			}
		}
	}
}
