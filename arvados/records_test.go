package arvados

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// answering returns a client of a server that gives each path a fixed answer.
func answering(t *testing.T, answers map[string]string) *Client {
	c, _, _ := newTestServer(t, func(w http.ResponseWriter, r *http.Request) {
		answer, ok := answers[r.Method+" "+r.URL.Path]
		if !ok {
			w.WriteHeader(404)
			answer = `{"errors":["Path not found"]}`
		}
		io.WriteString(w, answer)
	})
	return c
}

// record returns a record of the specification as JSON.
func record(t *testing.T, name string) string {
	var raw json.RawMessage
	vectors(t, &raw, "records", name)
	if raw == nil {
		t.Fatalf("no record %q", name)
	}
	return string(raw)
}

func TestContainerRecords(t *testing.T) {
	const uuid = "xmpl1-dz642-7k2v9q4m1x8c3b5"
	for _, name := range []string{"container_queued", "container_locked", "container_running", "container_complete"} {
		text := record(t, name)
		c := answering(t, map[string]string{"GET /arvados/v1/containers/" + uuid: text})
		ctr, err := c.GetContainer(context.Background(), uuid)
		if err != nil {
			t.Fatal(name, err)
		}
		if string(ctr.Raw) != text {
			t.Errorf("%s: raw record differs", name)
		}
		if ctr.Priority != 562948180820544110 || ctr.RuntimeConstraints.RAM != 1<<30 || ctr.SchedulingParameters.MaxRunTime != 3600 ||
			ctr.Mounts["/in"].PortableDataHash != "83367e8913dcec0bf3fc25ed5a27eacb+49" || ctr.Mounts["/out"].Capacity != 1e9 ||
			ctr.OutputStorageClasses[0] != "default" || ctr.CreatedAt == nil {
			t.Errorf("%s: %+v", name, ctr)
		}
		if final := name == "container_complete"; final != (ctr.ExitCode != nil) || final != (ctr.FinishedAt != nil) {
			t.Errorf("%s: exit code %v, finished %v", name, ctr.ExitCode, ctr.FinishedAt)
		}
	}
}

// What JSON numbers look like is part of a mount's content.
func TestMountContentIsVerbatim(t *testing.T) {
	const content = `{"big": 12345678901234567890123, "f":1.50,"e":1E+2 , "s":"\u00e9<>&", "z":-0.0}`
	const uuid = "zzzzz-dz642-000000000000001"
	mounts := `{"stdin":{"kind":"json","content":` + content + `},"/t":{"kind":"text","content":"a\u0000b\n"}}`
	c := answering(t, map[string]string{
		"GET /arvados/v1/containers/" + uuid:                    `{"uuid":"` + uuid + `","mounts":` + mounts + `,"runtime_status":{"x":1.50},"priority":9007199254740993}`,
		"GET /arvados/v1/containers/" + uuid + "/secret_mounts": `{"secret_mounts":` + mounts + `}`,
	})
	ctr, err := c.GetContainer(context.Background(), uuid)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := c.SecretMounts(context.Background(), uuid)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range []map[string]Mount{ctr.Mounts, secret} {
		if string(m["stdin"].Content) != content {
			t.Errorf("content %s", m["stdin"].Content)
		}
		if text, err := m["/t"].Text(); err != nil || text != "a\x00b\n" {
			t.Errorf("%q %v", text, err)
		}
		if _, err := m["stdin"].Text(); err == nil {
			t.Error("a json mount has text")
		}
	}
	if ctr.Priority != 9007199254740993 {
		t.Error(ctr.Priority)
	}
	if status, _ := encodeJSON(ctr.RuntimeStatus); status != `{"x":1.50}` {
		t.Error(status)
	}
}

func TestMountTextMustBeAString(t *testing.T) {
	for _, content := range []string{`7`, `null`, `{"secret":1}`, ``} {
		_, err := Mount{Kind: "text", Content: json.RawMessage(content)}.Text()
		if err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", content, err)
		}
	}
}

func TestContainerAuth(t *testing.T) {
	const uuid = "xmpl1-dz642-7k2v9q4m1x8c3b5"
	c := answering(t, map[string]string{
		"GET /arvados/v1/containers/" + uuid + "/auth": record(t, "container_auth_response"),
		"GET /arvados/v1/containers/empty/auth":        `{"uuid":"xmpl1-gj3su-c0nta1nert0k3n1","api_token":null}`,
	})
	auth, err := c.ContainerAuth(context.Background(), uuid)
	if err != nil {
		t.Fatal(err)
	}
	want := "v2/xmpl1-gj3su-c0nta1nert0k3n1/exampletokensecret00000000000000000000000000000001/" + uuid
	if got := auth.ContainerToken(uuid); got != want {
		t.Errorf("%s", got)
	}
	if _, err := c.ContainerAuth(context.Background(), "empty"); err == nil {
		t.Error("an answer without a token is accepted")
	}
}

func TestSecretMounts(t *testing.T) {
	c := answering(t, map[string]string{
		"GET /arvados/v1/containers/some/secret_mounts": record(t, "secret_mounts_response"),
		"GET /arvados/v1/containers/none/secret_mounts": record(t, "secret_mounts_response_none"),
		"GET /arvados/v1/containers/bad/secret_mounts":  `{"secret_mounts":{"/x":{"kind":"text","capacity":"hunter2"},"/y":{"capacity":31415.9}}}`,
	})
	ctx := context.Background()
	if m, err := c.SecretMounts(ctx, "some"); err != nil || string(m["/run/secrets/key"].Content) != `"42\n"` {
		t.Error(m, err)
	}
	for _, uuid := range []string{"none", "unknown"} { // unknown: 404
		if m, err := c.SecretMounts(ctx, uuid); err != nil || len(m) != 0 {
			t.Error(uuid, m, err)
		}
	}
	if _, err := c.SecretMounts(ctx, "bad"); err == nil || strings.Contains(err.Error(), "hunter2") || strings.Contains(err.Error(), "31415") {
		t.Error(err)
	}
	forbidden, _, _ := newTestServer(t, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(403) })
	if _, err := forbidden.SecretMounts(ctx, "x"); !IsStatus(err, 403) {
		t.Error(err)
	}
}

func TestContainerRecordJSON(t *testing.T) {
	item := `{"uuid": "zzzzz-dz642-000000000000001",  "priority":562948180820544110.0, "x":1.50}`
	answer := `{"items":[` + item + `],"items_available":1}`
	c, _, _ := newTestServer(t, func(w http.ResponseWriter, r *http.Request) {
		if want := `[["uuid","=","zzzzz-dz642-000000000000001"]]`; r.FormValue("filters") != want || len(r.Form) != 1 {
			t.Errorf("%v", r.Form)
		}
		io.WriteString(w, answer)
	})
	raw, err := c.ContainerRecordJSON(context.Background(), "zzzzz-dz642-000000000000001")
	if err != nil || string(raw) != item {
		t.Errorf("%s %v", raw, err)
	}
	answer = `{"items":[]}`
	if raw, err := c.ContainerRecordJSON(context.Background(), "zzzzz-dz642-000000000000001"); raw != nil || err != nil {
		t.Errorf("without a record: %s %v", raw, err)
	}
	answer = `{"items":[` + item + `,` + item + `]}`
	if _, err := c.ContainerRecordJSON(context.Background(), "zzzzz-dz642-000000000000001"); err == nil {
		t.Error("two records are no error")
	}
}

func TestCollectionRecords(t *testing.T) {
	pdh := "83367e8913dcec0bf3fc25ed5a27eacb+49"
	c := answering(t, map[string]string{
		"GET /arvados/v1/collections/" + pdh:                          record(t, "collection_get_by_pdh"),
		"GET /arvados/v1/collections/xmpl1-4zz18-cr0utputc0ll001":     record(t, "collection_cr_output"),
		"POST /arvados/v1/collections":                                record(t, "collection_create_response_select_pdh"),
		"PUT /arvados/v1/collections/xmpl1-4zz18-cr0utputc0ll001":     `{"etag":"","kind":"arvados#collection"}`,
		"GET /arvados/v1/collections/xmpl1-4zz18-000000000000000%2F.": `{}`,
	})
	ctx := context.Background()
	if coll, err := c.GetCollection(ctx, pdh); err != nil || coll.PortableDataHash != pdh || !strings.HasPrefix(coll.ManifestText, ". acbd18") || coll.TrashAt != nil {
		t.Errorf("%+v %v", coll, err)
	}
	if coll, err := c.GetCollection(ctx, "xmpl1-4zz18-cr0utputc0ll001"); err != nil || coll.Properties["sample"] != "S1" || coll.FileSizeTotal != 6 {
		t.Errorf("%+v %v", coll, err)
	}
	if coll, err := c.CreateCollection(ctx, map[string]any{}, true, "portable_data_hash"); err != nil || coll.PortableDataHash != "9101b21e101d8801e15382172340c160+51" {
		t.Errorf("%+v %v", coll, err)
	}
	if _, err := c.UpdateCollection(ctx, "xmpl1-4zz18-cr0utputc0ll001", map[string]any{}, "uuid", "portable_data_hash"); err == nil {
		t.Error("an answer without the portable data hash is accepted")
	}
}

func TestCollectionRequests(t *testing.T) {
	// As the reference programs send them (traces.container_run_success).
	var got []string
	c, _, _ := newTestServer(t, func(w http.ResponseWriter, r *http.Request) {
		r.ParseForm()
		got = append(got, fmt.Sprintf("%s %s %s unique=%s select=%s", r.Method, r.URL.Path, r.Form.Get("replace_files")+r.Form.Get("collection"), r.Form.Get("ensure_unique_name"), r.Form.Get("select")))
		io.WriteString(w, `{"uuid":"zzzzz-4zz18-000000000000002","portable_data_hash":"9101b21e101d8801e15382172340c160+51"}`)
	})
	attrs := map[string]any{"is_trashed": true, "name": "output for x", "manifest_text": ". b1946ac92492d2347c6235b4d2611184+6 0:6:<&>.txt\n"}
	ctx := context.Background()
	c.CreateCollection(ctx, attrs, true, "portable_data_hash")
	c.UpdateCollection(ctx, "zzzzz-4zz18-000000000000002", attrs, "uuid", "portable_data_hash")
	c.GetCollection(ctx, "9101b21e101d8801e15382172340c160+51")
	c.GetCollection(ctx, "../containers/x", "uuid")
	c.ReplaceFiles(ctx, "zzzzz-4zz18-000000000000002", "M", map[string]string{"/a": "", "/b": "manifest_text/b"})
	c.ReplaceFiles(ctx, "zzzzz-4zz18-000000000000002", "M", map[string]string{"/a": ""})
	const coll = `{"is_trashed":true,"manifest_text":". b1946ac92492d2347c6235b4d2611184+6 0:6:<&>.txt\n","name":"output for x"}`
	want := []string{
		"POST /arvados/v1/collections " + coll + ` unique=true select=["portable_data_hash"]`,
		"PUT /arvados/v1/collections/zzzzz-4zz18-000000000000002 " + coll + ` unique= select=["uuid","portable_data_hash"]`,
		"GET /arvados/v1/collections/9101b21e101d8801e15382172340c160+51  unique= select=",
		`GET /arvados/v1/collections/../containers/x  unique= select=["uuid"]`, // escaped on the wire: one path element
		`PUT /arvados/v1/collections/zzzzz-4zz18-000000000000002 {"/a":"","/b":"manifest_text/b"}{"manifest_text":"M"} unique= select=`,
		`PUT /arvados/v1/collections/zzzzz-4zz18-000000000000002 {"/a":""}{} unique= select=`,
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got  %s\nwant %s", strings.Join(got, "\n     "), strings.Join(want, "\n     "))
	}
}

func TestContainerRequestsAndLinks(t *testing.T) {
	cr := record(t, "container_request_final")
	c := answering(t, map[string]string{
		"POST /arvados/v1/container_requests":                            record(t, "container_request_committed"),
		"GET /arvados/v1/container_requests/xmpl1-xvhdp-h5t0n2w8z6r1y4p": cr,
		"PUT /arvados/v1/container_requests/xmpl1-xvhdp-h5t0n2w8z6r1y4p": cr,
		"POST /arvados/v1/links":                                         record(t, "link_docker_image_hash"),
		"GET /arvados/v1/container_requests":                             `{"items":[` + cr + `],"items_available":1}`,
		"GET /arvados/v1/users/current":                                  record(t, "user_current"),
	})
	ctx := context.Background()
	if r, err := c.CreateContainerRequest(ctx, map[string]any{"state": RequestCommitted}); err != nil || r.State != RequestCommitted || r.ContainerUUID == "" {
		t.Errorf("%+v %v", r, err)
	}
	if r, err := c.GetContainerRequest(ctx, "xmpl1-xvhdp-h5t0n2w8z6r1y4p"); err != nil || r.State != RequestFinal || r.OutputUUID != "xmpl1-4zz18-cr0utputc0ll001" || string(r.Raw) != cr {
		t.Errorf("%+v %v", r, err)
	}
	if _, err := c.UpdateContainerRequest(ctx, "xmpl1-xvhdp-h5t0n2w8z6r1y4p", map[string]any{"priority": 0}); err != nil {
		t.Error(err)
	}
	if l, err := c.CreateLink(ctx, map[string]any{"link_class": "docker_image_hash"}); err != nil || l.LinkClass != "docker_image_hash" || l.Properties["image_timestamp"] == nil {
		t.Errorf("%+v %v", l, err)
	}
	var list []ContainerRequest
	if err := c.List(ctx, "container_requests", map[string]any{"limit": 1}, &list); err != nil || len(list) != 1 {
		t.Error(list, err)
	}
	if u, err := c.CurrentUser(ctx); err != nil || u.UUID != "xmpl1-tpzed-r3s3archer0n0e1" || !u.IsActive {
		t.Error(u, err)
	}
}

func TestClusterRecords(t *testing.T) {
	c := answering(t, map[string]string{
		"GET /discovery/v1/apis/arvados/v1/rest":     record(t, "discovery_excerpt"),
		"GET /arvados/v1/config":                     record(t, "config_excerpt"),
		"GET /arvados/v1/keep_services/accessible":   record(t, "keep_services_accessible"),
		"GET /arvados/v1/containers/x/secret_mounts": `{}`,
	})
	ctx := context.Background()
	d, err := c.Discovery(ctx)
	if err != nil || d.BasePath != "/arvados/v1/" || d.DefaultCollectionReplication != 2 || d.BlobSignatureTTL != 1209600 || d.CrunchLogUpdateSize != 33554432 || d.UUIDPrefix != "xmpl1" {
		t.Errorf("%+v %v", d, err)
	}
	cfg, err := c.ClusterConfig(ctx)
	if err != nil || strings.Join(cfg.DefaultStorageClasses(), " ") != "default" || cfg.ClusterID != "xmpl1" {
		t.Errorf("%+v %v", cfg, err)
	}
	services, err := c.KeepServices(ctx)
	if err != nil || len(services) != 1 || services[0].URL() != "http://10.0.0.5:25107" || services[0].ServiceType != "disk" {
		t.Errorf("%+v %v", services, err)
	}
	wrong := answering(t, map[string]string{"GET /discovery/v1/apis/arvados/v1/rest": `{"hello":1}`})
	if _, err := wrong.Discovery(ctx); err == nil || !strings.Contains(err.Error(), "Arvados API server") {
		t.Error(err)
	}
}

func TestKeepServiceURL(t *testing.T) {
	for _, tc := range []struct {
		s    KeepService
		want string
	}{
		{KeepService{ServiceHost: "keep0", ServicePort: 25107}, "http://keep0:25107"},
		{KeepService{ServiceHost: "keep0", ServicePort: 443, ServiceSSLFlag: true}, "https://keep0:443"},
		{KeepService{ServiceHost: "fd00::5", ServicePort: 25107}, "http://[fd00::5]:25107"},
		{KeepService{ServiceHost: "[fd00::5]", ServicePort: 25107}, "http://[fd00::5]:25107"},
	} {
		if got := tc.s.URL(); got != tc.want {
			t.Errorf("%q, want %q", got, tc.want)
		}
	}
}

func TestKeepServices(t *testing.T) {
	c := answering(t, map[string]string{"GET /arvados/v1/keep_services/accessible": `{"items":[
		{"uuid":"a","service_host":"k","service_port":1},{"uuid":"b","service_host":"k","service_port":1},{"uuid":"c","service_host":"k","service_port":2,"read_only":true}],"offset":null,"limit":null}`})
	services, err := c.KeepServices(context.Background())
	if err != nil || len(services) != 2 || services[0].UUID != "a" || !services[1].ReadOnly {
		t.Errorf("%+v %v", services, err)
	}
	c, _, _ = newTestServer(t, func(w http.ResponseWriter, r *http.Request) { t.Error("the server was asked") },
		func(cfg *Config) { cfg.KeepServices = []string{"http://10.0.0.1:25107/", "https://[fd00::1]/keep"} })
	services, err = c.KeepServices(context.Background())
	if err != nil || len(services) != 2 || services[0].URL() != "http://10.0.0.1:25107" || services[1].URL() != "https://[fd00::1]/keep" ||
		services[1].UUID != "00000-bi6l4-000000000000001" || services[1].ServiceType != "proxy" {
		t.Errorf("%+v %v", services, err)
	}
}

func TestLock(t *testing.T) {
	const uuid = "xmpl1-dz642-7k2v9q4m1x8c3b5"
	for name, tc := range map[string]struct {
		lost     bool   // the first answer is lost on the way
		lockedBy string // what the record says afterwards
		ok       bool
	}{
		"plain":                   {false, "zzzzz-gj3su-000000000000000", true},
		"answer lost":             {true, "zzzzz-gj3su-000000000000000", true},
		"somebody else was first": {true, "zzzzz-gj3su-111111111111111", false},
	} {
		t.Run(name, func(t *testing.T) {
			locked := false
			c, _, _ := newTestServer(t, func(w http.ResponseWriter, r *http.Request) {
				state := fmt.Sprintf(`{"uuid":%q,"state":"Locked","locked_by_uuid":%q}`, uuid, tc.lockedBy)
				switch {
				case strings.HasSuffix(r.URL.Path, "/lock") && locked:
					w.WriteHeader(422)
				case strings.HasSuffix(r.URL.Path, "/lock"):
					locked = true
					if tc.lost {
						reset(w)
						return
					}
					io.WriteString(w, state)
				case strings.HasSuffix(r.URL.Path, "/current"):
					io.WriteString(w, `{"uuid":"zzzzz-gj3su-000000000000000"}`)
				default:
					io.WriteString(w, state)
				}
			})
			ctr, err := c.Lock(context.Background(), uuid)
			if (err == nil) != tc.ok || tc.ok && ctr.State != StateLocked || !tc.ok && !IsStatus(err, 422) {
				t.Errorf("%+v %v", ctr, err)
			}
		})
	}
}

func TestWrongRecordIsRefused(t *testing.T) {
	c := answering(t, map[string]string{"GET /arvados/v1/containers/zzzzz-dz642-000000000000001": `{}`})
	if _, err := c.GetContainer(context.Background(), "zzzzz-dz642-000000000000001"); err == nil {
		t.Error("an empty record is accepted")
	}
}

// The answers of a real server decode into the types.
func TestCapturedAnswers(t *testing.T) {
	files, _ := filepath.Glob("../testdata/spec/captures/[01]*.json")
	decoded := 0
	for _, file := range files {
		var exchange struct {
			Request  struct{ Path string }
			Response struct {
				Status int
				Body   json.RawMessage
			}
		}
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(data, &exchange); err != nil {
			continue
		}
		body := exchange.Response.Body
		if exchange.Response.Status != 200 || !bytes.HasPrefix(body, []byte("{")) {
			continue
		}
		var kind struct{ Kind string }
		json.Unmarshal(body, &kind)
		dst := map[string]any{
			"arvados#container": &Container{}, "arvados#containerRequest": &ContainerRequest{}, "arvados#collection": &Collection{},
			"arvados#user": &User{}, "arvados#apiClientAuthorization": &APIClientAuthorization{}, "discovery#restDescription": &Discovery{},
			"arvados#keepServiceList": &struct{ Items []KeepService }{}, "arvados#containerList": &struct{ Items []Container }{},
			"arvados#collectionList": &struct{ Items []Collection }{},
		}[kind.Kind]
		if strings.HasSuffix(exchange.Request.Path, "/config") {
			dst = &ClusterConfig{}
		}
		if dst == nil {
			continue
		}
		decoded++
		if err := decodeAnswer(bytes.NewReader(body), dst); err != nil {
			t.Errorf("%s: %v", file, err)
		}
	}
	if decoded < 40 {
		t.Errorf("only %d of %d captures decoded", decoded, len(files))
	}
}

func BenchmarkDecodeManifest(b *testing.B) {
	line := `. acbd18db4cc2f85cedef654fccc4a4d8+3+A0123456789abcdef0123456789abcdef01234567@6a0c3f80 0:3:foo.txt\n`
	body := `{"uuid":"x","manifest_text":"` + strings.Repeat(line, 1<<16) + `"}`
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	for b.Loop() {
		if err := decodeAnswer(strings.NewReader(body), &Collection{}); err != nil {
			b.Fatal(err)
		}
	}
}

// Properties are handed back to the server: their numbers keep their digits.
func TestPropertiesKeepTheirDigits(t *testing.T) {
	const properties = `{"n":12345678901234567890,"x":1.50}`
	c := answering(t, map[string]string{"GET /arvados/v1/collections/x": `{"uuid":"x","properties":` + properties + `}`})
	coll, err := c.GetCollection(context.Background(), "x")
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := encodeJSON(coll.Properties); got != properties {
		t.Error(got)
	}
}
