package hostdir

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// world is a directory "in" beside a directory "outside" it must never reach.
func world(t *testing.T) (d *Dir, in, outside string) {
	t.Helper()
	base := t.TempDir()
	in, outside = filepath.Join(base, "in"), filepath.Join(base, "outside")
	for _, dir := range []string{in, outside, filepath.Join(in, "sub")} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(outside, "secret"), "secret")
	write(t, filepath.Join(in, "sub", "f"), "f")
	for link, target := range map[string]string{
		"filelink": filepath.Join(outside, "secret"),
		"dirlink":  outside,
		"inlink":   "sub",
		"climb":    "../outside",
		"magic":    "/proc/self/root",
	} {
		if err := os.Symlink(target, filepath.Join(in, link)); err != nil {
			t.Fatal(err)
		}
	}
	d, err := Open(in)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d, in, outside
}

func write(t *testing.T, name, content string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

// both runs a test with openat2 and with the way for kernels that lack it.
func both(t *testing.T, f func(t *testing.T)) {
	for _, without := range []bool{false, true} {
		name := "openat2"
		if without {
			name = "stepwise"
		}
		t.Run(name, func(t *testing.T) {
			noOpenat2.Store(without)
			t.Cleanup(func() { noOpenat2.Store(false) })
			f(t)
			if !without && noOpenat2.Load() {
				t.Error("fell back to opening step by step although the kernel has openat2")
			}
		})
	}
}

func TestNothingLeavesTheDirectory(t *testing.T) {
	both(t, func(t *testing.T) {
		d, in, outside := world(t)
		names := []string{
			"..", "../outside", "../outside/secret", "sub/../../outside/secret", "/etc/passwd", "", "sub/", "./sub", "sub//f", "a\x00b",
			"filelink", "dirlink", "dirlink/secret", "climb/secret", "inlink/f", "inlink", "magic/etc/passwd",
		}
		for _, name := range names {
			if f, err := d.OpenFile(name, unix.O_RDONLY, 0); err == nil {
				f.Close()
				t.Errorf("OpenFile(%q) opened %s", name, f.Name())
			}
			if f, err := d.Create(name, 0o666); err == nil {
				f.Close()
				t.Errorf("Create(%q) worked", name)
			}
			if err := d.MkdirAll(name, 0o777); err == nil {
				t.Errorf("MkdirAll(%q) worked", name)
			}
			if err := d.Mkdir(name+"/new", 0o777); err == nil {
				t.Errorf("Mkdir(%q) worked", name+"/new")
			}
		}
		for _, name := range []string{"dirlink/secret", "climb/secret", "inlink/f"} {
			if _, err := d.Lstat(name); err == nil {
				t.Errorf("Lstat(%q) worked", name)
			}
			if err := d.Remove(name); err == nil {
				t.Errorf("Remove(%q) worked", name)
			}
		}
		if got, err := os.ReadDir(outside); err != nil || len(got) != 1 {
			t.Errorf("outside now holds %v (%v)", got, err)
		}
		if got, err := d.Readlink("filelink"); err != nil || got != filepath.Join(outside, "secret") {
			t.Errorf("Readlink = %q, %v", got, err)
		}
		if _, err := d.Lstat("sub/none"); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "lstat "+in+"/sub/none:") {
			t.Errorf("Lstat of nothing: %v", err)
		}
	})
}

func TestOtherFileSystemsAreNotEntered(t *testing.T) {
	d, in, _ := world(t)
	if err := unix.Mount("tmpfs", filepath.Join(in, "sub"), "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(filepath.Join(in, "sub"), unix.MNT_DETACH) })
	write(t, filepath.Join(in, "sub", "g"), "g")
	both(t, func(t *testing.T) {
		if f, err := d.OpenFile("sub/g", unix.O_RDONLY, 0); !errors.Is(err, unix.EXDEV) {
			t.Errorf("OpenFile = %v, %v", f, err)
		}
	})
}

func TestModesAreExact(t *testing.T) {
	d, in, _ := world(t)
	defer unix.Umask(unix.Umask(0o077))
	if err := d.MkdirAll("a/b", 0o2777); err != nil {
		t.Fatal(err)
	}
	f, err := d.Create("a/b/f", 0o777)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	for name, want := range map[string]uint32{
		"a": unix.S_IFDIR | 0o2777, "a/b": unix.S_IFDIR | 0o2777, "a/b/f": unix.S_IFREG | 0o777,
	} {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(in, name), &st); err != nil || st.Mode != want {
			t.Errorf("%s: mode %o, want %o (%v)", name, st.Mode, want, err)
		}
	}
	if _, err := d.Create("a/b/f", 0o600); !errors.Is(err, fs.ErrExist) {
		t.Errorf("second Create: %v", err)
	}
	if err := d.MkdirAll("a/b/f/g", 0o777); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("MkdirAll below a file: %v", err)
	}
}

func TestNamesLongerThanOneSystemCallTakes(t *testing.T) {
	both(t, func(t *testing.T) {
		d, _, _ := world(t)
		name := strings.TrimSuffix(strings.Repeat(strings.Repeat("x", 200)+"/", 50), "/")
		if err := d.MkdirAll(name, 0o755); err != nil {
			t.Fatal(err)
		}
		f, err := d.Create(name+"/f", 0o644)
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
		if st, err := d.Lstat(name + "/f"); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
			t.Errorf("Lstat: %v, mode %o", err, st.Mode)
		}
	})
}

func TestRemoveAll(t *testing.T) {
	both(t, func(t *testing.T) {
		_, in, outside := world(t)
		// Deeper than the number of directories RemoveAll keeps open, and
		// longer than PATH_MAX.
		fd, err := unix.Open(in, unix.O_DIRECTORY, 0)
		if err != nil {
			t.Fatal(err)
		}
		for range 3 * deepest {
			name := strings.Repeat("d", 20)
			if err := unix.Mkdirat(fd, name, 0o755); err != nil {
				t.Fatal(err)
			}
			next, err := unix.Openat(fd, name, unix.O_DIRECTORY, 0)
			unix.Close(fd)
			if err != nil {
				t.Fatal(err)
			}
			fd = next
		}
		unix.Close(fd)
		var limit unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
			t.Fatal(err)
		}
		few := unix.Rlimit{Cur: 2 * deepest, Max: limit.Max}
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &few); err != nil {
			t.Fatal(err)
		}
		err = RemoveAll(t.Context(), in)
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
			t.Fatal(err)
		}
		if err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(in); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("still there: %v", err)
		}
		if _, err := os.Lstat(filepath.Join(outside, "secret")); err != nil {
			t.Errorf("removed through a link: %v", err)
		}
		if err := RemoveAll(t.Context(), in); err != nil {
			t.Errorf("nothing there: %v", err)
		}
	})
}

// deepTree nests directories deeper than RemoveAll follows, with n files at the
// bottom.
func deepTree(t *testing.T, dir string, n int) {
	t.Helper()
	bottom := filepath.Join(dir, strings.Repeat("d/", 2*deepest+2))
	if err := os.MkdirAll(bottom, 0o755); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		write(t, filepath.Join(bottom, strconv.Itoa(i)), "")
	}
}

// countdown is done when it has been asked n times.
type countdown struct {
	context.Context
	n int
}

func (c *countdown) Err() error {
	if c.n--; c.n > 0 {
		return nil
	}
	return context.Canceled
}

// Wherever it is stopped, RemoveAll says so, and calls that are stopped again
// and again get to the end.
func TestRemoveAllIsStoppedAndGoesOn(t *testing.T) {
	done, cancel := context.WithCancelCause(t.Context())
	enough := errors.New("enough")
	cancel(enough)
	_, in, _ := world(t)
	if err := RemoveAll(done, in); !errors.Is(err, enough) || strings.Count(err.Error(), "\n") != 0 {
		t.Errorf("stopped before it began: %v", err)
	}
	if _, err := os.Lstat(filepath.Join(in, "sub", "f")); err != nil {
		t.Errorf("removed although stopped: %v", err)
	}
	deepTree(t, in, 50)
	for calls := 1; ; calls++ {
		err := RemoveAll(&countdown{t.Context(), 3 * deepest}, in)
		if err == nil {
			if calls < 3 {
				t.Errorf("done after %d calls", calls)
			}
			break
		}
		if _, lerr := os.Lstat(in); lerr != nil || calls > 100 {
			t.Fatalf("call %d: %v, the directory: %v", calls, err, lerr)
		}
	}
	if _, err := os.Lstat(in); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("still there: %v", err)
	}
}

func TestRemoveAllStopsAtMounts(t *testing.T) {
	both(t, func(t *testing.T) {
		_, in, outside := world(t)
		mountpoint := filepath.Join(in, "a", "keep")
		if err := os.MkdirAll(mountpoint, 0o755); err != nil {
			t.Fatal(err)
		}
		// Another file system; kernels without openat2 cannot tell a bind
		// mount of the same one.
		if err := unix.Mount("tmpfs", mountpoint, "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Unmount(mountpoint, unix.MNT_DETACH) })
		write(t, filepath.Join(mountpoint, "precious"), "x")
		err := RemoveAll(t.Context(), in)
		if !errors.Is(err, ErrMounted) || !strings.Contains(err.Error(), mountpoint) || strings.Count(err.Error(), "\n") != 0 {
			t.Errorf("error %v does not name %s once", err, mountpoint)
		}
		if _, err := os.Lstat(filepath.Join(mountpoint, "precious")); err != nil {
			t.Errorf("removed through the mount: %v", err)
		}
		if _, err := os.Lstat(filepath.Join(in, "sub")); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("what was not mounted is still there: %v", err)
		}
		_ = outside
	})
}

func TestRemoveAllStopsAtBindMountsOfTheSameFileSystem(t *testing.T) {
	_, in, outside := world(t)
	mountpoint := filepath.Join(in, "sub")
	if err := unix.Mount(outside, mountpoint, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(mountpoint, unix.MNT_DETACH) })
	if err := RemoveAll(t.Context(), in); !errors.Is(err, ErrMounted) {
		t.Errorf("error %v", err)
	}
	if _, err := os.Lstat(filepath.Join(outside, "secret")); err != nil {
		t.Errorf("removed through the mount: %v", err)
	}
}
