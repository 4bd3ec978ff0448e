package keep

import (
	"crypto/hmac"
	"crypto/sha1"
	"encoding/hex"
	"errors"
	"strings"
)

// Why a token cannot be salted.
var (
	ErrObsoleteToken = errors.New("cannot salt a v1 token: it works on its own cluster only")
	ErrTokenFormat   = errors.New("cannot salt a token of unknown format")
	ErrTokenSalted   = errors.New("token is already salted for another cluster")
)

// saltedLen is the length of a secret that is an HMAC-SHA1 already.
const saltedLen = 2 * sha1.Size

// SaltToken derives from a v2 token the one to present to the cluster whose id
// is remote: the other cluster can use it to ask the home cluster, but cannot
// use it elsewhere. A token issued by that cluster is returned unchanged.
func SaltToken(token, remote string) (string, error) {
	parts := strings.Split(token, "/")
	if len(parts) < 3 || parts[0] != "v2" {
		if isV1Token(token) {
			return "", ErrObsoleteToken
		}
		return "", ErrTokenFormat
	}
	uuid, secret := parts[1], parts[2]
	if strings.HasPrefix(uuid, remote) {
		return token, nil
	}
	if len(secret) == saltedLen {
		return "", ErrTokenSalted
	}
	mac := hmac.New(sha1.New, []byte(secret))
	mac.Write([]byte(remote))
	return "v2/" + uuid + "/" + hex.EncodeToString(mac.Sum(nil)), nil
}

// isV1Token recognises a bare secret: at least 41 lower-case letters and digits.
func isV1Token(s string) bool {
	if len(s) < 41 {
		return false
	}
	for i := range len(s) {
		if c := s[i]; !(c >= '0' && c <= '9' || c >= 'a' && c <= 'z') {
			return false
		}
	}
	return true
}
