package keep_test

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"crunch-oci/keep"
)

// Both sides start from the same manifest; what each has changed is there
// afterwards, and nothing that either has written is gone.
func TestMerge(t *testing.T) {
	const (
		a, b, d = "0cc175b9c0f1b6a831c399e269772661+1", "92eb5ffee6ae2fec3ad71c777531578f+1", "8277e0910d750195b448797616e091ad+1"
		at      = "~20260102-030405~conflict~"
	)
	file := func(names ...string) string { // name=block
		var text string
		for _, n := range names {
			name, block, _ := strings.Cut(n, "=")
			dir, base := ".", name
			if i := strings.LastIndexByte(name, '/'); i >= 0 {
				dir, base = "./"+name[:i], name[i+1:]
			}
			if base == "" {
				text += dir + " d41d8cd98f00b204e9800998ecf8427e+0 0:0:\\056\n"
				continue
			}
			text += dir + " " + map[string]string{"a": a, "b": b, "d": d}[block] + " 0:1:" + base + "\n"
		}
		return text
	}
	for _, tc := range []struct {
		name, base, local, upstream, want string
		conflicts                         string
	}{
		{name: "nothing", base: file("f=a"), local: file("f=a"), upstream: file("f=a"), want: file("f=a")},
		{"added upstream", file("f=a"), file("f=a"), file("f=a", "g=b", "x/y=b"), file("f=a", "g=b", "x/y=b"), ""},
		{"changed upstream", file("f=a"), file("f=a"), file("f=b"), file("f=b"), ""},
		{"removed upstream", file("f=a", "g=a", "x/y=a"), file("f=a", "g=a", "x/y=a"), file("f=a"), file("f=a"), ""},
		{"changed here", file("f=a"), file("f=b"), file("f=a"), file("f=b"), ""},
		{"each another file", file("f=a", "g=a"), file("f=b", "g=a"), file("f=a", "g=d", "h=a"), file("f=b", "g=d", "h=a"), ""},
		{"both changed", file("f=a"), file("f=b"), file("f=d"), file("f=b", "f"+at+"=d"), "f" + at},
		{"both the same", file("f=a"), file("f=b"), file("f=b"), file("f=b"), ""},
		{"both added", "", file("x/f=b"), file("x/f=d"), file("x/f=b", "x/f"+at+"=d"), "x/f" + at},
		{"conflict twice", file("f=a", "f"+at+"=a"), file("f=b", "f"+at+"=a"), file("f=d", "f"+at+"=a"),
			file("f=b", "f"+at+"=a", "f~20260102-030406~conflict~=d"), "f~20260102-030406~conflict~"},
		{"removed here, changed upstream", file("f=a"), "", file("f=b"), file("f" + at + "=b"), "f" + at},
		{"changed here, removed upstream", file("f=a"), file("f=b"), "", file("f=b"), ""},
		{"removed by both", file("f=a"), "", "", "", ""},
		{"removed here", file("f=a", "x/y=a"), file("f=a"), file("f=b", "x/y=a"), file("f=b"), ""},
		{"directory removed here, extended upstream", file("x/y=a", "x/z=a"), "", file("x/n=b", "x/y=a"), file("x/n=b"), ""},
		{"directory removed here, emptied upstream", file("x/y=a", "x/z=a"), "", file("x/y=a"), "", ""},
		{"directory removed upstream, extended here", file("x/y=a"), file("x/n=b", "x/y=a"), "", file("x/n=b"), ""},
		{"file becomes directory upstream", file("f=a"), file("f=a"), file("f/x=b"), file("f/x=b"), ""},
		{"changed file becomes directory upstream", file("f=a"), file("f=b"), file("f/x=d"), file("f=b", "f"+at+"/x=d"), "f" + at},
		{"directory becomes file upstream", file("f/x=a"), file("f/x=a"), file("f=b"), file("f=b"), ""},
		{"changed directory becomes file upstream", file("f/x=a"), file("f/x=b"), file("f=d"), file("f"+at+"=d", "f/x=b"), "f" + at},
		{"file becomes directory here", file("f=a"), file("f/x=b"), file("f=d"), file("f"+at+"=d", "f/x=b"), "f" + at},
		{"empty directories", file("x/="), file("x/="), file("y/="), file("y/="), ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, err := keep.NewCollection(tc.local, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			conflicts, err := c.Merge(tc.base, tc.upstream, time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))
			if err != nil || strings.Join(conflicts, " ") != tc.conflicts {
				t.Errorf("conflicts %q, %v, want %q", conflicts, err, tc.conflicts)
			}
			got, err := c.MarshalManifest(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			want, err := keep.NormalizeManifest(tc.want)
			if err != nil {
				t.Fatal(err)
			}
			if got != want {
				t.Errorf("got\n%swant\n%s", got, want)
			}
			if again, err := keep.NewCollection(got, nil); err != nil || c.Size() != again.Size() {
				t.Errorf("Size %d of\n%s (%v)", c.Size(), got, err)
			}
		})
	}
}

// What is written but not stored, and what somebody is about to write to, is not
// replaced.
func TestMergeUnsaved(t *testing.T) {
	const old = ". 0cc175b9c0f1b6a831c399e269772661+1 0:1:buffered 0:1:open\n"
	const now = ". 92eb5ffee6ae2fec3ad71c777531578f+1 0:1:buffered 0:1:open\n"
	c, err := keep.NewCollection(old, newMemStore())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	f, err := c.OpenFile("buffered", os.O_RDWR|os.O_TRUNC)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write([]byte("new")); err != nil {
		t.Fatal(err)
	}
	f.Close()
	g, err := c.OpenFile("open", os.O_RDWR)
	if err != nil {
		t.Fatal(err)
	}
	conflicts, err := c.Merge(old, now, time.Now())
	if err != nil || len(conflicts) != 2 {
		t.Fatalf("conflicts %q, %v", conflicts, err)
	}
	if _, err := g.Write([]byte("!")); err != nil {
		t.Fatal(err)
	}
	g.Close()
	for name, want := range map[string]int64{"buffered": 3, "open": 2} {
		if info, err := c.Stat(name); err != nil || info.Size() != want {
			t.Errorf("%s: %v bytes, %v, want %d", name, info.Size(), err, want)
		}
	}
	if _, err := c.Merge(old, "x", time.Now()); !errors.Is(err, keep.ErrInvalidManifest) {
		t.Errorf("no manifest: %v", err)
	}
}
