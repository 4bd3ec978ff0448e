package glob

import (
	"encoding/json"
	"os"
	"testing"
)

type vectors struct {
	Match []struct {
		Globs []string
		Path  string
		IsDir bool `json:"is_dir"`
		Match bool
	} `json:"glob_match"`
	Could []struct {
		Globs []string
		Mount string
		Could bool
	} `json:"glob_subtree_could_match"`
}

func loadVectors(t testing.TB) (v vectors) {
	t.Helper()
	text, err := os.ReadFile("../../../testdata/spec/mounts-and-output.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &v); err != nil {
		t.Fatal(err)
	}
	if len(v.Match) < 200 || len(v.Could) < 20 {
		t.Fatalf("only %d and %d vectors", len(v.Match), len(v.Could))
	}
	return v
}

func compile(t testing.TB, patterns ...string) Set {
	t.Helper()
	s, err := Compile(patterns)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestMatchVectors(t *testing.T) {
	for _, v := range loadVectors(t).Match {
		if got := compile(t, v.Globs...).Match(v.Path, v.IsDir); got != v.Match {
			t.Errorf("%q, %q (directory: %v): %v, want %v", v.Globs, v.Path, v.IsDir, got, v.Match)
		}
	}
}

func TestCouldMatchBelowVectors(t *testing.T) {
	for _, v := range loadVectors(t).Could {
		if got := compile(t, v.Globs...).CouldMatchBelow(v.Mount); got != v.Could {
			t.Errorf("%q, %q: %v, want %v", v.Globs, v.Mount, got, v.Could)
		}
	}
}
