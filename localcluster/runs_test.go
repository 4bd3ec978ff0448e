package localcluster

import (
	"crypto/md5"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Whole conversations of the reference crunch-run with a real cluster: our
// cluster has to answer the same requests the same way, and end with the same
// container, request, log and output.

// skipInRuns are exchanges of runs that are not replayed, by method and a part
// of the path, with the reason.
var skipInRuns = map[string]string{
	"POST /gateway_tunnel":                       "a connection that stays open; see TestRawRequests",
	"GET /3c36f5cd45a2ec64149d8ab3308e21f0+2058": "the recorder left out the image's content",
}

// statusOnly are answers that the recorder shortened or that do not matter.
var statusOnly = []string{"/discovery/", "/arvados/v1/config", "/arvados/v1/keep_services/"}

type run struct {
	Exchanges []exchange
	Final     struct {
		Container, ContainerRequest map[string]any
		LogUUID, OutputUUID         map[string]any
	}
}

func loadRun(t *testing.T, file string) run {
	t.Helper()
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var top struct {
		Exchanges []exchange
		Final     struct {
			Container        json.RawMessage
			ContainerRequest json.RawMessage `json:"container_request"`
			LogUUID          json.RawMessage `json:"log_uuid"`
			OutputUUID       json.RawMessage `json:"output_uuid"`
		}
	}
	if err := json.Unmarshal(raw, &top); err != nil {
		t.Fatal(err)
	}
	r := run{Exchanges: top.Exchanges}
	for _, f := range []struct {
		raw json.RawMessage
		to  *map[string]any
	}{{top.Final.Container, &r.Final.Container}, {top.Final.ContainerRequest, &r.Final.ContainerRequest},
		{top.Final.LogUUID, &r.Final.LogUUID}, {top.Final.OutputUUID, &r.Final.OutputUUID}} {
		if f.raw != nil {
			*f.to, _ = decode(f.raw).(map[string]any)
		}
	}
	return r
}

func TestRuns(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(capturesDir, "run-*.json"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no runs: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".json"), func(t *testing.T) {
			r := newReplayer(t, start(t, Options{NoSync: true}))
			run := loadRun(t, file)
			r.prepare(run)
			for i, e := range run.Exchanges {
				r.exchange(fmt.Sprintf("exchange %d", i), e)
			}
			r.checkEnd(run)
		})
	}
}

// prepare brings the cluster to where the reference found the other one: the
// request is submitted and its container locked.
func (r *replayer) prepare(run run) {
	t := r.t
	root := r.cl.as(r.known["<SYSTEM_ROOT_TOKEN>"])
	alice := r.cl.as("v2/" + r.known["zzzzz-gj3su-aey2u9zwnz5ggdk"] + "/" + r.known["<ALICE_SECRET>"])
	secrets := any(obj{})
	for _, e := range run.Exchanges {
		body, _ := decode(e.Response.Body).(map[string]any)
		if s, ok := body["secret_mounts"]; ok {
			secrets = s
		}
	}
	// The inputs of all runs are those of one.
	for _, e := range loadRun(t, filepath.Join(capturesDir, "run-basic.json")).Exchanges {
		body, _ := decode(e.Response.Body).(map[string]any)
		if text := str(body, "manifest_text"); e.Request.Method == "GET" && text != "" && !strings.Contains(text, ".tar\n") {
			in := root.must("POST", "collections?ensure_unique_name=true", obj{"collection": obj{
				"manifest_text": signatureText.ReplaceAllString(text, ""), "owner_uuid": r.known["zzzzz-tpzed-qwg13zau3j6bs4x"]}})
			for _, m := range run.Final.ContainerRequest["mounts"].(map[string]any) {
				if uuid := str(m.(map[string]any), "uuid"); uuid != "" {
					r.known[uuid] = str(in, "uuid") // there is only one
				}
			}
		}
		if data, ok := decode(e.Response.Body).(string); ok && e.Service == "keep" && e.Request.Method == "GET" && !strings.HasPrefix(data, "<") {
			root.put(data)
		}
	}
	attrs := obj{"secret_mounts": secrets, "state": "Committed"}
	for k, v := range run.Final.ContainerRequest {
		switch k {
		case "uuid", "kind", "etag", "state", "container_uuid", "container_count", "log_uuid", "output_uuid", "cumulative_cost", "requesting_container_uuid":
		default:
			attrs[k] = v
		}
	}
	// The front end showed every key; only some were submitted.
	mounts := obj{}
	for target, m := range run.Final.ContainerRequest["mounts"].(map[string]any) {
		given := obj{}
		for k, v := range m.(map[string]any) {
			if v != nil && v != "" && v != false && v != json.Number("0") {
				given[k] = v
			}
		}
		mounts[target] = given
	}
	attrs["mounts"] = mounts
	text, err := json.Marshal(obj{"container_request": attrs})
	if err != nil {
		t.Fatal(err)
	}
	cr := alice.must("POST", "container_requests", json.RawMessage(r.ours(string(text))))
	r.known[str(run.Final.ContainerRequest, "uuid")] = str(cr, "uuid")
	r.known[str(run.Final.Container, "uuid")] = str(cr, "container_uuid")
	root.must("POST", "containers/"+str(cr, "container_uuid")+"/lock", nil)
}

func (r *replayer) exchange(name string, e exchange) {
	for k := range skipInRuns {
		method, part, _ := strings.Cut(k, " ")
		if e.Request.Method == method && strings.Contains(e.Request.Path, part) {
			return
		}
	}
	if e.Service == "keep" && e.Request.Method == "PUT" {
		// Long blocks are recorded by their length only.
		if data := bodyText(e.Request.Body); fmt.Sprintf("/%x", md5.Sum([]byte(data))) != e.Request.Path {
			return
		}
	}
	a := r.send(e)
	if a.status != e.Response.Status {
		r.t.Errorf("%s: %s %s: status %d, want %d: %s", name, e.Request.Method, e.Request.Path, a.status, e.Response.Status, a.body)
		return
	}
	for _, s := range statusOnly {
		if strings.HasPrefix(e.Request.Path, s) {
			return
		}
	}
	captured := decode(e.Response.Body)
	if s, ok := captured.(string); ok {
		if string(a.body) != r.ours(s) {
			r.t.Errorf("%s: %s %s: answer %q, want %q", name, e.Request.Method, e.Request.Path, a.body, r.ours(s))
		}
		return
	}
	r.compare("", captured, decode(a.body), func(path, text string) {
		r.t.Errorf("%s: %s %s: %s: %s", name, e.Request.Method, e.Request.Path, path, text)
	})
}

// checkEnd compares the records that are left.
func (r *replayer) checkEnd(run run) {
	root := r.cl.as(r.known["<SYSTEM_ROOT_TOKEN>"])
	cr := root.must("GET", "container_requests/"+r.known[str(run.Final.ContainerRequest, "uuid")], nil)
	container := root.must("GET", "containers/"+r.known[str(run.Final.Container, "uuid")], nil)
	for _, c := range []struct {
		name     string
		captured map[string]any
		path     string
		ours     map[string]any
	}{
		{"container", run.Final.Container, "", container},
		{"container_request", run.Final.ContainerRequest, "", cr},
		{"log", run.Final.LogUUID, str(cr, "log_uuid"), nil},
		{"output", run.Final.OutputUUID, str(cr, "output_uuid"), nil},
	} {
		if c.captured == nil {
			if c.path != "" {
				r.t.Errorf("%s: there is one, none in the capture", c.name)
			}
			continue
		}
		if c.ours == nil {
			c.ours = root.must("GET", "collections/"+c.path, nil)
		}
		r.learn(c.captured, c.ours)
		r.compare("", c.captured, c.ours, func(path, text string) {
			if c.name == "log" && path == "portable_data_hash" {
				return // the container's UUID is in the manifest
			}
			r.t.Errorf("%s: %s: %s", c.name, path, text)
		})
	}
}
