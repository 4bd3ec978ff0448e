package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"crunch-oci/arvados"
	"crunch-oci/cmd/crunch-run/transfer"
	"crunch-oci/cmd/crunch-run/wire"
	"crunch-oci/localcluster"
)

// user is somebody at a terminal, with a cluster of the test's own.
type user struct {
	t        *testing.T
	ctx      context.Context
	config   arvados.Config
	dispatch *arvados.Client
}

func newUser(t *testing.T) *user {
	t.Helper()
	c, err := localcluster.Start(t.Context(), localcluster.Options{Dir: t.TempDir(), NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	u := &user{t: t, ctx: t.Context(), config: arvados.Config{Host: c.Host(), Token: c.UserToken(), CAFile: c.CAFile()}}
	admin := u.config
	admin.Token = c.DispatcherToken()
	if u.dispatch, err = arvados.NewClient(admin); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		u.dispatch.Close()
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return u
}

func (u *user) connect(ctx context.Context) (*transfer.Session, error) {
	api, blocks, closer, err := wire.Connect(ctx, u.config, 1)
	if err != nil {
		return nil, err
	}
	return &transfer.Session{API: api, Blocks: blocks, Close: closer}, nil
}

// run types a command line.
func (u *user) run(args ...string) (code int, stdout, stderr string) {
	u.t.Helper()
	var out, said bytes.Buffer
	code = Main(u.ctx, args, Env{Stdout: &out, Stderr: &said, TempDir: u.t.TempDir(), Connect: u.connect})
	return code, out.String(), said.String()
}

// must is run for what has to succeed.
func (u *user) must(args ...string) string {
	u.t.Helper()
	code, stdout, stderr := u.run(args...)
	if code != 0 {
		u.t.Fatalf("%q: %d, %s", args, code, stderr)
	}
	return stdout
}

// image stores something that passes for an image, as arv-keepdocker does.
func (u *user) image(name string) {
	u.t.Helper()
	s, err := u.connect(u.ctx)
	if err != nil {
		u.t.Fatal(err)
	}
	defer s.Close()
	path := filepath.Join(u.t.TempDir(), "image.tar")
	if err := os.WriteFile(path, []byte("image"), 0o644); err != nil {
		u.t.Fatal(err)
	}
	img := &transfer.Image{Path: path, Size: 5, ID: "sha256:" + strings.Repeat("0a", 32), Created: time.Unix(1e9, 0)}
	if _, err := s.PutImage(u.ctx, img, transfer.ImageOptions{Names: []string{name}}, nil); err != nil {
		u.t.Fatal(err)
	}
}

// Every command explains itself, with an example, and without a cluster.
func TestHelp(t *testing.T) {
	u := &user{t: t, ctx: t.Context()}
	for _, cmd := range commands {
		for _, h := range []string{"-h", "--help"} {
			code, stdout, stderr := u.run(append(strings.Fields(cmd.name), h)...)
			if code != 0 || stderr != "" || !strings.HasPrefix(stdout, "Usage: crunch-run "+cmd.name+" ") || !strings.Contains(stdout, "\nExample") {
				t.Errorf("%s %s: %d, %s%s", cmd.name, h, code, stdout, stderr)
			}
			for line := range strings.Lines(stdout) {
				if len(line) > 100 {
					t.Errorf("%s: a line of %d characters: %s", cmd.name, len(line), line)
				}
			}
		}
		role, _, several := strings.Cut(cmd.name, " ")
		if _, stdout, _ := u.run(role, "--help"); several && !strings.Contains(stdout, cmd.usage) {
			t.Errorf("%s --help does not have %s", role, cmd.name)
		}
	}
}

// Mistakes are told in one line, with status 2, before anything is connected to.
func TestMistakes(t *testing.T) {
	u := &user{t: t, ctx: t.Context()}
	submit := func(args ...string) []string { return append(append([]string{"submit"}, args...), "--", "true") }
	for says, lines := range map[string][][]string{
		"One of: put, list":                          {{"image"}, {"image", "remove"}},
		"One of: put, get, ls":                       {{"collection"}, {"collection", "--json"}},
		"One of: show, cancel":                       {{"request", "list"}},
		"flag provided but not defined: -x":          {{"image", "put", "-x"}, {"submit", "-x"}, {"request", "show", "-x"}, {"collection", "ls", "a", "-x"}},
		"one image tarball is needed":                {{"image", "put"}, {"image", "put", "a", "b"}},
		"must be REPOSITORY:TAG":                     {{"image", "put", "--name", "", "a"}, {"image", "put", "a", "--name", "b c"}, {"image", "put", "--name", "b@sha256:0", "a"}},
		"one text to look for":                       {{"image", "list", "a", "b"}},
		"UUID of one container request":              {{"request", "show"}, {"request", "cancel", "x"}, {"request", "show", "zzzzz-dz642-000000000000000"}},
		"neither a collection's UUID nor a portable": {{"collection", "ls", "x"}, {"collection", "get", "x/y", "z"}, submit("--image", "i", "--input", "a=b")},
		"one collection is needed":                   {{"collection", "ls"}},
		"a collection and a destination are needed":  {{"collection", "get", "x"}},
		"what shall be stored?":                      {{"collection", "put"}},
		"--image is missing":                         {submit()},
		"the command is missing":                     {{"submit", "--image", "i"}, {"submit", "--image", "i", "--"}},
		"--vcpus 0: at least 1":                      {submit("--image", "i", "--vcpus", "0")},
		"at least 6MiB is needed":                    {submit("--image", "i", "--ram", "5MiB"), submit("--image", "i", "--ram", "lots"), submit("--image", "i", "--ram", "-1")},
		"must be from 1 to 1000":                     {submit("--image", "i", "--priority", "0"), submit("--image", "i", "--priority", "1001")},
		"--attempts 0: at least 1":                   {submit("--image", "i", "--attempts", "0")},
		"--max-run-time -1s: must not be negative":   {submit("--image", "i", "--max-run-time", "-1s")},
		"must be an absolute path in the container":  {submit("--image", "i", "--cwd", "rel")},
		"must be NAME=COLLECTION, NAME a plain":      {submit("--image", "i", "--input", "=b"), submit("--image", "i", "--input", "a/b=c"), submit("--image", "i", "--input", "..=c")},
		"two inputs are called \"a\"":                {submit("--image", "i", "--input", "a="+emptyPDH, "--input", "a="+emptyPDH)},
		"must be KEY=VALUE":                          {submit("--image", "i", "--env", "A"), submit("--image", "i", "--env", "=B")},
	} {
		for _, args := range lines {
			code, stdout, stderr := u.run(args...)
			if code != exitUsage || stdout != "" || strings.Count(stderr, "\n") != 1 || !strings.Contains(stderr, says) || !strings.Contains(stderr, "(try -h)") {
				t.Errorf("%q: %d, %s%s; want %q", args, code, stdout, stderr, says)
			}
		}
	}
}

const emptyPDH = "d41d8cd98f00b204e9800998ecf8427e+0"

// The container request is what the command line says.
func TestSubmit(t *testing.T) {
	u := newUser(t)
	u.image("lab/tools")
	coll := strings.Fields(u.must("collection", "put", "--name", "in", "."))
	uuid := strings.TrimSpace(u.must("submit", "--image", "lab/tools", "--", "echo", "--json", "-h"))
	want := map[string]any{
		"state": "Committed", "priority": json.Number("500"), "container_image": "lab/tools", "command": []any{"echo", "--json", "-h"}, "cwd": "/out",
		"output_path": "/out", "use_existing": true, "container_count_max": json.Number("3"), "name": "", "output_name": nil, "environment": map[string]any{},
	}
	check := func(got map[string]any, want map[string]any) {
		t.Helper()
		for k, v := range want {
			if !reflect.DeepEqual(got[k], v) {
				t.Errorf("%s is %#v, want %#v", k, got[k], v)
			}
		}
	}
	shown := u.decode(u.must("request", "show", "--json", uuid))
	check(shown["container_request"].(map[string]any), want)
	check(shown["container_request"].(map[string]any)["runtime_constraints"].(map[string]any), map[string]any{
		"vcpus": json.Number("1"), "ram": json.Number("1073741824"), "API": false})
	if c := shown["container"].(map[string]any); c["state"] != "Queued" {
		t.Errorf("the container is %v", c["state"])
	}
	all := u.decode(u.must("submit", "--image", "lab/tools:latest", "--input", "a="+coll[0], "--input", "b="+coll[1], "--env", "K=V=W", "--env", "E=", "--cwd", "/tmp",
		"--vcpus", "3", "--ram", "2GB", "--api", "--name", "n", "--output-name", "o", "--priority", "7", "--attempts", "1", "--max-run-time", "90m", "--no-reuse", "--json",
		"sh", "-c", "true"))
	check(all, map[string]any{
		"priority": json.Number("7"), "command": []any{"sh", "-c", "true"}, "cwd": "/tmp", "use_existing": false, "container_count_max": json.Number("1"),
		"name": "n", "output_name": "o", "environment": map[string]any{"K": "V=W", "E": ""},
	})
	mounts := all["mounts"].(map[string]any)
	check(mounts["/in/a"].(map[string]any), map[string]any{"kind": "collection", "uuid": coll[0]})
	check(mounts["/in/b"].(map[string]any), map[string]any{"kind": "collection", "portable_data_hash": coll[1]})
	check(all["runtime_constraints"].(map[string]any), map[string]any{"vcpus": json.Number("3"), "ram": json.Number("2147483648"), "API": true})
	check(all["scheduling_parameters"].(map[string]any), map[string]any{"max_run_time": json.Number("5400")})
	// What the cluster refuses is said in its words, without its internals.
	code, stdout, stderr := u.run("submit", "--image", "nosuch", "--", "true")
	if code != exitFailure || stdout != "" || !strings.HasPrefix(stderr, `crunch-run submit: docker image "nosuch" not found (req-`) {
		t.Errorf("%d %s%s", code, stdout, stderr)
	}
}

func (u *user) decode(text string) map[string]any {
	u.t.Helper()
	dec := json.NewDecoder(strings.NewReader(text))
	dec.UseNumber()
	var v map[string]any
	if err := dec.Decode(&v); err != nil {
		u.t.Fatalf("%q: %v", text, err)
	}
	return v
}

// end plays the dispatcher and the supervisor of a request's container.
func (u *user) end(request string, steps ...map[string]any) {
	u.t.Helper()
	r, err := u.dispatch.GetContainerRequest(u.ctx, request)
	if err == nil {
		_, err = u.dispatch.Lock(u.ctx, r.ContainerUUID)
	}
	for _, s := range steps {
		if err == nil {
			err = u.dispatch.UpdateContainer(u.ctx, r.ContainerUUID, s)
		}
	}
	if err != nil {
		u.t.Fatal(err)
	}
}

type attrs = map[string]any

// Whoever waits gets the command's exit status, or 125 when there is none.
func TestWait(t *testing.T) {
	u := newUser(t)
	u.image("tools")
	running := attrs{"state": "Running"}
	for name, c := range map[string]struct {
		steps []map[string]any
		code  int
		says  string
	}{
		"success":   {[]map[string]any{running, {"state": "Complete", "exit_code": 0}}, 0, "exit code        0\n"},
		"failure":   {[]map[string]any{running, {"state": "Complete", "exit_code": 9}}, 9, "exit code        9\n"},
		"cancelled": {[]map[string]any{running, {"runtime_status": attrs{"error": "node\x1b[31m lost"}}, {"state": "Cancelled"}}, exitNoStatus, "  error          node\\x1b[31m lost\n"},
		"not run":   {[]map[string]any{{"state": "Cancelled", "log": emptyPDH}}, exitNoStatus, "container state  Cancelled\n"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := *u
			d.t, d.ctx = t, t.Context()
			type end struct {
				code           int
				stdout, stderr string
			}
			ended := make(chan end, 1)
			go func() {
				code, stdout, stderr := d.run("submit", "--name", name, "--image", "tools", "--attempts", "1", "--no-reuse", "--wait", "--", "true")
				ended <- end{code, stdout, stderr}
			}()
			uuid := ""
			for uuid == "" {
				select {
				case e := <-ended:
					t.Fatalf("%+v", e)
				case <-time.After(10 * time.Millisecond):
				}
				for r := range d.requests(name) {
					uuid = r
				}
			}
			d.end(uuid, c.steps...)
			e := <-ended
			if e.code != c.code || !strings.Contains(e.stdout, c.says) || !strings.HasPrefix(e.stderr, "submitted "+uuid+"\n") {
				t.Errorf("%+v, want %d and %q", e, c.code, c.says)
			}
			// How it got on, each thing once.
			lines := strings.Split(strings.TrimSuffix(e.stderr, "\n"), "\n")[1:]
			for i, line := range lines {
				if !strings.Contains(line, "-dz642-") || i > 0 && line == lines[i-1] {
					t.Errorf("said %q", lines)
				}
			}
		})
	}
}

// requests are the UUIDs of the container requests with a name.
func (u *user) requests(name string) map[string]bool {
	u.t.Helper()
	var all []struct {
		UUID string `json:"uuid"`
	}
	if err := u.dispatch.List(u.ctx, "container_requests", attrs{
		"filters": [][]string{{"name", "=", name}}, "select": []string{"uuid"}}, &all); err != nil {
		u.t.Fatal(err)
	}
	out := map[string]bool{}
	for _, r := range all {
		out[r.UUID] = true
	}
	return out
}

// Ctrl-C ends the waiting, not the work.
func TestInterruptedWait(t *testing.T) {
	u := newUser(t)
	u.image("tools")
	ctx, stop := context.WithCancelCause(t.Context())
	waiting := *u
	waiting.ctx = ctx
	ended := make(chan string, 1)
	go func() {
		code, _, stderr := waiting.run("submit", "--name", "long", "--image", "tools", "--wait", "--", "true")
		ended <- fmt.Sprint(code, " ", stderr)
	}()
	for len(u.requests("long")) == 0 {
		select {
		case e := <-ended:
			t.Fatal(e)
		case <-time.After(10 * time.Millisecond):
		}
	}
	stop(errors.New("caught signal: interrupt"))
	var uuid string
	for uuid = range maps.Keys(u.requests("long")) {
	}
	got := <-ended
	if !strings.HasPrefix(got, "130 ") || !strings.Contains(got, "crunch-run submit: caught signal: interrupt\n") {
		t.Errorf("%s", got)
	}
	if strings.Contains(got, "submitted ") && !strings.Contains(got, "crunch-run request cancel "+uuid+" stops it") {
		t.Errorf("it is not said how to stop it: %s", got)
	}
	if shown := u.must("request", "show", uuid); !strings.Contains(shown, "state            Committed\n") {
		t.Errorf("%s", shown)
	}
	if got := u.must("request", "cancel", uuid); got != uuid+" is cancelled\n" {
		t.Errorf("%s", got)
	}
	if shown := u.must("request", "show", uuid); !strings.Contains(shown, "state            Committed (cancelled)\npriority         0\n") {
		t.Errorf("%s", shown)
	}
	u.end2(uuid, attrs{"state": "Final"})
	if code, _, stderr := u.run("request", "cancel", uuid); code != exitFailure || !strings.Contains(stderr, "has ended already") {
		t.Errorf("%d %s", code, stderr)
	}
}

// Who waits for a request learns that it was cancelled while it was queued, which
// changes no state on the cluster.
func TestWaitForCancelled(t *testing.T) {
	u := newUser(t)
	u.image("tools")
	ended := make(chan string, 1)
	go func() {
		code, stdout, stderr := u.run("submit", "--name", "unwanted", "--image", "tools", "--wait", "--", "true")
		ended <- fmt.Sprint(code, " ", stdout, stderr)
	}()
	uuid := ""
	for uuid == "" {
		select {
		case e := <-ended:
			t.Fatal(e)
		case <-time.After(10 * time.Millisecond):
		}
		for uuid = range u.requests("unwanted") {
		}
	}
	u.must("request", "cancel", uuid)
	got := <-ended
	if !strings.HasPrefix(got, fmt.Sprint(exitNoStatus)+" ") || !strings.Contains(got, uuid+" has been cancelled before it began\n") || !strings.Contains(got, "Committed (cancelled)") {
		t.Errorf("%s", got)
	}
}

func (u *user) end2(uuid string, change map[string]any) {
	u.t.Helper()
	if err := u.dispatch.Call(u.ctx, http.MethodPut, "container_requests/"+uuid, attrs{"container_request": change}, nil); err != nil {
		u.t.Fatal(err)
	}
}

// Without a cluster, or with a wrong token, it is said what is missing.
func TestNoAccess(t *testing.T) {
	u := newUser(t)
	host, token := u.config.Host, u.config.Token
	for says, change := range map[string]func(){
		"does not accept the token in ARVADOS_API_TOKEN": func() { u.config.Token = "wrong" },
		"Maybe env var ARVADOS_API_HOST should be":       func() { u.config.Host = "" },
		"connection refused":                             func() { u.config.Host = "127.0.0.1:1" },
		"is the right CA bundle named by SSL_CERT_FILE":  func() { u.config.CAFile = "" },
	} {
		ca := u.config.CAFile
		change()
		// On a busy machine that may be too short for any answer.
		for u.config.Budget = time.Second; ; u.config.Budget *= 5 {
			code, _, stderr := u.run("image", "list")
			if code == exitFailure && strings.Contains(stderr, says) && !strings.Contains(stderr, token) {
				break
			}
			if u.config.Budget > time.Minute {
				t.Errorf("%d %s, want %q", code, stderr, says)
				break
			}
		}
		u.config.Host, u.config.Token, u.config.CAFile = host, token, ca
	}
}

func TestProgress(t *testing.T) {
	for want, status := range map[string]map[string]any{
		"u is Running":                      {},
		"u is Running: copying":             {"activity": "copying"},
		`u is Running: low on space\nor so`: {"activity": "copying", "warning": "low on space\nor so"},
		`u is Running: \x1b[31mred`:         {"error": "\x1b[31mred", "warning": 5},
	} {
		if got := progress(arvados.Container{UUID: "u", State: "Running", RuntimeStatus: status}); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

func TestExplain(t *testing.T) {
	refused := func(status int, texts ...string) error {
		return fmt.Errorf("while at it: %w", &arvados.Error{Method: "GET", Path: "/arvados/v1/things/x", Status: status, Texts: texts, RequestID: "req-1"})
	}
	for want, err := range map[string]error{
		"while at it: permission denied (req-1)":                                         refused(403, "//railsapi.internal/arvados/v1/things/x: 403 Forbidden: #<ArvadosModel::PermissionDeniedError: ArvadosModel::PermissionDeniedError> (req-1)"),
		"while at it: Name is too long (req-1)":                                          refused(422, "//railsapi.internal/arvados/v1/things: 422 Unprocessable Content: Name is too long (req-1)"),
		"while at it: a; b":                                                              refused(422, "a", "b"),
		"while at it: 418 I'm a teapot":                                                  refused(418),
		"while at it: things/x is not there, or not yours to read (req-1)":               refused(404, "Path not found"),
		`bad \x1b[0m word`:                                                               errors.New("bad \x1b[0m word"),
		"while at it: GET /arvados/v1/things/x: 500 Internal Server Error: oops (req-1)": refused(500, "oops"),
	} {
		if got := explain(err); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}
