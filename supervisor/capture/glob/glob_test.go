package glob

import (
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/bmatcuk/doublestar/v4"
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

func TestSyntax(t *testing.T) {
	for _, c := range []struct {
		pattern, path string
		isDir, want   bool
	}{
		{"a[^b]c", "a/c", false, false}, // no class matches a slash
		{"a[+-9]c", "a/c", false, false},
		{"[a-]", "-", false, true},
		{"[]a]", "a", false, false}, // an empty class is invalid
		{"[\\]]", "]", false, true},
		{"[z-a]", "m", false, false},
		{"[!z-a]", "m", false, true},
		{"{[{,}],x}", ",", false, true},
		{"{[{,}],x}", "x", false, true},
		{"{a,{b,c}d}/{e,}f", "cd/ef", false, true},
		{"{a,{b,c}d}/{e,}f", "a/f", false, true},
		{"{a,{b,c}d}/{e,}f", "b/f", false, false},
		{"{a/b,c}/d", "a/b/d", false, true},
		{"{a", "{a", false, false},
		{"a}", "a}", false, true},
		{"a,b", "a,b", false, true},
		{`\{a,b\}`, "{a,b}", false, true},
		{`{a\,b,c}`, "a,b", false, true},
		{`{a,b\}`, "a", false, false},
		{"{**/,}x", "a/b/x", false, true},
		{"{**/,}x", "x", false, true},
		{"{a,b}/**", "b", true, true},
		{"{a,b}/**", "b", false, false},
		{"a{/**,}", "a", false, true},
		{`a\/b`, "a/b", false, true},
		{"*", "a\nb", false, true},
		{"?", "\n", false, true},
		{"?", "\xff", false, true},
		{"***", "abc", false, true},
		{"a.c", "abc", false, false},
		{"é*", "été", false, true},
		{"[à-ý]", "é", false, true},
	} {
		if got := compile(t, c.pattern).Match(c.path, c.isDir); got != c.want {
			t.Errorf("%q, %q (directory: %v): %v", c.pattern, c.path, c.isDir, got)
		}
	}
}

func TestTooManyAlternatives(t *testing.T) {
	for _, p := range []string{
		strings.Repeat("{a,b}", 100),
		strings.Repeat("{a,", 40_000) + strings.Repeat("}", 40_000),
		"{" + strings.Repeat("a,", 10_000) + "a}",
		"{a,b}{a,b}{a,b}{a,b}" + strings.Repeat("x", 1<<20),
	} {
		if _, err := Compile([]string{p}); !errors.Is(err, ErrTooComplex) {
			t.Errorf("%.20q...: %v", p, err)
		}
	}
}

// Patterns that make backtracking matchers take for ever.
func TestMatchingIsFast(t *testing.T) {
	name := strings.Repeat("a", 250)
	for _, p := range []string{
		strings.Repeat("*a", 120) + "b",
		strings.Repeat("**/", 200) + "b",
		strings.Repeat("**/*a*/", 100) + "b",
	} {
		if compile(t, p).Match(strings.Repeat(name+"/", 15)+name, false) {
			t.Errorf("%.20q... matches", p)
		}
	}
}

// What matches is found below every directory above it, and doublestar, which
// the reference uses, agrees where its rules are those of the specification.
func FuzzMatch(f *testing.F) {
	for _, v := range loadVectors(f).Match {
		f.Add(v.Globs[0], v.Path, v.IsDir)
	}
	f.Add("{a,b}/**", "b/c", false)
	f.Fuzz(func(t *testing.T, pattern, path string, isDir bool) {
		s, err := Compile([]string{pattern})
		if err != nil || path == "" || strings.HasPrefix(path, "/") || strings.HasSuffix(path, "/") || strings.Contains(path, "//") {
			t.Skip()
		}
		got := s.Match(path, isDir)
		if got {
			for i, c := range path {
				if c == '/' && !s.CouldMatchBelow(path[:i]) {
					t.Errorf("%q matches %q, but nothing below %q", pattern, path, path[:i])
				}
			}
			if !isDir && !s.Match(path, true) {
				t.Errorf("%q matches the file %q, but not the directory", pattern, path)
			}
		}
		switch {
		case !utf8.ValidString(pattern) || !utf8.ValidString(path):
			return // doublestar compares a broken byte with U+FFFD
		case strings.Contains(pattern, "[") && strings.Contains(path, "/"):
			return // doublestar's classes match a slash
		case strings.Contains(pattern, "{") || strings.Contains(pattern, "***") || strings.Contains(pattern, `\/`) || strings.Contains(pattern, "**/**") ||
			strings.HasSuffix(pattern, "**/") || strings.HasSuffix(pattern, "/**"):
			return // cases that the specification decides in another way, or not at all
		}
		want, err := doublestar.Match(pattern, path)
		if err == nil && want != got {
			t.Errorf("%q, %q: %v, doublestar says %v", pattern, path, got, want)
		}
	})
}

func BenchmarkMatch(b *testing.B) {
	s := compile(b, "**/*.{bam,bai}", "logs/**", "summary_[0-9]*.txt")
	for b.Loop() {
		s.Match("sample/lane1/aligned.sorted.bam.md5", false)
	}
}
