package nodeinfo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestWriteNode(t *testing.T) {
	dir := t.TempDir()
	var out bytes.Buffer
	if err := WriteNode(t.Context(), &out, dir); err != nil {
		t.Fatal(err)
	}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		t.Fatal(err)
	}
	want := `(?s)^Host Information\nLinux ` + regexp.QuoteMeta(unix.ByteSliceToString(uts.Nodename[:])) + ` [^\n]+\n\n` +
		`CPU Information\nprocessor\s*: 0\n.*\n\n+Memory Information\nMemTotal: .*kB\n.*\n\n` +
		`Disk Space\nFilesystem +1M-blocks .*\n\nDisk INodes\nFilesystem +Inodes .*\n\n$`
	if !regexp.MustCompile(want).Match(out.Bytes()) {
		t.Errorf("got\n%s", out.String())
	}
	if n := strings.Count(out.String(), "% "); n < 6 {
		t.Errorf("df is to show two file systems twice:\n%s", out.String())
	}
}

func TestCommandTrouble(t *testing.T) {
	// A busy machine may take too long for the others as well, and is given more time.
	for limit := 500 * time.Millisecond; ; limit *= 5 {
		var out bytes.Buffer
		err := write(t.Context(), &out, []entry{
			{"Missing", []string{"/no/such/command", "-x"}},
			{"Failing", []string{"sh", "-c", "echo out; echo err >&2; printf half; exit 3"}},
			{"Hanging", []string{"sh", "-c", "echo begun; exec sleep 600"}},
			{"Well", []string{"echo", "fine"}},
		}, limit)
		if err != nil {
			t.Fatal(err)
		}
		want := "Missing\nWhile running command [/no/such/command -x]: fork/exec /no/such/command: no such file or directory\n\n" +
			"Failing\nout\nerr\nhalf\nWhile running command [sh -c echo out; echo err >&2; printf half; exit 3]: exit status 3\n\n" +
			"Hanging\nbegun\nWhile running command [sh -c echo begun; exec sleep 600]: did not end within " + limit.String() + "\n\n" +
			"Well\nfine\n\n"
		if out.String() == want {
			return
		}
		if limit > time.Minute {
			t.Fatalf("got\n%q\nwant\n%q", out.String(), want)
		}
	}
}

func TestCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := WriteNode(ctx, new(bytes.Buffer), os.TempDir()); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

func TestRecordJSON(t *testing.T) {
	got, err := RecordJSON("zzzzz-dz642-s2zuqk7ijbnfxqh", []byte(`{"uuid":"x","priority":1124104470529691,"cost":0.0,"big":12345678901234567890.5,"command":["a<b","&","ü"],"mounts":{"/b":{},"/a":null},"e":[]}`))
	want := `{
    "big": 12345678901234567890.5,
    "command": [
        "a\u003cb",
        "\u0026",
        "ü"
    ],
    "cost": 0.0,
    "e": [],
    "mounts": {
        "/a": null,
        "/b": {}
    },
    "priority": 1124104470529691,
    "uuid": "x"
}
`
	if err != nil || string(got) != want {
		t.Errorf("%v, got\n%s", err, got)
	}
	for _, none := range []string{"", "null", " \n"} {
		_, err := RecordJSON("zzzzz-dz642-s2zuqk7ijbnfxqh", []byte(none))
		if !errors.Is(err, ErrNoRecord) || err.Error() != "error: no container record found for zzzzz-dz642-s2zuqk7ijbnfxqh" {
			t.Errorf("%q: %v", none, err)
		}
	}
	for _, bad := range []string{"[]", "{", "1"} {
		if _, err := RecordJSON("zzzzz-dz642-s2zuqk7ijbnfxqh", []byte(bad)); err == nil {
			t.Errorf("%q is taken for a record", bad)
		}
	}
}

// The text has the length it had in the log collections of real runs.
func TestRecordJSONOfRealRuns(t *testing.T) {
	size := regexp.MustCompile(` \d+:(\d+):container\.json`)
	for _, name := range []string{"run-basic", "run-exit3", "run-sigterm", "run-badcommand", "run-tunnel"} {
		data, err := os.ReadFile("../../testdata/spec/captures/" + name + ".json")
		if err != nil {
			t.Fatal(err)
		}
		var captured struct {
			Exchanges []struct {
				Request  struct{ Path string }
				Response struct{ Body json.RawMessage }
			}
		}
		if err := json.Unmarshal(data, &captured); err != nil {
			t.Fatal(err)
		}
		found := false
		for _, e := range captured.Exchanges {
			var list struct{ Items []json.RawMessage }
			if !strings.HasPrefix(e.Request.Path, "/arvados/v1/containers?filters=") || json.Unmarshal(e.Response.Body, &list) != nil || len(list.Items) != 1 {
				continue
			}
			found = true
			text, err := RecordJSON(name, list.Items[0])
			if err != nil {
				t.Fatal(err)
			}
			if want := string(size.FindSubmatch(data)[1]); fmt.Sprint(len(text)) != want {
				t.Errorf("%s: %d bytes, want %s", name, len(text), want)
			}
		}
		if !found {
			t.Errorf("%s: no container list", name)
		}
	}
}
