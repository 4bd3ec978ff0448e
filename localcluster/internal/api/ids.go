package api

import (
	"crypto/rand"
	"crypto/subtle"
	"regexp"
	"strings"
)

var (
	uuidPattern = regexp.MustCompile(`^[a-z0-9]{5}-[a-z0-9]{5}-[a-z0-9]{15}$`)
	pdhPattern  = regexp.MustCompile(`^[0-9a-f]{32}\+\d+(\+[A-Z][^/]*)?$`)
)

const base36 = "0123456789abcdefghijklmnopqrstuvwxyz"

// RandomString returns n random characters of [0-9a-z], fit for secrets.
func RandomString(n int) string {
	out := make([]byte, 0, n)
	buf := make([]byte, 2*n)
	for len(out) < n {
		rand.Read(buf) // never fails, see crypto/rand
		for _, b := range buf {
			// 252 is the largest multiple of 36 in a byte: no bias.
			if b < 252 && len(out) < n {
				out = append(out, base36[b%36])
			}
		}
	}
	return string(out)
}

// NewUUID returns a new UUID of a cluster with the given infix, as in "dz642".
func NewUUID(cluster, infix string) string { return cluster + "-" + infix + "-" + RandomString(15) }

// secretLength is the length of a token's secret.
const secretLength = 50

// requestID is the client's request id, or a new one when it sent none, or one
// that would not fit into a header line or an error text.
func requestID(sent string) string {
	if sent == "" || len(sent) > 1024 || strings.ContainsFunc(sent, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return "req-" + RandomString(20)
	}
	return sent
}

// sameSecret compares without telling by its duration where they differ.
func sameSecret(a, b string) bool {
	return b != "" && subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1
}
