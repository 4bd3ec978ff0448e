package layer_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	. "crunch-oci/imagestore/internal/tartest"
	"crunch-oci/imagestore/internal/treetest"
	"crunch-oci/imagestore/layer"

	"golang.org/x/sys/unix"
)

// TestBreakouts applies hostile layers in a directory between others and checks
// that nothing outside of it has changed, whatever became of the layer. The
// classes are those of containerd's TestBreakouts, of CVE-2021-29136 (umoci) and
// of the tests of moby's go-archive.
func TestBreakouts(t *testing.T) {
	up := strings.Repeat("../", 30)
	for _, tt := range []struct {
		name    string
		entries func(outside string) []Entry // outside is the path of a directory that must not change
		want    error                        // nil: applied, but inside
	}{
		{"name above the root", func(string) []Entry { return []Entry{File("../outside/f", "evil")} }, layer.ErrEscape},
		{"name above the root by a detour", func(string) []Entry { return []Entry{Dir("a"), File("a/../../outside/f", "evil")} }, layer.ErrEscape},
		{"absolute name above the root", func(string) []Entry { return []Entry{File("/../outside/f", "evil")} }, layer.ErrEscape},
		{"directory above the root", func(string) []Entry { return []Entry{Dir("..").Mode(0o777)} }, layer.ErrEscape},
		{"link above the root", func(string) []Entry { return []Entry{Symlink("../outside/l", "x")} }, layer.ErrEscape},
		{"whiteout above the root", func(string) []Entry { return []Entry{File("../outside/.wh.victim", "")} }, layer.ErrEscape},
		{"whiteout of dot-dot", func(string) []Entry { return []Entry{File(".wh...", "")} }, layer.ErrMalformed},
		{"whiteout of dot", func(string) []Entry { return []Entry{File(".wh..", "")} }, layer.ErrMalformed},
		{"whiteout of nothing", func(string) []Entry { return []Entry{File("d/.wh.", "")} }, layer.ErrMalformed},
		{"opaque above the root", func(string) []Entry { return []Entry{File("../outside/.wh..wh..opq", "")} }, layer.ErrEscape},

		{"root replaced by a link", func(out string) []Entry { return []Entry{Symlink("/.", out), File("f", "evil")} }, layer.ErrEscape},
		{"root replaced by a link (dot)", func(out string) []Entry { return []Entry{Symlink(".", out), File("f", "evil")} }, layer.ErrEscape},
		{"root hard linked", func(string) []Entry { return []Entry{Link(".", "f")} }, layer.ErrEscape},
		{"root as device", func(string) []Entry { return []Entry{Char("./.", 0, 0)} }, layer.ErrEscape},

		{"file through an absolute link", func(out string) []Entry { return []Entry{Symlink("l", out), File("l/f", "evil")} }, nil},
		{"file through a relative link", func(string) []Entry { return []Entry{Symlink("l", up+"outside"), File("l/f", "evil")} }, nil},
		{"file through a link to dot-dot", func(string) []Entry { return []Entry{Symlink("l", ".."), File("l/outside/f", "evil")} }, nil},
		{"directory through a link", func(out string) []Entry { return []Entry{Symlink("l", out), Dir("l/d").Mode(0o777)} }, nil},
		{"file over a link to a file", func(out string) []Entry {
			return []Entry{Symlink("l", out+"/victim"), File("l", "evil").Mode(0o777).Owner(1, 1)}
		}, nil},
		{"directory over a link to a directory", func(out string) []Entry { return []Entry{Symlink("l", out), Dir("l").Mode(0o777).Owner(5, 5)} }, nil},
		{"directory over a link, named through the link", func(out string) []Entry {
			return []Entry{Symlink("l", out), Dir("l/.").Mode(0o777).Owner(5, 5)}
		}, nil},
		{"links in a circle", func(string) []Entry { return []Entry{Symlink("a", "b"), Symlink("b", "a"), File("a/f", "evil")} }, unix.ELOOP},
		{"a link that doubles", func(string) []Entry {
			es := []Entry{Symlink("l0", ".")}
			for i := 1; i < 20; i++ {
				es = append(es, Symlink(fmt.Sprintf("l%d", i), fmt.Sprintf("l%d/l%d", i-1, i-1)))
			}
			return append(es, File("l19/f", "evil"))
		}, unix.ELOOP},
		{"whiteout through a link", func(out string) []Entry { return []Entry{Symlink("l", out), File("l/.wh.victim", "")} }, nil},
		{"opaque through a link", func(out string) []Entry { return []Entry{Symlink("l", out), File("l/.wh..wh..opq", "")} }, nil},
		{"device through a link", func(out string) []Entry { return []Entry{Symlink("l", out), Block("l/sda", 8, 0)} }, nil},

		{"hard link to a file above the root", func(string) []Entry { return []Entry{Link("l", "../outside/victim"), File("l", "evil")} }, layer.ErrEscape},
		{"hard link to an absolute name", func(out string) []Entry { return []Entry{Link("l", out+"/victim")} }, layer.ErrMalformed},
		{"hard link through a link", func(out string) []Entry { return []Entry{Symlink("s", out), Link("l", "s/victim")} }, layer.ErrMalformed},
		{"hard link through dot-dot links", func(string) []Entry { return []Entry{Symlink("s", up), Link("l", "s/outside/victim")} }, layer.ErrMalformed},
		{"hard link to a link, then written to", func(out string) []Entry {
			return []Entry{Symlink("s", out+"/victim"), Link("l", "s"), File("l", "evil").Owner(1, 1).Mode(0o777)}
		}, nil},
		{"hard link to a directory", func(string) []Entry { return []Entry{Dir("d"), Link("l", "d")} }, layer.ErrMalformed},
		{"hard link to the root", func(string) []Entry { return []Entry{Link("l", ".")} }, layer.ErrMalformed},
		{"hard link that would replace its target", func(string) []Entry { return []Entry{File("d/f", "1"), Link("d", "d/f")} }, layer.ErrMalformed},
		{"hard link to nothing", func(string) []Entry { return []Entry{Link("l", "nowhere")} }, layer.ErrMalformed},

		{"a directory swapped for a link while in use", func(out string) []Entry {
			return []Entry{Dir("d"), File("d/a", "1"), Symlink("d", out), File("d/f", "evil"), Dir("d"), File("d/g", "2")}
		}, nil},
		{"a directory swapped above", func(out string) []Entry {
			return []Entry{Dir("x/y/z"), File("x/y/z/a", "1"), Symlink("x", out), File("x/y/z/f", "evil")}
		}, nil},
		{"removal of a directory that holds a link", func(out string) []Entry {
			return []Entry{Dir("d"), Symlink("d/l", out), Link("d/h", "d/l"), File("d", "file")}
		}, nil},
		{"metadata for a link to a file outside", func(out string) []Entry {
			return []Entry{Symlink("l", out+"/victim").Mode(0o4777).Owner(99, 99).Xattr("user.evil", "1").Xattr("trusted.evil", "1")}
		}, nil},
		{"attributes for a device", func(string) []Entry { return []Entry{Char("c", 1, 3).Xattr("trusted.evil", "1")} }, nil},

		{"device numbers that do not fit", func(string) []Entry { return []Entry{Char("c", 1<<12, 0)} }, layer.ErrMalformed},
		{"owner that means no change", func(string) []Entry { return []Entry{File("f", "").Owner(4294967295, 0)} }, layer.ErrMalformed},
		{"name too long", func(string) []Entry { return []Entry{File(strings.Repeat("n", 256), "")} }, unix.ENAMETOOLONG},
		{"path too long", func(string) []Entry { return []Entry{File(strings.Repeat("d/", 1800)+"f", "")} }, unix.ENAMETOOLONG},
		{"path too long by a link", func(string) []Entry {
			return []Entry{Symlink("l", strings.Repeat("d/", 1700)), File("l/"+strings.Repeat("d/", 300)+"f", "")}
		}, unix.ENAMETOOLONG},
		{"overlay attributes", func(string) []Entry {
			return []Entry{Dir("d").Xattr("trusted.overlay.redirect", "/../../etc").Xattr("trusted.overlay.opaque", "y"), File("f", "").Xattr("trusted.overlay.metacopy", "")}
		}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			jail := t.TempDir()
			outside := filepath.Join(jail, "outside")
			root := filepath.Join(jail, "root")
			for _, d := range []string{outside, root} {
				if err := os.Mkdir(d, 0o755); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.WriteFile(outside+"/victim", []byte("untouched"), 0o600); err != nil {
				t.Fatal(err)
			}
			before, err := treetest.List(outside, treetest.Options{})
			if err != nil {
				t.Fatal(err)
			}
			var b bytes.Buffer
			if err := Write(&b, tt.entries(outside)...); err != nil {
				t.Fatal(err)
			}
			_, err = layer.Extract(t.Context(), &b, root, layer.Options{})
			if tt.want == nil && err != nil || tt.want != nil && !errors.Is(err, tt.want) {
				t.Errorf("error %v, want %v", err, tt.want)
			}
			after, err := treetest.List(outside, treetest.Options{})
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range treetest.Diff(before, after) {
				t.Error(d)
			}
			if names, _ := os.ReadDir(jail); len(names) != 2 {
				t.Errorf("there is something beside the root: %v", names)
			}
			got, err := treetest.List(root, treetest.Options{})
			if err != nil {
				t.Fatal(err)
			}
			for p, d := range got {
				if strings.Contains(d, "untouched") || strings.Contains(d, " trusted.overlay.redirect") || strings.Contains(d, " trusted.overlay.opaque") && tt.name == "overlay attributes" {
					t.Errorf("%s: %s", p, d)
				}
			}
		})
	}
}

// TestManyDirectories needs more open directories than the cache has, in an
// order in which none stays open, and a depth that no path name has.
func TestManyDirectories(t *testing.T) {
	var entries []Entry
	for round := range 3 {
		for i := range 200 {
			entries = append(entries, File(fmt.Sprintf("d%d/e%d/f%d", i, i, round), "x"))
		}
	}
	deep := strings.Repeat("d/", 1700)
	entries = append(entries, File(deep+"f", "bottom"), File("top", ""), Link(deep+"g", deep+"f"), Link("h", deep+"f"))
	// A link whose two directories are far apart: opening one closes others.
	far := strings.Repeat("far/", 300)
	entries = append(entries, Dir(far))
	for i := range 200 {
		entries = append(entries, File(fmt.Sprintf("d%d/g", i), ""))
	}
	entries = append(entries, Link(far+"link", "d7/e7/f0"))
	entries = append(entries, File("d", "away with it"))
	dir, _, err := extract(t, entries...)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for i := range 200 {
		for round := range 3 {
			if _, err := os.Lstat(filepath.Join(dir, fmt.Sprintf("d%d/e%d/f%d", i, i, round))); err == nil {
				n++
			}
		}
	}
	if n != 600 {
		t.Errorf("%d files of 600", n)
	}
	if b, _ := os.ReadFile(filepath.Join(dir, far, "link")); string(b) != "x" {
		t.Errorf("the link from afar holds %q", b)
	}
	if b, _ := os.ReadFile(dir + "/h"); string(b) != "bottom" {
		t.Errorf("hard link from the bottom holds %q", b)
	}
	if b, _ := os.ReadFile(dir + "/d"); string(b) != "away with it" {
		t.Errorf("d holds %q", b)
	}
}

func FuzzExtract(f *testing.F) {
	for _, seed := range [][]Entry{
		{Dir("a"), File("a/b", "1"), Symlink("l", "a"), File("l/c", "2"), Link("h", "a/b")},
		{File("a/.wh.x", ""), File("a/.wh..wh..opq", ""), Char("c", 0, 0), Fifo("p")},
		{Symlink("x", "../../.."), File("x/y/z", "3"), Dir("x"), File("x", "4")},
		{Symlink("a", "b"), Symlink("b", "a"), Link("a/c", "b/d")},
		{Dir("./").Xattr("user.x", "y"), Block("b", 8, 1), File("long"+strings.Repeat("g", 150), "").GNU()},
	} {
		var b bytes.Buffer
		if err := Write(&b, seed...); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		jail := t.TempDir()
		root := filepath.Join(jail, "root")
		if err := os.Mkdir(root, 0o755); err != nil {
			t.Fatal(err)
		}
		_, err := layer.Extract(t.Context(), bytes.NewReader(b), root, layer.Options{MaxEntries: 2000, MaxBytes: 1 << 20, MaxSparse: 64 << 20})
		names, rerr := os.ReadDir(jail)
		if rerr != nil || len(names) != 1 {
			t.Fatalf("outside of the root: %v %v", names, rerr)
		}
		var st unix.Stat_t
		if err := unix.Lstat(root, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
			t.Fatalf("the root is no directory: %o %v", st.Mode, err)
		}
		if err == nil {
			if _, terr := tar.NewReader(bytes.NewReader(b)).Next(); terr != nil && len(b) > 0 && terr.Error() != "EOF" {
				t.Fatalf("accepted what is no tar: %v", terr)
			}
		}
		_ = unix.Chmod(root, 0o700)
	})
}
