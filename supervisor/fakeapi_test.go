package supervisor

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"crunch-oci/arvados"
)

const (
	testUUID        = "zzzzz-dz642-000000000000000"
	dispatcherToken = "v2/zzzzz-gj3su-dispatcher00000/dispatchersecretdispatchersecret"
	containerToken  = "v2/zzzzz-gj3su-000000000000000/secretsecret/" + testUUID
	logUUID         = "zzzzz-4zz18-log000000000001"
)

// fakeAPI is the part of an API server that a run talks to, with its rules: who
// may ask for what, which states follow which, which attributes may change when
// (specification lifecycle.md, section 4).
type fakeAPI struct {
	*httptest.Server
	w *world

	mu          sync.Mutex
	record      map[string]any            // of the container
	secrets     map[string]any            // secret mounts; nil: 404
	collections map[string]string         // manifest texts by portable data hash
	names       map[string]string         // what the trace calls a hash
	logs        int                       // saves of the log
	savedLog    string                    // its hash
	output      string                    // the hash of the output
	calls       []*call                   // in the order they came in
	refuse      func(*call) (status int)  // 0: do not
	edit        func(c *call, answer any) // may change what is answered
	states      []string                  // sent and accepted
}

// call is one request as the server has understood it.
type call struct {
	Token, Method, Path string
	Params              map[string]any
	Failed              bool
	label               string
	savedLog, output    string // hashes at its end
}

func startAPI(w *world) *fakeAPI {
	a := &fakeAPI{w: w, collections: make(map[string]string), names: make(map[string]string)}
	a.Server = httptest.NewUnstartedServer(a)
	a.Config.ErrorLog = log.New(io.Discard, "", 0) // clients may go away
	a.StartTLS()
	return a
}

// client is the real client, in a time in which waiting takes none.
func (a *fakeAPI) client(tb testing.TB) *arvados.Client {
	tb.Helper()
	c, err := arvados.NewClient(arvados.Config{
		Host: strings.TrimPrefix(a.URL, "https://"), Token: dispatcherToken, Insecure: true, Clock: newIdleClock(),
	})
	if err != nil {
		tb.Fatal(err)
	}
	return c
}

// idleClock is a clock that is moved by sleeping.
type idleClock struct {
	mu  sync.Mutex
	now time.Time
}

// newIdleClock begins a year after the one before: what the client remembers of a
// server, which is known by its address, and when, must be long past when another
// server gets the same port.
func newIdleClock() *idleClock {
	return &idleClock{now: time.Time{}.AddDate(int(idleClocks.Add(1)), 0, 0)}
}

var idleClocks atomic.Int32

func (c *idleClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *idleClock) Sleep(ctx context.Context, d time.Duration) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
	return ctx.Err()
}

// put stores a collection and returns its portable data hash.
func (a *fakeAPI) put(manifest string) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	pdh := fmt.Sprintf("%x+%d", md5.Sum([]byte(manifest)), len(manifest))
	a.collections[pdh] = manifest
	return pdh
}

// arrived notes a call when it comes, as one that fails unless it is answered: that
// its client has gone may be seen here long after the client's next call.
func (a *fakeAPI) arrived(c *call) {
	a.mu.Lock()
	defer a.mu.Unlock()
	c.Failed = true
	a.calls = append(a.calls, c)
}

// forget takes back a call that a test has refused before it was looked at.
func (a *fakeAPI) forget(c *call) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.calls = slices.DeleteFunc(a.calls, func(o *call) bool { return o == c })
}

// called returns the calls so far.
func (a *fakeAPI) called() (all []call) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, c := range a.calls {
		all = append(all, *c)
	}
	return all
}

// ServeHTTP implements http.Handler.
func (a *fakeAPI) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	c, err := a.understand(r)
	if err == nil {
		a.arrived(c)
		err = a.w.op(r.Context(), c.label)
	}
	if r.Context().Err() != nil { // the client has gone
		// Not return: that would be an answer, 200, which may still arrive.
		panic(http.ErrAbortHandler)
	}
	var answer any
	if err == nil {
		a.mu.Lock()
		defer a.mu.Unlock()
		answer, err = a.serve(c)
		if a.edit != nil {
			a.edit(c, answer)
		}
		c.Failed, c.savedLog, c.output = err != nil, a.savedLog, a.output
	} else if c != nil {
		a.forget(c)
	}
	rw.Header().Set("Content-Type", "application/json")
	if err != nil {
		status := http.StatusUnprocessableEntity
		if e, ok := err.(refusal); ok {
			status = int(e)
		}
		rw.WriteHeader(status)
		answer = map[string]any{"errors": []string{err.Error()}}
	}
	text, err := json.Marshal(answer)
	if err != nil {
		panic(err)
	}
	_, _ = rw.Write(text)
}

// refusal is an HTTP status.
type refusal int

func (r refusal) Error() string { return http.StatusText(int(r)) }

// understand decodes a request, and gives it the name that it has in traces.
func (a *fakeAPI) understand(r *http.Request) (*call, error) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, refusal(http.StatusBadRequest)
	}
	values := r.URL.Query()
	if len(body) > 0 {
		if values, err = url.ParseQuery(string(body)); err != nil {
			return nil, refusal(http.StatusBadRequest)
		}
	}
	c := &call{Method: r.Method, Path: r.URL.Path, Params: make(map[string]any)}
	for k, v := range values {
		d := json.NewDecoder(strings.NewReader(v[0]))
		d.UseNumber()
		var decoded any
		if d.Decode(&decoded) != nil {
			decoded = v[0]
		}
		c.Params[k] = decoded
	}
	switch strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ") {
	case dispatcherToken:
		c.Token = "dispatcher"
	case containerToken:
		c.Token = "container"
	default:
		return nil, refusal(http.StatusUnauthorized)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	c.label = a.label(c)
	return c, nil
}

// label is one line that says what a call is about. Hashes get names, since
// those of logs depend on times.
func (a *fakeAPI) label(c *call) string {
	path := strings.TrimPrefix(c.Path, "/arvados/v1/")
	path = strings.NewReplacer(testUUID, "UUID", logUUID, "LOG").Replace(path)
	for pdh, name := range a.names {
		path = strings.ReplaceAll(path, pdh, name)
	}
	words := []string{c.Token, c.Method, path}
	for _, k := range slices.Sorted(maps.Keys(c.Params)) {
		v := c.Params[k]
		switch k {
		case "select":
			continue
		case "collection":
			words = append(words, a.describeCollection(v.(map[string]any))...)
			continue
		}
		words = append(words, k+"="+a.text(v))
	}
	return strings.Join(words, " ")
}

func (a *fakeAPI) text(v any) string {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		panic(err)
	}
	text := strings.TrimSpace(b.String())
	for pdh, name := range a.names {
		text = strings.ReplaceAll(text, pdh, name)
	}
	return strings.ReplaceAll(text, testUUID, "UUID")
}

func (a *fakeAPI) describeCollection(attrs map[string]any) (words []string) {
	for _, k := range slices.Sorted(maps.Keys(attrs)) {
		v := attrs[k]
		switch k {
		case "manifest_text":
			words = append(words, "files="+strings.Join(topFiles(v.(string)), ","))
		case "trash_at", "delete_at":
			at, err := time.Parse(time.RFC3339, v.(string))
			days := time.Until(at).Round(time.Hour).Hours() / 24
			if err != nil {
				days = -1
			}
			words = append(words, fmt.Sprintf("%s=%+gdays", k, days))
		default:
			words = append(words, k+"="+a.text(v))
		}
	}
	return words
}

// topFiles are the names of the files at the top of a manifest, sorted.
func topFiles(manifest string) (names []string) {
	for line := range strings.Lines(manifest) {
		words := strings.Fields(line)
		for _, w := range words[1:] {
			if parts := strings.SplitN(w, ":", 3); len(parts) == 3 && words[0] == "." && !slices.Contains(names, parts[2]) {
				names = append(names, parts[2])
			}
		}
	}
	slices.Sort(names)
	return names
}

// reached says whether the container has been in a state.
func (a *fakeAPI) reached(state string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Contains(a.states, state)
}

// serve does what is asked. It is called with the lock.
func (a *fakeAPI) serve(c *call) (any, error) {
	if a.refuse != nil {
		if status := a.refuse(c); status != 0 {
			return nil, refusal(status)
		}
	}
	path := strings.TrimPrefix(c.Path, "/arvados/v1/")
	resource, id, _ := strings.Cut(path, "/")
	switch {
	case path == "containers/"+testUUID && c.Method == "GET":
		return maps.Clone(a.record), nil
	case path == "containers/"+testUUID && c.Method == "PUT":
		return map[string]any{"uuid": testUUID}, a.update(c)
	case path == "containers/"+testUUID+"/auth" && c.Token == "dispatcher":
		parts := strings.Split(containerToken, "/")
		return map[string]any{"uuid": parts[1], "api_token": parts[2]}, nil
	case path == "containers/"+testUUID+"/secret_mounts" && c.Token == "container":
		if a.secrets == nil {
			return nil, refusal(http.StatusNotFound)
		}
		return map[string]any{"secret_mounts": a.secrets}, nil
	case path == "containers":
		return map[string]any{"items": []any{a.record}}, nil
	case resource == "collections" && c.Method != "GET":
		return a.save(c, id)
	case resource == "collections" && c.Token == "container":
		manifest, ok := a.collections[id]
		if !ok {
			return nil, refusal(http.StatusNotFound)
		}
		return map[string]any{"uuid": nil, "portable_data_hash": id, "manifest_text": manifest}, nil
	}
	return nil, refusal(http.StatusForbidden)
}

func (a *fakeAPI) save(c *call, id string) (any, error) {
	attrs := c.Params["collection"].(map[string]any)
	isLog := strings.HasPrefix(attrs["name"].(string), "logs for ")
	if isLog != (c.Token == "dispatcher") || id != "" && id != logUUID {
		return nil, refusal(http.StatusForbidden)
	}
	manifest, changed := attrs["manifest_text"].(string)
	if !changed {
		manifest = a.collections[a.savedLog]
	}
	pdh := fmt.Sprintf("%x+%d", md5.Sum([]byte(manifest)), len(manifest))
	a.collections[pdh] = manifest
	name := "OUTPUT"
	if isLog {
		a.logs++
		a.savedLog, name = pdh, fmt.Sprintf("LOG%d", a.logs)
	} else {
		a.output = pdh
	}
	a.names[pdh] = name
	return map[string]any{"uuid": logUUID, "portable_data_hash": pdh}, nil
}

// accepts lists the attributes that may change on the way to a state.
var accepts = map[string]string{
	"Locked>Queued":     "state priority",
	"Locked>Locked":     "priority runtime_status log",
	"Locked>Running":    "state priority runtime_status log gateway_address cost exit_code output output_properties progress",
	"Running>Running":   "priority runtime_status log gateway_address cost exit_code output output_properties progress",
	"Locked>Cancelled":  "state log runtime_status cost",
	"Running>Cancelled": "state priority runtime_status log gateway_address cost exit_code output output_properties progress",
	"Running>Complete":  "state priority runtime_status log gateway_address cost exit_code output output_properties progress",
}

func (a *fakeAPI) update(c *call) error {
	if c.Token != "dispatcher" {
		return refusal(http.StatusForbidden)
	}
	attrs := c.Params["container"].(map[string]any)
	from := a.record["state"].(string)
	to, changes := attrs["state"].(string)
	if !changes {
		to = from
	}
	allowed, ok := accepts[from+">"+to]
	if !ok {
		return fmt.Errorf("state may not change from %s to %s", from, to)
	}
	for k, v := range attrs {
		if v == nil || a.text(v) == a.text(a.record[k]) {
			continue
		}
		if !slices.Contains(strings.Fields(allowed), k) {
			return fmt.Errorf("%s may not change on the way from %s to %s", k, from, to)
		}
		if pdh, _ := v.(string); (k == "log" || k == "output") && a.collections[pdh] == "" && pdh != "d41d8cd98f00b204e9800998ecf8427e+0" {
			return fmt.Errorf("%s %v is no collection", k, v)
		}
	}
	maps.Copy(a.record, attrs)
	if changes {
		a.states = append(a.states, to)
	}
	return nil
}
