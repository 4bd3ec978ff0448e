package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"crunch-oci/oci"
)

// scenario is one entry of "scenarios" in testdata/spec/lifecycle.json: a run
// of the reference.
type scenario struct {
	Name              string
	Calls             []wantCall `json:"api_calls"`
	LastState         string     `json:"last_state_accepted"`
	ExitStatus        int        `json:"process_exit_status"`
	NodeMarkedBroken  bool       `json:"node_marked_broken"`
	CrunchRunTxtLines []string   `json:"crunch_run_txt_lines"`
	LogFiles          []string   `json:"log_collection_files"`
	RunError          string     `json:"run_error"`
}

type wantCall struct {
	Token, Method, Path string
	Params              map[string]any
	Response            string // "error", or empty
}

// readVectors decodes one list of testdata/spec/lifecycle.json.
func readVectors(t *testing.T, list string, v any) {
	t.Helper()
	readVectorsOf(t, "lifecycle.json", list, v)
}

func readVectorsOf(t *testing.T, file, list string, v any) {
	t.Helper()
	text, err := os.ReadFile("../testdata/spec/" + file)
	if err != nil {
		t.Fatal(err)
	}
	var all map[string]json.RawMessage
	if err := json.Unmarshal(text, &all); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(all[list], v); err != nil {
		t.Fatalf("%s: %v", list, err)
	}
	if reflect.ValueOf(v).Elem().Len() == 0 {
		t.Fatalf("no vectors %s", list)
	}
}

// Where the situations come from: what a world lacks to be that of a scenario.
var situations = map[string]func(*world){
	"success":                      func(*world) {},
	"failure exit":                 program(exits(1)),
	"killed by signal":             program(exits(137)),
	"wrong initial state":          func(w *world) { w.api.record["state"] = "Running" },
	"container record unavailable": refusing("GET", "containers/"+testUUID, nil),
	"container token unavailable":  refusing("GET", "containers/"+testUUID+"/auth", nil),
	"secret_mounts 404":            func(w *world) { w.api.secrets = nil; program(exits(0))(w) },
	"secret_mounts 500": func(w *world) {
		w.api.refuse = func(c *call) int {
			if strings.HasSuffix(c.Path, "/secret_mounts") {
				return http.StatusInternalServerError
			}
			return 0
		}
	},
	"invalid mounts":                func(w *world) { w.api.record["output_path"] = "/elsewhere" },
	"FUSE mount cannot start":       func(w *world) { w.input(); w.failAt("start FUSE server", errors.New("exit status 1")) },
	"image collection missing":      func(w *world) { w.api.record["container_image"] = strings.Repeat("a", 32) + "+99" },
	"image load fails, user error":  failing("unpack image", errors.New("ImageLoad: unexpected EOF")),
	"image load fails, broken node": failing("unpack image", errors.New("Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?")),
	"image load fails, disk full":   failing("unpack image", errors.New("write /var/lib/x: no space left on device")),
	"broken node hook":              failing("unpack image", errors.New("no space left on device")),
	"container creation fails":      failing("create container", errors.New("bork")),
	"container record vanished before start": func(w *world) {
		w.api.edit = func(c *call, answer any) {
			if strings.HasSuffix(c.Path, "/containers") {
				answer.(map[string]any)["items"] = []any{}
			}
		}
	},
	"first log save fails":    refusing("POST", "collections", nil),
	"update to Running fails": refusing("PUT", "containers/"+testUUID, map[string]any{"state": "Running"}),
	"start fails, missing command": failing("start container", &oci.StartError{
		Command: "./cmd", Reason: `panic: standard_init_linux.go:175: exec user process caused "no such file or directory"`,
	}),
	"start fails, broken node": failing("start container", errors.New("grpc: the connection is unavailable")),
	"start fails, other":       failing("start container", errors.New("bork")),
	"wait fails": func(w *world) {
		program(exits(0))(w)
		w.runtime.waitErr = errors.New("Container is not running")
	},
	"cancelled before Running": stoppedAt(func(op string) bool { return op == "unpack image" }),
	"cancelled just before the Running update": stoppedAt(func(op string) bool {
		return strings.HasPrefix(op, "dispatcher POST collections")
	}),
	"cancelled between Running and start": stoppedAt(func(op string) bool { return strings.Contains(op, `"state":"Running"`) }),
	"cancelled while running": func(w *world) {
		program(func(g *guest) int {
			if os.WriteFile(filepath.Join(g.host("/out"), "partial"), []byte("1"), 0o644) != nil {
				return 99
			}
			<-g.awaited
			w.stop(errStop)
			<-g.killed
			return 0
		})(w)
	},
	"max_run_time": func(w *world) {
		w.api.record["scheduling_parameters"] = map[string]any{"max_run_time": 1}
		w.timers(time.Second, maxRunTimeGrace)
		program(untilKilled)(w)
	},
	"FUSE mount exits while running": func(w *world) {
		w.input()
		running := make(chan struct{})
		w.mounter.script = func(*fakeMount) error { <-running; return nil }
		program(func(g *guest) int { close(running); <-g.killed; return 0 })(w)
	},
	"output capture fails": program(func(g *guest) int {
		if os.Symlink("/etc/hosts", filepath.Join(g.host("/out"), "link")) != nil {
			return 99
		}
		return 0
	}),
	"output collection cannot be created": func(w *world) {
		program(exits(0))(w)
		w.api.refuse = func(c *call) int {
			if c.Token == "container" && c.Method == "POST" {
				return http.StatusUnprocessableEntity
			}
			return 0
		}
	},
	"final log save fails": func(w *world) {
		program(exits(0))(w)
		w.api.refuse = func(c *call) int {
			if attrs, _ := c.Params["collection"].(map[string]any); c.Method == "PUT" && attrs["is_trashed"] == true {
				return http.StatusUnprocessableEntity
			}
			return 0
		}
	},
	"final update fails":             both(program(exits(0)), refusing("PUT", "containers/"+testUUID, map[string]any{"state": "Complete"})),
	"exit code update fails":         both(program(exits(0)), refusing("PUT", "containers/"+testUUID, map[string]any{"exit_code": json.Number("0")})),
	"API constraint, output not set": both(program(exits(0)), wantsAPI),
	"output set by the container": both(wantsAPI, func(w *world) {
		const pdh = "1f4b0bc7583c2a7f9102c395f4ffc5e3+45"
		w.api.collections[pdh] = ". acbd18db4cc2f85cedef654fccc4a4d8+3 0:3:foo\n"
		program(func(*guest) int {
			w.api.mu.Lock()
			defer w.api.mu.Unlock()
			w.api.record["output"] = pdh
			return 0
		})(w)
	}),
}

func both(f, g func(*world)) func(*world)       { return func(w *world) { f(w); g(w) } }
func program(p func(*guest) int) func(*world)   { return func(w *world) { w.runtime.program = p } }
func failing(op string, err error) func(*world) { return func(w *world) { w.failAt(op, err) } }
func wantsAPI(w *world)                         { w.api.record["runtime_constraints"].(map[string]any)["API"] = true }

// refusing makes the API refuse a call of the dispatcher, if it changes exactly
// these attributes, or begins with them.
func refusing(method, path string, attrs map[string]any) func(*world) {
	return func(w *world) {
		w.api.refuse = func(c *call) int {
			if c.Token != "dispatcher" || c.Method != method || c.Path != "/arvados/v1/"+path {
				return 0
			}
			sent, _ := c.Params["container"].(map[string]any)
			_, state := sent["state"]
			for k, v := range attrs {
				if sent[k] != v || k == "exit_code" && state {
					return 0
				}
			}
			return http.StatusUnprocessableEntity
		}
	}
}

// stoppedAt sends TERM when an operation begins, which interrupts it unless it is
// the update to Running.
func stoppedAt(at func(op string) bool) func(*world) {
	return func(w *world) {
		program(untilKilled)(w)
		once := false
		w.fail = func(ctx context.Context, op string) error {
			if once || !at(op) {
				return nil
			}
			once = true
			w.stop(errStop)
			if strings.Contains(op, `"state":"Running"`) {
				return nil
			}
			return interrupted(ctx, w)
		}
	}
}

const (
	queuedTraced = "lifecycle section 16: the log of a run that ends as Queued is saved, and the update to Queued says nothing else"
	wording      = "other words for the same error"
	fuseFile     = "the FUSE server is not simulated, so its log exists"
)

// changed lists every scenario whose expectation is not that of the reference,
// with the reason.
var changedScenarios = map[string]struct {
	why  string
	edit func(*scenario)
}{
	"secret_mounts 500": {wording + "; 5xx is tried again", func(s *scenario) {
		s.RunError = "error fetching secret_mounts: APIError"
	}},
	"FUSE mount cannot start": {fuseFile, func(s *scenario) { s.addFile("arv-mount.txt") }},
	"image collection missing": {wording + " (the collection is read without the FUSE mount)", func(s *scenario) {
		s.rename(s.RunError, "failed to load container image: open image collection "+strings.Repeat("a", 32)+"+99: APIError")
	}},
	"image load fails, broken node": {queuedTraced, func(s *scenario) { s.queue("POST"); s.nodeError() }},
	"image load fails, disk full":   {queuedTraced, func(s *scenario) { s.queue("POST"); s.nodeError() }},
	"broken node hook": {queuedTraced + "; that the hook is run is tested where it is called", func(s *scenario) {
		s.queue("POST")
		s.nodeError()
		s.NodeMarkedBroken = true
	}},
	"container creation fails": {queuedTraced, func(s *scenario) { s.queue("POST") }},
	"container record vanished before start": {queuedTraced + "; container.json is not made without content", func(s *scenario) {
		s.LogFiles = slices.DeleteFunc(s.LogFiles, func(f string) bool { return f == "container.json" })
		s.queue("POST")
	}},
	"first log save fails": {queuedTraced + ": one more attempt; " + wording, func(s *scenario) {
		s.queue("POST")
		// The second attempt counts as the first's repetition, and there is
		// nothing to publish.
		n := len(s.Calls)
		s.Calls = slices.Delete(s.Calls, n-3, n-1)
		s.rename(s.RunError, "save log collection: APIError")
	}},
	"update to Running fails": {queuedTraced + "; " + wording, func(s *scenario) {
		s.queue("PUT")
		s.rename(s.RunError, "set container state to Running: APIError")
	}},
	"wait fails": {wording, func(s *scenario) { s.rename(s.RunError, "wait for container: "+s.RunError) }},
	"cancelled before Running": {"lifecycle section 16: image load is interrupted; " + queuedTraced, func(s *scenario) {
		s.Calls = slices.DeleteFunc(s.Calls, func(c wantCall) bool { return strings.HasSuffix(c.Path, "/containers") })
		s.LogFiles = []string{"crunch-run.txt", "hoststat.txt"}
		s.queue("POST")
	}},
	"cancelled just before the Running update": {"lifecycle section 16: a stop request is no failure; " + queuedTraced, func(s *scenario) {
		s.RunError, s.ExitStatus = "", 0
		s.CrunchRunTxtLines = slices.DeleteFunc(s.CrunchRunTxtLines, func(l string) bool { return strings.HasPrefix(l, "error in Run") })
		// The save is interrupted: whether it was obeyed is not known.
		s.Calls[len(s.Calls)-2].Response = "error"
		s.queue("POST")
	}},
	"cancelled between Running and start": {"the vector's note: not starting it is right too", func(s *scenario) {
		s.Calls = slices.DeleteFunc(s.Calls, func(c wantCall) bool {
			attrs, _ := c.Params["container"].(map[string]any)
			return attrs["exit_code"] != nil && attrs["state"] == nil
		})
		s.Calls[len(s.Calls)-1].Params["container"].(map[string]any)["exit_code"] = nil
		s.CrunchRunTxtLines = slices.DeleteFunc(s.CrunchRunTxtLines, func(l string) bool {
			return strings.HasPrefix(l, "Starting") || strings.HasPrefix(l, "Waiting") || strings.HasPrefix(l, "Container exited")
		})
	}},
	"FUSE mount exits while running": {fuseFile, func(s *scenario) { s.addFile("arv-mount.txt") }},
	"output capture fails": {"mounts-and-output section 15: name the offending link", func(s *scenario) {
		s.rename(s.RunError, s.RunError+` (symlink "/out/link" -> "/etc/hosts")`)
	}},
	"final log save fails": {wording + "; the error is logged", func(s *scenario) { s.RunError = "save log collection: APIError" }},
	"final update fails": {"arvados-api section 17: a refusal is followed by a look at the record", func(s *scenario) {
		s.Calls = append(s.Calls, wantCall{Token: "dispatcher", Method: "GET", Path: s.Calls[len(s.Calls)-1].Path})
	}},
	"API constraint, output not set": {wholeRecord, readWholeRecord},
	"output set by the container":    {wholeRecord, readWholeRecord},
}

const wholeRecord = "the record is read whole to see whether the container has set its output"

func readWholeRecord(s *scenario) {
	for i, c := range s.Calls {
		if c.Method == "GET" && reflect.DeepEqual(c.Params, map[string]any{"select": []any{"output"}}) {
			s.Calls[i].Params = nil
		}
	}
}

// rename replaces the error.
func (s *scenario) rename(from, to string) {
	s.RunError = to
	for i, l := range s.CrunchRunTxtLines {
		if prefix, ok := strings.CutSuffix(l, from); ok && strings.HasPrefix(l, "error in ") {
			s.CrunchRunTxtLines[i] = prefix + to
		}
	}
}

// nodeError gives the error that suggests a broken node the prefix which the
// same error has everywhere else. Who marks the node logs how.
func (s *scenario) nodeError() {
	const suggests = "Error suggests node is unable to run containers: "
	for i, l := range s.CrunchRunTxtLines {
		if rest, ok := strings.CutPrefix(l, suggests); ok {
			s.CrunchRunTxtLines[i] = suggests + "failed to load container image: " + rest
		}
	}
}

// queue saves the log before the update to Queued, which has no cost.
func (s *scenario) queue(method string) {
	var files []any
	for _, f := range s.LogFiles {
		files = append(files, f)
	}
	in14days := map[string]any{"$time": "now + 14 days"}
	save := wantCall{Token: "dispatcher", Method: method, Path: "/arvados/v1/collections", Params: map[string]any{
		"select": []any{"uuid", "portable_data_hash"},
		"collection": map[string]any{
			"name": "logs for " + testUUID, "trash_at": in14days, "delete_at": in14days,
			"manifest_text": map[string]any{"$manifest_with_files": files},
		},
	}}
	if method == "POST" {
		save.Params["ensure_unique_name"] = true
	} else {
		save.Path += "/" + logUUID
	}
	last := &s.Calls[len(s.Calls)-1]
	last.Params["container"] = map[string]any{"state": "Queued"}
	publish := wantCall{Token: "dispatcher", Method: "PUT", Path: last.Path, Params: map[string]any{
		"select": []any{"uuid"}, "container": map[string]any{"log": map[string]any{"$pdh_of": "most recently saved log collection"}},
	}}
	s.Calls = slices.Insert(s.Calls, len(s.Calls)-1, save, publish)
}

// addFile adds a file to the log.
func (s *scenario) addFile(name string) {
	s.LogFiles = append([]string{name}, s.LogFiles...)
	for _, c := range s.Calls {
		attrs, _ := c.Params["collection"].(map[string]any)
		if manifest, ok := attrs["manifest_text"].(map[string]any); ok && strings.HasPrefix(attrs["name"].(string), "logs") {
			manifest["$manifest_with_files"] = append([]any{name}, manifest["$manifest_with_files"].([]any)...)
		}
	}
}

func TestScenarios(t *testing.T) {
	var all []*scenario
	readVectors(t, "scenarios", &all)
	known := make(map[string]bool)
	for _, s := range all {
		known[s.Name] = true
		arrange := situations[s.Name]
		if arrange == nil {
			t.Errorf("nobody knows how to bring about %q", s.Name)
			continue
		}
		t.Run(s.Name, func(t *testing.T) {
			if c, ok := changedScenarios[s.Name]; ok {
				c.edit(s)
			}
			w := newWorld(t)
			w.useVectorRecord()
			arrange(w)
			w.run()
			s.check(t, w)
		})
	}
	for _, name := range slices.Concat(slices.Collect(maps.Keys(changedScenarios)), slices.Collect(maps.Keys(situations))) {
		if !known[name] {
			t.Errorf("there is no scenario %q", name)
		}
	}
}

// Every changed expectation is explained to users.
func TestChangesAreDocumented(t *testing.T) {
	text, err := os.ReadFile("../doc/differences.md")
	if err != nil {
		t.Fatal(err)
	}
	for name := range changedScenarios {
		if !strings.Contains(string(text), "| "+name+" |") {
			t.Errorf("doc/differences.md does not list %q", name)
		}
	}
}

// useVectorRecord makes the record that of the vectors.
func (w *world) useVectorRecord() {
	const image = "d740a57097711e08eb9b2a93518f20ab+174"
	data, _ := tarball(w.t)
	w.api.collections[image] = w.api.collections[w.store("IMAGE", "sha256:abcd.tar", data)]
	w.api.record["container_image"] = image
}

func (s *scenario) check(t *testing.T, w *world) {
	if got := last(w.api.states); got != s.LastState {
		t.Errorf("last state %q, want %q", got, s.LastState)
	}
	if (w.err != nil) != (s.ExitStatus != 0) || s.RunError != "" && !likeError(s.RunError, fmt.Sprint(w.err)) {
		t.Errorf("error %v\nwant  %s", w.err, s.RunError)
	}
	if got := len(w.broken) > 0; got != s.NodeMarkedBroken {
		t.Errorf("node marked as broken: %v", got)
	}
	var files []string
	infos, err := w.logTree.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range infos {
		files = append(files, f.Name())
	}
	if slices.Sort(files); !slices.Equal(files, s.LogFiles) {
		t.Errorf("log files %v\n     want %v", files, s.LogFiles)
	}
	s.checkLines(t, stamp.ReplaceAllString(w.stderr.String(), ""))
	s.checkCalls(t, w)
}

// likeError compares errors of which one has APIError for whatever the API
// client says.
func likeError(pattern, text string) bool {
	quoted := strings.ReplaceAll(regexp.QuoteMeta(pattern), "APIError", `(GET|PUT|POST) /arvados/v1/\S+: .* \(req-[0-9a-z]{20}.*\)`)
	return regexp.MustCompile("(?s)^" + quoted + "$").MatchString(text)
}

// checkLines looks for the lines, in their order.
func (s *scenario) checkLines(t *testing.T, log string) {
	lines := strings.Split(log, "\n")
	rest := lines
	for _, want := range s.CrunchRunTxtLines {
		if strings.HasPrefix(want, "Writing /var/lock") || strings.HasPrefix(want, "Running broken node hook") || want == "killme" {
			continue // by whoever marks the node
		}
		i := slices.IndexFunc(rest, func(l string) bool {
			n := strings.Split(want, "<N>")
			return l == want || len(n) == 2 && strings.HasPrefix(l, n[0]) && strings.HasSuffix(l, n[1]) || likeError(want, l)
		})
		if i < 0 {
			t.Errorf("the log lacks %q, or has it too early:\n%s", want, strings.Join(lines, "\n"))
			return
		}
		rest = rest[i+1:]
	}
}

func (s *scenario) checkCalls(t *testing.T, w *world) {
	var got []call
	for _, c := range w.api.called() {
		// Images and inputs are read through the API, not through the FUSE mount.
		reads := c.Token == "container" && c.Method == "GET" && strings.HasPrefix(c.Path, "/arvados/v1/collections/")
		again := len(got) > 0 && c.Failed && got[len(got)-1].label == c.label
		if !reads && !again {
			got = append(got, c)
		}
	}
	for i, want := range s.Calls {
		if i >= len(got) {
			t.Errorf("call %d is missing: %+v", i, want)
			continue
		}
		c := got[i]
		path := strings.Replace(want.Path, "zzzzz-4zz18-log00000000logx", logUUID, 1)
		if c.Token != want.Token || c.Method != want.Method || c.Path != path || c.Failed != (want.Response == "error") {
			t.Errorf("call %d is %s (failed: %v)\n want %s %s %s", i, c.label, c.Failed, want.Token, want.Method, path)
		}
		if want.Params == nil {
			want.Params = make(map[string]any)
		}
		if err := match(want.Params, c.Params, &c); err != nil {
			t.Errorf("call %d, %s: %v", i, c.label, err)
		}
	}
	for _, c := range got[min(len(got), len(s.Calls)):] {
		t.Errorf("unexpected call %s", c.label)
	}
}

// match compares decoded JSON with the matchers of the vectors.
func match(want, got any, c *call) error {
	w, ok := want.(map[string]any)
	if !ok {
		if fmt.Sprint(want) != fmt.Sprint(got) {
			return fmt.Errorf("%v, want %v", got, want)
		}
		return nil
	}
	for k, v := range w {
		switch k {
		case "$time":
			at, err := time.Parse(time.RFC3339, fmt.Sprint(got))
			if d := time.Until(at) - 14*24*time.Hour; v != "now + 14 days" || err != nil || d.Abs() > time.Minute {
				return fmt.Errorf("time %v, want %v", got, v)
			}
			return nil
		case "$manifest_with_files":
			text, _ := got.(string)
			if files := topFiles(text); fmt.Sprint(files) != fmt.Sprint(v) {
				return fmt.Errorf("files %v, want %v", files, v)
			}
			return nil
		case "$gateway_address":
			if _, ok := got.(string); !ok {
				return fmt.Errorf("gateway address %v", got)
			}
			return nil
		case "$number":
			if _, ok := got.(json.Number); !ok {
				return fmt.Errorf("%v is no number", got)
			}
			return nil
		case "$pdh_of":
			if is := map[string]any{"most recently saved log collection": c.savedLog, "output collection": c.output}[v.(string)]; got != is {
				return fmt.Errorf("%v, want %v, which is %v", got, is, v)
			}
			return nil
		}
	}
	g, ok := got.(map[string]any)
	if !ok || len(g) != len(w) {
		return fmt.Errorf("%v, want %v", got, want)
	}
	for k, v := range w {
		if _, ok := g[k]; !ok {
			return fmt.Errorf("%s is missing", k)
		}
		if err := match(v, g[k], c); err != nil {
			return fmt.Errorf("%s: %w", k, err)
		}
	}
	return nil
}
