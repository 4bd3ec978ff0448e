package client

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// Files go in and come out, alone and in directories; nothing is written over; and
// names cannot talk to the terminal.
func TestCollections(t *testing.T) {
	u := newUser(t)
	dir := t.TempDir()
	for name, data := range map[string]string{"a": "one", "sub/b": "three", "\x1b[2Jc": ""} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	made := u.decode(u.must("collection", "put", dir+"/", "--json", "--name", "mine"))
	uuid := made["uuid"].(string)
	if made["name"] != "mine" || !strings.HasSuffix(made["portable_data_hash"].(string), "+"+fmt.Sprint(len(u.manifest(uuid)))) {
		t.Errorf("%v", made)
	}
	if got, want := u.must("collection", "ls", uuid), "           0 \"\\x1b[2Jc\"\n           3 a\n           5 sub/b\n"; got != want {
		t.Errorf("ls %q", got)
	}
	if got := u.must("collection", "ls", "--json", uuid+"/sub/"); strings.Join(strings.Fields(got), "") != `[{"name":"sub/b","size":5}]` {
		t.Errorf("ls --json %s", got)
	}
	if got := u.must("collection", "get", uuid+"/sub/b", "-"); got != "three" {
		t.Errorf("get - %q", got)
	}
	dest := t.TempDir()
	u.must("collection", "get", uuid+"/a", dest)
	u.must("collection", "get", uuid+"/sub/b", filepath.Join(dest, "renamed"))
	u.must("collection", "get", uuid+"/sub", filepath.Join(dest, "new"))
	for name, want := range map[string]string{"a": "one", "renamed": "three", "new/b": "three"} {
		if got, err := os.ReadFile(filepath.Join(dest, name)); err != nil || string(got) != want {
			t.Errorf("%s: %q %v", name, got, err)
		}
	}
	for says, args := range map[string][]string{
		"file exists":                    {"collection", "get", uuid + "/a", dest},
		"is not empty":                   {"collection", "get", uuid, dest},
		"it needs one to be copied to":   {"collection", "get", uuid, "-"},
		"no such file":                   {"collection", "get", uuid + "/nosuch", "x"},
		"stat nosuch: no such file":      {"collection", "ls", uuid + "/nosuch"},
		"is not there, or not yours":     {"collection", "ls", uuid[:12] + "000000000000000"},
		"nosuch: no such file":           {"collection", "put", filepath.Join(dir, "nosuch")},
		"would be two files":             {"collection", "put", dir + "/a", dir + "/a"},
		"Owner uuid must refer to":       {"collection", "put", "--project", "local-j7d0g-012345678901234", dir},
		"image " + dir + "/a: not an im": {"image", "put", dir + "/a"},
	} {
		code, _, stderr := u.run(args...)
		if code == 0 || !strings.Contains(stderr, says) {
			t.Errorf("%q: %d %s, want %q", args, code, stderr, says)
		}
	}
}

func (u *user) manifest(uuid string) string {
	u.t.Helper()
	var c struct {
		Text string `json:"unsigned_manifest_text"`
	}
	if err := u.dispatch.Call(u.ctx, http.MethodGet, "collections/"+uuid, attrs{"select": []string{"unsigned_manifest_text"}}, &c); err != nil {
		u.t.Fatal(err)
	}
	return c.Text
}

// What "image list" shows as an image's id can be submitted.
func TestSubmitByImageID(t *testing.T) {
	u := newUser(t)
	u.image("lab/tools")
	image := u.decode(strings.Trim(u.must("image", "list", "--json", "lab"), "[]\n"))
	_, row, _ := strings.Cut(u.must("image", "list", "lab"), "\n")
	short := strings.Fields(row)[1]
	if len(short) != 12 {
		t.Fatalf("id in the list: %q", short)
	}
	for _, id := range []string{short, "sha256:" + short, "sha256:" + strings.Repeat("0a", 32), strings.Repeat("0a", 32)} {
		r := u.decode(u.must("submit", "--json", "--image", id, "--", "true"))
		if r["container_image"] != image["portable_data_hash"] {
			t.Errorf("%s: %v", id, r["container_image"])
		}
	}
	if code, _, stderr := u.run("submit", "--image", "0b0b0b0b0b0b", "--", "true"); code != exitFailure || !strings.Contains(stderr, `"0b0b0b0b0b0b" not found`) {
		t.Errorf("unknown id: %d %s", code, stderr)
	}
}

func TestImageList(t *testing.T) {
	u := newUser(t)
	if got := u.must("image", "list", "--json"); got != "[]\n" {
		t.Errorf("%q", got)
	}
	u.image("lab/tools")
	u.image("debian:12")
	for _, c := range []struct {
		args string
		want []string
	}{
		{"", []string{"debian:12", "lab/tools:latest"}}, {"lab", []string{"lab/tools:latest"}}, {"0a0a0a", []string{"debian:12", "lab/tools:latest"}}, {"nosuch", nil},
	} {
		var names []string
		for line := range strings.Lines(u.must(strings.Fields("image list " + c.args)...)) {
			names = append(names, strings.Fields(line)[0])
		}
		if names[0] != "NAME" || !reflect.DeepEqual(names[1:], append([]string{}, c.want...)) {
			t.Errorf("image list %s: %q", c.args, names)
		}
	}
}
