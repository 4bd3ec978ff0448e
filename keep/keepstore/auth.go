package keepstore

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"net/http"
	"strings"
	"time"

	"crunch-oci/keep"
)

// tokens returns every token of the request: Authorization header (Bearer,
// OAuth2, Basic password), query, cookie, in this order.
func tokens(r *http.Request) []string {
	var found []string
	add := func(t string) {
		if t = strings.TrimSpace(t); t != "" {
			found = append(found, t)
		}
	}
	for _, h := range r.Header.Values("Authorization") {
		scheme, rest, _ := strings.Cut(strings.TrimSpace(h), " ")
		if strings.EqualFold(scheme, "Bearer") || strings.EqualFold(scheme, "OAuth2") {
			add(rest)
		}
	}
	if _, password, ok := r.BasicAuth(); ok {
		add(password)
	}
	if r.URL.RawQuery != "" {
		for _, t := range r.URL.Query()["api_token"] {
			add(t)
		}
	}
	if c, err := r.Cookie("arvados_api_token"); err == nil {
		if t, err := base64.URLEncoding.DecodeString(c.Value); err == nil {
			add(string(t))
		}
	}
	return found
}

// sameToken compares in a time that tells nothing about where the two differ,
// nor how long they are.
func sameToken(a, b string) bool {
	x, y := sha256.Sum256([]byte(a)), sha256.Sum256([]byte(b))
	return hmac.Equal(x[:], y[:])
}

// checkAdmin lets SystemRootToken pass.
func (s *Server) checkAdmin(r *http.Request) error {
	found := tokens(r)
	if len(found) == 0 {
		return errUnauthorized
	}
	for _, t := range found {
		if s.cfg.SystemRootToken != "" && sameToken(t, s.cfg.SystemRootToken) {
			return nil
		}
	}
	return errForbidden
}

// checkSignature decides whether the request may read the block.
func (s *Server) checkSignature(r *http.Request, ref keep.PathLocator) error {
	if !s.cfg.BlobSigning {
		return nil
	}
	found := tokens(r)
	if len(found) == 0 {
		return errNoToken
	}
	err := s.signer.VerifySignature(ref.Text, found[0], time.Now())
	switch {
	case errors.Is(err, keep.ErrSignatureExpired):
		return errExpired
	case err != nil:
		return errInvalidSignature
	}
	return nil
}
