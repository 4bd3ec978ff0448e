package keep_test

import (
	"maps"
	"path"
	"slices"
	"strings"
	"testing"

	"crunch-oci/keep"
)

func TestReplacements(t *testing.T) {
	const foo, bar = "acbd18db4cc2f85cedef654fccc4a4d8+3", "37b51d194a7513e45b56f6524f2d51f2+3"
	for name, x := range map[string]struct {
		from, to string
		want     map[string]string // nil: cannot be said
	}{
		"same":               {". " + foo + " 0:3:f\n", ". " + foo + "+A" + strings.Repeat("0", 40) + "@12345678 0:3:f\n", nil},
		"other layout":       {". " + foo + " 0:3:f 0:3:g\n", ". " + bar + " " + foo + " 3:3:f 3:3:g\n", nil},
		"first file":         {"", ". " + foo + " 0:3:f\n", map[string]string{"/f": "manifest_text/f"}},
		"last file":          {". " + foo + " 0:3:f\n", "", map[string]string{"/f": ""}},
		"content":            {". " + foo + " 0:3:f 0:3:g\n", ". " + bar + " " + foo + " 0:3:f 3:3:g\n", map[string]string{"/f": "manifest_text/f"}},
		"new directory":      {"", "./d/e " + foo + " 0:3:f\n", map[string]string{"/d": "manifest_text/d"}},
		"in a directory":     {"./d " + foo + " 0:3:f\n./e " + foo + " 0:3:f\n", "./d " + foo + " 0:3:f 0:3:g\n./e " + foo + " 0:3:f\n", map[string]string{"/d/g": "manifest_text/d/g"}},
		"directory gone":     {"./d " + foo + " 0:3:f\n", "", map[string]string{"/d": ""}},
		"directory to file":  {"./d " + foo + " 0:3:f\n", ". " + foo + " 0:3:d\n", map[string]string{"/d": "manifest_text/d"}},
		"file to directory":  {". " + foo + " 0:3:d\n", "./d " + foo + " 0:3:f\n", map[string]string{"/d": "manifest_text/d"}},
		"directory empty":    {"./d " + foo + " 0:3:f\n", "./d d41d8cd98f00b204e9800998ecf8427e+0 0:0:\\056\n", map[string]string{"/d/f": ""}},
		"renamed":            {". " + foo + " 0:3:a\\040b\n", ". " + foo + " 0:3:c:d\n", map[string]string{"/a b": "", "/c:d": "manifest_text/c:d"}},
		"no UTF-8":           {"", ". " + foo + " 0:3:\\377\n", nil},
		"no UTF-8, the same": {". " + foo + " 0:3:\\377\n", ". " + foo + " 0:3:\\377 0:3:g\n", map[string]string{"/g": "manifest_text/g"}},
	} {
		got, ok, err := keep.Replacements(x.from, x.to)
		if err != nil || ok != (x.want != nil) || ok && !maps.Equal(got, x.want) {
			t.Errorf("%s: %q %v %v", name, got, ok, err)
			continue
		}
		if !ok {
			continue
		}
		// Made in the old state, they lead to the new one.
		c, err := keep.NewCollection(x.from, nil)
		if err != nil {
			t.Fatal(err)
		}
		src, err := keep.NewCollection(x.to, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, target := range slices.Sorted(maps.Keys(got)) {
			if source := got[target]; source == "" {
				err = c.RemoveAll(target[1:])
			} else if err = c.MkdirAll(path.Dir(target[1:])); err == nil {
				err = c.Splice(target[1:], src, strings.TrimPrefix(source, "manifest_text/"))
			}
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
		have, err := c.MarshalManifest(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if want, _ := src.MarshalManifest(t.Context()); have != want {
			t.Errorf("%s: %q leads to %q, want %q", name, got, have, want)
		}
	}
	if _, _, err := keep.Replacements("", "x"); err == nil {
		t.Error("no error for an invalid manifest")
	}
}
