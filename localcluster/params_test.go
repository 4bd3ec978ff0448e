package localcluster

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
)

func form(pairs ...string) (http.Header, []byte) {
	v := url.Values{}
	for i := 0; i < len(pairs); i += 2 {
		v.Set(pairs[i], pairs[i+1])
	}
	return http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}, []byte(v.Encode())
}

// All the ways in which clients are known to send parameters.
func TestParameterEncodings(t *testing.T) {
	p := setUp(t)
	api := p.user.base + "/arvados/v1/"
	_, container := p.submit(nil)
	coll := str(p.user.collection(obj{"name": "one"}), "uuid")
	long := strings.Repeat("x", 2000)
	h := func(more ...string) http.Header {
		out := http.Header{}
		for i := 0; i < len(more); i += 2 {
			out.Set(more[i], more[i+1])
		}
		return out
	}
	formHeader, _ := form()
	override := formHeader.Clone()
	override.Set("X-Http-Method-Override", "GET")
	enc := func(pairs ...string) []byte { _, b := form(pairs...); return b }
	for _, c := range []struct {
		name, method, path string
		header             http.Header
		body               []byte
		want               string // in the answer
	}{
		{"select in query", "GET", "containers/" + container + `?select=["uuid"]`, nil, nil, `{"uuid":"` + container + `"}`},
		{"form, JSON in values", "PUT", "containers/" + container, formHeader, enc("container", `{"priority":9}`, "select", `["priority"]`), `{"priority":9}`},
		{"JSON body", "PUT", "containers/" + container, jsonHeader, []byte(`{"container":{"priority":8},"select":["priority"]}`), `{"priority":8}`},
		{"JSON body, values as JSON strings", "PUT", "containers/" + container, jsonHeader, []byte(`{"container":"{\"priority\":7}","select":"[\"priority\"]"}`), `{"priority":7}`},
		{"JSON body, attributes at the top", "PATCH", "collections/" + coll + `?select=["name"]`, jsonHeader, []byte(`{"name":"two"}`), `"name":"two"`},
		{"front end, no Content-Type", "PUT", "collections/" + coll, http.Header{"Content-Type": nil}, []byte(`{"collection":{"name":"three"}}`), `"name":"three"`},
		{"back end, no Content-Type", "PUT", "containers/" + container, http.Header{"Content-Type": nil}, []byte(`{"container":{"priority":6},"select":["priority"]}`), `{"priority":6}`},
		{"back end, form without Content-Type", "PUT", "containers/" + container, http.Header{"Content-Type": nil}, enc("container", `{"priority":5}`, "select", `["priority"]`), `{"priority":5}`},
		{"multipart form", "PUT", "collections/" + coll, http.Header{"Content-Type": {"multipart/form-data; boundary=xyz"}},
			[]byte("--xyz\r\nContent-Disposition: form-data; name=\"collection\"\r\n\r\n{\"name\":\"four\"}\r\n--xyz--\r\n"), `"name":"four"`},
		{"charset", "PUT", "collections/" + coll, http.Header{"Content-Type": {"application/json; charset=utf-8"}}, []byte(`{"collection":{"name":"five"}}`), `"name":"five"`},
		{"empty strings of the Go SDK", "GET", "collections?cluster_id=&count=&limit=&offset=&order=&filters=&select=&include_trash=", nil, nil, `"items_available"`},
		{"null in the query", "GET", "collections?cluster_id=null&count=null&limit=null&offset=null&order=null&filters=null&select=null&include_trash=null&distinct=null", nil, nil, `"items_available"`},
		{"alt=json", "GET", "users/current?alt=json", nil, nil, `"is_active":true`},
		{"GET by POST, header", "POST", "collections", override, enc("filters", `[["uuid","=","`+coll+`"],["name","!=","`+long+`"]]`), `"items_available":1`},
		{"GET by POST, form", "POST", "containers", formHeader, enc("_method", "GET", "filters", `[["uuid","=","`+container+`"]]`), `"items_available":1`},
		{"method in query, front end", "POST", "collections?_method=GET&limit=0", nil, nil, `"items":[]`},
		{"booleans as words", "GET", "collections/" + coll + "?include_trash=false", nil, nil, coll},
		{"GET with a form type and no body", "GET", "users/current", formHeader, nil, `"username":"user"`},
		{"unknown parameters", "GET", "users/current?nosuch=1&reader_tokens=[]", nil, nil, `"username":"user"`},
	} {
		cl := p.user
		if strings.HasPrefix(c.path, "containers") {
			cl = p.root
		}
		a := cl.send(c.method, api+c.path, c.header, c.body)
		if a.status != 200 || !strings.Contains(string(a.body), c.want) {
			t.Errorf("%s: %d %s, want %s in it", c.name, a.status, a.body, c.want)
		}
	}
	// Tokens by every route.
	basic := base64.StdEncoding.EncodeToString([]byte("anybody:" + p.c.UserToken()))
	cookie := base64.URLEncoding.EncodeToString([]byte(p.c.UserToken()))
	secret := strings.Split(p.c.UserToken(), "/")[2]
	nobody := p.user.as("")
	for _, c := range []struct {
		name, query string
		header      http.Header
		status      int
	}{
		{"bearer", "", h("Authorization", "Bearer "+p.c.UserToken()), 200},
		{"oauth2", "", h("Authorization", "OAuth2 "+p.c.UserToken()), 200},
		{"v1", "", h("Authorization", "Bearer "+secret), 200},
		{"scheme in lower case", "", h("Authorization", "bearer "+p.c.UserToken()), 401},
		{"basic", "", h("Authorization", "Basic "+basic), 200},
		{"cookie", "", h("Cookie", "arvados_api_token="+cookie), 200},
		{"query", "?api_token=" + url.QueryEscape(p.c.UserToken()), nil, 200},
		{"none", "", nil, 401},
		{"system root token in v2 form", "", h("Authorization", "Bearer v2/zzzzz-gj3su-000000000000000/"+p.c.SystemRootToken()), 401},
		{"half a v2 token", "", h("Authorization", "Bearer "+strings.Join(strings.Split(p.c.UserToken(), "/")[:2], "/")), 401},
		{"another secret", "", h("Authorization", "Bearer "+p.c.UserToken()+"x"), 401},
		{"fourth part of no container", "", h("Authorization", "Bearer "+p.c.UserToken()+"/zzzzz-dz642-000000000000000"), 200},
		{"fourth part of somebody's container", "", h("Authorization", "Bearer "+p.c.UserToken()+"/"+container), 401},
		{"fifth part", "", h("Authorization", "Bearer "+p.c.UserToken()+"/x/y"), 401},
	} {
		if a := nobody.send("GET", api+"users/current"+c.query, c.header, nil); a.status != c.status {
			t.Errorf("token by %s: %d, want %d: %s", c.name, a.status, c.status, a.body)
		}
	}
	if a := nobody.send("POST", api+"container_requests", formHeader, enc("api_token", p.c.UserToken(), "container_request", `{}`)); a.status != 422 {
		t.Errorf("token in the form: %d %s", a.status, a.body)
	}
}

func TestBadRequests(t *testing.T) {
	p := setUp(t)
	api := p.user.base + "/arvados/v1/"
	_, container := p.submit(nil)
	coll := str(p.user.collection(obj{"name": "one"}), "uuid")
	formHeader, _ := form()
	for _, c := range []struct {
		method, path string
		header       http.Header
		body         string
		status       int
	}{
		{"GET", "containers?filters=[[", nil, "", 400},
		{"GET", "collections?filters=[[", nil, "", 400},
		{"GET", "collections?filters={}", nil, "", 422},
		{"GET", "collections?limit=x", nil, "", 400},
		{"GET", "containers?limit=x", nil, "", 422},
		{"GET", "containers?limit=-1", nil, "", 422},
		{"GET", "containers?offset=x", nil, "", 422},
		{"GET", "containers?count=some", nil, "", 422},
		{"GET", "containers?select=[\"uuid\",\"nosuch\"]", nil, "", 422},
		{"GET", "containers?select=[\"secret_mounts\"]", nil, "", 422},
		{"GET", "container_requests?select=[\"secret_mounts\"]", nil, "", 422},
		{"GET", "api_client_authorizations?select=[\"api_token\"]", nil, "", 422},
		{"GET", "containers?select={}", nil, "", 422},
		{"GET", "containers?a=1;b=2", nil, "", 400},
		{"GET", "containers?filters=%ff", nil, "", 400},
		{"GET", "collections?include_trash=maybe", nil, "", 422},
		{"PUT", "containers/" + container, jsonHeader, `{"container":`, 422},
		{"PUT", "containers/" + container, jsonHeader, `[]`, 422},
		{"PUT", "containers/" + container, jsonHeader, `{"container":5}`, 422},
		{"PUT", "containers/" + container, jsonHeader, "{\"container\":{\"log\":\"\xff\"}}", 422},
		{"PUT", "containers/" + container, jsonHeader, `{"container":{"uuid":"zzzzz-dz642-000000000000001"}}`, 422},
		{"PUT", "containers/" + container, jsonHeader, `{"container":{"priority":-1}}`, 422},
		{"PUT", "containers/" + container, jsonHeader, `{"container":{"priority":"high"}}`, 422},
		{"PUT", "containers/" + container, jsonHeader, `{"container":{"priority":1.5}}`, 422},
		{"PUT", "containers/" + container, jsonHeader, `{"container":{"priority":null}}`, 200},
		{"PUT", "containers/" + container, jsonHeader, `{"container":{"state":"Resting"}}`, 422},
		{"PUT", "containers/" + container, jsonHeader, `{"container":{"state":null}}`, 422},
		{"PUT", "collections/" + coll, jsonHeader, `{"collection":`, 400},
		{"PUT", "collections/" + coll, formHeader, `collection={"name":`, 400},
		{"PUT", "collections/" + coll, formHeader, `collection=%zz`, 400},
		{"PUT", "collections/" + coll, http.Header{"Content-Type": {"text/plain"}}, `{"collection":{"name":"x"}}`, 415},
		{"PUT", "containers/" + container, http.Header{"Content-Type": {"application/octet-stream"}}, `{"container":{"priority":1}}`, 415},
		{"PUT", "collections/" + coll, http.Header{"Content-Type": {"application/json"}, "Content-Encoding": {"gzip"}}, "\x1f\x8b", 415},
		{"PUT", "collections/" + coll, http.Header{"Content-Type": {"multipart/form-data"}}, "x", 400},
		{"PUT", "collections/" + coll, http.Header{"Content-Type": {"multipart/form-data; boundary=a"}}, "--a\r\nContent-Disposition: form-data; name=\"f\"; filename=\"f\"\r\n\r\nx\r\n--a--\r\n", 400},
		{"PUT", "collections/" + coll, jsonHeader, `{"collection":{"properties":[]}}`, 422},
		{"PUT", "collections/" + coll, jsonHeader, `{"collection":{"name":5}}`, 422},
		{"PUT", "collections/" + coll, jsonHeader, `{"collection":{"name":"a\u0000b"}}`, 422},
		{"PUT", "collections/" + coll, jsonHeader, `{"collection":{"name":"a/b"}}`, 422},
		{"PUT", "collections/" + coll, jsonHeader, `{"collection":{"name":".."}}`, 422},
		{"PUT", "collections/" + coll, jsonHeader, `{"collection":{"name":"` + strings.Repeat("n", 256) + `"}}`, 422},
		{"PUT", "collections/" + coll, jsonHeader, `{"collection":{"trash_at":"tomorrow"}}`, 422},
		{"PUT", "collections/" + coll, jsonHeader, `{"collection":{"storage_classes_desired":[]}}`, 422},
		{"PUT", "collections/" + coll, jsonHeader, `{"collection":{"nosuch":1}}`, 422},
		{"PUT", "collections/" + coll, jsonHeader, `{"collection":{"owner_uuid":"zzzzz-tpzed-999999999999999"}}`, 422},
		{"PUT", "collections/" + coll, jsonHeader, `{"collection":{"owner_uuid":"zzzzz-tpzed-000000000000000"}}`, 403},
		{"PUT", "collections/" + coll, jsonHeader, ``, 200},
		{"PUT", "containers/" + container, jsonHeader, ``, 200},
		{"POST", "collections", jsonHeader, `{"kind":"arvados#collection"}`, 422},
		{"POST", "collections", jsonHeader, `{"collection":{},"select":["nosuch"]}`, 422},
		{"DELETE", "containers/" + container, nil, "", 404},
		{"POST", "users/current", nil, "", 405},
		{"BREW", "collections", nil, "", 405},
		{"POST", "containers/" + container + "/nosuch", nil, "", 404},
		{"GET", "containers/" + container + "/auth/more", nil, "", 404},
		{"GET", "/containers", nil, "", 404},
		{"GET", "", nil, "", 404},
		{"GET", "../../etc/passwd", nil, "", 404},
		{"POST", "connect/" + container + "/gateway_tunnel", nil, "", 401},
		{"GET", "collections/yyyyy-4zz18-000000000000000", nil, "", 404},
		{"GET", "containers/" + coll, nil, "", 404},
	} {
		cl := p.user
		if strings.HasPrefix(c.path, "containers/") {
			cl = p.root
		}
		a := cl.send(c.method, api+c.path, c.header, []byte(c.body))
		if a.status != c.status {
			t.Errorf("%s %s %s: %d, want %d: %s", c.method, c.path, c.body, a.status, c.status, a.body)
		}
		if errs, _ := a.obj["errors"].([]any); a.status >= 400 && len(errs) == 0 {
			t.Errorf("%s %s: no errors in %s", c.method, c.path, a.body)
		}
	}
}

// endless is a body that never ends and counts what was taken of it.
type endless struct{ n atomic.Int64 }

func (e *endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	e.n.Add(int64(len(p)))
	return len(p), nil
}

func TestBodyLimit(t *testing.T) {
	c := start(t, Options{NoSync: true})
	cl := clientOf(t, c, c.UserToken())
	for name, body := range map[string]io.Reader{"length announced": bytes.NewReader(make([]byte, 128<<20+1)), "chunked": &endless{}} {
		req, err := http.NewRequest("POST", cl.base+"/arvados/v1/collections", body)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Authorization", "Bearer "+c.UserToken())
		resp, err := cl.http.Do(req)
		if err != nil {
			// The server stops reading; the client may see that first.
			t.Logf("%s: %v", name, err)
			continue
		}
		resp.Body.Close()
		if resp.StatusCode != 413 {
			t.Errorf("%s: %d", name, resp.StatusCode)
		}
	}
	// Nobody without a token gets that far.
	e := &endless{}
	req, _ := http.NewRequest("POST", cl.base+"/arvados/v1/collections", e)
	req.Header.Set("Authorization", "Bearer wrong")
	if resp, err := cl.http.Do(req); err == nil {
		resp.Body.Close()
		if resp.StatusCode != 401 {
			t.Errorf("wrong token: %d", resp.StatusCode)
		}
	}
	if e.n.Load() > 8<<20 {
		t.Errorf("%d bytes were taken from somebody without a token", e.n.Load())
	}
}

func TestRequestID(t *testing.T) {
	c := start(t, Options{NoSync: true})
	cl := clientOf(t, c, c.UserToken())
	url := cl.base + "/arvados/v1/containers/zzzzz-dz642-000000000000000"
	for _, c := range []struct {
		sent string
		kept bool
	}{{"req-0123456789abcdefghij", true}, {"whatever a client likes", true}, {strings.Repeat("x", 1024), true}, {strings.Repeat("x", 1025), false}, {"", false}} {
		a := cl.send("GET", url, http.Header{"X-Request-Id": {c.sent}}, nil)
		id := a.header.Get("X-Request-Id")
		if c.kept != (id == c.sent) || !strings.Contains(string(a.body), fmt.Sprintf("(%s)", id)) || !c.kept && !strings.HasPrefix(id, "req-") {
			t.Errorf("sent %.30q, got %.30q in %.100s", c.sent, id, a.body)
		}
	}
}
