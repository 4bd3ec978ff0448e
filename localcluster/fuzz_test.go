package localcluster

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"crunch-oci/internal/syncbuf"
)

// FuzzRequest sends anything to the API, with an administrator's token: the
// answer is never a failure of the server, and always an object, but for the
// logs endpoint and the ways into containers.
func FuzzRequest(f *testing.F) {
	const form = "application/x-www-form-urlencoded"
	f.Add("POST", "collections?ensure_unique_name=true", "application/json", []byte(`{"collection":{"name":"a","manifest_text":""},"select":["uuid"]}`))
	f.Add("POST", "container_requests", "application/json", encode(request(nil)))
	f.Add("POST", "containers", form, []byte(`_method=GET&filters=%5B%5B%22priority%22%2C%22%3E%22%2C%220%22%5D%5D&limit=0`))
	f.Add("PUT", "users/current", "multipart/form-data; boundary=x", []byte("--x\r\nContent-Disposition: form-data; name=\"select\"\r\n\r\n[\"uuid\"]\r\n--x--\r\n"))
	f.Add("GET", "groups/contents?uuid=zzzzz-tpzed-000000000000000&order=name%20desc", "", []byte{})
	f.Add("POST", "links", "", []byte(`{"link_class":"permission","name":"can_read","head_uuid":"a","tail_uuid":"b"}`))
	f.Add("PATCH", "collections/d41d8cd98f00b204e9800998ecf8427e+0", "application/json; charset=x", []byte(`{"collection":"{\"name\":null}"}`))
	files, err := filepath.Glob(filepath.Join(capturesDir, "[0-9]*.json"))
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range files {
		var e exchange
		if raw, err := os.ReadFile(file); err != nil || json.Unmarshal(raw, &e) != nil {
			f.Fatal(file, err)
		}
		if path, ok := strings.CutPrefix(e.Request.Path, "/arvados/v1/"); ok {
			f.Add(e.Request.Method, path, e.Request.Headers["Content-Type"], []byte(bodyText(e.Request.Body)))
		}
	}
	var said syncbuf.Buffer
	c := start(f, Options{NoSync: true, Log: slog.New(slog.NewTextHandler(&said, &slog.HandlerOptions{Level: slog.LevelError}))})
	cl := clientOf(f, c, c.SystemRootToken())
	cl.image("busybox:latest")
	f.Fuzz(func(t *testing.T, method, path, contentType string, body []byte) {
		req, err := http.NewRequest(method, cl.base+"/arvados/v1/"+path, bytes.NewReader(body))
		if err != nil || strings.Contains(req.URL.Path, "/log") || strings.Contains(req.URL.Path, "gateway_tunnel") || strings.Contains(req.URL.Path, "connect") ||
			strings.Contains(req.URL.Path, "ssh") || method == "CONNECT" || method == "HEAD" || method == "OPTIONS" {
			return
		}
		if contentType != "" {
			req.Header.Set("Content-Type", contentType)
		}
		req.Header.Set("Authorization", "Bearer "+c.SystemRootToken())
		resp, err := cl.http.Do(req)
		if err != nil {
			return // what the transport does not send
		}
		defer resp.Body.Close()
		var answer map[string]any
		err = json.NewDecoder(resp.Body).Decode(&answer)
		overridden := strings.Contains(strings.ToUpper(path+string(body)), "_METHOD")
		if resp.StatusCode >= 500 || err != nil && !overridden || said.String() != "" {
			t.Errorf("%d %v %v; logged %s", resp.StatusCode, answer, err, said.String())
		}
	})
}
