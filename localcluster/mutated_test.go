package localcluster

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"crunch-oci/internal/syncbuf"
)

// strange are values that clients do not send, as JSON.
var strange = []string{
	`null`, `true`, `false`, `0`, `-1`, `0.5`, `1e400`, `-9223372036854775809`, `18446744073709551616`, `1e18`, `""`, `"x"`, `"\u0000"`, `"\ud800"`, `"0"`, `"-"`,
	`[]`, `{}`, `[null]`, `[[]]`, `{"":null}`, `{"a":{"b":[1,{"c":null}]}}`, `["a",1,null,{}]`, `[["uuid","=","x"]]`, `[["modified_at",">","0000-00-00T00:00:00Z"]]`,
	`"9999-12-31T23:59:59.999999999Z"`, `"0000-01-01T00:00:00Z"`, `"2026-02-30T00:00:00Z"`, `"zzzzz-4zz18-000000000000000"`, `"zzzzz-tpzed-000000000000000"`,
	`"d41d8cd98f00b204e9800998ecf8427e+0"`, `". d41d8cd98f00b204e9800998ecf8427e+0 0:0:a\n"`, `"Queued"`, `"Running"`, `"Final"`, `"v2/a/b"`, `"../.."`, `"é\n\t"`,
	`[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]`, `"` + strings.Repeat("long ", 4000) + `"`, `[["properties.a","contains",[1]],["uuid","in",[null]]]`,
}

// mutate returns a decoded JSON value in which something, at any depth, is another
// value, or is missing, or is under another name.
func mutate(rnd *rand.Rand, v any) any {
	switch c := v.(type) {
	case map[string]any:
		if len(c) == 0 || rnd.IntN(8) == 0 {
			break
		}
		keys := slices.Sorted(maps.Keys(c))
		k := keys[rnd.IntN(len(keys))]
		out := map[string]any{}
		for n, e := range c {
			out[n] = e
		}
		switch rnd.IntN(12) {
		case 0:
			delete(out, k)
		case 1:
			out[k+"x"] = c[k]
		case 2:
			out[[]string{"uuid", "owner_uuid", "state", "priority", "select", "ensure_unique_name", "kind", "trash_at", "manifest_text", "", "a\x00b"}[rnd.IntN(11)]] = odd(rnd)
		default:
			out[k] = mutate(rnd, c[k])
		}
		return out
	case []any:
		if len(c) == 0 || rnd.IntN(8) == 0 {
			break
		}
		out := append([]any{}, c...)
		i := rnd.IntN(len(c))
		out[i] = mutate(rnd, c[i])
		return out
	}
	return odd(rnd)
}

func odd(rnd *rand.Rand) any { return json.RawMessage(strange[rnd.IntN(len(strange))]) }

// TestMutatedRequests sends captured requests with something wrong in them:
// whatever it is, the answer is a refusal or a success, in the shape of one, and
// never a failure of the server. LOCALCLUSTER_TEST_STEPS and _SEED are as for
// TestRandomOperations.
func TestMutatedRequests(t *testing.T) {
	steps, err := strconv.Atoi(os.Getenv("LOCALCLUSTER_TEST_STEPS"))
	if err != nil {
		steps = 1500
		if os.Getenv("LOCALCLUSTER_TEST_STEPS") == "long" {
			steps = 60000
		} else if raceDetector {
			steps = 300
		}
	}
	seed := rand.Uint64()
	if v := os.Getenv("LOCALCLUSTER_TEST_SEED"); v != "" {
		if seed, err = strconv.ParseUint(v, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("LOCALCLUSTER_TEST_SEED=%d", seed)
	rnd := rand.New(rand.NewPCG(seed, 2))
	var said syncbuf.Buffer
	c := start(t, Options{NoSync: true, Log: slog.New(slog.NewTextHandler(&said, &slog.HandlerOptions{Level: slog.LevelError}))})
	r := newReplayer(t, c)
	files, err := filepath.Glob(filepath.Join(capturesDir, "[0-9]*.json"))
	if err != nil {
		t.Fatal(err)
	}
	var captured []exchange
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var e exchange
		if err := json.Unmarshal(raw, &e); err != nil {
			t.Fatal(err)
		}
		r.send(e) // now there is something that later ones are about
		if strings.HasPrefix(e.Request.Path, "/arvados/") {
			captured = append(captured, e)
		}
	}
	tokens := []string{c.SystemRootToken(), c.UserToken(), c.AdminToken(), c.DispatcherToken()}
	answers := map[int]int{}
	for step := range steps {
		e := captured[rnd.IntN(len(captured))]
		u, err := url.Parse(r.oursQuery(e.Request.URL))
		if err != nil {
			t.Fatal(err)
		}
		header := http.Header{"Authorization": {"Bearer " + tokens[rnd.IntN(len(tokens))]}}
		query := u.Query()
		text := bodyText(e.Request.Body)
		body, _ := decode([]byte(text)).(map[string]any)
		if body == nil {
			body = map[string]any{}
			form, _ := url.ParseQuery(text)
			for k, v := range form {
				body[k] = decode([]byte(v[0]))
			}
		}
		ours, err := json.Marshal(body)
		if err != nil {
			t.Fatal(err)
		}
		body, _ = decode([]byte(r.ours(string(ours)))).(map[string]any)
		if rnd.IntN(4) == 0 || len(body) == 0 {
			name := []string{"select", "filters", "order", "limit", "offset", "count", "distinct", "include_trash", "where", "ensure_unique_name", "uuid", "_method"}[rnd.IntN(12)]
			query.Set(name, strange[rnd.IntN(len(strange))])
		}
		sent := []byte{}
		if len(body) > 0 {
			if sent, err = json.Marshal(mutate(rnd, body)); err != nil {
				t.Fatal(err)
			}
			header.Set("Content-Type", "application/json")
			if m := map[string]json.RawMessage{}; rnd.IntN(3) == 0 && json.Unmarshal(sent, &m) == nil {
				form := url.Values{}
				for k, v := range m {
					form.Set(k, string(v))
				}
				sent = []byte(form.Encode())
				header.Set("Content-Type", "application/x-www-form-urlencoded")
			}
		}
		target := r.cl.base + u.Path + "?" + query.Encode()
		a, err := r.cl.as("").try(e.Request.Method, target, header, sent)
		what := fmt.Sprintf("step %d: %s %s %.2000s", step, e.Request.Method, target, sent)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		errs, _ := a.obj["errors"].([]any)
		if a.status >= 500 || a.obj == nil || (a.status >= 400) != (len(errs) > 0) {
			t.Fatalf("%s: %d %.500s", what, a.status, a.body)
		}
		if text := said.String(); text != "" {
			t.Fatalf("%s: %s", what, text)
		}
		answers[a.status]++
	}
	t.Logf("answers by status: %v", answers)
}
