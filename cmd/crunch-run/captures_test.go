package main_test

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"crunch-oci/arvados"
)

// capture is a run of Arvados' own crunch-run against a real cluster
// (testdata/spec/captures/README.md).
type capture struct {
	Exchanges []struct {
		Service string
		Request struct {
			Method, Path string
			Headers      map[string]string
			Body         json.RawMessage
		}
		Response struct {
			Status int
			Body   json.RawMessage
		}
	}
	Final struct {
		Container struct {
			UUID        string
			Command     []string
			Cwd         string
			Environment map[string]string
			Mounts      map[string]map[string]any
			OutputPath  string         `json:"output_path"`
			Constraints map[string]any `json:"runtime_constraints"`
			State       string
			ExitCode    *int      `json:"exit_code"`
			StartedAt   time.Time `json:"started_at"`
			ModifiedAt  time.Time `json:"modified_at"`
		}
	}
}

func loadCapture(t testing.TB, name string) *capture {
	t.Helper()
	text, err := os.ReadFile("../../testdata/spec/captures/run-" + name + ".json")
	if err != nil {
		t.Fatal(err)
	}
	c := new(capture)
	if err := json.Unmarshal(text, c); err != nil {
		t.Fatal(err)
	}
	return c
}

// changes are the calls of the capture that change something.
func (c *capture) changes(t testing.TB) (calls []apiCall) {
	t.Helper()
	for _, e := range c.Exchanges {
		if e.Service != "api" || e.Request.Method == http.MethodGet {
			continue
		}
		var body struct {
			Form map[string]json.RawMessage `json:"_form"`
		}
		if err := json.Unmarshal(e.Request.Body, &body); err != nil {
			t.Fatal(err)
		}
		call := apiCall{
			token: "container", method: e.Request.Method, status: e.Response.Status, answer: e.Response.Body,
			path: e.Request.Path, form: make(url.Values),
		}
		if u, err := url.Parse(e.Request.Path); err == nil {
			call.path = u.Path
		}
		if strings.HasSuffix(e.Request.Headers["Authorization"], "<SYSTEM_ROOT_TOKEN>") {
			call.token = "dispatcher"
		}
		for k, v := range body.Form {
			var text string
			if json.Unmarshal(v, &text) != nil { // an object or list: as it was sent
				text = string(v)
			}
			call.form.Set(k, text)
		}
		calls = append(calls, call)
	}
	return calls
}

// secrets are the secret mounts of the captured container.
func (c *capture) secrets() (mounts attrs) {
	for _, e := range c.Exchanges {
		var body struct {
			SecretMounts attrs `json:"secret_mounts"`
		}
		if strings.HasSuffix(e.Request.Path, "/secret_mounts") && json.Unmarshal(e.Response.Body, &body) == nil {
			mounts = body.SecretMounts
		}
	}
	return mounts
}

// story is what calls say, one line for each parameter or attribute, with names
// for what is another one in each run: UUIDs, hashes, times, prices, ports.
func story(t testing.TB, calls []apiCall, uuid string, now time.Time) (lines []string) {
	t.Helper()
	names := map[string]string{uuid: "UUID"}
	logs := 0
	for _, c := range calls {
		path := logRecord.ReplaceAllString(strings.TrimPrefix(c.path, "/arvados/v1/"), "collections/LOG")
		head := fmt.Sprintf("%s %s %s: ", c.token, c.method, rename(path, names))
		say := func(key string, value any) {
			if list, ok := value.([]string); ok { // a line for each
				for _, v := range list {
					text, err := json.Marshal(v)
					if err != nil {
						t.Fatal(err)
					}
					lines = append(lines, head+key+" "+string(text))
				}
				return
			}
			text, err := json.Marshal(value)
			if err != nil {
				t.Fatal(err)
			}
			lines = append(lines, head+key+" "+rename(string(text), names))
		}
		for _, k := range slices.Sorted(maps.Keys(c.form)) {
			v := c.form.Get(k)
			var object map[string]any
			var list []string
			switch {
			case json.Unmarshal([]byte(v), &list) == nil: // written in another way
				say(k, strings.Join(list, " "))
			case json.Unmarshal([]byte(v), &object) == nil:
				for _, a := range slices.Sorted(maps.Keys(object)) {
					say(k+"."+a, general(t, a, object[a], strings.HasPrefix(fmt.Sprint(object["name"]), "output"), now))
				}
			default:
				say(k, strings.Trim(v, `"`))
			}
		}
		say("answered", c.status)
		var answer struct {
			PDH string `json:"portable_data_hash"`
		}
		if json.Unmarshal(c.answer, &answer) != nil || answer.PDH == "" {
			continue
		}
		if c.token == "container" {
			names[answer.PDH] = "OUTPUT"
		} else {
			logs++
			names[answer.PDH] = fmt.Sprintf("LOG%d", logs)
		}
	}
	return lines
}

func rename(text string, names map[string]string) string {
	for from, to := range names {
		text = strings.ReplaceAll(text, from, to)
	}
	return text
}

var (
	logRecord = regexp.MustCompile(`collections/[a-z0-9]{5}-4zz18-[a-z0-9]{15}`)
	hostPort  = regexp.MustCompile(`^[^ ]+:\d+$`)
)

// general is the value of an attribute without what no two runs share.
func general(t testing.TB, key string, value any, output bool, now time.Time) any {
	t.Helper()
	text, _ := value.(string)
	switch key {
	case "trash_at", "delete_at":
		at, err := time.Parse(time.RFC3339, text)
		if err != nil {
			return value
		}
		return fmt.Sprintf("in %.0f days", at.Sub(now).Hours()/24)
	case "cost":
		if cost, ok := value.(float64); ok && cost > 0 {
			return "COST"
		}
	case "gateway_address":
		if hostPort.MatchString(text) {
			return "HOST:PORT"
		}
	case "manifest_text":
		return files(t, text, output)
	}
	return value
}

// files are the names of a manifest's files, and their sizes if those cannot
// differ: what programs say about the node, and logs, depend on the node.
func files(t testing.TB, manifest string, sizes bool) (list []string) {
	t.Helper()
	total := make(map[string]int)
	for line := range strings.Lines(manifest) {
		tokens := strings.Fields(line)
		for _, token := range tokens[1:] {
			var offset, size int
			var name string
			if n, _ := fmt.Sscanf(token, "%d:%d:%s", &offset, &size, &name); n == 3 {
				total[strings.TrimPrefix(tokens[0]+"/"+name, "./")] += size
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(total)) {
		if sizes && name != "stdout.txt" {
			name += fmt.Sprintf(" %d", total[name])
		}
		list = append(list, name)
	}
	return list
}

// capturedDifferences are the lines that only one of the two says, with "-" what
// only Arvados' own does and "+" what only ours does, in each run named, with the
// reason. They stand in doc/differences.md.
var capturedDifferences = []struct {
	runs  []string
	lines []string
	why   string
}{
	{
		[]string{"exit3", "sigterm", "badcommand", "tunnel"},
		[]string{
			`- dispatcher POST collections: collection.manifest_text "arv-mount.txt"`,
			`- dispatcher PUT collections/LOG: collection.manifest_text "arv-mount.txt"`,
			`- dispatcher PUT collections/LOG: collection.manifest_text "arv-mount.txt"`,
		},
		"no input, so no FUSE server, which would write it",
	},
}

// Of each captured run, our supervisor makes the same changes to the records, in
// the same order and with the same attributes, but for the listed differences.
func TestCapturedRuns(t *testing.T) {
	t.Parallel()
	captures, err := filepath.Glob("../../testdata/spec/captures/run-*.json")
	if err != nil || len(captures) == 0 {
		t.Fatalf("no captures: %v", err)
	}
	listed := 0
	d := newDoor(t)
	input := d.store(t, map[string][]byte{"a.txt": []byte("input file data\n"), "b.txt": []byte("second\n"), "sub/c.txt": []byte("input file data\n")})
	for _, path := range captures {
		name := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(path), "run-"), ".json")
		want := []string{}
		for _, x := range capturedDifferences {
			if slices.Contains(x.runs, name) {
				want = append(want, x.lines...)
				listed++
			}
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			theirs := loadCapture(t, name)
			ours, calls := d.repeat(t, name, theirs, input)
			if ref := theirs.Final.Container; ours.State != ref.State || (ours.ExitCode == nil) != (ref.ExitCode == nil) || ours.ExitCode != nil && *ours.ExitCode != *ref.ExitCode {
				t.Errorf("ended as %s %v, the reference as %s %v", ours.State, ours.ExitCode, ref.State, ref.ExitCode)
			}
			got := lineDiff(
				story(t, apart(t, "reference", theirs.changes(t)), theirs.Final.Container.UUID, theirs.Final.Container.ModifiedAt),
				story(t, apart(t, "ours", calls), ours.UUID, time.Now()))
			if !slices.Equal(got, want) {
				t.Errorf("differences from the reference:\n%s\nlisted:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
		})
	}
	all := 0
	for _, x := range capturedDifferences {
		all += len(x.runs)
		if x.why == "" {
			t.Errorf("no reason for %q", x.lines)
		}
	}
	if all != listed {
		t.Errorf("%d of %d listed differences are of no captured run", all-listed, all)
	}
}

// apart takes out what the tunnel of the gateway says: it goes up at its own
// pace, so that its calls stand anywhere between the others. What they say is
// the same for both: a connection with the secret, and then, by itself or with
// the next update, its address; before the container runs it is refused.
func apart(t testing.TB, who string, calls []apiCall) (rest []apiCall) {
	t.Helper()
	connected, told := false, false
	for _, c := range calls {
		if strings.HasPrefix(c.path, "/arvados/v1/connect/") || strings.HasPrefix(c.path, "/connect/") {
			if c.method != http.MethodPost || !strings.HasSuffix(c.path, "/gateway_tunnel") || c.form.Get("auth_secret") == "" || len(c.form) != 1 || c.status != http.StatusSwitchingProtocols {
				t.Errorf("%s: tunnel: %s %s, answered %d", who, c.method, c.path, c.status)
			}
			connected = true
			continue
		}
		var attributes map[string]any
		if json.Unmarshal([]byte(c.form.Get("container")), &attributes) == nil {
			if address, _ := attributes["gateway_address"].(string); strings.HasPrefix(address, "tunnel ") {
				if !connected || !strings.HasPrefix(address, "tunnel https://") {
					t.Errorf("%s: address %q, tunnel connected: %v", who, address, connected)
				}
				told = told || c.status == http.StatusOK
				delete(attributes, "gateway_address")
				if len(attributes) == 0 {
					continue
				}
				text, err := json.Marshal(attributes)
				if err != nil {
					t.Fatal(err)
				}
				c.form = maps.Clone(c.form)
				c.form.Set("container", string(text))
			}
		}
		rest = append(rest, c)
	}
	if connected != told {
		t.Errorf("%s: tunnel connected: %v, its address accepted: %v", who, connected, told)
	}
	return rest
}

// lineDiff is a shortest list of lines to take from a ("- ") and to add from b
// ("+ ") that makes b of a.
func lineDiff(a, b []string) []string {
	common := make([][]int, len(a)+1) // of a[i:] and b[j:]
	for i := len(a); i >= 0; i-- {
		common[i] = make([]int, len(b)+1)
		for j := len(b) - 1; j >= 0 && i < len(a); j-- {
			if a[i] == b[j] {
				common[i][j] = common[i+1][j+1] + 1
			} else {
				common[i][j] = max(common[i+1][j], common[i][j+1])
			}
		}
	}
	out := []string{}
	for i, j := 0, 0; i < len(a) || j < len(b); {
		switch {
		case i < len(a) && j < len(b) && a[i] == b[j]:
			i, j = i+1, j+1
		case j == len(b) || i < len(a) && common[i+1][j] >= common[i][j+1]:
			out, i = append(out, "- "+a[i]), i+1
		default:
			out, j = append(out, "+ "+b[j]), j+1
		}
	}
	return out
}

// repeat runs a captured container with our supervisor and returns its record and
// what the supervisor has changed.
func (d *door) repeat(t *testing.T, name string, c *capture, input string) (arvados.Container, []apiCall) {
	t.Helper()
	n := newNode(t)
	ref := c.Final.Container
	mounts := attrs{}
	for target, m := range ref.Mounts {
		if m["portable_data_hash"] != nil {
			m["portable_data_hash"] = input
		}
		mounts[target] = m
	}
	command := slices.Clone(ref.Command)
	for i, word := range command { // nobody needs to wait that long
		command[i] = regexp.MustCompile(`sleep [36]\b`).ReplaceAllString(word, "sleep 0.1")
	}
	image := d.image
	if name == "imageload-fails" {
		image = d.storeImage(t, "sha256:"+strings.Repeat("0", 64), []byte("not an archive"))
	}
	uuid := d.submit(t, image, command, attrs{
		"cwd": ref.Cwd, "environment": ref.Environment, "output_path": ref.OutputPath, "mounts": mounts, "secret_mounts": c.secrets(),
		"runtime_constraints": attrs{"vcpus": ref.Constraints["vcpus"], "ram": ref.Constraints["ram"], "keep_cache_ram": ref.Constraints["keep_cache_ram"]},
	})
	w, env := newAPIWitness(t, n, d.cluster)
	address := "127.0.0.1:0"
	if name == "tunnel" {
		address = ""
	}
	secret := d.local.GatewayAuthSecret(uuid)
	p := n.start(t, run{args: []string{uuid}, env: append(env, "GatewayAuthSecret="+secret, "GatewayAddress="+address, `InstanceType={"ProviderType":"m5.large","Price":0.1}`)})
	if name == "sigterm" {
		waitFor(t, "the container's file", func() bool { return n.hasFile("f", len("started\n")) })
		p.signal(t, syscall.SIGTERM)
	}
	d.ledger.hide(secret)
	code := 0
	if ref.ExitCode == nil {
		code = 1 // a container that could not be started
	}
	record := d.finished(t, n, p, uuid, code, ref.State)
	w.mu.Lock()
	defer w.mu.Unlock()
	return record, w.changes
}

// hasFile tells whether a container of the node has written a file of that size.
func (n *node) hasFile(name string, size int) (found bool) {
	_ = filepath.WalkDir(n.tmp(), func(_ string, e fs.DirEntry, err error) error {
		if err != nil || e.Name() != name {
			return nil
		}
		info, err := e.Info()
		found = found || err == nil && info.Size() == int64(size)
		return nil
	})
	return found
}
