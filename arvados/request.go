package arvados

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
)

// maxQuery is the length in bytes from which a query travels in the body of a
// POST (spec: arvados-api section 3).
const maxQuery = 1000

// request is what all attempts of one call have in common, so that each sends
// the same bytes.
type request struct {
	method, path string
	query        string // encoded, for the request line
	form         string // encoded, for the body
	hasBody      bool
	override     string // X-Http-Method-Override
	id           string
}

// newRequest encodes params: strings as they are, nil not at all, everything
// else as JSON.
func newRequest(method, path string, params map[string]any) (*request, error) {
	r := &request{method: method, path: absolutePath(path), id: newRequestID()}
	values := url.Values{}
	for name, v := range params {
		switch v := v.(type) {
		case nil:
		case string:
			values.Set(name, v)
		default:
			text, err := encodeJSON(v)
			if err != nil {
				return r, fmt.Errorf("parameter %s: %w", name, err)
			}
			values.Set(name, text)
		}
	}
	encoded := values.Encode()
	switch method {
	case http.MethodPost, http.MethodPut, http.MethodPatch:
		r.form, r.hasBody = encoded, true
	default:
		if len(encoded) < maxQuery {
			r.query = encoded
			break
		}
		r.method, r.override = http.MethodPost, method
		r.form, r.hasBody = encoded, true
	}
	return r, nil
}

// absolutePath puts a resource path under the API's prefix.
func absolutePath(path string) string {
	if strings.HasPrefix(path, "/") {
		return path
	}
	return "/arvados/v1/" + path
}

// encodeJSON is json.Marshal without escapes meant for HTML, which would make
// manifests longer.
func encodeJSON(v any) (string, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return "", err
	}
	return strings.TrimSuffix(b.String(), "\n"), nil
}

// http makes the request of one attempt.
func (r *request) http(ctx context.Context, host, token string) (*http.Request, error) {
	target := "https://" + host + r.path
	if r.query != "" {
		target += "?" + r.query
	}
	var body io.Reader
	if r.hasBody {
		body = strings.NewReader(r.form)
	}
	req, err := http.NewRequestWithContext(ctx, r.method, target, body)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+token)
	req.Header.Set("X-Request-Id", r.id)
	req.Header.Set("User-Agent", "crunch-oci")
	if r.hasBody {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	if r.override != "" {
		req.Header.Set("X-Http-Method-Override", r.override)
	}
	return req, nil
}
