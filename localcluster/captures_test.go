package localcluster

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const capturesDir = "../testdata/spec/captures"

// notReplayed are the captures that TestCaptures leaves out, with the reason.
// A capture that is neither here nor replayed fails the test.
var notReplayed = map[string]string{
	"run-badcommand.json":      "whole runs are replayed by TestRuns",
	"run-basic.json":           "whole runs are replayed by TestRuns",
	"run-exit3.json":           "whole runs are replayed by TestRuns",
	"run-imageload-fails.json": "whole runs are replayed by TestRuns",
	"run-sigterm.json":         "whole runs are replayed by TestRuns",
	"run-tunnel.json":          "whole runs are replayed by TestRuns",
}

// differences are the places where our answer is another one, with the reason.
// Keys are capture numbers and paths in the answer; a path covers what is
// below it.
var differences = map[string]string{
	"001 resources": "methods of resources that no supervisor needs are missing; those that are there are checked by TestDiscoveryDocument",
	"001 schemas":   "the capture is shortened", "001 auth": "the capture is shortened",
	"001 generatedAt":                      "time of the start",
	"001 websocketUrl":                     "no websocket server",
	"001 workbenchUrl":                     "no workbench",
	"001 workbench2Url":                    "no workbench",
	"001 keepWebServiceUrl":                "no keep-web yet",
	"002 Collections.CollectionVersioning": "an embedded server may ignore versioning",
	"002 Containers.ShellAccess.User":      "users of one's own machine may look into their containers",
	"002 Services":                         "URLs of services that are not there",
	"011 items.0.service_port":             "any free port",
	"013 items.0.service_port":             "any free port",
	"026 errors":                           "text of the real server's database",
	"041 items":                            "the recording cluster had older collections, and the order is that of random UUIDs",
	"041 items_available":                  "the recording cluster had older collections",
	"104 id":                               "a counter",
}

type exchange struct {
	Service string
	Request struct {
		Method, URL, Path string
		Headers           map[string]string
		Body              json.RawMessage
	}
	Response struct {
		Status int
		Body   json.RawMessage
	}
}

// replayer sends captured requests to a cluster of ours, with the captured
// tokens, UUIDs and signatures replaced by those that our cluster gave in
// their stead.
type replayer struct {
	t     *testing.T
	cl    *client
	known map[string]string // captured to ours
}

var (
	// What one cluster's text has and another's has not: UUIDs, signatures,
	// and the placeholders of the recorder.
	uuidText      = regexp.MustCompile(`[a-z0-9]{5}-[a-z0-9]{5}-[a-z0-9]{15,16}|\+A[0-9a-f]{40}@[0-9a-f]{8}|<[A-Z_]+>`)
	timeText      = regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z$`)
	reqIDText     = regexp.MustCompile(`\(req-[a-z0-9]{20}\)`)
	signatureText = regexp.MustCompile(`\+A([0-9a-f]{40}@[0-9a-f]{8}|<sig>)`)
	suffixText    = regexp.MustCompile(` \([a-z0-9]{15}\)$`)
	tokenText     = regexp.MustCompile(`^\d{10}\+[0-9a-f]{8}$`)
)

func newReplayer(t *testing.T, c *Cluster) *replayer {
	cl := clientOf(t, c, "")
	r := &replayer{t: t, cl: cl, known: map[string]string{
		"<SYSTEM_ROOT_TOKEN>": c.SystemRootToken(), "<MANAGEMENT_TOKEN>": c.ManagementToken(),
	}}
	for _, who := range []struct{ secret, token, user, ours string }{
		{"<ALICE_SECRET>", "zzzzz-gj3su-aey2u9zwnz5ggdk", "zzzzz-tpzed-qwg13zau3j6bs4x", c.UserToken()},
		{"<ADMIN_SECRET>", "zzzzz-gj3su-67lfdnr0xxc4hsl", "zzzzz-tpzed-92x6hesofbechdv", c.AdminToken()},
	} {
		parts := strings.Split(who.ours, "/")
		r.known[who.token], r.known[who.secret] = parts[1], parts[2]
		r.known[who.user] = str(cl.as(who.ours).must("GET", "users/current", nil), "uuid")
	}
	// What the recording cluster had before the first capture: the image.
	root := cl.as(c.SystemRootToken())
	alice := r.known["zzzzz-tpzed-qwg13zau3j6bs4x"]
	const id = "sha256:462c169c35fd7a1ec837e80f1b7287747259b5e374fe023706938a7aea9f3413"
	image := root.must("POST", "collections", obj{"collection": obj{"owner_uuid": alice,
		"manifest_text": ". 3c36f5cd45a2ec64149d8ab3308e21f0+2058240 0:2058240:" + id + ".tar\n"}})
	if image["portable_data_hash"] != "2b03c1195a701a96c1b8c96da6618e58+129" {
		t.Fatalf("image collection: %v", image)
	}
	for class, name := range map[string]string{"docker_image_hash": id, "docker_image_repo+tag": "arvtest/busybox:latest"} {
		root.must("POST", "links", obj{"link": obj{"owner_uuid": alice, "link_class": class, "name": name, "head_uuid": image["uuid"]}})
	}
	return r
}

// ours is captured text with everything known replaced.
func (r *replayer) ours(s string) string {
	return uuidText.ReplaceAllStringFunc(s, func(m string) string {
		if v, ok := r.known[m]; ok {
			return v
		}
		return m
	})
}

// oursQuery is ours for text in which some of it may be percent-encoded.
func (r *replayer) oursQuery(s string) string {
	s = r.ours(s)
	var pairs []string
	for k, v := range r.known {
		if e := url.QueryEscape(k); e != k {
			pairs = append(pairs, e, url.QueryEscape(v))
		}
	}
	return strings.NewReplacer(pairs...).Replace(s)
}

// learn notes which of our strings stand for which captured ones.
func (r *replayer) learn(captured, ours any) {
	switch c := captured.(type) {
	case map[string]any:
		if o, ok := ours.(map[string]any); ok {
			for k, v := range c {
				r.learn(v, o[k])
			}
		}
	case []any:
		if o, ok := ours.([]any); ok && len(o) == len(c) {
			for i := range c {
				r.learn(c[i], o[i])
			}
		}
	case string:
		o, ok := ours.(string)
		if !ok {
			return
		}
		if c == "<CONTAINER_TOKEN_SECRET>" {
			r.known[c] = o
			return
		}
		cs, os := uuidText.FindAllString(c, -1), uuidText.FindAllString(o, -1)
		if len(cs) != len(os) {
			return
		}
		for i := range cs {
			if _, known := r.known[cs[i]]; !known {
				r.known[cs[i]] = os[i]
			}
		}
	}
}

// send sends a captured request and learns from the answer.
func (r *replayer) send(e exchange) answer {
	base, target := r.cl.base, e.Request.Path
	if e.Service == "keep" {
		base = r.cl.keep
	}
	if e.Request.URL != "" {
		u, err := url.Parse(e.Request.URL)
		if err != nil {
			r.t.Fatal(err)
		}
		if base, target = r.cl.base, u.RequestURI(); u.Scheme == "http" {
			base = r.cl.keep
		}
	}
	header := http.Header{}
	for k, v := range e.Request.Headers {
		switch k = http.CanonicalHeaderKey(k); k {
		case "Host", "Content-Length", "Accept-Encoding": // the transport's own
		default:
			header.Set(k, r.ours(v))
		}
	}
	body := []byte(bodyText(e.Request.Body))
	if base != r.cl.keep { // blocks are what they are
		body = []byte(r.oursQuery(string(body)))
	}
	a := r.cl.send(e.Request.Method, base+r.oursQuery(target), header, body)
	captured, ours := decode(e.Response.Body), any(string(a.body))
	if _, text := captured.(string); !text {
		ours = decode(a.body)
	}
	r.learn(captured, ours)
	return a
}

// bodyText is the body as it was sent: recorded as a JSON value, as text, or
// as a form with its raw text beside it.
func bodyText(raw json.RawMessage) string {
	if len(raw) == 0 || string(raw) == "null" {
		return ""
	}
	var s string
	if json.Unmarshal(raw, &s) == nil {
		return s
	}
	var form struct {
		Raw *string `json:"_raw"`
	}
	if json.Unmarshal(raw, &form) == nil && form.Raw != nil {
		return *form.Raw
	}
	return string(raw)
}

func decode(raw []byte) any {
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	var v any
	if dec.Decode(&v) != nil {
		return string(raw)
	}
	return v
}

// compare reports where our value is another one than the captured one, except
// for what is an accident of a cluster: times, UUIDs, signatures, request ids.
func (r *replayer) compare(path string, captured, ours any, report func(path, text string)) {
	join := func(k string) string { return strings.TrimPrefix(path+"."+k, ".") }
	switch c := captured.(type) {
	case map[string]any:
		o, ok := ours.(map[string]any)
		if !ok {
			report(path, fmt.Sprintf("%v is no object", ours))
			return
		}
		for _, k := range slices.Sorted(maps.Keys(c)) {
			if _, ok := o[r.ours(k)]; !ok {
				report(join(k), "missing")
				continue
			}
			r.compare(join(k), c[k], o[r.ours(k)], report)
		}
		captured := map[string]bool{}
		for k := range c {
			captured[r.ours(k)] = true
		}
		for k := range o {
			if !captured[k] {
				report(join(k), "not in the capture")
			}
		}
	case []any:
		o, ok := ours.([]any)
		if !ok || len(o) != len(c) {
			report(path, fmt.Sprintf("%v, want %v", ours, captured))
			return
		}
		for i := range c {
			r.compare(join(fmt.Sprint(i)), c[i], o[i], report)
		}
	case string:
		o, ok := ours.(string)
		last := path[strings.LastIndexByte(path, '.')+1:]
		switch {
		case !ok:
		case timeText.MatchString(c) && timeText.MatchString(o), tokenText.MatchString(c) && tokenText.MatchString(o):
			return
		case last == "etag":
			if (c == "") == (o == "") {
				return
			}
		case path == "email", path == "username", path == "full_name", path == "first_name", path == "last_name", strings.Contains(c, "localhost:9443"):
			return // names of people and places
		default:
			strip := func(s string) string {
				s = reqIDText.ReplaceAllString(s, "(req)")
				switch last {
				case "manifest_text": // signatures have the time in them
					s = signatureText.ReplaceAllString(s, "+A")
				case "name": // made unique by the end of the UUID
					s = suffixText.ReplaceAllString(s, " (suffix)")
				}
				return s
			}
			if strip(r.ours(c)) == strip(o) {
				return
			}
		}
		report(path, fmt.Sprintf("%#v, want %q", ours, r.ours(c)))
	case json.Number:
		o, ok := ours.(json.Number)
		// A container's priority holds the time of the request.
		big := func(n json.Number) bool { i, err := n.Int64(); return err == nil && i > 1<<49 }
		if !ok || o != c && !(strings.HasSuffix(path, "priority") && big(o) && big(c)) {
			report(path, fmt.Sprintf("%v, want %v", ours, c))
		}
	default:
		if captured != ours {
			report(path, fmt.Sprintf("%#v, want %#v", ours, captured))
		}
	}
}

// expected tells whether a difference is one of the table, and marks it used.
func expected(number, path string, used map[string]bool) bool {
	for p := path; ; {
		if key := number + " " + p; differences[key] != "" {
			used[key] = true
			return true
		}
		i := strings.LastIndexByte(p, '.')
		if i < 0 {
			return false
		}
		p = p[:i]
	}
}

func TestCaptures(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(capturesDir, "*.json"))
	if err != nil || len(files) < 150 {
		t.Fatalf("%d captures, %v", len(files), err)
	}
	r := newReplayer(t, start(t, Options{NoSync: true}))
	used := map[string]bool{}
	for _, file := range files {
		name := filepath.Base(file)
		if notReplayed[name] != "" {
			used[name] = true
			continue
		}
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var e exchange
		if err := json.Unmarshal(raw, &e); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		a := r.send(e)
		if a.status != e.Response.Status {
			t.Errorf("%s: status %d, want %d: %s", name, a.status, e.Response.Status, a.body)
			continue
		}
		captured := decode(e.Response.Body)
		if s, ok := captured.(string); ok {
			if ours := string(a.body); ours != s && ours != r.ours(s) {
				t.Errorf("%s: answer %q, want %q", name, ours, r.ours(s))
			}
			continue
		}
		r.compare("", captured, decode(a.body), func(path, text string) {
			if !expected(name[:3], path, used) {
				t.Errorf("%s: %s: %s", name, path, text)
			}
		})
	}
	for key, reason := range notReplayed {
		if !used[key] || reason == "" {
			t.Errorf("notReplayed[%q]: no such capture, or no reason", key)
		}
	}
	for key := range differences {
		if !used[key] {
			t.Errorf("differences[%q] is no longer one, or has no reason", key)
		}
	}
}
