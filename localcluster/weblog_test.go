package localcluster

import (
	"encoding/base64"
	"encoding/json"
	"encoding/xml"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
)

// davEntries are the paths and sizes of a PROPFIND answer, relative to prefix.
func davEntries(t *testing.T, body []byte, prefix string) []string {
	t.Helper()
	if !strings.Contains(string(body), `<D:multistatus xmlns:D="DAV:">`) {
		t.Errorf("the namespace prefix is not D: %s", body)
	}
	var ms struct {
		Responses []struct {
			Href string `xml:"href"`
			Size string `xml:"propstat>prop>getcontentlength"`
			Type string `xml:"propstat>prop>getcontenttype"`
		} `xml:"response"`
	}
	if err := xml.Unmarshal(body, &ms); err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, r := range ms.Responses {
		rel, ok := strings.CutPrefix(r.Href, prefix)
		if !ok {
			t.Errorf("href %q is not below %q", r.Href, prefix)
		}
		if r.Size != "" {
			rel += " " + r.Size + " " + r.Type
		}
		out = append(out, rel)
	}
	slices.Sort(out)
	return out
}

// What arvados-client logs and Workbench ask for, of a finished container.
func TestLogEndpoint(t *testing.T) {
	p := setUp(t)
	r, container := p.submit(nil)
	base := "/arvados/v1/container_requests/" + str(r, "uuid") + "/log"
	ask := func(c *client, method, path string, header ...string) answer {
		t.Helper()
		h := http.Header{}
		for i := 0; i < len(header); i += 2 {
			h.Set(header[i], header[i+1])
		}
		return c.send(method, p.user.base+base+path, h, nil)
	}
	check := func(what string, a answer, status int, body string) {
		t.Helper()
		if a.status != status || body != "*" && string(a.body) != body {
			t.Errorf("%s: %d %q, want %d %q", what, a.status, a.body, status, body)
		}
	}
	// Nothing is saved yet: an empty directory.
	a := ask(p.user, "OPTIONS", "/")
	check("OPTIONS", a, 200, "")
	if a.header.Get("Dav") != "1, 2" || a.header.Get("Ms-Author-Via") != "DAV" || !strings.Contains(a.header.Get("Allow"), "PROPFIND") {
		t.Errorf("OPTIONS: %v", a.header)
	}
	a = ask(p.user, "PROPFIND", "/")
	check("PROPFIND", a, 207, "*")
	if got := davEntries(t, a.body, base); !slices.Equal(got, []string{"/"}) {
		t.Errorf("PROPFIND of nothing: %q", got)
	}
	check("GET of nothing", ask(p.user, "GET", "/"), 405, "Method Not Allowed")
	check("GET below nothing", ask(p.user, "GET", "/"+container+"/stderr.txt"), 404, "Not Found")

	p.lock(container)
	p.update(container, obj{"state": "Running", "log": p.saveLog("crunch-run.txt", "starting\n")})
	check("GET of a running container", ask(p.user, "GET", "/"+container+"/crunch-run.txt"), 200, "starting\n")
	p.update(container, obj{"state": "Complete", "exit_code": 0, "log": p.saveLog("crunch-run.txt", "starting\nfinished\n", "stderr.txt", "", `sp\040ace.json`, "{}")})

	below := "/" + container
	check("GET", ask(p.user, "GET", below+"/crunch-run.txt"), 200, "starting\nfinished\n")
	check("GET from the top", ask(p.user, "GET", "/crunch-run.txt"), 200, "starting\nfinished\n")
	a = ask(p.user, "GET", below+"/crunch-run.txt", "Range", "bytes=9-")
	check("GET from an offset", a, 206, "finished\n")
	if a.header.Get("Content-Type") != "text/plain; charset=utf-8" || a.header.Get("Etag") == "" || a.header.Get("Last-Modified") == "" {
		t.Errorf("GET: %v", a.header)
	}
	a = ask(p.user, "GET", below+"/crunch-run.txt", "If-None-Match", a.header.Get("Etag"))
	check("GET of what is known", a, 304, "")
	check("HEAD", ask(p.user, "HEAD", below+"/crunch-run.txt"), 200, "")
	check("GET of a directory", ask(p.user, "GET", below), 405, "Method Not Allowed")
	check("GET of no file", ask(p.user, "GET", below+"/nosuch.txt"), 404, "Not Found")
	check("GET with dots", ask(p.user, "GET", below+"/../../../"), 405, "*") // the client cleans it up, or the server: no way out
	for _, method := range []string{"PUT", "POST", "DELETE", "MKCOL", "MOVE", "COPY", "LOCK", "PROPPATCH", "PATCH"} {
		check(method, ask(p.user, method, below+"/crunch-run.txt"), 405, `{"errors":["API endpoint not found"]}`+"\n")
	}
	want := []string{"/", "/crunch-run.txt 18 text/plain; charset=utf-8", "/sp%20ace.json 2 application/json", "/stderr.txt 0 text/plain; charset=utf-8"}
	for _, path := range []string{below, below + "/"} {
		a = ask(p.user, "PROPFIND", path)
		if got := davEntries(t, a.body, base+below); a.status != 207 || !slices.Equal(got, want) {
			t.Errorf("PROPFIND %s: %d %q", path, a.status, got)
		}
	}
	a = ask(p.user, "PROPFIND", "/", "Depth", "1")
	if got := davEntries(t, a.body, base); a.status != 207 || len(got) != 5 || !slices.Contains(got, "/log%20for%20container%20"+container+"/") {
		t.Errorf("PROPFIND of the top: %d %q", a.status, got)
	}
	check("PROPFIND with a bad depth", ask(p.user, "PROPFIND", "/", "Depth", "7"), 400, "Bad Request")

	// Who asks.
	for what, token := range map[string]string{"nobody": "", "a wrong token": "v2/zzzzz-gj3su-000000000000001/wrong"} {
		for _, method := range []string{"GET", "OPTIONS", "PROPFIND", "PUT"} {
			a = ask(p.user.as(token), method, below+"/crunch-run.txt")
			check(method+" by "+what, a, 401, "")
			if a.header.Get("Www-Authenticate") != `Basic realm="collections"` {
				t.Errorf("%s by %s: %v", method, what, a.header)
			}
		}
	}
	check("GET by another user", ask(p.second(), "GET", below+"/crunch-run.txt"), 404, "*")
	basic := "Basic " + base64.StdEncoding.EncodeToString([]byte("me:"+p.c.UserToken()))
	check("GET with a password", ask(p.user.as(""), "GET", below+"/crunch-run.txt", "Authorization", basic), 200, "starting\nfinished\n")
	check("GET with a query", ask(p.user.as(""), "GET", below+"/crunch-run.txt?api_token="+p.c.UserToken()), 200, "starting\nfinished\n")
	check("preflight", ask(p.user.as(""), "OPTIONS", below, "Access-Control-Request-Method", "PROPFIND"), 200, "")
	a = p.user.send("GET", p.user.base+"/arvados/v1/container_requests/zzzzz-xvhdp-000000000000000/log/x", nil, nil)
	check("GET of no request", a, 404, "*")
	a = p.user.send("GET", p.user.base+"/arvados/v1/container_requests/nonsense/log", nil, nil)
	check("GET of nonsense", a, 404, "*")
	a = p.user.send("GET", p.user.base+"/arvados/v1/container_requests/"+str(r, "uuid")+"/logs", nil, nil)
	check("GET of another action", a, 404, "*")
	// A log collection in the trash is none.
	p.user.must("DELETE", "collections/"+str(p.request(str(r, "uuid")), "log_uuid"), nil)
	check("GET of what is in the trash", ask(p.user, "GET", below+"/crunch-run.txt"), 404, "Not Found")
}

// Ranges, as the vectors have them: arvados-client depends on their oddities.
func TestLogRanges(t *testing.T) {
	data, err := os.ReadFile("../testdata/spec/gateway.json")
	if err != nil {
		t.Fatal(err)
	}
	var vectors struct {
		Ranges []struct {
			Content, Range, Body string
			Status               int
			ContentRange         *string `json:"content_range"`
			Multipart            []string
		} `json:"webdav_range"`
	}
	if err := json.Unmarshal(data, &vectors); err != nil {
		t.Fatal(err)
	}
	if len(vectors.Ranges) == 0 {
		t.Fatal("no vectors")
	}
	p := setUp(t)
	r, container := p.submit(nil)
	p.run(container, nil, "full.txt", "hello world\n", "empty.txt", "")
	for _, v := range vectors.Ranges {
		name := "full.txt"
		if v.Content == "" {
			name = "empty.txt"
		}
		a := p.user.send("GET", p.user.base+"/arvados/v1/container_requests/"+str(r, "uuid")+"/log/"+container+"/"+name, http.Header{"Range": {v.Range}}, nil)
		ok := a.status == v.Status
		if v.ContentRange != nil {
			ok = ok && a.header.Get("Content-Range") == *v.ContentRange
		}
		for _, part := range v.Multipart {
			ok = ok && strings.Contains(string(a.body), "\r\n\r\n"+part+"\r\n")
		}
		if v.Multipart == nil {
			ok = ok && string(a.body) == v.Body
		}
		if !ok {
			t.Errorf("%s of %q: %d %v %q, want %+v", v.Range, v.Content, a.status, a.header.Get("Content-Range"), a.body, v)
		}
	}
}
