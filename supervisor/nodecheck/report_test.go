package nodecheck

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestTable(t *testing.T) {
	r := &Report{Version: "1.0", Host: "node7", Milliseconds: 12, Findings: []Finding{
		{"kernel", OK, "Linux", ""},
		{"kernel", Warning, "old", "buy a new one"},
		{"image store", Failure, "no space on \x1b[31m/store\nat all", "free some\nor more"},
	}, Settings: []Setting{{"store-dir", "/store", "flag -store-dir", "where"}, {"gpu", "auto", "default", "how"}}}
	var b strings.Builder
	if err := r.WriteTable(&b, false); err != nil {
		t.Fatal(err)
	}
	want := `crunch-run 1.0 on node7

kernel       ok       Linux
             warning  old
                      -> buy a new one
image store  failure  no space on ?[31m/store
                      at all
                      -> free some
                         or more

Settings in force:
  store-dir  /store  flag -store-dir
  gpu        auto    default

This node is not fit to run containers: 1 failure, 1 warning (12 ms).
`
	if b.String() != want {
		t.Errorf("got:\n%s\nwant:\n%s", b.String(), want)
	}
	b.Reset()
	if err := r.WriteTable(&b, true); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(b.String(), "\x1b[32mok     \x1b[0m  Linux") || !strings.Contains(b.String(), "\x1b[1;31mfailure\x1b[0m") || strings.Contains(b.String(), "\x1b[31m/store") {
		t.Errorf("colours:\n%q", b.String())
	}
	b.Reset()
	if err := r.WriteJSON(&b); err != nil {
		t.Fatal(err)
	}
	var back map[string]any
	if err := json.Unmarshal([]byte(b.String()), &back); err != nil || back["healthy"] != false || len(back["checks"].([]any)) != 3 {
		t.Errorf("%v %v", back, err)
	}
}

func TestSummary(t *testing.T) {
	r := &Report{Findings: []Finding{{"x", Warning, "", ""}, {"x", Warning, "", ""}}}
	if got := r.summary(); got != "This node can run containers, 2 warnings (0 ms)." {
		t.Error(got)
	}
}
