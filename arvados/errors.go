package arvados

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Error is the way every call fails. Its texts contain no token and no block
// signature.
type Error struct {
	// Method and Path are those of the request; Path starts with "/".
	Method, Path string
	// RequestID is the X-Request-Id all attempts were sent with: the way to
	// find them in the server's log.
	RequestID string
	// Status is the HTTP status of the last answer, 0 if there was none.
	Status int
	// Texts are the server's words, usually one.
	Texts []string
	// Err is the reason when there was no usable answer.
	Err error
	// Attempts counts the requests sent, Elapsed the time they took.
	Attempts int
	Elapsed  time.Duration

	retryable  bool
	retryAfter string
	secrets    []string
}

// IsStatus reports whether err is, or wraps, an *Error with one of the HTTP
// status codes.
func IsStatus(err error, codes ...int) bool {
	var e *Error
	return errors.As(err, &e) && slices.Contains(codes, e.Status)
}

// Temporary reports whether the call may succeed later: the server did not
// answer, or said that it could not, rather than that it would not.
func (e *Error) Temporary() bool {
	return e.Status == 0 && retryableTransport(e.Err) || e.Status != 0 && retryableStatus(e.Status)
}

// Unwrap returns the reason when there was no usable answer.
func (e *Error) Unwrap() error { return e.Err }

func (e *Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s: ", e.Method, e.Path)
	var parts []string
	if e.Status != 0 {
		parts = append(parts, strings.TrimSpace(fmt.Sprintf("%d %s", e.Status, http.StatusText(e.Status))))
	}
	if len(e.Texts) > 0 {
		parts = append(parts, strings.Join(e.Texts, "; "))
	}
	if e.Err != nil {
		parts = append(parts, e.Err.Error()+hint(e.Err))
	}
	b.WriteString(strings.Join(parts, ": "))
	if e.RequestID != "" && !strings.Contains(b.String(), e.RequestID) {
		fmt.Fprintf(&b, " (%s)", e.RequestID)
	}
	if e.Attempts > 1 {
		fmt.Fprintf(&b, " (after %d attempts in %s)", e.Attempts, e.Elapsed.Round(time.Second))
	}
	return redact(b.String(), e.secrets)
}

// unexpected is the error of a call that succeeded with an answer that cannot
// be right.
func unexpected(method, path, format string, args ...any) error {
	return &Error{Method: method, Path: absolutePath(path), Err: fmt.Errorf("unexpected answer: "+format, args...)}
}

// hint says what an operator can do about a transport error.
func hint(err error) string {
	if isCertificateError(err) {
		return " (is the right CA bundle named by SSL_CERT_FILE or -ca-certs?)"
	}
	return ""
}

// isCertificateError tells errors that another attempt cannot cure.
func isCertificateError(err error) bool {
	var (
		verification *tls.CertificateVerificationError
		unknown      x509.UnknownAuthorityError
		invalid      x509.CertificateInvalidError
		host         x509.HostnameError
		roots        x509.SystemRootsError
	)
	return errors.As(err, &verification) || errors.As(err, &unknown) || errors.As(err, &invalid) ||
		errors.As(err, &host) || errors.As(err, &roots)
}

var (
	signaturePattern = regexp.MustCompile(`\+([AR])[0-9a-z-]*[0-9a-f]{40}@[0-9a-f]{1,16}`)
	tokenPattern     = regexp.MustCompile(`v2/([0-9a-z]{5}-gj3su-[0-9a-z]{15})/[^\s/"'&]+`)
)

// redact takes tokens and block signatures out of text that may quote a
// request.
func redact(text string, secrets []string) string {
	for _, s := range secrets {
		text = strings.ReplaceAll(text, s, "[redacted]")
	}
	text = tokenPattern.ReplaceAllString(text, "v2/$1/[redacted]")
	return signaturePattern.ReplaceAllString(text, "+$1[redacted]")
}

// secretsOf returns what must not be shown of a token: all of it or, of a v2
// token, the secret part.
func secretsOf(token string) []string {
	secret := token
	if parts := strings.Split(token, "/"); len(parts) >= 3 && parts[0] == "v2" {
		secret = parts[2]
	}
	// Anything shorter is no secret, and would blot out ordinary words.
	if len(secret) < 6 {
		return nil
	}
	return []string{secret}
}

// maxErrorText bounds what is kept, in bytes, of each of the server's texts, and
// maxErrorPage what is kept of an error answer that is not JSON, such as the
// page of a proxy.
const (
	maxErrorText = 4000
	maxErrorPage = 300
)

// errorTexts takes the server's words out of an error answer, without secrets.
func errorTexts(body []byte, secrets []string) []string {
	var answer struct {
		Errors []any `json:"errors"`
	}
	if json.Unmarshal(body, &answer) == nil && len(answer.Errors) > 0 {
		var texts []string
		for _, e := range answer.Errors {
			texts = append(texts, shorten(redact(fmt.Sprint(e), secrets), maxErrorText))
		}
		return texts
	}
	text := strings.Join(strings.Fields(strings.ToValidUTF8(string(body), "?")), " ")
	if text == "" {
		return nil
	}
	return []string{shorten(redact(text, secrets), maxErrorPage)}
}

func shorten(text string, limit int) string {
	if len(text) <= limit {
		return text
	}
	return strings.ToValidUTF8(text[:limit], "") + "..."
}
