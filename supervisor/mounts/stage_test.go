package mounts

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"golang.org/x/sys/unix"
)

// prepared is a plan with its directories made.
func prepared(t *testing.T, mounts, secrets string) *Plan {
	t.Helper()
	p, err := planOf(t, mounts, secrets)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Prepare(); err != nil {
		t.Fatal(err)
	}
	return p
}

func withOutput(mounts string) string { return `{"/out":{"kind":"tmp"},` + mounts + `}` }

func TestLaterMountsReplaceStagedFiles(t *testing.T) {
	p := prepared(t, withOutput(`"/out/w":{"kind":"collection","writable":true,"portable_data_hash":"`+pdh+`","path":"top"},
		"/out/w/a":{"kind":"text","content":"text"}`), `{"/out/w/d/s":{"kind":"text","content":"secret"}}`)
	in := collections{pdh: {
		"top/a": &fstest.MapFile{Data: []byte("from keep")}, "top/d/s": &fstest.MapFile{}, "top/d/t": &fstest.MapFile{Data: []byte("t")},
		"beside": &fstest.MapFile{},
	}}
	defer unix.Umask(unix.Umask(0o077))
	if err := p.StageOutput(t.Context(), in); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"w 2777 dir \"\"", "w/a 0777 file \"text\"", "w/d 2777 dir \"\"", "w/d/s 0777 file \"secret\"", "w/d/t 0777 file \"t\"",
	}
	for i := range want {
		want[i] = p.OutputDir + "/" + want[i]
	}
	if got := listing(t, p.OutputDir); !slices.Equal(got, want) {
		t.Errorf("files\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestMountPointsHaveWritableParents(t *testing.T) {
	defer unix.Umask(unix.Umask(0o077))
	p := prepared(t, withOutput(`"/out/a/b/c":{"kind":"collection","portable_data_hash":"`+pdh+`"},
		"/out/a/b/c/d/e":{"kind":"collection","portable_data_hash":"`+pdh+`"}`), `{}`)
	if err := p.StageOutput(t.Context(), collections{pdh: {}}); err != nil {
		t.Fatal(err)
	}
	want := []string{p.OutputDir + "/a 2777 dir \"\"", p.OutputDir + "/a/b 2777 dir \"\""}
	if got := listing(t, p.OutputDir); !slices.Equal(got, want) {
		t.Errorf("files %q, want %q", got, want)
	}
}

func TestStagingFaults(t *testing.T) {
	mounts := withOutput(`"/out/w":{"kind":"collection","writable":true,"portable_data_hash":"` + pdh + `"}`)
	t.Run("special file", func(t *testing.T) {
		p := prepared(t, mounts, `{}`)
		err := p.StageOutput(t.Context(), collections{pdh: {"l": &fstest.MapFile{Mode: fs.ModeSymlink, Data: []byte("/etc")}}})
		want := `while staging writable file from "` + p.KeepDir + "/by_id/" + pdh + `" to "` + p.OutputDir + `/w": "l" is neither`
		if err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("error %v\n want %s", err, want)
		}
	})
	t.Run("file in the place of a directory", func(t *testing.T) {
		p := prepared(t, withOutput(`"/out/w":{"kind":"collection","writable":true,"portable_data_hash":"`+pdh+`"},
			"/out/w/a":{"kind":"text","content":"x"}`), `{}`)
		err := p.StageOutput(t.Context(), collections{pdh: {"a/b": &fstest.MapFile{}}})
		if err == nil || !strings.HasPrefix(err.Error(), "while staging writable file from ") {
			t.Errorf("error %v", err)
		}
	})
	t.Run("stop", func(t *testing.T) {
		p := prepared(t, mounts, `{}`)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := p.StageOutput(ctx, collections{pdh: {"a": &fstest.MapFile{}}}); !errors.Is(err, context.Canceled) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("read error", func(t *testing.T) {
		p := prepared(t, mounts, `{}`)
		if err := p.StageOutput(t.Context(), collections{}); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("error %v", err)
		}
	})
}

// The output directory is ours until the container starts; all the same no link
// in it is followed.
func TestStagingFollowsNoLinks(t *testing.T) {
	outside := t.TempDir()
	for _, mounts := range []string{
		`"/out/l/x":{"kind":"text","content":"x"}`,
		`"/out/l":{"kind":"collection","writable":true,"portable_data_hash":"` + pdh + `"}`,
		`"stdout":{"kind":"file","path":"/out/l/x"}`,
		`"stdout":{"kind":"file","path":"/out/l"}`,
	} {
		p := prepared(t, withOutput(mounts), `{}`)
		if err := os.Symlink(outside, filepath.Join(p.OutputDir, "l")); err != nil {
			t.Fatal(err)
		}
		err := p.StageOutput(t.Context(), collections{pdh: {"x": &fstest.MapFile{}}})
		if p.Stdout != nil {
			_, err = p.CreateOutputFile(p.Stdout)
		}
		if err == nil {
			t.Errorf("%s: no error", mounts)
		}
	}
	if list, err := os.ReadDir(outside); err != nil || len(list) > 0 {
		t.Errorf("outside now holds %v (%v)", list, err)
	}
}

func TestCheckInputs(t *testing.T) {
	in := collections{pdh: {"d/f": &fstest.MapFile{}}}
	for _, c := range []struct{ mount, path, want string }{
		{"/in", "d/f", ""},
		{"/in", "", ""},
		{"/in", "d/g", "/by_id/" + pdh + "/d/g: no such file or directory"},
		{"/out/w", "e", "/by_id/" + pdh + "/e: no such file or directory"},
		{"stdin", "d/f", ""},
		{"stdin", "d", "/by_id/" + pdh + "/d: is a directory"},
		{"stdin", "x", "/by_id/" + pdh + "/x: no such file or directory"},
	} {
		p, err := planOf(t, withOutput(`"`+c.mount+`":{"kind":"collection","writable":`+map[bool]string{true: "true", false: "false"}[c.mount == "/out/w"]+
			`,"portable_data_hash":"`+pdh+`","path":"`+c.path+`"}`), `{}`)
		if err != nil {
			t.Fatal(err)
		}
		err = p.CheckInputs(t.Context(), in)
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s %s: %v", c.mount, c.path, err)
		case c.want != "" && (err == nil || err.Error() != "while checking that input files exist: stat "+p.KeepDir+c.want):
			t.Errorf("%s %s: %v, want %s", c.mount, c.path, err, c.want)
		}
	}
}

func TestOpenStdin(t *testing.T) {
	in := collections{pdh: {"d/f": &fstest.MapFile{Data: []byte("from keep")}}}
	for mounts, want := range map[string]string{
		`"stdin":{"kind":"collection","portable_data_hash":"` + pdh + `","path":"/d/f"}`: "from keep",
		`"stdin":{"kind":"json","content":{"b":1,"a":"<"}}`:                              `{"a":"\u003c","b":1}`,
	} {
		p, err := planOf(t, withOutput(mounts), `{}`)
		if err != nil {
			t.Fatal(err)
		}
		r, err := p.OpenStdin(t.Context(), in)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		if got, err := io.ReadAll(r); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", mounts, got, err)
		}
	}
	p, err := planOf(t, `{"/out":{"kind":"tmp"}}`, `{}`)
	if err != nil {
		t.Fatal(err)
	}
	if r, err := p.OpenStdin(t.Context(), in); r != nil || err != nil {
		t.Errorf("no stdin: %v, %v", r, err)
	}
}

func TestOutputFiles(t *testing.T) {
	defer unix.Umask(unix.Umask(0o022))
	p := prepared(t, withOutput(`"stdout":{"kind":"file","path":"/out/a/b/c"},"stderr":{"kind":"file","path":"/out/a//./b/c"}`), `{}`)
	stdout, err := p.CreateOutputFile(p.Stdout)
	if err != nil {
		t.Fatal(err)
	}
	defer stdout.Close()
	stderr, err := p.CreateOutputFile(p.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	defer stderr.Close()
	for _, f := range []*os.File{stdout, stderr, stdout} {
		if _, err := f.WriteString("x"); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{p.OutputDir + "/a 2777 dir \"\"", p.OutputDir + "/a/b 2777 dir \"\"", p.OutputDir + "/a/b/c 0644 file \"xxx\""}
	if got := listing(t, p.OutputDir); !slices.Equal(got, want) {
		t.Errorf("files %q, want %q", got, want)
	}
}

func TestOutputFileErrors(t *testing.T) {
	for path, want := range map[string]string{
		"/out/d/x": `While creating file "d/x": `, "/out/f/x": `While MkdirAll "f": `,
	} {
		p := prepared(t, withOutput(`"stdout":{"kind":"file","path":"`+path+`"}`), `{}`)
		if err := os.MkdirAll(filepath.Join(p.OutputDir, "d/x"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(p.OutputDir, "f"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := p.CreateOutputFile(p.Stdout); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: %v, want %s", path, err, want)
		}
	}
}
