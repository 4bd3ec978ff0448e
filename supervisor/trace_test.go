package supervisor

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden compares text with a file of testdata.
func golden(t *testing.T, name, text string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v (run the test with -update, and read what it writes)", err)
	}
	if text != string(want) {
		t.Errorf("differs from %s:\n%s\nRun the test with -update, and read the difference.", path, diff(string(want), text))
	}
}

// diff marks the lines that only one of two texts has, without their order.
func diff(want, got string) string {
	var b strings.Builder
	w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
	for len(w) > 0 || len(g) > 0 {
		switch {
		case len(w) > 0 && len(g) > 0 && w[0] == g[0]:
			w, g = w[1:], g[1:]
		case len(g) > 0 && !slices.Contains(w, g[0]):
			fmt.Fprintf(&b, "+ %s\n", g[0])
			g = g[1:]
		case len(w) > 0:
			fmt.Fprintf(&b, "- %s\n", w[0])
			w = w[1:]
		default:
			fmt.Fprintf(&b, "+ %s\n", g[0])
			g = g[1:]
		}
	}
	return b.String()
}

// report is everything that a run did and said.
func (w *world) report() string {
	var b strings.Builder
	fmt.Fprintln(&b, strings.Join(w.trace, "\n"))
	fmt.Fprintf(&b, "-- error --\n%v\n", w.err)
	files := w.savedFiles()
	fmt.Fprintf(&b, "-- saved log: %s --\n", strings.Join(slices.Sorted(maps.Keys(files)), " "))
	b.WriteString(w.messages())
	if saved, said := w.messages(), w.said(); said != saved {
		if rest, ok := strings.CutPrefix(said, saved); ok {
			fmt.Fprintf(&b, "-- then on stderr --\n%s", rest)
		} else {
			fmt.Fprintf(&b, "-- on stderr --\n%s", said)
		}
	}
	return b.String()
}

func TestSuccess(t *testing.T) {
	w := newWorld(t)
	w.input()
	w.run()
	golden(t, "success.txt", w.report())
	files := w.savedFiles()
	for name, want := range map[string]string{"stdout.txt": "hello\n", "stderr.txt": "warning\n"} {
		if got := w.readable(files[name]); got != want {
			t.Errorf("%s holds %q", name, got)
		}
	}
	if !strings.Contains(files["crunchstat.txt"], "8192 rss") || strings.Count(files["crunchstat.txt"], "mem ") < 2 {
		t.Errorf("crunchstat.txt lacks the first or last report:\n%s", files["crunchstat.txt"])
	}
	if files["node.json"] != `{"Price":1.5}` {
		t.Errorf("node.json holds %q", files["node.json"])
	}
}
