package imagestore

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"crunch-oci/imagestore/internal/treetest"

	"golang.org/x/sys/unix"
)

// randomLayers lets the kernel make layers: each is the upper directory of an
// overlay on which random things were done. It gives the tar streams that
// docker's diff would make of them, the lowest first, and what the kernel shows
// of the raw directories in the end. With implicit, directories that a layer
// does not change are left out of its tar, as some builders do.
func randomLayers(t *testing.T, seed uint64, n int, implicit bool) (layers [][]byte, want map[string]string) {
	t.Helper()
	rnd := rand.New(rand.NewPCG(seed, 0))
	base := t.TempDir()
	empty := filepath.Join(base, "empty")
	mustMkdir(t, empty)
	lower := []string{empty}
	for l := range n {
		d := filepath.Join(base, fmt.Sprint(l))
		mustMkdir(t, d)
		m := filepath.Join(d, "m")
		mustMkdir(t, m)
		upper := filepath.Join(d, "u")
		mustMkdir(t, upper)
		mustMkdir(t, filepath.Join(d, "w"))
		before := plainOverlay(t, m, lower, upper, filepath.Join(d, "w"), func() map[string]string {
			before, err := treetest.List(m, treetest.Options{IgnoreDirTimes: true})
			if err != nil {
				t.Fatal(err)
			}
			for range 120 {
				randomStep(rnd, m)
			}
			return before
		})
		layers = append(layers, diffTar(t, upper, before, implicit))
		lower = append([]string{upper}, lower...)
	}
	m := filepath.Join(base, "m")
	mustMkdir(t, m)
	return layers, plainOverlay(t, m, lower, "", "", func() map[string]string {
		want, err := treetest.List(m, treetest.Options{IgnoreDirTimes: implicit})
		if err != nil {
			t.Fatal(err)
		}
		return want
	})
}

func mustMkdir(t *testing.T, d string) {
	t.Helper()
	if err := os.Mkdir(d, 0o755); err != nil {
		t.Fatal(err)
	}
}

// plainOverlay calls f while an overlay is mounted on m.
func plainOverlay(t *testing.T, m string, lower []string, upper, work string, f func() map[string]string) map[string]string {
	t.Helper()
	o := "index=off,metacopy=off,redirect_dir=off,lowerdir=" + strings.Join(lower, ":")
	if upper != "" {
		o += ",upperdir=" + upper + ",workdir=" + work
	}
	if err := unix.Mount("overlay", m, "overlay", 0, o); err != nil {
		t.Fatalf("mount -o %s: %v", o, err)
	}
	defer func() {
		if err := unix.Unmount(m, 0); err != nil {
			t.Fatal(err)
		}
	}()
	return f()
}

// randomStep does one thing to the tree in m. Failures are part of the game.
func randomStep(rnd *rand.Rand, m string) {
	names := []string{"a", "b", "c", "dir", "file", "ü", "x\xffy", "with space"}
	pick := func() string {
		p := m
		for range 1 + rnd.IntN(3) {
			p = filepath.Join(p, names[rnd.IntN(len(names))])
		}
		return p
	}
	p := pick()
	if st, err := os.Stat(filepath.Dir(p)); err == nil && !st.IsDir() {
		return // the library would wait for a writer to a pipe
	}
	when := time.Unix(1e9+rnd.Int64N(1e8), rnd.Int64N(1e9))
	touch := func() {
		ts := []unix.Timespec{{Sec: when.Unix(), Nsec: int64(when.Nanosecond())}, {Sec: when.Unix(), Nsec: int64(when.Nanosecond())}}
		_ = unix.UtimesNanoAt(unix.AT_FDCWD, p, ts, unix.AT_SYMLINK_NOFOLLOW)
	}
	defer touch()
	switch rnd.IntN(16) {
	case 0, 1, 2:
		_ = os.MkdirAll(p, 0o755)
	case 3, 4, 5:
		b := bytes.Repeat([]byte{byte(rnd.Uint32())}, rnd.IntN(5000))
		// Not to wait for a reader where there is a pipe.
		if f, err := os.OpenFile(p, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NONBLOCK, 0o644); err == nil {
			_, _ = f.Write(b)
			f.Close()
		}
	case 6:
		_ = os.RemoveAll(p)
	case 7:
		_ = os.Remove(p)
	case 8:
		_ = os.RemoveAll(p)
		_ = os.Mkdir(p, 0o750) // opaque, if there was something
		_ = os.WriteFile(filepath.Join(p, "a"), []byte("new"), 0o600)
	case 9:
		_ = os.Symlink(names[rnd.IntN(len(names))], p)
	case 10:
		_ = os.Link(pick(), p)
	case 11:
		_ = os.Rename(pick(), p)
	case 12:
		_ = unix.Chmod(p, []uint32{0o4755, 0o2755, 0o1777, 0o700, 0o444}[rnd.IntN(5)])
	case 13:
		_ = os.Lchown(p, rnd.IntN(3)*1000, rnd.IntN(3)*1000)
	case 14:
		_ = unix.Lsetxattr(p, []string{"user.one", "trusted.two"}[rnd.IntN(2)], []byte(fmt.Sprint(rnd.IntN(100))), 0)
	case 15:
		_ = unix.Mknod(p, []uint32{unix.S_IFIFO | 0o600, unix.S_IFCHR | 0o666}[rnd.IntN(2)], int(unix.Mkdev(1, 3)))
	}
}

// diffTar makes a layer of an overlay's upper directory. before is what the
// layers below show.
func diffTar(t *testing.T, upper string, before map[string]string, implicit bool) []byte {
	t.Helper()
	now, err := treetest.List(upper, treetest.Options{IgnoreDirTimes: true, IgnoreXattr: func(n string) bool { return strings.HasPrefix(n, "trusted.overlay.") }})
	if err != nil {
		t.Fatal(err)
	}
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	inodes := make(map[uint64]string)
	hidden := "" // the last opaque directory
	err = filepath.WalkDir(upper, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(upper, p)
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		h := &tar.Header{Name: rel, Mode: int64(st.Mode & 0o7777), Uid: int(st.Uid), Gid: int(st.Gid),
			ModTime: time.Unix(st.Mtim.Sec, st.Mtim.Nsec), Format: tar.FormatPAX, PAXRecords: map[string]string{}}
		for _, name := range mustXattrs(t, p) {
			if !strings.HasPrefix(name, "trusted.overlay.") {
				v := make([]byte, 1000)
				n, err := unix.Lgetxattr(p, name, v)
				if err != nil {
					return err
				}
				h.PAXRecords["SCHILY.xattr."+name] = string(v[:n])
			}
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
			h.Typeflag = tar.TypeDir
			opaque := make([]byte, 1)
			n, err := unix.Lgetxattr(p, "trusted.overlay.opaque", opaque)
			if err == nil && n == 1 && opaque[0] == 'y' {
				if hidden == "" || !strings.HasPrefix(rel, hidden+"/") {
					hidden = rel
				}
				if err := tw.WriteHeader(&tar.Header{Name: rel + "/.wh..wh..opq", Typeflag: tar.TypeReg, Mode: 0o644}); err != nil {
					return err
				}
			} else if implicit && now[rel] == before[rel] && rel != "." && (hidden == "" || !strings.HasPrefix(rel, hidden+"/")) {
				return nil
			}
		case unix.S_IFLNK:
			h.Typeflag = tar.TypeSymlink
			if h.Linkname, err = os.Readlink(p); err != nil {
				return err
			}
		case unix.S_IFCHR:
			h.Typeflag, h.Devmajor, h.Devminor = tar.TypeChar, int64(unix.Major(uint64(st.Rdev))), int64(unix.Minor(uint64(st.Rdev)))
			if st.Rdev == 0 {
				h.Typeflag, h.Name = tar.TypeReg, filepath.Join(filepath.Dir(rel), ".wh."+filepath.Base(rel))
			}
		case unix.S_IFIFO:
			h.Typeflag = tar.TypeFifo
		case unix.S_IFREG:
			h.Typeflag, h.Size = tar.TypeReg, st.Size
		}
		if at, ok := inodes[st.Ino]; ok && h.Typeflag != tar.TypeDir && st.Rdev == 0 && !strings.HasPrefix(filepath.Base(h.Name), ".wh.") {
			h.Typeflag, h.Linkname, h.Size, h.PAXRecords = tar.TypeLink, at, 0, nil
		}
		inodes[st.Ino] = rel
		if err := tw.WriteHeader(h); err != nil {
			return fmt.Errorf("%q: %w", rel, err)
		}
		if h.Size > 0 {
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			_, err = tw.Write(b)
			return err
		}
		return nil
	})
	if err := errors.Join(err, tw.Close()); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func mustXattrs(t *testing.T, p string) []string {
	t.Helper()
	names, err := listXattrs(p)
	if err != nil {
		t.Fatal(err)
	}
	return names
}
