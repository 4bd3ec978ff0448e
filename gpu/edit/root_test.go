package edit

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"crunch-oci/gpu/device"
	"crunch-oci/gpu/ldcache"
)

// image makes a root directory beside one that must not be touched.
func image(t *testing.T) (root, outside string) {
	t.Helper()
	dir := t.TempDir()
	root, outside = filepath.Join(dir, "root"), filepath.Join(dir, "outside")
	for _, d := range []string{root, outside} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(outside, "file"), "untouched")
	return root, outside
}

func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

var driver = Edits{
	Links:     []Link{{"/usr/lib/libcuda.so.1", "libcuda.so.550"}, {"/usr/lib/libcuda.so", "libcuda.so.1"}},
	Libraries: []Library{{"libcuda.so.1", "/usr/lib/libcuda.so.1"}},
	Folders:   []string{"/usr/lib"},
}

// Whatever an image has put in the way, nothing is written or read outside of
// it, and the loader's cache is as it should be.
func TestHostileImages(t *testing.T) {
	old := ldcache.Cache{Entries: []ldcache.Entry{{Name: "libx.so.1", Path: "/lib/libx.so.1", Flags: ldcache.FlagX86_64}}}
	for name, c := range map[string]struct {
		prepare func(root, outside string) error
		// entries of the new cache, and a word of what is said; 0: the image is
		// refused, because a directory of its is none
		entries int
		note    string
	}{
		"nothing there": {func(root, outside string) error { return nil }, 1, ""},
		"a cache": {func(root, outside string) error {
			write(t, filepath.Join(root, "etc/ld.so.cache"), string(old.Bytes()))
			return nil
		}, 2, ""},
		"a cache behind an absolute link": {func(root, outside string) error {
			write(t, filepath.Join(root, "var/cache"), string(old.Bytes()))
			write(t, filepath.Join(root, "etc/x"), "")
			return os.Symlink("/var/cache", filepath.Join(root, "etc/ld.so.cache"))
		}, 2, ""},
		"a cache that leads out": {func(root, outside string) error {
			write(t, filepath.Join(root, "etc/x"), "")
			return os.Symlink("../../outside/file", filepath.Join(root, "etc/ld.so.cache"))
		}, 1, ""},
		"/etc that leads out": {func(root, outside string) error {
			return os.Symlink(outside, filepath.Join(root, "etc"))
		}, 0, ""},
		"/etc that leads up": {func(root, outside string) error {
			return os.Symlink("../../../../../../../../../tmp/../outside", filepath.Join(root, "etc"))
		}, 0, ""},
		"the library's directory leads out": {func(root, outside string) error {
			return os.Symlink(outside, filepath.Join(root, "usr"))
		}, 0, ""},
		"/etc that leads up, to what is inside too": {func(root, outside string) error {
			write(t, filepath.Join(root, "outside/x"), "")
			return os.Symlink("../../../outside", filepath.Join(root, "etc"))
		}, 1, ""},
		"the library leads out": {func(root, outside string) error {
			write(t, filepath.Join(root, "usr/lib/x"), "")
			return os.Symlink(filepath.Join(outside, "file"), filepath.Join(root, "usr/lib/libcuda.so.1"))
		}, 1, ""},
		"a hard link for a cache": {func(root, outside string) error {
			write(t, filepath.Join(root, "etc/x"), "")
			return os.Link(filepath.Join(outside, "file"), filepath.Join(root, "etc/ld.so.cache"))
		}, 1, "is replaced, it cannot be read"},
		"a named pipe for a cache": {func(root, outside string) error {
			write(t, filepath.Join(root, "etc/x"), "")
			return unix.Mkfifo(filepath.Join(root, "etc/ld.so.cache"), 0o644)
		}, 1, "is not a regular file"},
		"a huge cache": {func(root, outside string) error {
			write(t, filepath.Join(root, "etc/ld.so.cache"), "x")
			return os.Truncate(filepath.Join(root, "etc/ld.so.cache"), 1<<40)
		}, 1, "is replaced, it cannot be read"},
		"a library that is there already": {func(root, outside string) error {
			write(t, filepath.Join(root, "usr/lib/libcuda.so.1"), "the image's")
			return nil
		}, 1, ""},
	} {
		t.Run(name, func(t *testing.T) {
			root, outside := image(t)
			if err := c.prepare(root, outside); err != nil {
				t.Fatal(err)
			}
			notes, err := driver.PrepareRoot(root)
			if c.entries == 0 {
				if !errors.Is(err, device.ErrRequest) {
					t.Error(err)
				}
				mustBeUntouched(t, outside)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if text := strings.Join(notes, "\n"); !strings.Contains(text, c.note) || (c.note == "") != (text == "") {
				t.Errorf("notes %q", notes)
			}
			mustBeUntouched(t, outside)
			dir, err := os.Open(root)
			if err != nil {
				t.Fatal(err)
			}
			defer dir.Close()
			cache, err := readCache(dir)
			if err != nil || len(cache.Entries) != c.entries || cache.Find("libcuda.so.1", ldcache.FlagX86_64) != "/usr/lib/libcuda.so.1" {
				t.Errorf("%+v, %v", cache, err)
			}
			for _, l := range driver.Links {
				if _, err := OpenInRoot(dir, l.Path); err == nil {
					t.Errorf("%s is not a link to what will be mounted", l.Path)
				}
			}
		})
	}
}

// What cannot be replaced is an error, not a container without its driver.
func TestDirectoriesInTheWay(t *testing.T) {
	for _, name := range []string{"etc/ld.so.cache/x", "usr/lib/libcuda.so.1/x", "etc/ld.so.conf.d/00-crunch-run-gpu.conf/x"} {
		root, _ := image(t)
		write(t, filepath.Join(root, name), "")
		if _, err := driver.PrepareRoot(root); !errors.Is(err, device.ErrRequest) || !strings.Contains(err.Error(), filepath.Dir(name)) {
			t.Errorf("%s: %v", name, err)
		}
	}
	root, _ := image(t)
	write(t, filepath.Join(root, "usr"), "a file")
	if _, err := driver.PrepareRoot(root); err == nil {
		t.Error("a file for a directory: no error")
	}
}

// Files can be mounted whatever the image has in their place, but for a
// directory.
func TestMountpoints(t *testing.T) {
	e := Edits{Mounts: []Mount{{Source: "/proc/self/exe", Target: "/usr/bin/nvidia-smi"}, {Source: "/run/x", Target: "/run/x", Socket: true}}}
	for name, prepare := range map[string]func(root, outside string) error{
		"nothing": func(root, outside string) error { return nil },
		"a link to a process": func(root, outside string) error {
			return os.Symlink("/proc/self/exe", filepath.Join(root, "usr/bin/nvidia-smi"))
		},
		"a link out": func(root, outside string) error {
			return os.Symlink(filepath.Join(outside, "file"), filepath.Join(root, "usr/bin/nvidia-smi"))
		},
		"a link to itself": func(root, outside string) error {
			return os.Symlink("nvidia-smi", filepath.Join(root, "usr/bin/nvidia-smi"))
		},
	} {
		root, outside := image(t)
		write(t, filepath.Join(root, "usr/bin/x"), "")
		if err := prepare(root, outside); err != nil {
			t.Fatal(err)
		}
		if _, err := e.PrepareRoot(root); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		mustBeUntouched(t, outside)
		if fi, err := os.Lstat(filepath.Join(root, "usr/bin/nvidia-smi")); err != nil || !fi.Mode().IsRegular() {
			t.Errorf("%s: %v, %v", name, fi, err)
		}
	}
	root, _ := image(t)
	write(t, filepath.Join(root, "usr/bin/nvidia-smi/x"), "")
	if _, err := e.PrepareRoot(root); !errors.Is(err, device.ErrRequest) {
		t.Errorf("a directory: %v", err)
	}
	root, _ = image(t)
	if err := os.Symlink("/nowhere/yet", filepath.Join(root, "usr")); err != nil {
		t.Fatal(err)
	}
	if _, err := e.PrepareRoot(root); err != nil {
		t.Errorf("a directory for the runtime to make: %v", err)
	}
}

func mustBeUntouched(t *testing.T, outside string) {
	t.Helper()
	entries, err := os.ReadDir(outside)
	if err != nil || len(entries) != 1 {
		t.Errorf("outside of the image: %v, %v", entries, err)
	}
	if data, err := os.ReadFile(filepath.Join(outside, "file")); err != nil || !bytes.Equal(data, []byte("untouched")) {
		t.Errorf("outside of the image: %q, %v", data, err)
	}
}

func TestAdd(t *testing.T) {
	e := driver
	e.Links = slices.Clone(driver.Links)
	e.Add(driver)
	e.Add(Edits{Links: []Link{{"/a", "b"}}, Groups: []uint32{44, 44}})
	if len(e.Links) != 3 || len(e.Libraries) != 1 || len(e.Groups) != 1 {
		t.Errorf("%+v", e)
	}
}
