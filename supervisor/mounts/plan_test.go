package mounts

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"crunch-oci/arvados"
)

const pdh = "59389a8f9ee9d399be35462a0f92541c+53"

// record reads the mounts of a record as the API would send them.
func record(t testing.TB, mounts string) map[string]arvados.Mount {
	t.Helper()
	var m map[string]arvados.Mount
	if err := json.Unmarshal([]byte(mounts), &m); err != nil {
		t.Fatal(err)
	}
	return m
}

func planOf(t testing.TB, mounts, secrets string) (*Plan, error) {
	t.Helper()
	return NewPlan(Input{
		Mounts: record(t, mounts), SecretMounts: record(t, secrets), OutputPath: "/out", RunDir: t.TempDir(),
	})
}

func TestPlanRefuses(t *testing.T) {
	for _, c := range []struct{ name, mounts, secrets, want string }{
		{"path climbing out of a collection", `{"/in":{"kind":"collection","portable_data_hash":"` + pdh + `","path":"../../../etc/shadow"}}`, `{}`, "leads out of the collection"},
		{"path climbing out after a descent", `{"/in":{"kind":"collection","portable_data_hash":"` + pdh + `","path":"a/../.."}}`, `{}`, "leads out of the collection"},
		{"climbing within the hash", `{"/in":{"kind":"collection","portable_data_hash":"` + pdh + `/../../etc"}}`, `{}`, "leads out of the collection"},
		{"hash that is a path", `{"/in":{"kind":"collection","portable_data_hash":"../../etc"}}`, `{}`, "not a portable data hash"},
		{"hash in capitals", `{"/in":{"kind":"collection","portable_data_hash":"` + strings.ToUpper(pdh) + `"}}`, `{}`, "not a portable data hash"},
		{"uuid that is a path", `{"/in":{"kind":"collection","uuid":"../../../../../../../../etc"}}`, `{}`, "not the uuid of a collection"},
		{"uuid of a group", `{"/in":{"kind":"collection","uuid":"zzzzz-j7d0g-0123456789abcde"}}`, `{}`, "not the uuid of a collection"},
		{"null in a path", `{"/in":{"kind":"collection","portable_data_hash":"` + pdh + `","path":"a\u0000b"}}`, `{}`, "leads out of the collection"},
		{"null in a target", `{"/i\u0000n":{"kind":"tmp"}}`, `{}`, "null character"},
		{"relative target", `{"in":{"kind":"tmp"}}`, `{}`, `mount target "in" is neither`},
		{"root as target", `{"/x/..":{"kind":"tmp"}}`, `{}`, "hide the whole image"},
		{"targets equal after cleaning", `{"/a/b":{"kind":"tmp"},"/a//c/../b/":{"kind":"tmp"}}`, `{}`, `mount targets "/a//c/../b/" and "/a/b" are the same place`},
		{"secret equal to a mount after cleaning", `{"/s":{"kind":"tmp"}}`, `{"/s/":{"kind":"text","content":"hush"}}`, `secret mount "/s/" conflicts with regular mount`},
		{"stdout climbing out of the output", `{"stdout":{"kind":"file","path":"/out/../etc/cron.d/x"}}`, `{}`, "Stdout path does not start with OutputPath: /out/../etc/cron.d/x, /out/"},
		{"stdout without a name", `{"stdout":{"kind":"file","path":"/out/d/"}}`, `{}`, "Stdout path does not start with OutputPath"},
		{"stdout hidden by a mount", `{"stdout":{"kind":"file","path":"/out/c/x"},"/out/c":{"kind":"collection","portable_data_hash":"` + pdh + `"}}`, `{}`, `stdout path "/out/c/x" lies inside the read-only mount "/out/c"`},
		{"secret stdout", `{}`, `{"stdout":{"kind":"json","content":1}}`, "unsupported mount kind 'json' for stdout: only 'file' is supported"},
		{"stdin of no collection", `{"stdin":{"kind":"collection"}}`, `{}`, "stdin needs"},
		{"text that is a number", `{}`, `{"/t":{"kind":"text","content":4711}}`, `content for mount "/t" must be a string`},
		{"text without content", `{"/t":{"kind":"text"}}`, `{}`, `content for mount "/t" must be a string`},
		{"first in order", `{"/b":{"kind":"text"},"/a":{"kind":"text"}}`, `{}`, `content for mount "/a" must be a string`},
		{"secrets before all", `{"/a":{"kind":"text"}}`, `{"/b":{"kind":"tmp"}}`, `secret mount "/b"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			mounts := strings.Replace(c.mounts, "{", `{"/out":{"kind":"tmp"},`, 1)
			mounts = strings.Replace(mounts, ",}", "}", 1)
			_, err := planOf(t, mounts, c.secrets)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q", err, c.want)
			}
			if err != nil && (strings.Contains(err.Error(), "hush") || strings.Contains(err.Error(), "4711")) {
				t.Errorf("error %v shows the content", err)
			}
		})
	}
}

func TestSecretStdin(t *testing.T) {
	for content, want := range map[string]string{
		`{"kind":"text","content":"pass\n"}`:            "pass\n",
		`{"kind":"json","content":{"b":1e400,"a":"é"}}`: `{"a":"é","b":1e400}`,
	} {
		p, err := planOf(t, `{"/out":{"kind":"tmp"}}`, `{"stdin":`+content+`}`)
		if err != nil {
			t.Fatal(err)
		}
		if string(p.Stdin.Content) != want || len(p.Binds) != 1 || len(p.Files) != 0 {
			t.Errorf("stdin %q, binds %v, files %v", p.Stdin.Content, p.Binds, p.Files)
		}
	}
}

func TestSecretsAreMarked(t *testing.T) {
	p, err := planOf(t, `{"/out":{"kind":"tmp"},"/a":{"kind":"text","content":"x"}}`, `{"/s":{"kind":"text","content":"y"}}`)
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range p.Binds {
		if b.Secret != (b.Target == "/s") {
			t.Errorf("bind %+v", b)
		}
	}
}

// A secret below an output that is a collection must not become part of it,
// also where the target sorts before the output path.
func TestSecretInCollectionOutputIsNeverStaged(t *testing.T) {
	p, err := NewPlan(Input{
		Mounts:       record(t, `{"/out/":{"kind":"collection","writable":true}}`),
		SecretMounts: record(t, `{"/out/!":{"kind":"text","content":"y"}, "/out//a":{"kind":"text","content":"y"}}`),
		OutputPath:   "/out/", RunDir: t.TempDir(),
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Staged) != 0 || len(p.Binds) != 3 {
		t.Errorf("staged %v, binds %v", p.Staged, p.Binds)
	}
}

func TestWarnings(t *testing.T) {
	p, err := planOf(t, `{"/out":{"kind":"tmp"},"/g":{"kind":"git_tree"},"/k":{"kind":"keep"},"/f":{"kind":"file"},
		"/out/c":{"kind":"collection","portable_data_hash":"`+pdh+`"},"/out/c/t":{"kind":"text","content":"x"}}`, `{}`)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		`mount "/g" is ignored: unknown kind "git_tree"`,
		`mount "/out/c/t" has no effect: it lies inside the read-only mount "/out/c"`,
	}
	if !slices.Equal(p.Warnings, want) {
		t.Errorf("warnings %q", p.Warnings)
	}
}

func TestParentsAreMountedFirst(t *testing.T) {
	p, err := planOf(t, `{"/out":{"kind":"tmp"},"/a/b/c":{"kind":"tmp"},"/a":{"kind":"tmp"},"/a/b":{"kind":"tmp"},"/a!":{"kind":"tmp"}}`, `{}`)
	if err != nil {
		t.Fatal(err)
	}
	seen := make(map[string]bool)
	for _, b := range p.Binds {
		for other := range seen {
			if strings.HasPrefix(other, b.Target+"/") {
				t.Errorf("%s is mounted after %s", b.Target, other)
			}
		}
		seen[b.Target] = true
	}
	if len(seen) != 5 {
		t.Errorf("binds %v", p.Binds)
	}
}

func TestNeedsKeepMount(t *testing.T) {
	for mounts, want := range map[string]bool{
		`{"/out":{"kind":"tmp"}}`: false,
		`{"/out":{"kind":"tmp"},"/out/w":{"kind":"collection","writable":true,"portable_data_hash":"` + pdh + `"}}`: false,
		`{"/out":{"kind":"tmp"},"stdin":{"kind":"collection","path":"f","portable_data_hash":"` + pdh + `"}}`:       false,
		`{"/out":{"kind":"tmp"},"/in":{"kind":"collection","portable_data_hash":"` + pdh + `"}}`:                    true,
	} {
		p, err := planOf(t, mounts, `{}`)
		if err != nil {
			t.Fatal(err)
		}
		if p.NeedsKeepMount() != want {
			t.Errorf("%s: %v", mounts, !want)
		}
	}
}

func TestFirstFile(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "f")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if got := firstFile([]string{"", filepath.Join(dir, "none"), dir, file}); got != file {
		t.Errorf("got %q", got)
	}
	if got := firstFile([]string{""}); got != "" {
		t.Errorf("got %q", got)
	}
}

// Whatever a record says, sources stay in the run directory and staged paths in
// the output.
func FuzzNewPlan(f *testing.F) {
	for _, v := range loadVectors(f) {
		m, _ := json.Marshal(v.Container.Mounts)
		s, _ := json.Marshal(v.SecretMounts)
		f.Add(m, s, v.Container.OutputPath)
	}
	f.Add([]byte(`{"":{}}`), []byte(`null`), "/")
	f.Fuzz(func(t *testing.T, mounts, secrets []byte, output string) {
		var in Input
		if json.Unmarshal(mounts, &in.Mounts) != nil || json.Unmarshal(secrets, &in.SecretMounts) != nil {
			t.Skip()
		}
		in.OutputPath, in.RunDir = output, "/run/x"
		p, err := NewPlan(in)
		if err != nil {
			return
		}
		for _, b := range p.Binds {
			if !strings.HasPrefix(b.Source, "/run/x/") || filepath.Clean(b.Source) != b.Source {
				t.Errorf("source %q", b.Source)
			}
			if b.Kind == BindCollection && !strings.HasPrefix(b.Source, "/run/x/keep1/") {
				t.Errorf("collection source %q", b.Source)
			}
			if !filepath.IsAbs(b.Target) || filepath.Clean(b.Target) != b.Target || b.Target == "/" {
				t.Errorf("target %q", b.Target)
			}
		}
		for _, s := range p.Staged {
			if !filepath.IsLocal(s.Path) || filepath.Clean(s.Path) != s.Path || s.Path == "." {
				t.Errorf("staged path %q", s.Path)
			}
		}
		for _, file := range []*OutputFile{p.Stdout, p.Stderr} {
			if file != nil && !filepath.IsLocal(file.Path) {
				t.Errorf("stream %q", file.Path)
			}
		}
	})
}

// The text is JSON of the same value, in one fixed form.
func FuzzRenderJSON(f *testing.F) {
	for _, seed := range []string{
		`null`, `{"foo":123456789123456789,"b":[1,null,true]}`, `"<a href=\"x\">&\u2028</a> é"`, `1e400`, `-0`, `1.10`, `{"a":1,"a":2}`,
		`"\ud800"`, ` [ ] `, `"` + "\xff" + `"`, `1 2`, `{`, `"\u0007\b\f"`, ``,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		got, err := renderJSON(text)
		if err != nil {
			if json.Valid(text) {
				t.Errorf("%q: %v", text, err)
			}
			return
		}
		if !json.Valid(got) {
			t.Fatalf("%q is not JSON", got)
		}
		for _, special := range []string{"<", ">", "&", "\u2028", "\u2029", "\n", "\t"} {
			if strings.Contains(string(got), special) {
				t.Errorf("%q contains %q", got, special)
			}
		}
		again, err := renderJSON(got)
		if err != nil || string(again) != string(got) {
			t.Errorf("%q becomes %q (%v)", got, again, err)
		}
	})
}

func TestNumbersSurvive(t *testing.T) {
	for _, number := range []string{"123456789123456789", "0.1", "1.10", "1e400", "-0", "1E+2", "18446744073709551616", "3.0"} {
		p, err := planOf(t, fmt.Sprintf(`{"/out":{"kind":"tmp"},"/j":{"kind":"json","content":{"n":[%s]}}}`, number), `{}`)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := string(p.Files[0].Content), fmt.Sprintf(`{"n":[%s]}`, number); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}
