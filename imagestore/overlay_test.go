package imagestore

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"crunch-oci/imagestore/internal/imagetest"
	. "crunch-oci/imagestore/internal/tartest"
	"crunch-oci/imagestore/internal/treetest"

	"golang.org/x/sys/unix"
)

// More layers than their names fit into one page, with both interfaces.
func TestManyLayers(t *testing.T) {
	var m imagetest.Image
	for i := range 300 {
		m.Layers = append(m.Layers, Tar(t, File("last", fmt.Sprint(i)), File(fmt.Sprintf("f%d", i), "")))
	}
	// Names that a kernel's option parser would trip over.
	root := filepath.Join(smallFS(t, "size=64m"), `a:b,c\d `+strings.Repeat("long", 40))
	snap := unpack(t, openStore(t, root), m)
	dir := mount(t, snap)
	check := func(dir string) {
		t.Helper()
		if b, _ := os.ReadFile(filepath.Join(dir, "last")); string(b) != "299" {
			t.Errorf("the topmost layer does not win: %q", b)
		}
		if names, _ := os.ReadDir(dir); len(names) != 301 {
			t.Errorf("%d entries", len(names))
		}
	}
	check(dir)

	d := t.TempDir()
	o := overlay{lower: snap.Lowerdirs(), upper: filepath.Join(d, "u,p:per"), work: filepath.Join(d, "work"), options: [][2]string{{"index", "off"}}}
	again, old := filepath.Join(d, "again"), filepath.Join(d, "old")
	for _, x := range []string{o.upper, o.work, again, old} {
		mustMkdir(t, x)
	}
	if err := o.mountNew(again); errors.Is(err, errOldKernel) && !knowsNewMount(t) {
		t.Log(err)
	} else if err != nil {
		t.Fatal(err)
	} else {
		check(again)
		if err := Unmount(again); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(os.RemoveAll(o.upper), os.RemoveAll(o.work), os.Mkdir(o.upper, 0o755), os.Mkdir(o.work, 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	cwd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	if err := o.mountOld(old); err != nil {
		t.Fatal(err)
	}
	defer Unmount(old)
	check(old)
	if err := os.WriteFile(filepath.Join(old, "new"), nil, 0o600); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(o.upper, "new")); err != nil {
		t.Error(err)
	}
	if now, _ := os.Getwd(); now != cwd {
		t.Errorf("the working directory of the process has become %s", now)
	}
}

// knowsNewMount tries the new interface with names that cannot be the trouble.
func knowsNewMount(t *testing.T) bool {
	d := t.TempDir()
	o := overlay{lower: []string{d + "/l"}, upper: d + "/u", work: d + "/w"}
	for _, x := range []string{o.lower[0], o.upper, o.work, d + "/m"} {
		mustMkdir(t, x)
	}
	if o.mountNew(d+"/m") != nil {
		return false
	}
	return Unmount(d+"/m") == nil
}

func TestWritesGoToUpper(t *testing.T) {
	m := imagetest.Image{Layers: [][]byte{Tar(t, File("etc/a", "1"), File("etc/b", "2"))}}
	s := openStore(t, t.TempDir())
	snap := unpack(t, s, m)
	before := list(t, snap.Lowerdirs()[0], treetest.Options{})
	dir := mount(t, snap)
	if err := errors.Join(os.WriteFile(dir+"/etc/a", []byte("changed"), 0o600), os.Remove(dir+"/etc/b"), os.Mkdir(dir+"/new", 0o755)); err != nil {
		t.Fatal(err)
	}
	compare(t, "the layer", before, list(t, snap.Lowerdirs()[0], treetest.Options{}))
	other := mount(t, snap)
	if b, _ := os.ReadFile(other + "/etc/a"); string(b) != "1" {
		t.Errorf("another container sees %q", b)
	}
}

func TestRootDirectory(t *testing.T) {
	file := Tar(t, File("f", ""))
	for _, tt := range []struct {
		name   string
		layers [][]byte
		want   string
	}{
		{"not described", [][]byte{file}, "dir 0755 0:0"},
		{"described", [][]byte{Tar(t, Dir("./").Mode(0o555).Owner(1, 2).Xattr("user.x", "y")), file}, `dir 0555 1:2 user.x="y"`},
		{"described twice", [][]byte{Tar(t, Dir("./").Mode(0o700)), Tar(t, Dir("./").Mode(0o1777))}, "dir 1777 0:0"},
		{"private", [][]byte{Tar(t, Dir("./").Mode(0o700))}, "dir 0755 0:0"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			snap := unpack(t, openStore(t, t.TempDir()), imagetest.Image{Layers: tt.layers})
			got := list(t, mount(t, snap), treetest.Options{IgnoreDirTimes: true})["."]
			if got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

// What layers that know nothing of each other make of directories is corrected.
func TestCover(t *testing.T) {
	base := Tar(t, Dir("tmp").Mode(0o1777), Dir("srv").Owner(5, 6).Xattr("user.x", "y"), Dir("srv/data").Mode(0o700), File("srv/data/old", ""))
	for _, tt := range []struct {
		name   string
		layers [][]byte
		cover  bool
		want   map[string]string
		gone   []string
	}{
		{"implied parents keep what they were", [][]byte{base, Tar(t, File("tmp/f", ""), File("srv/data/new", ""))}, true,
			map[string]string{"tmp": "dir 1777 0:0", "srv": `dir 0755 5:6 user.x="y"`, "srv/data": "dir 0700 0:0", "srv/data/old": ""}, nil},
		{"described again", [][]byte{base, Tar(t, Dir("tmp").Mode(0o700), File("tmp/f", ""))}, false, map[string]string{"tmp": "dir 0700 0:0"}, nil},
		{"new ones", [][]byte{base, Tar(t, File("new/f", ""))}, false, map[string]string{"new": "dir 0755 0:0"}, nil},
		{"behind a whiteout", [][]byte{base, Tar(t, File(".wh.tmp", "")), Tar(t, File("tmp/f", ""))}, false, map[string]string{"tmp": "dir 0755 0:0"}, nil},
		{"replaced by a file and back", [][]byte{base, Tar(t, File("tmp", "")), Tar(t, File("tmp/f", ""))}, false, map[string]string{"tmp": "dir 0755 0:0"}, nil},
		{"below an opaque one", [][]byte{base, Tar(t, Dir("srv"), File("srv/.wh..wh..opq", "")), Tar(t, File("srv/data/new", ""))}, true,
			map[string]string{"srv": "dir 0755 0:0", "srv/data": "dir 0755 0:0"}, []string{"srv/data/old"}},
		{"whiteouts of nothing", [][]byte{base, Tar(t, Dir("new"), File("new/.wh.x", ""), File("new/f", ""))}, true,
			map[string]string{"new": "dir 0755 0:0", "new/f": ""}, []string{"new/x"}},
		{"whiteouts of nothing in the lowest layer", [][]byte{Tar(t, Dir("new").Mode(0o711), File("new/.wh.x", ""))}, true,
			map[string]string{"new": "dir 0711 0:0"}, []string{"new/x"}},
		{"whiteouts below an opaque one", [][]byte{base, Tar(t, Dir("srv"), File("srv/.wh..wh..opq", ""), Dir("srv/data"), File("srv/data/.wh.old", ""))}, true,
			map[string]string{"srv/data": "dir 0755 0:0"}, []string{"srv/data/old"}},
		{"everything hidden", [][]byte{base, Tar(t, File(".wh..wh..opq", ""), File("only", ""))}, false, map[string]string{"only": ""}, []string{"tmp", "srv"}},
		{"a lower link", [][]byte{Tar(t, Dir("usr/lib"), Symlink("lib", "usr/lib")), Tar(t, File("lib/x", ""))}, false,
			map[string]string{"lib": "dir 0755 0:0", "lib/x": ""}, []string{"usr/lib/x"}},
		{"the same layer twice", [][]byte{base, Tar(t, File("srv/data/.wh.old", "")), base}, false, map[string]string{"srv/data/old": ""}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			snap := unpack(t, openStore(t, t.TempDir()), imagetest.Image{Layers: tt.layers})
			if got := strings.Contains(snap.Lowerdirs()[0], "/cover-"); got != tt.cover {
				t.Errorf("cover: %v", got)
			}
			got := list(t, mount(t, snap), treetest.Options{IgnoreDirTimes: true}) // fails on broken entries
			for p, want := range tt.want {
				if _, ok := got[p]; !ok || want != "" && got[p] != want {
					t.Errorf("%s: got %q, want %q", p, got[p], want)
				}
			}
			for _, p := range tt.gone {
				if _, ok := got[p]; ok {
					t.Errorf("%s is there", p)
				}
			}
		})
	}
}

func TestMountErrors(t *testing.T) {
	snap := unpack(t, openStore(t, t.TempDir()), imagetest.Image{Layers: [][]byte{Tar(t, File("f", ""))}})
	d, other := t.TempDir(), smallFS(t, "size=1m")
	err := MountRootfs(snap, d+"/root", d+"/upper", other+"/work")
	if !errors.Is(err, unix.EINVAL) {
		t.Errorf("error %v", err)
	}
	inside := mount(t, snap)
	err = MountRootfs(snap, d+"/root", inside+"/upper", inside+"/work")
	if !errors.Is(err, unix.EINVAL) || !strings.Contains(err.Error(), "which is on an overlay: use a local file system") {
		t.Errorf("error %v", err)
	}
	if err := MountRootfs(snap, d+"/no/root", d+"/upper", d+"/work"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error %v", err)
	}
	if err := Unmount(d + "/root"); !errors.Is(err, unix.EINVAL) {
		t.Errorf("error %v", err)
	}
}

func TestUnmountBusy(t *testing.T) {
	snap := unpack(t, openStore(t, t.TempDir()), imagetest.Image{Layers: [][]byte{Tar(t, File("f", ""))}})
	d := t.TempDir()
	if err := MountRootfs(snap, d+"/root", d+"/upper", d+"/work"); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(d + "/root/f")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := Unmount(d + "/root"); err != nil {
		t.Fatal(err)
	}
	if names, _ := os.ReadDir(d + "/root"); len(names) != 0 {
		t.Errorf("still mounted: %v", names)
	}
}
