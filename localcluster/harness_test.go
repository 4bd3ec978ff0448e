package localcluster

import (
	"bytes"
	"crypto/md5"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"crunch-oci/internal/leaktest"
)

// raceDetector is true when the tests run with it: everything takes ten times as
// long and much more memory, so that less is done and memory is not looked at.
var raceDetector bool

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		os.Exit(childMain(dir))
	}
	leaktest.Main(m)
}

// start runs a cluster for one test.
func start(t testing.TB, o Options) *Cluster {
	t.Helper()
	if o.Dir == "" {
		o.Dir = t.TempDir()
	}
	if o.ClusterID == "" {
		o.ClusterID = "zzzzz"
	}
	c, err := Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// client talks to a cluster the way any program does: over HTTPS, trusting the
// CA file, with a token.
type client struct {
	t     testing.TB
	http  *http.Client
	base  string
	keep  string
	token string
}

func newClient(t testing.TB, host, caFile, token string) *client {
	t.Helper()
	pem, err := os.ReadFile(caFile)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		t.Fatal("no certificate in CA file")
	}
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, MaxIdleConnsPerHost: 100}
	t.Cleanup(tr.CloseIdleConnections)
	return &client{t: t, http: &http.Client{Transport: tr, Timeout: time.Minute}, base: "https://" + host, token: token}
}

func clientOf(t testing.TB, c *Cluster, token string) *client {
	cl := newClient(t, c.Host(), c.CAFile(), token)
	cl.keep = c.KeepURL()
	return cl
}

// as is the same client with another token.
func (c *client) as(token string) *client { d := *c; d.token = token; return &d }

type answer struct {
	status int
	header http.Header
	body   []byte
	obj    map[string]any
}

// send sends a request as it is given.
func (c *client) send(method, url string, header http.Header, body []byte) answer {
	c.t.Helper()
	a, err := c.try(method, url, header, body)
	if err != nil {
		c.t.Fatal(err)
	}
	return a
}

func (c *client) try(method, url string, header http.Header, body []byte) (answer, error) {
	req, err := http.NewRequest(method, url, bytes.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	for k, v := range header {
		req.Header[k] = v
	}
	if c.token != "" && req.Header.Get("Authorization") == "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	a := answer{status: resp.StatusCode, header: resp.Header}
	if a.body, err = io.ReadAll(resp.Body); err != nil {
		return a, err
	}
	dec := json.NewDecoder(bytes.NewReader(a.body))
	dec.UseNumber()
	_ = dec.Decode(&a.obj) // Keep answers with plain text
	return a, nil
}

// do sends a JSON body (nil for none).
func (c *client) do(method, path string, body any) answer {
	c.t.Helper()
	header := http.Header{}
	var b []byte
	if body != nil {
		var err error
		if b, err = json.Marshal(body); err != nil {
			c.t.Fatal(err)
		}
		header.Set("Content-Type", "application/json")
	}
	return c.send(method, c.base+"/arvados/v1/"+path, header, b)
}

// must is do for requests that have to succeed.
func (c *client) must(method, path string, body any) map[string]any {
	c.t.Helper()
	return c.want(200, method, path, body)
}

// want is do with the status that has to come.
func (c *client) want(status int, method, path string, body any) map[string]any {
	c.t.Helper()
	a := c.do(method, path, body)
	if a.status != status {
		sent, _ := json.Marshal(body)
		c.t.Fatalf("%s %s: status %d, want %d: %s (sent %.500s)", method, path, a.status, status, a.body, sent)
	}
	return a.obj
}

// get is a GET with query parameters.
func (c *client) get(path string, params map[string]string) answer {
	c.t.Helper()
	q := url.Values{}
	for k, v := range params {
		q.Set(k, v)
	}
	return c.do("GET", path+"?"+q.Encode(), nil)
}

// put stores a block and returns its signed locator.
func (c *client) put(data string) string {
	c.t.Helper()
	a := c.send("PUT", c.keep+"/"+md5Hex(data), nil, []byte(data))
	if a.status != 200 {
		c.t.Fatalf("PUT block: %d %s", a.status, a.body)
	}
	return strings.TrimSpace(string(a.body))
}

// collection stores files (name, content, ...) and returns the record.
func (c *client) collection(attrs obj, files ...string) map[string]any {
	c.t.Helper()
	manifest := ""
	if len(files) > 0 {
		blocks, tokens, pos := ".", "", 0
		for i := 0; i < len(files); i += 2 {
			blocks += " " + c.put(files[i+1])
			tokens += fmt.Sprintf(" %d:%d:%s", pos, len(files[i+1]), files[i])
			pos += len(files[i+1])
		}
		manifest = blocks + tokens + "\n"
	}
	coll := obj{"manifest_text": manifest}
	for k, v := range attrs {
		coll[k] = v
	}
	return c.must("POST", "collections?ensure_unique_name=true", obj{"collection": coll})
}

type obj = map[string]any

const imageID = "sha256:6559ec98fbde33d58911e7839c3fd680c8a536c1a055baf5e255802988c3c3c4"

// image stores an image collection with its links and returns its record.
func (c *client) image(repoTag string) map[string]any {
	c.t.Helper()
	coll := c.collection(obj{"name": "Docker image " + repoTag}, imageID+".tar", "not really an image "+repoTag)
	for class, name := range map[string]string{"docker_image_hash": imageID, "docker_image_repo+tag": repoTag} {
		// As arv-keepdocker does: attributes at the top level.
		c.must("POST", "links", obj{"link_class": class, "name": name, "head_uuid": coll["uuid"],
			"properties": obj{"image_timestamp": time.Now().Format(time.RFC3339Nano)}})
	}
	return coll
}

// request is a small valid container request.
func request(more obj) obj {
	r := obj{
		"state": "Committed", "priority": 1, "command": []string{"true"}, "container_image": "busybox", "output_path": "/out",
		"mounts":              obj{"/out": obj{"kind": "tmp", "capacity": 1000}},
		"runtime_constraints": obj{"vcpus": 1, "ram": 268435456}, "use_existing": false,
	}
	for k, v := range more {
		r[k] = v
	}
	return obj{"container_request": r}
}

var jsonHeader = http.Header{"Content-Type": {"application/json"}}

func encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

func md5Hex(data string) string { return fmt.Sprintf("%x", md5.Sum([]byte(data))) }

func str(o map[string]any, key string) string { s, _ := o[key].(string); return s }
