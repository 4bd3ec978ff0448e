package keep

import (
	"crypto/hmac"
	"crypto/sha1"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

const (
	sigLen    = 2 * sha1.Size
	expiryLen = 8
)

// What VerifySignature found wrong. keepstore answers a missing and an invalid
// signature with 400, an expired one with 401.
var (
	ErrSignatureMissing = errors.New("no block signature")
	ErrSignatureExpired = errors.New("expired block signature")
	ErrSignatureInvalid = errors.New("invalid block signature")
)

// Signer makes and checks permission signatures: proofs that a token's owner
// may read a block. The zero value signs nothing.
type Signer struct {
	// Key is Collections.BlobSigningKey.
	Key string
	// TTL is Collections.BlobSigningTTL. It enters the signature in whole
	// seconds, so both sides must be configured alike.
	TTL time.Duration
}

// SignLocator appends a signature for token that is valid until expiry. The
// locator may be any text that begins with a hash; its hints are kept. Without
// a key or a token it is returned as it is.
func (s Signer) SignLocator(locator, token string, expiry time.Time) string {
	if s.Key == "" || token == "" {
		return locator
	}
	exp := fmt.Sprintf("%08x", expiry.Unix())
	return locator + "+A" + s.signature(locator, token, exp) + "@" + exp
}

// signature computes the 40 digits. Only the hash of the locator is covered,
// not its size and hints.
func (s Signer) signature(locator, token, expiry string) string {
	hash, _, _ := strings.Cut(locator, "+")
	mac := hmac.New(sha1.New, []byte(s.Key))
	mac.Write([]byte(hash + "@" + token + "@" + expiry + "@" + strconv.FormatInt(int64(s.TTL/time.Second), 16)))
	return hex.EncodeToString(mac.Sum(nil))
}

// VerifySignature checks the one signature in locator against token at the time
// now, and returns nil, ErrSignatureMissing, ErrSignatureExpired or
// ErrSignatureInvalid. Expiry is looked at before validity, as keepstore does.
func (s Signer) VerifySignature(locator, token string, now time.Time) error {
	sig, expiry, ok := findSignature(locator)
	if !ok {
		return ErrSignatureMissing
	}
	unix, err := strconv.ParseInt(expiry, 16, 64)
	if err != nil {
		return ErrSignatureMissing
	}
	if unix < now.Unix() {
		return ErrSignatureExpired
	}
	if !hmac.Equal([]byte(s.signature(locator, token, expiry)), []byte(sig)) {
		return ErrSignatureInvalid
	}
	return nil
}

// findSignature matches 32 hex digits, an optional size, hints B-Z, exactly one
// A hint of the right shape, hints B-Z.
func findSignature(locator string) (sig, expiry string, ok bool) {
	rest, ok := cutHash(locator, false)
	if !ok || rest == "" || rest[0] != '+' {
		return "", "", false
	}
	for i, hint := range strings.Split(rest[1:], "+") {
		if i == 0 {
			if allDigits(hint) {
				continue
			}
		}
		if !validHints("+" + hint) {
			return "", "", false
		}
		if hint[0] != 'A' {
			continue
		}
		if sig != "" || len(hint) != 1+sigLen+1+expiryLen || hint[1+sigLen] != '@' {
			return "", "", false
		}
		sig, expiry = hint[1:1+sigLen], hint[1+sigLen+1:]
		if !isHex(sig) || !isHex(expiry) {
			return "", "", false
		}
	}
	return sig, expiry, sig != ""
}

// allDigits tells whether s consists of decimal digits only, at least one.
func allDigits(s string) bool {
	return s != "" && strings.Trim(s, "0123456789") == ""
}

func isHex(s string) bool {
	for i := range len(s) {
		c := s[i]
		if !(c >= '0' && c <= '9' || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F') {
			return false
		}
	}
	return true
}

// SignManifest removes local signatures from every block token of a manifest
// and appends new ones.
func (s Signer) SignManifest(manifest, token string, expiry time.Time) string {
	return mapBlockTokens(manifest, true, func(locator string) string {
		return s.SignLocator(stripLocatorSignatures(locator), token, expiry)
	})
}

// StripSignatures removes local signatures (+A hints) from every block token of
// a manifest and keeps other hints, as the API server does before it stores a
// manifest.
func StripSignatures(manifest string) string {
	return mapBlockTokens(manifest, false, stripLocatorSignatures)
}

// stripLocatorSignatures drops each hint that begins with A.
func stripLocatorSignatures(locator string) string {
	i := strings.Index(locator, "+A")
	if i < 0 {
		return locator
	}
	var b strings.Builder
	b.WriteString(locator[:i])
	for _, hint := range strings.Split(locator[i+1:], "+") {
		if !strings.HasPrefix(hint, "A") {
			b.WriteString("+" + hint)
		}
	}
	return b.String()
}

// mapBlockTokens rewrites the tokens of a manifest that begin with a hash, with
// lowerOnly only those in lower case. It needs no valid manifest: white space and other tokens stay as they
// are.
func mapBlockTokens(manifest string, lowerOnly bool, fn func(string) string) string {
	var b strings.Builder
	b.Grow(len(manifest))
	for manifest != "" {
		end := strings.IndexAny(manifest, " \n")
		token, sep := manifest, ""
		if end >= 0 {
			token, sep = manifest[:end], manifest[end:end+1]
		}
		manifest = manifest[len(token)+len(sep):]
		if rest, ok := cutHash(token, lowerOnly); ok && (rest == "" || rest[0] == '+') {
			token = fn(token)
		}
		b.WriteString(token)
		b.WriteString(sep)
	}
	return b.String()
}
