// Package redact takes secrets out of text that people will read: logs, error
// messages, what a process writes to stderr.
package redact

import (
	"io"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
)

// hidden stands where a secret was.
const hidden = "(hidden)"

// minSecret is the length below which a string is not taken for a secret:
// replacing every "abc" would hide more than a token.
const minSecret = 8

var (
	// A v2 token keeps its UUID, and the container UUID behind the secret: the
	// API server itself names tokens by them. Both separators also occur
	// percent-encoded, in request URLs.
	v2Token = regexp.MustCompile(`\bv2(/|%2[Ff])([0-9a-z]{5}-gj3su-[0-9a-z]{15})(?:/|%2[Ff])[^\s/"'%,;&()<>\\]+`)
	// A v1 token has no shape of its own; it is recognised where it is used.
	bearer = regexp.MustCompile(`(?i)\b((?:bearer|oauth2)\s+)([^\s"',;]{8,})`)
	param  = regexp.MustCompile(`(?i)(\b[a-z_]*(?:api_token|reader_tokens|secret|password)\\?["']?\s*[=:]\s*\\?["']?)([^\s"'&,;\\]{8,})`)
	// Permission hints of block locators, local (+A) and remote (+R).
	signature = regexp.MustCompile(`\+(A|R[0-9a-z]{5}-)[0-9a-f]{40}@[0-9a-f]{8}`)
)

// Redactor takes secrets out of text: tokens by their shape or because they
// have been named, and block signatures. The zero value is ready to use, also
// from several goroutines.
type Redactor struct {
	mu      sync.RWMutex
	secrets []string // longest first, so that none is cut up by a part of it
}

// Writer passes on what is written to it, without secrets. Each Write must be a
// whole message, since a secret in two parts is not found.
type Writer struct {
	To io.Writer
	*Redactor
}

// Write writes p without secrets.
func (w Writer) Write(p []byte) (int, error) {
	if _, err := io.WriteString(w.To, w.Redact(string(p))); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Hide makes the redactor know secrets, which are then found anywhere, plain or
// URL-encoded. Of a v2 token the secret part is hidden also when it stands
// alone. Strings shorter than eight bytes are ignored.
func (r *Redactor) Hide(secrets ...string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range secrets {
		s = strings.TrimSpace(s)
		if parts := strings.Split(s, "/"); len(parts) >= 3 && parts[0] == "v2" {
			s = parts[2]
		}
		for _, form := range []string{s, url.QueryEscape(s), url.PathEscape(s)} {
			if len(form) >= minSecret && !slices.Contains(r.secrets, form) {
				r.secrets = append(r.secrets, form)
			}
		}
	}
	slices.SortStableFunc(r.secrets, func(a, b string) int { return len(b) - len(a) })
}

// Redact returns text without secrets.
func (r *Redactor) Redact(text string) string {
	r.mu.RLock()
	for _, s := range r.secrets {
		text = strings.ReplaceAll(text, s, hidden)
	}
	r.mu.RUnlock()
	if strings.Contains(text, "v2") {
		text = v2Token.ReplaceAllString(text, "v2$1$2$1"+hidden)
	}
	text = bearer.ReplaceAllStringFunc(text, func(m string) string {
		part := bearer.FindStringSubmatch(m)
		if strings.HasPrefix(part[2], "v2/") || strings.HasPrefix(part[2], hidden) {
			return m // already taken care of, and worth reading
		}
		return part[1] + hidden
	})
	text = param.ReplaceAllStringFunc(text, func(m string) string {
		part := param.FindStringSubmatch(m)
		if strings.HasPrefix(part[2], "v2/") || strings.HasPrefix(part[2], "v2%2") || strings.HasPrefix(part[2], hidden) {
			return m
		}
		return part[1] + hidden
	})
	return signature.ReplaceAllString(text, "+${1}"+hidden)
}
