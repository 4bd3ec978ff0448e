package manifests

import (
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"
)

func load(t testing.TB, file string, v any) {
	t.Helper()
	b, err := os.ReadFile("../../../testdata/spec/" + file)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, v); err != nil {
		t.Fatal(err)
	}
}

type keepVectors struct {
	PDH []struct {
		Manifest, PDH string
	} `json:"pdh"`
	Manifests, ManifestsRejected []struct {
		Note, Manifest, PDH string
		APIAccepts          *bool `json:"api_accepts"`
	}
}

func vectors(t testing.TB) (v keepVectors) {
	var raw struct {
		PDH      json.RawMessage `json:"pdh"`
		Accepted json.RawMessage `json:"manifests"`
		Rejected json.RawMessage `json:"manifests_rejected"`
	}
	load(t, "keep.json", &raw)
	for _, p := range []struct {
		raw json.RawMessage
		to  any
	}{{raw.PDH, &v.PDH}, {raw.Accepted, &v.Manifests}, {raw.Rejected, &v.ManifestsRejected}} {
		if err := json.Unmarshal(p.raw, p.to); err != nil {
			t.Fatal(err)
		}
	}
	return v
}

func TestCheckVectors(t *testing.T) {
	v := vectors(t)
	tried := 0
	for _, list := range [][]struct {
		Note, Manifest, PDH string
		APIAccepts          *bool `json:"api_accepts"`
	}{v.Manifests, v.ManifestsRejected} {
		for _, m := range list {
			if m.APIAccepts == nil {
				continue
			}
			tried++
			info, err := Check(m.Manifest, nil)
			if (err == nil) != *m.APIAccepts {
				t.Errorf("%s: %q: accepted is %v, want %v (%v)", m.Note, m.Manifest, err == nil, *m.APIAccepts, err)
			}
			if err == nil && m.PDH != "" && info.PDH != m.PDH {
				t.Errorf("%s: PDH %s, want %s", m.Note, info.PDH, m.PDH)
			}
		}
	}
	if tried < 50 {
		t.Errorf("only %d vectors", tried)
	}
	for _, p := range v.PDH {
		if info, err := Check(p.Manifest, nil); err == nil && info.PDH != p.PDH {
			t.Errorf("PDH of %q is %s, want %s", p.Manifest, info.PDH, p.PDH)
		}
	}
}

func TestFileStats(t *testing.T) {
	var spec struct {
		Vectors struct {
			Stats []struct {
				Manifest  string
				FileCount int64 `json:"file_count"`
				FileSize  int64 `json:"file_size_total"`
			} `json:"file_stats"`
		}
	}
	load(t, "arvados-api.json", &spec)
	if len(spec.Vectors.Stats) == 0 {
		t.Fatal("no vectors")
	}
	for _, s := range spec.Vectors.Stats {
		info, err := Check(s.Manifest, nil)
		if err != nil || info.FileCount != s.FileCount || info.FileSize != s.FileSize {
			t.Errorf("%q: %d files, %d bytes, %v; want %d, %d", s.Manifest, info.FileCount, info.FileSize, err, s.FileCount, s.FileSize)
		}
	}
}

func TestCheckErrors(t *testing.T) {
	if _, err := Check("hello world\n", nil); err == nil || err.Error() != `Manifest invalid for stream 1: missing or invalid stream name "hello"` {
		t.Errorf("got %v", err)
	}
	if _, err := Check(". d41d8cd98f00b204e9800998ecf8427e+0 0:0:\xff\n", nil); err == nil {
		t.Error("a manifest that is not UTF-8 was accepted")
	}
	no := errors.New("no")
	var got []string
	if _, err := Check(". acbd18db4cc2f85cedef654fccc4a4d8+3+Asig 37b51d194a7513e45b56f6524f2d51f2+3 0:6:x\n",
		func(l string) error { got = append(got, l); return no }); err != no || len(got) != 1 || !strings.HasSuffix(got[0], "+Asig") {
		t.Errorf("%v after %v", err, got)
	}
}

// The two log collections of the specification's example: what the server
// makes for the request out of what the supervisor saved.
func TestMergeLikeTheServer(t *testing.T) {
	var spec struct {
		Records map[string]struct {
			Manifest string `json:"manifest_text"`
			PDH      string `json:"portable_data_hash"`
		}
	}
	var raw struct{ Records map[string]json.RawMessage }
	load(t, "arvados-api.json", &raw)
	spec.Records = map[string]struct {
		Manifest string `json:"manifest_text"`
		PDH      string `json:"portable_data_hash"`
	}{}
	for _, n := range []string{"collection_cr_log", "collection_cr_log_verbatim"} {
		r := spec.Records[n]
		if err := json.Unmarshal(raw.Records[n], &r); err != nil {
			t.Fatal(err)
		}
		spec.Records[n] = r
	}
	saved := spec.Records["collection_cr_log_verbatim"].Manifest
	tree, err := NewTree(saved)
	if err != nil {
		t.Fatal(err)
	}
	if err := tree.Add("log for container xmpl1-dz642-7k2v9q4m1x8c3b5", saved); err != nil {
		t.Fatal(err)
	}
	if got, want := tree.Manifest(), spec.Records["collection_cr_log"].Manifest; got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

// Blocks that the supervisor listed several times come out once, as in the
// capture of a whole run.
func TestMergeRun(t *testing.T) {
	for _, name := range []string{"basic", "exit3", "sigterm", "tunnel"} {
		var run struct {
			Exchanges []struct {
				Request struct{ Body json.RawMessage }
			}
			Final struct {
				Container struct{ UUID, State string }
				LogUUID   struct {
					Manifest string `json:"manifest_text"`
				} `json:"log_uuid"`
			}
		}
		load(t, "captures/run-"+name+".json", &run)
		var saves []string
		for _, e := range run.Exchanges {
			var body struct {
				Form struct {
					Collection struct {
						Manifest string `json:"manifest_text"`
						Name     string
					}
				} `json:"_form"`
			}
			// Bodies of other requests have other shapes.
			if json.Unmarshal(e.Request.Body, &body) == nil && strings.HasPrefix(body.Form.Collection.Name, "logs for ") {
				saves = append(saves, strip(body.Form.Collection.Manifest))
			}
		}
		if len(saves) == 0 {
			t.Errorf("%s: no saves found", name)
			continue
		}
		tree := &Tree{}
		for i, m := range saves {
			dirs := []string{"log for container " + run.Final.Container.UUID}
			if i < len(saves)-1 || run.Final.Container.State == "Complete" {
				dirs = append(dirs, "") // a retried container's last log stays below its own name
			}
			for _, dir := range dirs {
				if err := tree.Add(dir, m); err != nil {
					t.Fatal(err)
				}
			}
		}
		if got, want := tree.Manifest(), strip(run.Final.LogUUID.Manifest); got != want {
			t.Errorf("%s: got\n%swant\n%s", name, got, want)
		}
	}
}

// strip removes signatures, also those that the captures blank out.
func strip(m string) string {
	fields := strings.Split(m, " ")
	for i, f := range fields {
		if j := strings.Index(f, "+A"); j > 0 && strings.Count(f[:j], "+") == 1 {
			fields[i] = f[:j]
		}
	}
	return strings.Join(fields, " ")
}

func TestMergeReplacesAndKeeps(t *testing.T) {
	const a, b = "acbd18db4cc2f85cedef654fccc4a4d8+3", "37b51d194a7513e45b56f6524f2d51f2+3"
	tree, err := NewTree(". " + a + " 0:3:one 0:0:empty\n./d\\040x " + a + " 1:2:two\n")
	if err != nil {
		t.Fatal(err)
	}
	if err := tree.Add("", ". "+b+" "+a+" 0:3:one 3:1:three 0:2:sub/f 1:4:span 3:3:twice 0:3:twice\n"); err != nil {
		t.Fatal(err)
	}
	want := ". " + b + " " + a + " 0:0:empty 0:3:one 1:4:span 3:1:three 3:3:twice 0:3:twice\n" +
		"./d\\040x " + a + " 1:2:two\n./sub " + b + " 0:2:f\n"
	if got := tree.Manifest(); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	for _, bad := range []string{". " + a + " 1:3:x\n", ". acbd18db4cc2f85cedef654fccc4a4d8 0:1:x\n"} {
		if _, err := NewTree(bad); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
	if tree, err := NewTree(". d41d8cd98f00b204e9800998ecf8427e+0 0:0:a 0:0:\\056\n"); err != nil || tree.Manifest() != ". d41d8cd98f00b204e9800998ecf8427e+0 0:0:a\n" {
		t.Errorf("%v", err)
	}
}

// What Check accepts, the merger reads without a panic, and what it writes is
// accepted again.
func FuzzManifest(f *testing.F) {
	v := vectors(f)
	for _, m := range v.Manifests {
		f.Add(m.Manifest)
	}
	for _, m := range v.ManifestsRejected {
		f.Add(m.Manifest)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if _, err := Check(text, nil); err != nil {
			return
		}
		tree, err := NewTree(text)
		if err != nil {
			return
		}
		if _, err := Check(tree.Manifest(), nil); err != nil {
			t.Errorf("wrote %q: %v", tree.Manifest(), err)
		}
	})
}
