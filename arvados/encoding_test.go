package arvados

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
)

func TestRawRequest(t *testing.T) {
	var want struct {
		Method, Path, Body string
		Headers            map[string]string
	}
	vectors(t, &want, "raw_request")
	var got struct {
		sent
		header http.Header
	}
	c, _, _ := newTestServer(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		got.sent, got.header = sent{method: r.Method, target: r.RequestURI, body: string(body)}, r.Header
		io.WriteString(w, `{"uuid":"xmpl1-dz642-7k2v9q4m1x8c3b5"}`)
	})
	err := c.UpdateContainer(context.Background(), "xmpl1-dz642-7k2v9q4m1x8c3b5", map[string]any{
		"state": "Running", "log": "eed6ad1bce794319b98169d15344daf4+182", "gateway_address": "10.0.0.17:41234"})
	if err != nil {
		t.Fatal(err)
	}
	if got.method != want.Method || got.target != want.Path || got.body != want.Body {
		t.Errorf("got %+v", got.sent)
	}
	for name, value := range want.Headers {
		switch name {
		case "Authorization":
			value = "Bearer " + dispatcherToken
		case "X-Request-Id":
			if len(got.header.Get(name)) != len(value) {
				t.Errorf("%s: %q", name, got.header.Get(name))
			}
			continue
		}
		if got.header.Get(name) != value {
			t.Errorf("%s: %q, want %q", name, got.header.Get(name), value)
		}
	}
}

func TestGetParameters(t *testing.T) {
	var got sent
	var form url.Values
	c, _, _ := newTestServer(t, func(w http.ResponseWriter, r *http.Request) {
		r.ParseForm()
		got = sent{r.Method, r.RequestURI, "", r.Header.Get("X-Http-Method-Override"), r.Header.Get("Content-Type"), ""}
		form = r.Form
		io.WriteString(w, `{"items":[]}`)
	})
	params := map[string]any{
		"filters": [][]any{{"uuid", "=", "a&b"}, {"priority", ">", 0}},
		"order":   "priority desc",
		"limit":   0, "distinct": false, "unset": nil,
	}
	if err := c.Call(context.Background(), "GET", "/arvados/v1/containers", params, nil); err != nil {
		t.Fatal(err)
	}
	if got.method != "GET" || got.contentType != "" || got.override != "" || !strings.HasPrefix(got.target, "/arvados/v1/containers?") {
		t.Errorf("%+v", got)
	}
	for name, want := range map[string]string{"filters": `[["uuid","=","a&b"],["priority",">",0]]`, "order": "priority desc", "limit": "0", "distinct": "false"} {
		if form.Get(name) != want {
			t.Errorf("%s = %q, want %q", name, form.Get(name), want)
		}
	}
	if form.Has("unset") {
		t.Error("a nil parameter was sent")
	}

	// From 1000 bytes on, the query goes into the body of a POST.
	for _, tc := range []struct {
		length int
		method string
	}{{999, "GET"}, {1000, "POST"}} {
		value := strings.Repeat("x", tc.length-len("k="))
		if err := c.Call(context.Background(), "GET", "containers", map[string]any{"k": value}, nil); err != nil {
			t.Fatal(err)
		}
		if got.method != tc.method || (got.override == "GET") != (tc.method == "POST") || form.Get("k") != value {
			t.Errorf("query of %d bytes: %s, override %q", tc.length, got.method, got.override)
		}
		if tc.method == "POST" && (got.target != "/arvados/v1/containers" || got.contentType != "application/x-www-form-urlencoded") {
			t.Errorf("%+v", got)
		}
	}
}

func TestUnencodableParameter(t *testing.T) {
	c, _, _ := newTestServer(t, func(w http.ResponseWriter, r *http.Request) { t.Error("sent") })
	err := c.Call(context.Background(), "PUT", "x", map[string]any{"container": func() {}}, nil)
	if err == nil || !strings.Contains(err.Error(), "parameter container") {
		t.Fatal(err)
	}
}
