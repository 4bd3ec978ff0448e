package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// params are the parameters of a request, from the query and the body.
type params struct {
	values map[string]value
	// jsonBody is the body's object when the body was JSON: its members are
	// attributes if the resource's own key is missing.
	jsonBody map[string]json.RawMessage
}

// value is one parameter: JSON from a JSON body, text from a query or form.
type value struct {
	json json.RawMessage // nil for text
	text string
}

// unset are values that count as not given: null, and the empty strings that
// the Go SDK sends.
func (v value) unset() bool {
	if v.json == nil {
		return v.text == "" || v.text == "null"
	}
	t := string(bytes.TrimSpace(v.json))
	return t == "null" || t == `""`
}

// raw is the value as JSON: text is taken to be JSON, and so is a JSON string
// (a parameter may be JSON in a string).
func (v value) raw() json.RawMessage {
	if v.json == nil {
		return json.RawMessage(v.text)
	}
	var s string
	if json.Unmarshal(v.json, &s) == nil {
		return json.RawMessage(s)
	}
	return v.json
}

// word is the value as plain text, without the quotes of a JSON string.
func (v value) word() string {
	if v.json == nil {
		return v.text
	}
	var s string
	if json.Unmarshal(v.json, &s) == nil {
		return s
	}
	return string(v.json)
}

// readParams reads query and body, and finds out the method that is meant.
// release gives back the memory accounted for the body; it is never nil.
func (c *call) readParams(w http.ResponseWriter) (release func(), err error) {
	release = func() {}
	c.params.values = map[string]value{}
	if strings.Contains(c.r.URL.RawQuery, ";") {
		return release, plainError(http.StatusBadRequest, "invalid semicolon separator in query")
	}
	query, err := url.ParseQuery(c.r.URL.RawQuery)
	if err != nil {
		return release, plainError(http.StatusBadRequest, "malformed query: %v", err)
	}
	for k, v := range query {
		c.params.values[k] = value{text: v[len(v)-1]}
	}
	body, release, err := c.readBody(w)
	if err != nil {
		return release, err
	}
	if err := c.parseBody(body); err != nil {
		return release, err
	}
	for k, v := range c.params.values {
		if !utf8.ValidString(v.text) {
			return release, plainError(http.StatusBadRequest, "parameter %q is not UTF-8", strings.ToValidUTF8(k, "?"))
		}
	}
	return release, nil
}

// freeBody is how much of a body is not counted: almost all requests are
// smaller.
const freeBody = 64 << 10

// bodyPause is how long a client may send nothing.
const bodyPause = time.Minute

// readBody reads the whole body. What is longer than freeBody counts against
// the budget that all bodies share, as it arrives: a client that announces
// much and sends little takes little.
func (c *call) readBody(w http.ResponseWriter) (body []byte, release func(), err error) {
	held := int64(0)
	release = func() { c.s.bodies.Release(held) }
	if c.r.ContentLength == 0 {
		return nil, release, nil
	}
	if c.r.ContentLength > maxRequestSize {
		return nil, release, &http.MaxBytesError{Limit: maxRequestSize}
	}
	conn := http.NewResponseController(w)
	last, _ := c.r.Context().Deadline()
	in := http.MaxBytesReader(w, c.r.Body, maxRequestSize)
	body = make([]byte, 0, 4096)
	for {
		if len(body) == cap(body) {
			more := min(int64(cap(body)), maxRequestSize+1-int64(cap(body)))
			if cap(body) >= freeBody {
				// Waiting here could be waiting for each other.
				if !c.s.bodies.TryAcquire(more) {
					return nil, release, plainError(http.StatusServiceUnavailable, "too many large requests")
				}
				held += more
			}
			body = append(make([]byte, 0, len(body)+int(more)), body...)
		}
		if pause := time.Now().Add(bodyPause); pause.Before(last) {
			_ = conn.SetReadDeadline(pause)
		}
		n, err := in.Read(body[len(body):cap(body)])
		body = body[:len(body)+n]
		var tooLarge *http.MaxBytesError
		switch {
		case err == io.EOF:
			return body, release, nil
		case errors.As(err, &tooLarge):
			return nil, release, err
		case err != nil:
			return nil, release, plainError(http.StatusBadRequest, "cannot read request body: %v", err)
		}
	}
}

func (c *call) parseBody(body []byte) error {
	mediaType, options, err := mime.ParseMediaType(c.r.Header.Get("Content-Type"))
	if err != nil {
		mediaType = ""
	}
	if e := c.r.Header.Get("Content-Encoding"); e != "" && e != "identity" && len(body) > 0 {
		return plainError(http.StatusUnsupportedMediaType, "request bodies must be sent as they are, not with Content-Encoding %q", e)
	}
	text := bytes.TrimSpace(body)
	switch {
	case mediaType == "application/x-www-form-urlencoded" || mediaType == "" && !c.res.front && len(text) > 0 && text[0] != '{':
		form, err := url.ParseQuery(string(body))
		if err != nil {
			return plainError(http.StatusBadRequest, "malformed form: %v", err)
		}
		c.takeForm(form)
	case mediaType == "multipart/form-data":
		form, err := multipart.NewReader(bytes.NewReader(body), options["boundary"]).ReadForm(maxRequestSize)
		if err != nil {
			return plainError(http.StatusBadRequest, "malformed form: %v", err)
		}
		defer form.RemoveAll() // there are no files: all fits into memory
		if len(form.File) > 0 {
			return plainError(http.StatusBadRequest, "malformed form: parameters cannot be files")
		}
		c.takeForm(form.Value)
	case len(text) == 0:
	case mediaType == "application/json" || mediaType == "":
		if !utf8.Valid(body) || json.Unmarshal(body, &c.params.jsonBody) != nil || c.params.jsonBody == nil {
			if c.res.front {
				return plainError(http.StatusBadRequest, "request body is not a JSON object")
			}
			return raised("ActionDispatch::Http::Parameters::ParseError", "Error occurred while parsing request parameters")
		}
		for k, v := range c.params.jsonBody {
			c.params.values[k] = value{json: v}
		}
	default:
		return plainError(http.StatusUnsupportedMediaType, "request body of type %q: must be a form or JSON", mediaType)
	}
	if m := c.params.values["_method"]; c.res.front && m.json == nil && m.text != "" {
		c.method = strings.ToUpper(m.text)
	}
	if m := c.r.Header.Get("X-Http-Method-Override"); m != "" {
		c.method = strings.ToUpper(m)
	}
	return nil
}

// takeForm takes the parameters of a form.
func (c *call) takeForm(form url.Values) {
	for k, v := range form {
		c.params.values[k] = value{text: v[len(v)-1]}
	}
	if m, ok := form["_method"]; ok {
		c.method = strings.ToUpper(m[len(m)-1])
	}
}

// token is the token given as a parameter.
func (p params) token(front bool) string {
	if t := p.values["api_token"].word(); t != "" || front {
		return t
	}
	return p.values["oauth_token"].word()
}

// boolean reads a parameter that is true or false, in any of the spellings
// clients use.
func (p params) boolean(name string) (bool, error) {
	v := p.values[name]
	if v.unset() {
		return false, nil
	}
	switch strings.ToLower(v.word()) {
	case "1", "true", "t", "yes", "y", "on":
		return true, nil
	case "0", "false", "f", "no", "n", "off":
		return false, nil
	}
	return false, invalid("%s parameter must be a boolean, true or false", name)
}

// number reads a parameter that is a number >= 0.
func (c *call) number(name string, def int64) (int64, error) {
	v := c.params.values[name]
	if v.unset() {
		return def, nil
	}
	n, err := strconv.ParseInt(strings.TrimSpace(v.word()), 10, 64)
	switch {
	case err != nil && c.res.front:
		// The reference answers 500; malformed parameters are the client's
		// fault (arvados-api.md section 17).
		return 0, plainError(http.StatusBadRequest, "%s: not a number", name)
	case err != nil:
		return 0, raised("ArgumentError", "Invalid value %q for %s parameter", v.word(), name)
	case n < 0:
		return 0, raised("ArgumentError", "Invalid negative %s parameter: %d", name, n)
	}
	return n, nil
}

// names reads a parameter that is a JSON array of strings; nil if not given or
// empty.
func (c *call) names(name string) ([]string, error) {
	v := c.params.values[name]
	if v.unset() {
		return nil, nil
	}
	raw := v.raw()
	var out []string
	if err := json.Unmarshal(raw, &out); err != nil {
		if !json.Valid(raw) {
			return nil, plainError(http.StatusBadRequest, "%s: %v", name, err)
		}
		return nil, raised("ArgumentError", "%s must be an array of strings", name)
	}
	if len(out) == 0 {
		return nil, nil
	}
	return out, nil
}

// object reads the attributes given under the resource's name. Without that
// key, the members of a JSON body are the attributes themselves.
func (c *call) object() (map[string]json.RawMessage, error) {
	v, ok := c.params.values[c.res.singular]
	if !ok {
		return c.params.jsonBody, nil
	}
	if v.unset() {
		return nil, nil
	}
	var out map[string]json.RawMessage
	if err := json.Unmarshal(v.raw(), &out); err != nil {
		return nil, plainErrorIf(c.res.front, fmt.Sprintf("%s: not a JSON object", c.res.singular))
	}
	return out, nil
}

// plainErrorIf is a 400 of the front end or a 422 of the back end.
func plainErrorIf(front bool, text string) error {
	if front {
		return plainError(http.StatusBadRequest, "%s", text)
	}
	return invalid("%s", text)
}
