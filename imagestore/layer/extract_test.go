package layer_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	. "crunch-oci/imagestore/internal/tartest"
	"crunch-oci/imagestore/internal/treetest"
	"crunch-oci/imagestore/layer"

	"golang.org/x/sys/unix"
)

// extract applies entries to a new directory.
func extract(t *testing.T, entries ...Entry) (string, layer.Result, error) {
	t.Helper()
	dir := t.TempDir()
	res, err := layer.Extract(t.Context(), bytes.NewReader(Tar(t, entries...)), dir, layer.Options{})
	return dir, res, err
}

// outline gives what is below dir in short: "etc/ etc/motd=text l->target wh(c0:0) ...".
func outline(t *testing.T, dir string) string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		name := strings.TrimPrefix(p, dir+"/")
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
			name += "/"
			buf := make([]byte, 8)
			if n, err := unix.Lgetxattr(p, "trusted.overlay.opaque", buf); err == nil {
				name += "(opaque=" + string(buf[:n]) + ")"
			}
		case unix.S_IFREG:
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			name += "=" + string(b)
		case unix.S_IFLNK:
			target, _ := os.Readlink(p)
			name += "->" + target
		case unix.S_IFCHR:
			name += fmt.Sprintf("(c%d:%d)", unix.Major(uint64(st.Rdev)), unix.Minor(uint64(st.Rdev)))
		default:
			name += fmt.Sprintf("(%o)", st.Mode&unix.S_IFMT)
		}
		out = append(out, name)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(out, " ")
}

func TestMeaningOfEntries(t *testing.T) {
	wh := func(name string) Entry { return File(name, "") }
	for _, tt := range []struct {
		name    string
		entries []Entry
		want    string
	}{
		{"nothing", nil, ""},
		{"leading dot and slash", []Entry{Dir("./"), Dir("./a/"), File("/a/b", "1"), File("a//c", "2"), File("a/./d", "3")}, "a/ a/b=1 a/c=2 a/d=3"},
		{"dot-dot inside", []Entry{File("a/x/../b", "1")}, "a/ a/b=1"},
		{"implicit parents", []Entry{File("a/b/c", "1")}, "a/ a/b/ a/b/c=1"},
		{"contiguous file", []Entry{Kind(tar.TypeCont, "f")}, "f="},
		{"global header", []Entry{{Header: tar.Header{Typeflag: tar.TypeXGlobalHeader, Name: "g", PAXRecords: map[string]string{"comment": "c"}, Format: tar.FormatPAX}}, File("a", "1")}, "a=1"},

		{"a file replaces a file", []Entry{File("a", "1"), File("a", "2")}, "a=2"},
		{"a file replaces a link and not its target", []Entry{File("t", "1"), Symlink("a", "t"), File("a", "2")}, "a=2 t=1"},
		{"a file replaces a directory", []Entry{Dir("a"), File("a/b", "1"), Dir("a/c"), File("a", "2")}, "a=2"},
		{"a directory replaces a file", []Entry{File("a", "1"), Dir("a")}, "a/"},
		{"a directory replaces a link to a directory", []Entry{Dir("d"), Symlink("a", "d"), Dir("a"), File("a/x", "1")}, "a/ a/x=1 d/"},
		{"a directory named again keeps its contents", []Entry{Dir("a"), File("a/b", "1"), Dir("a")}, "a/ a/b=1"},
		{"a link replaces a directory", []Entry{Dir("d"), File("a/b", "1"), Symlink("a", "d"), File("a/x", "2")}, "a->d d/ d/x=2"},
		{"a file in the way of a parent gives way", []Entry{File("a", "1"), File("a/b", "2")}, "a/ a/b=2"},
		{"a directory comes back", []Entry{File("a/b", "1"), File("a", "2"), File("a/c", "3")}, "a/ a/c=3"},

		{"parent is a link", []Entry{Dir("d"), Symlink("l", "d"), File("l/x", "1")}, "d/ d/x=1 l->d"},
		{"parent is an absolute link", []Entry{Dir("d"), Symlink("s/l", "/d"), File("s/l/x", "1")}, "d/ d/x=1 s/ s/l->/d"},
		{"parent is a link to what is not there yet", []Entry{Symlink("l", "d/e"), File("l/x", "1")}, "d/ d/e/ d/e/x=1 l->d/e"},
		{"parent is a link through the root", []Entry{Symlink("l", "../../d"), File("l/x", "1")}, "d/ d/x=1 l->../../d"},
		{"links in a chain", []Entry{Symlink("a", "b"), Symlink("b", "c/.."), Dir("c"), File("a/x", "1")}, "a->b b->c/.. c/ x=1"},

		{"hard links", []Entry{File("a", "1"), Link("b", "a"), Link("c", "./a"), Link("d", "/a")}, "a=1 b=1 c=1 d=1"},
		{"hard link to a link", []Entry{Symlink("a", "nowhere"), Link("b", "a")}, "a->nowhere b->nowhere"},
		{"hard link through a link", []Entry{File("d/a", "1"), Symlink("l", "d"), Link("b", "l/a")}, "b=1 d/ d/a=1 l->d"},
		{"hard link to itself", []Entry{File("a", "1"), Link("a", "a")}, "a=1"},
		{"hard link replaces", []Entry{File("a", "1"), File("b", "2"), Link("b", "a")}, "a=1 b=1"},

		{"whiteout", []Entry{Dir("d"), wh("d/.wh.x"), wh(".wh.y")}, "d/ d/x(c0:0) y(c0:0)"},
		{"whiteout twice", []Entry{wh(".wh.y"), wh(".wh.y")}, "y(c0:0)"},
		{"whiteout of any type", []Entry{Symlink(".wh.x", "t"), Dir(".wh.y")}, "x(c0:0) y(c0:0)"},
		{"whiteout in a directory without entry", []Entry{wh("d/e/.wh.x")}, "d/ d/e/ d/e/x(c0:0)"},
		{"whiteout before a file", []Entry{wh(".wh.x"), File("x", "1")}, "x=1"},
		{"whiteout after a file", []Entry{File("x", "1"), wh(".wh.x")}, "x=1"},
		{"whiteout before a directory", []Entry{wh(".wh.x"), Dir("x"), File("x/a", "1")}, "x/(opaque=y) x/a=1"},
		{"whiteout after a directory", []Entry{Dir("x"), File("x/a", "1"), wh(".wh.x")}, "x/(opaque=y) x/a=1"},
		{"whiteout of an implicit directory", []Entry{wh(".wh.x"), File("x/a", "1")}, "x/(opaque=y) x/a=1"},
		{"opaque directory", []Entry{Dir("x"), wh("x/.wh..wh..opq"), File("x/a", "1")}, "x/(opaque=y) x/a=1"},
		{"opaque after its contents", []Entry{Dir("x"), File("x/a", "1"), wh("x/.wh..wh..opq")}, "x/(opaque=y) x/a=1"},
		{"opaque through a link", []Entry{Dir("x"), Symlink("l", "x"), wh("l/.wh..wh..opq")}, "l->x x/(opaque=y)"},
		{"whiteouts in an opaque directory are not needed", []Entry{Dir("x"), wh("x/.wh..wh..opq"), wh("x/.wh.a")}, "x/(opaque=y)"},
		{"whiteouts below a file of the same layer", []Entry{File("x", "1"), wh("x/.wh.a"), wh("x/b/.wh.c"), wh("x/.wh..wh..opq")}, "x=1"},
		{"a device 0:0 is a whiteout", []Entry{Char("x", 0, 0)}, "x(c0:0)"},
		{"AUFS left-overs", []Entry{Dir(".wh..wh.plnk"), File(".wh..wh.plnk/1.2", "1"), Link("a", ".wh..wh.plnk/1.2"), File(".wh..wh.aufs", ""), Dir(".wh..wh.orph")}, "a=1"},

		{"devices and pipes", []Entry{Char("c", 1, 3), Block("b", 7, 200), Fifo("p")}, "b(60000) c(c1:3) p(10000)"},
		{"long name", []Entry{File(strings.Repeat("d/", 100)+strings.Repeat("n", 255), "1")}, strings.TrimSpace(func() (s string) {
			for i := 1; i <= 100; i++ {
				s += strings.Repeat("d/", i) + " "
			}
			return s + strings.Repeat("d/", 100) + strings.Repeat("n", 255) + "=1"
		}())},
		{"long names of GNU tar", []Entry{File(strings.Repeat("g", 200), "1").GNU(), Link("short", strings.Repeat("g", 200)).GNU(), Symlink("s", strings.Repeat("t", 300)).GNU()},
			strings.Repeat("g", 200) + "=1 s->" + strings.Repeat("t", 300) + " short=1"},
		{"names that are no UTF-8", []Entry{File("d/\xff\xfe", "1").GNU(), Symlink("l", "\xc3\x28").GNU()}, "d/ d/\xff\xfe=1 l->\xc3\x28"},
		{"names with odd characters", []Entry{File("a b\n\t\\:,\"", "1")}, "a b\n\t\\:,\"=1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir, _, err := extract(t, tt.entries...)
			if err != nil {
				t.Fatal(err)
			}
			if got := outline(t, dir); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

func TestMetadata(t *testing.T) {
	capability := "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00" // cap_net_bind_service=ep
	acl := "\x02\x00\x00\x00\x01\x00\x06\x00\xff\xff\xff\xff\x04\x00\x04\x00\xff\xff\xff\xff\x20\x00\x04\x00\xff\xff\xff\xff"
	when := time.Unix(1234567890, 123456789)
	dir, res, err := extract(t,
		Dir("./").Mode(0o711).Owner(3, 4).Time(when),
		Dir("sgid").Mode(0o2775).Owner(0, 50).Xattr("system.posix_acl_default", acl).Time(when.Add(time.Hour)),
		Dir("tmp").Mode(0o1777),
		Dir("sealed").Mode(0),
		File("sealed/in", "x").Mode(0),
		File("sgid/plain", "x").Time(when),
		Dir("sgid/sub").Time(when),
		File("suid", "x").Mode(0o4755).Owner(1000, 2000),
		File("cap", "x").Owner(5, 6).Xattr("security.capability", capability).Xattr("user.note", "a=b\nc"),
		File("old", "x").Time(time.Unix(-86400, 0)),
		Symlink("link", "suid").Owner(7, 8).Time(when),
		Char("null", 1, 3).Mode(0o666).Owner(9, 10).Time(when).Xattr("trusted.x", "1"),
		Fifo("pipe").Mode(0o640).Time(when),
		File("big-id", "").Owner(4294967294, 4294967294),
		Dir("nested").Xattr("trusted.overlay.opaque", "y").Xattr("trusted.overlay.overlay.x", "z"),
		File("selinux", "").Xattr("security.selinux", "u:r:t:s0"),
		Symlink("userlink", "x").Xattr("user.no", "1"),
	)
	if err != nil {
		t.Fatal(err)
	}
	if res.SkippedXattrs != 2 {
		t.Errorf("%d attributes skipped, want selinux and user.no", res.SkippedXattrs)
	}
	got, err := treetest.List(dir, treetest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	const x = "1 2d711642b726b044" // size and hash of "x"
	const e = "0 e3b0c44298fc1c14"
	ep := fmt.Sprintf("%d.000000000", Epoch.Unix())
	for p, want := range map[string]string{
		".":          "dir 0711 3:4 1234567890.123456789",
		"sgid":       fmt.Sprintf("dir 2775 0:50 1234571490.123456789 system.posix_acl_default=%q", acl),
		"tmp":        "dir 1777 0:0 " + ep,
		"sealed":     "dir 0000 0:0 " + ep,
		"sealed/in":  "file 0000 0:0 " + ep + " " + x,
		"sgid/plain": "file 0644 0:0 1234567890.123456789 " + x,
		"sgid/sub":   "dir 0755 0:0 1234567890.123456789",
		"suid":       "file 4755 1000:2000 " + ep + " " + x,
		"cap":        fmt.Sprintf("file 0644 5:6 %s %s security.capability=%q user.note=%q", ep, x, capability, "a=b\nc"),
		"old":        "file 0644 0:0 -86400.000000000 " + x,
		"link":       `link 0777 7:8 1234567890.123456789 -> "suid"`,
		"null":       `char 0666 9:10 1234567890.123456789 1:3 trusted.x="1"`,
		"pipe":       "fifo 0640 0:0 1234567890.123456789",
		"big-id":     "file 0644 4294967294:4294967294 " + ep + " " + e,
		"nested":     "dir 0755 0:0 " + ep + ` trusted.overlay.overlay.opaque="y" trusted.overlay.overlay.overlay.x="z"`,
		"selinux":    "file 0644 0:0 " + ep + " " + e,
		"userlink":   "link 0777 0:0 " + ep + ` -> "x"`,
	} {
		if got[p] != want {
			t.Errorf("%s:\n got %s\nwant %s", p, got[p], want)
		}
	}
}

// The umask of the process and the access lists and group of the directory
// above must not show.
func TestSurroundingsDoNotMatter(t *testing.T) {
	old := unix.Umask(0o077)
	defer unix.Umask(old)
	above := t.TempDir()
	acl := "\x02\x00\x00\x00\x01\x00\x07\x00\xff\xff\xff\xff\x02\x00\x07\x00\x39\x30\x00\x00\x04\x00\x00\x00\xff\xff\xff\xff\x10\x00\x07\x00\xff\xff\xff\xff\x20\x00\x00\x00\xff\xff\xff\xff"
	if err := unix.Setxattr(above, "system.posix_acl_default", []byte(acl), 0); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(above, 0, 77); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(above, os.ModeSetgid|0o777); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(above, "layer")
	if err := os.Mkdir(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	b := Tar(t, Dir("d").Mode(0o777), File("d/f", "").Mode(0o666), Fifo("p").Mode(0o666), File("implicit/f", ""))
	if _, err := layer.Extract(t.Context(), bytes.NewReader(b), dir, layer.Options{}); err != nil {
		t.Fatal(err)
	}
	got, err := treetest.List(dir, treetest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	ep := fmt.Sprintf("%d.000000000", Epoch.Unix())
	for p, want := range map[string]string{
		".": "dir 0755 0:0 " + ep, "d": "dir 0777 0:0 " + ep, "d/f": "file 0666 0:0 " + ep + " 0 e3b0c44298fc1c14",
		"p": "fifo 0666 0:0 " + ep, "implicit": "dir 0755 0:0 " + ep,
	} {
		if got[p] != want {
			t.Errorf("%s: got %s, want %s", p, got[p], want)
		}
	}
}

func TestLinksAreTheSameFile(t *testing.T) {
	dir, _, err := extract(t, File("a", "1"), Link("d/b", "a"), Symlink("s", "x"), Link("s2", "s"))
	if err != nil {
		t.Fatal(err)
	}
	for _, pair := range [][2]string{{"a", "d/b"}, {"s", "s2"}} {
		var x, y unix.Stat_t
		if err := errors.Join(unix.Lstat(filepath.Join(dir, pair[0]), &x), unix.Lstat(filepath.Join(dir, pair[1]), &y)); err != nil {
			t.Fatal(err)
		}
		if x.Ino != y.Ino {
			t.Errorf("%v are two files", pair)
		}
	}
}

func TestResult(t *testing.T) {
	_, res, err := extract(t, File("a/b/f", "12345"), Dir("a"), File("c/.wh.x", ""), File("d/.wh..wh..opq", ""), File("d/.wh.y", ""), Dir("d"), File(".wh.z", ""))
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"", "a/b", "c"}; !slices.Equal(res.ImplicitDirs, want) {
		t.Errorf("implicit directories %q, want %q", res.ImplicitDirs, want)
	}
	if want := []string{"", "c"}; !slices.Equal(res.WhiteoutDirs, want) {
		t.Errorf("directories with whiteouts %q, want %q", res.WhiteoutDirs, want)
	}
	if res.OpaqueRoot || res.Bytes != 5 {
		t.Errorf("%+v", res)
	}
	_, res, err = extract(t, File(".wh..wh..opq", ""), Dir("."), File(".wh.x", ""))
	if err != nil || !res.OpaqueRoot || len(res.ImplicitDirs) != 0 || len(res.WhiteoutDirs) != 0 {
		t.Errorf("%+v, %v", res, err)
	}
}

func TestLimits(t *testing.T) {
	many := make([]Entry, 0, 50)
	for i := range 50 {
		many = append(many, File(fmt.Sprintf("f%d", i), "0123456789"))
	}
	deep := []Entry{File(strings.Repeat("d/", 50)+"f", "")}
	var outs []Entry
	for i := range 50 {
		outs = append(outs, File(fmt.Sprintf(".wh.f%d", i), ""))
	}
	for _, tt := range []struct {
		name    string
		entries []Entry
		o       layer.Options
		ok      bool
	}{
		{"entries at the limit", many, layer.Options{MaxEntries: 50}, true},
		{"entries above", many, layer.Options{MaxEntries: 49}, false},
		{"implicit directories count", deep, layer.Options{MaxEntries: 50}, false},
		{"whiteouts count", outs, layer.Options{MaxEntries: 49}, false},
		{"bytes at the limit", many, layer.Options{MaxBytes: 500}, true},
		{"bytes above", many, layer.Options{MaxBytes: 499}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := layer.Extract(t.Context(), bytes.NewReader(Tar(t, tt.entries...)), t.TempDir(), tt.o)
			if tt.ok && err != nil || !tt.ok && !errors.Is(err, layer.ErrLimit) {
				t.Errorf("error %v", err)
			}
		})
	}
}

// A file that is larger than allowed is refused before it is written.
func TestHugeFileIsNotWritten(t *testing.T) {
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "huge", Size: 1 << 40, Mode: 0o644}); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	_, err := layer.Extract(t.Context(), io.MultiReader(&buf, endless{}), dir, layer.Options{MaxBytes: 1 << 20})
	var size *layer.SizeError
	if !errors.Is(err, layer.ErrLimit) || !errors.As(err, &size) {
		t.Fatalf("error %v", err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(filepath.Join(dir, "huge"), &st); err == nil && st.Blocks > 0 {
		t.Errorf("%d blocks were written", st.Blocks)
	}
}

// A header may claim what it likes: the limit is not what is wrong with a file
// that the stream does not have.
func TestFalseClaim(t *testing.T) {
	for _, size := range []int64{2 << 20, 99999999999999, 1 << 60} {
		for _, body := range []int64{0, 3, 1 << 20} {
			t.Run(fmt.Sprintf("%d of %d", body, size), func(t *testing.T) {
				var buf bytes.Buffer
				tw := tar.NewWriter(&buf)
				if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "a", Size: size, Mode: 0o644}); err != nil {
					t.Fatal(err)
				}
				buf.Write(make([]byte, body))
				_, err := layer.Extract(t.Context(), &buf, t.TempDir(), layer.Options{MaxBytes: 1 << 20})
				if want := "a: malformed layer: it ends in the middle of a file"; !errors.Is(err, layer.ErrMalformed) || err.Error() != want {
					t.Errorf("error %v, want %s", err, want)
				}
			})
		}
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestDamagedStreams(t *testing.T) {
	good := Tar(t, File("a", strings.Repeat("x", 5000)), File("b", "1"))
	ioErr := errors.New("keep: no such block")
	for _, tt := range []struct {
		name string
		r    io.Reader
		want error
		text string
	}{
		{"cut off in a file", bytes.NewReader(good[:2000]), layer.ErrMalformed, "a: malformed layer: it ends in the middle of a file"},
		{"cut off in a header", bytes.NewReader(good[:512*11+100]), layer.ErrMalformed, "malformed layer: it ends in the middle of an entry"},
		{"no tar", strings.NewReader(strings.Repeat("random bytes ", 100)), layer.ErrMalformed, "malformed layer: archive/tar: invalid tar header"},
		{"link to nothing", bytes.NewReader(Tar(t, Symlink("d/l", ""))), layer.ErrMalformed, "d/l: malformed layer: a symbolic link without a target"},
		{"unknown kind", bytes.NewReader(Tar(t, Kind('D', "dump"))), layer.ErrMalformed, `dump: malformed layer: unknown kind of entry 'D'`},
		{"a reader that fails in a header", io.MultiReader(bytes.NewReader(good[:600]), failing{ioErr}), ioErr, "keep: no such block"},
		{"a reader that fails in a file", io.MultiReader(bytes.NewReader(good[:1300]), failing{ioErr}), ioErr, "keep: no such block"},
		{"a reader that fails behind the end", io.MultiReader(bytes.NewReader(good), failing{ioErr}), ioErr, "keep: no such block"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := layer.Extract(t.Context(), tt.r, t.TempDir(), layer.Options{})
			if !errors.Is(err, tt.want) || err.Error() != tt.text {
				t.Errorf("error %v, want %s", err, tt.text)
			}
		})
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func TestReadsToTheVeryEnd(t *testing.T) {
	r := bytes.NewReader(append(Tar(t, File("a", "1")), bytes.Repeat([]byte("junk"), 100_000)...))
	if _, err := layer.Extract(t.Context(), r, t.TempDir(), layer.Options{}); err != nil {
		t.Fatal(err)
	}
	if r.Len() != 0 {
		t.Errorf("%d bytes were not read", r.Len())
	}
}

func TestCancel(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	tw := bytes.NewReader(Tar(t, File("a", "1"), File("b", "2")))
	r := readerFunc(func(p []byte) (int, error) {
		n, err := tw.Read(p[:min(len(p), 512)])
		if tw.Len() < 1024 {
			cancel()
		}
		return n, err
	})
	if _, err := layer.Extract(ctx, r, t.TempDir(), layer.Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }
