package mount

import (
	"slices"
	"strings"
	"testing"
)

// Whatever projects and collections are called, each has one name in the
// directory of its project, and the name is one that a file can have.
func TestNewListing(t *testing.T) {
	const p1, c1, c2, c3 = "zzzzz-j7d0g-000000000000001", "zzzzz-4zz18-000000000000001", "zzzzz-4zz18-000000000000002", "zzzzz-4zz18-000000000000003"
	long := strings.Repeat("x", nameMax+1)
	for _, c := range []struct {
		slash string
		items []Item
		want  map[string]string
	}{
		{"", nil, map[string]string{}},
		{"", []Item{{UUID: c1, Name: "a/b"}, {UUID: c2, Name: ""}, {UUID: c3, Name: ".."}}, map[string]string{"a_b": c1, "_": c2, "__": c3}},
		{"", []Item{{UUID: c1, Name: "."}, {UUID: c2, Name: "..."}, {UUID: c3, Name: "\xff é"}}, map[string]string{"_": c1, "...": c2, "\xff é": c3}},
		{"|", []Item{{UUID: c1, Name: "/a/"}}, map[string]string{"|a|": c1}},
		{"/", []Item{{UUID: c1, Name: "a/b"}}, map[string]string{"a_b": c1}},
		{".", []Item{{UUID: c1, Name: "/"}, {UUID: c2, Name: "//"}}, map[string]string{"_": c1, "__": c2}},
		{"", []Item{{UUID: c2, Name: "x"}, {UUID: c1, Name: "x"}, {UUID: p1, Name: "x"}},
			map[string]string{"x": p1, "x (" + c1 + ")": c1, "x (" + c2 + ")": c2}},
		{"", []Item{{UUID: c2, Name: "a/b"}, {UUID: c1, Name: "a_b"}, {UUID: c3, Name: "a_b (" + c2 + ")"}},
			map[string]string{"a_b": c1, "a_b (" + c2 + ")": c3, c2: c2}},
		{"", []Item{{UUID: c1, Name: long}, {UUID: c2, Name: "a\x00b"}}, map[string]string{c1: c1, c2: c2}},
	} {
		l := newListing(c.items, c.slash)
		if len(l.items) != len(c.want) || len(l.names) != len(c.want) || !slices.IsSorted(l.names) {
			t.Errorf("%q: %q", c.items, l.names)
		}
		for name, uuid := range c.want {
			if l.items[name].UUID != uuid || !slices.Contains(l.names, name) {
				t.Errorf("%q: %q is %q, want %s", c.items, name, l.items[name].UUID, uuid)
			}
		}
	}
}
