package keep_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"crunch-oci/keep"
)

// sample has a file, a subdirectory, an empty directory and an escaped name.
const sample = ". acbd18db4cc2f85cedef654fccc4a4d8+3 0:3:foo\n" +
	"./dir acbd18db4cc2f85cedef654fccc4a4d8+3 0:1:a 1:2:b\\040c\n" +
	"./dir/sub acbd18db4cc2f85cedef654fccc4a4d8+3 0:3:x\n" +
	"./empty d41d8cd98f00b204e9800998ecf8427e+0 0:0:\\056\n"

func names(t *testing.T, c *keep.Collection, dir string) []string {
	t.Helper()
	var list []string
	err := c.Walk(dir, func(name string, info keep.FileInfo) error {
		if info.IsDir() {
			name += "/"
		}
		list = append(list, name)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func TestTreeOperations(t *testing.T) {
	for _, tc := range []struct {
		name string
		do   func(*keep.Collection) error
		err  error // nil: the manifest must be want
		want string
	}{
		{"mkdir", func(c *keep.Collection) error { return c.Mkdir("empty/new") }, nil,
			strings.Replace(sample, "./empty", "./empty/new", 1)},
		{"mkdir below a missing directory", func(c *keep.Collection) error { return c.Mkdir("no/new") }, syscall.ENOENT, ""},
		{"mkdir below a file", func(c *keep.Collection) error { return c.Mkdir("foo/new") }, syscall.ENOTDIR, ""},
		{"mkdir of what exists", func(c *keep.Collection) error { return c.Mkdir("dir/") }, syscall.EEXIST, ""},
		{"mkdir of the root", func(c *keep.Collection) error { return c.Mkdir(".") }, syscall.EEXIST, ""},
		{"mkdir above the root", func(c *keep.Collection) error { return c.Mkdir("../x") }, syscall.EINVAL, ""},
		{"mkdir of dot-dot", func(c *keep.Collection) error { return c.Mkdir("dir/..") }, syscall.EINVAL, ""},
		{"mkdirall", func(c *keep.Collection) error { return c.MkdirAll("empty/1/2/3") }, nil,
			strings.Replace(sample, "./empty", "./empty/1/2/3", 1)},
		{"mkdirall of what exists", func(c *keep.Collection) error { return c.MkdirAll("dir/sub/.") }, nil, sample},
		{"mkdirall through a file", func(c *keep.Collection) error { return c.MkdirAll("foo/x/y") }, syscall.ENOTDIR, ""},
		{"mkdirall of a file", func(c *keep.Collection) error { return c.MkdirAll("foo") }, syscall.ENOTDIR, ""},

		{"remove a file", func(c *keep.Collection) error { return c.Remove("dir/sub/x") }, nil,
			strings.Replace(sample, "acbd18db4cc2f85cedef654fccc4a4d8+3 0:3:x\n", "d41d8cd98f00b204e9800998ecf8427e+0 0:0:\\056\n", 1)},
		{"remove an empty directory", func(c *keep.Collection) error { return c.Remove("empty") }, nil,
			sample[:strings.Index(sample, "./empty")]},
		{"remove a full directory", func(c *keep.Collection) error { return c.Remove("dir") }, syscall.ENOTEMPTY, ""},
		{"remove nothing", func(c *keep.Collection) error { return c.Remove("nothing") }, syscall.ENOENT, ""},
		{"remove the root", func(c *keep.Collection) error { return c.Remove("") }, syscall.EBUSY, ""},
		{"remove all", func(c *keep.Collection) error { return c.RemoveAll("dir") }, nil,
			sample[:strings.Index(sample, "./dir")] + sample[strings.Index(sample, "./empty"):]},
		{"remove all of nothing", func(c *keep.Collection) error { return c.RemoveAll("no/thing") }, nil, sample},
		{"remove all of everything", func(c *keep.Collection) error { return c.RemoveAll(".") }, nil, ""},

		{"rename a file", func(c *keep.Collection) error { return c.Rename("foo", "dir/sub/foo:2") }, nil,
			sample[strings.Index(sample, "./dir"):strings.Index(sample, "0:3:x")] + "0:3:foo\\0722 0:3:x\n" + sample[strings.Index(sample, "./empty"):]},
		{"rename over a file", func(c *keep.Collection) error { return c.Rename("dir/sub/x", "foo") }, nil,
			strings.Replace(sample, "acbd18db4cc2f85cedef654fccc4a4d8+3 0:3:x\n", "d41d8cd98f00b204e9800998ecf8427e+0 0:0:\\056\n", 1)},
		{"rename to itself", func(c *keep.Collection) error { return c.Rename("foo", "./foo") }, nil, sample},
		{"rename into a directory, same name", func(c *keep.Collection) error { return c.Rename("dir/sub", "empty/") }, nil,
			strings.Replace(strings.Replace(sample, "./dir/sub ", "./empty/sub ", 1), "./empty d41d8cd98f00b204e9800998ecf8427e+0 0:0:\\056\n", "", 1)},
		{"rename over an empty directory", func(c *keep.Collection) error { return c.Rename("dir/sub", "empty") }, nil,
			strings.Replace(strings.Replace(sample, "./dir/sub ", "./empty ", 1), "./empty d41d8cd98f00b204e9800998ecf8427e+0 0:0:\\056\n", "", 1)},
		{"rename over a full directory", func(c *keep.Collection) error { return c.Rename("empty", "dir") }, syscall.ENOTEMPTY, ""},
		{"rename a file over a directory", func(c *keep.Collection) error { return c.Rename("foo", "empty") }, syscall.EISDIR, ""},
		{"rename a directory over a file", func(c *keep.Collection) error { return c.Rename("empty", "foo") }, syscall.ENOTDIR, ""},
		{"rename a directory into itself", func(c *keep.Collection) error { return c.Rename("dir", "dir/sub/dir") }, syscall.EINVAL, ""},
		{"rename the root", func(c *keep.Collection) error { return c.Rename(".", "x") }, syscall.EBUSY, ""},
		{"rename nothing", func(c *keep.Collection) error { return c.Rename("nothing", "x") }, syscall.ENOENT, ""},
		{"rename to a missing directory", func(c *keep.Collection) error { return c.Rename("foo", "no/foo") }, syscall.ENOENT, ""},

		{"splice a file", func(c *keep.Collection) error { return c.Splice("empty/b", c, "dir/b c") }, nil,
			strings.Replace(sample, "./empty d41d8cd98f00b204e9800998ecf8427e+0 0:0:\\056", "./empty acbd18db4cc2f85cedef654fccc4a4d8+3 1:2:b", 1)},
		{"splice a directory over a file", func(c *keep.Collection) error { return c.Splice("foo", c, "dir/sub") }, nil,
			strings.Replace(sample[strings.Index(sample, "./dir"):], "\\056\n", "\\056\n./foo acbd18db4cc2f85cedef654fccc4a4d8+3 0:3:x\n", 1)},
		{"splice into itself", func(c *keep.Collection) error { return c.Splice("dir/sub/copy", c, "dir/sub") }, nil,
			strings.Replace(sample, "./empty", "./dir/sub/copy acbd18db4cc2f85cedef654fccc4a4d8+3 0:3:x\n./empty", 1)},
		{"splice the root of a directory", func(c *keep.Collection) error { return c.Splice("", c, "dir/sub") }, nil,
			". acbd18db4cc2f85cedef654fccc4a4d8+3 0:3:x\n"},
		{"splice a file over the root", func(c *keep.Collection) error { return c.Splice(".", c, "foo") }, syscall.EISDIR, ""},
		{"splice nothing", func(c *keep.Collection) error { return c.Splice("x", c, "nothing") }, syscall.ENOENT, ""},
		{"splice to a missing directory", func(c *keep.Collection) error { return c.Splice("no/x", c, "foo") }, syscall.ENOENT, ""},

		{"create exclusively", func(c *keep.Collection) error { return open(c, "foo", os.O_CREATE|os.O_EXCL|os.O_RDWR) }, syscall.EEXIST, ""},
		{"create in a missing directory", func(c *keep.Collection) error { return open(c, "no/x", os.O_CREATE|os.O_RDWR) }, syscall.ENOENT, ""},
		{"create over a directory", func(c *keep.Collection) error { return open(c, "dir", os.O_CREATE|os.O_RDWR) }, syscall.EISDIR, ""},
		{"create", func(c *keep.Collection) error { return open(c, "dir/n\xff", os.O_CREATE|os.O_EXCL|os.O_WRONLY) }, nil,
			strings.Replace(sample, "c\n", "c 0:0:n\\377\n", 1)},
		{"truncate", func(c *keep.Collection) error { return open(c, "foo", os.O_TRUNC|os.O_RDWR) }, nil,
			strings.Replace(sample, ". acbd18db4cc2f85cedef654fccc4a4d8+3 0:3:foo", ". d41d8cd98f00b204e9800998ecf8427e+0 0:0:foo", 1)},
		{"truncate for reading", func(c *keep.Collection) error { return open(c, "foo", os.O_TRUNC) }, syscall.EINVAL, ""},
		{"open synchronously", func(c *keep.Collection) error { return open(c, "foo", os.O_RDWR|os.O_SYNC) }, syscall.EINVAL, ""},
		{"open a directory", func(c *keep.Collection) error { return open(c, "dir", os.O_RDONLY) }, syscall.EISDIR, ""},
		{"open through a file", func(c *keep.Collection) error { return open(c, "foo/bar", os.O_RDONLY) }, syscall.ENOTDIR, ""},
		{"list a file", func(c *keep.Collection) error { _, err := c.ReadDir("foo"); return err }, syscall.ENOTDIR, ""},
		{"flush a file", func(c *keep.Collection) error { return c.Flush(context.Background(), "foo", true) }, syscall.ENOTDIR, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := newCollection(t, sample, newMemStore(), 0)
			err := tc.do(c)
			if tc.err == nil {
				if err != nil {
					t.Fatal(err)
				}
			} else {
				if !errors.Is(err, tc.err) {
					t.Errorf("error %v, want %v", err, tc.err)
				}
				tc.want = sample
			}
			if got := marshal(t, c); got != tc.want {
				t.Errorf("manifest\n%s\nwant\n%s", got, tc.want)
			}
			check := newCollection(t, tc.want, nil, 0)
			if c.Size() != check.Size() {
				t.Errorf("size %d, want %d", c.Size(), check.Size())
			}
		})
	}
}

func open(c *keep.Collection, name string, flag int) error {
	f, err := c.OpenFile(name, flag)
	if err == nil {
		err = f.Close()
	}
	return err
}

func TestWalkOrderAndSkip(t *testing.T) {
	c := newCollection(t, sample, nil, 0)
	want := []string{"./", "dir/", "dir/a", "dir/b c", "dir/sub/", "dir/sub/x", "empty/", "foo"}
	if got := names(t, c, ""); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if got := names(t, c, "dir/sub/"); !slices.Equal(got, []string{"dir/sub/", "dir/sub/x"}) {
		t.Errorf("%q", got)
	}
	for name, tc := range map[string]struct {
		at   string
		err  error
		want []string
		ret  error
	}{
		"skip a directory":             {"dir", fs.SkipDir, []string{".", "dir", "empty", "foo"}, nil},
		"skip the rest of a directory": {"dir/a", fs.SkipDir, []string{".", "dir", "dir/a", "empty", "foo"}, nil},
		"skip all":                     {"dir/sub", fs.SkipAll, []string{".", "dir", "dir/a", "dir/b c", "dir/sub"}, nil},
		"fail":                         {"dir", fs.ErrPermission, []string{".", "dir"}, fs.ErrPermission},
	} {
		var got []string
		err := c.Walk(".", func(path string, _ keep.FileInfo) error {
			got = append(got, path)
			if path == tc.at {
				return tc.err
			}
			return nil
		})
		if err != tc.ret || !slices.Equal(got, tc.want) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

// What is spliced from another collection is a copy: neither sees later changes
// of the other, and data that is not stored yet comes along.
func TestSpliceFromAnother(t *testing.T) {
	store := newMemStore()
	src := newCollection(t, "", store, 16)
	writeFile(t, src, "d/stored", pattern("s", 40))
	before := marshal(t, src)
	writeFile(t, src, "d/pending", []byte("pending"))
	dst := newCollection(t, "", store, 16)
	if err := dst.Splice("copy", src, "d"); err != nil {
		t.Fatal(err)
	}
	src.RefreshSignatures(signer.SignManifest(before, "token", time.Now()))
	_, writes := store.count()
	if err := src.RemoveAll("d"); err != nil {
		t.Fatal(err)
	}
	writeFile(t, dst, "copy/new", []byte("new"))
	f, err := dst.OpenFile("copy/pending", os.O_RDWR)
	if err != nil {
		t.Fatal(err)
	}
	f.Write([]byte(" and more"))
	text := marshal(t, dst)
	if strings.Contains(text, "+A") {
		t.Errorf("signatures of the source came later: %q", text)
	}
	saved := newCollection(t, text, store, 0)
	for name, want := range map[string]string{
		"copy/stored": string(pattern("s", 40)), "copy/pending": "pending and more", "copy/new": "new",
	} {
		if got := readFile(t, saved, name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if _, after := store.count(); after-writes > 2 {
		t.Errorf("%d blocks written for %d new bytes", after-writes, len("pending and morenew"))
	}
	if got := marshal(t, src); got != "" {
		t.Errorf("source became %q", got)
	}
}

// A copy by reference within a collection of a file that is still being written
// stays as it was.
func TestSplicePendingInSameCollection(t *testing.T) {
	store := newMemStore()
	c := newCollection(t, "", store, 64)
	f, err := c.Create("a")
	if err != nil {
		t.Fatal(err)
	}
	f.Write([]byte("one"))
	if err := c.Splice("b", c, "a"); err != nil {
		t.Fatal(err)
	}
	f.Write([]byte("two"))
	g, err := c.OpenFile("b", os.O_RDWR)
	if err != nil {
		t.Fatal(err)
	}
	g.Write([]byte("three"))
	f.Write([]byte("four"))
	saved := newCollection(t, marshal(t, c), store, 0)
	if a, b := readFile(t, saved, "a"), readFile(t, saved, "b"); a != "onetwofour" || b != "onethree" {
		t.Errorf("a %q, b %q", a, b)
	}
}

func TestOpenFileOutlivesItsName(t *testing.T) {
	c := newCollection(t, "", newMemStore(), 64)
	f, err := c.Create("f")
	if err != nil {
		t.Fatal(err)
	}
	f.Write([]byte("abc"))
	if err := c.Remove("f"); err != nil {
		t.Fatal(err)
	}
	if c.Size() != 0 {
		t.Errorf("size %d after removal", c.Size())
	}
	f.Write([]byte("def"))
	p := make([]byte, 6)
	if n, err := f.ReadAt(p, 0); n != 6 || err != nil || string(p) != "abcdef" {
		t.Errorf("%q, %v", p[:n], err)
	}
	if c.Size() != 0 || marshal(t, c) != "" {
		t.Error("a removed file came back")
	}
}

func TestModTime(t *testing.T) {
	c := newCollection(t, sample, newMemStore(), 0)
	when := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	c.SetModTime(when)
	if info, _ := c.Stat("foo"); !info.ModTime().Equal(when) {
		t.Errorf("mtime %v", info.ModTime())
	}
	f, err := c.OpenFile("foo", os.O_WRONLY)
	if err != nil {
		t.Fatal(err)
	}
	f.Write([]byte("x"))
	if info, _ := f.Stat(); !info.ModTime().After(when) {
		t.Errorf("mtime %v after a write", info.ModTime())
	}
}

// A name need not be UTF-8. In the manifest such bytes are escaped: a JSON
// encoder would otherwise make different names equal.
func TestNamesThatAreNotUTF8(t *testing.T) {
	store := newMemStore()
	c := newCollection(t, "", store, 0)
	files := map[string]string{"\xff": "1", "\xfe": "2", "d\xc3/é\xe9": "3", "new\nline:\\ \x7f": "4"}
	for name, data := range files {
		writeFile(t, c, name, []byte(data))
	}
	text := marshal(t, c)
	if !strings.Contains(text, `:\376`) || !strings.Contains(text, `:\377`) || !strings.Contains(text, `./d\303 `) || !strings.Contains(text, `:é\351`) {
		t.Errorf("names are not escaped: %q", text)
	}
	if err := keep.CheckAPIManifest(text); err != nil {
		t.Error(err)
	}
	saved := newCollection(t, text, store, 0)
	for name, data := range files {
		if got := readFile(t, saved, name); got != data {
			t.Errorf("%q: %q, want %q", name, got, data)
		}
	}
	if _, err := keep.NewCollection(". d41d8cd98f00b204e9800998ecf8427e+0 0:0:\xff\n", nil); !errors.Is(err, keep.ErrInvalidManifest) {
		t.Errorf("raw bytes in a manifest: %v", err)
	}
}

func TestManifestLimits(t *testing.T) {
	big := "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa+2147483647"
	for name, text := range map[string]string{
		"deep stream name": "." + strings.Repeat("/d", 5000) + " " + big + " 0:1:f\n",
		"deep file name":   ". " + big + " 0:1:" + strings.Repeat("d/", 5000) + "f\n",
		"file size overflow": "." + strings.Repeat(" "+big, 1<<16) +
			strings.Repeat(" 0:140737488289792:f", 1<<16+16) + "\n",
		"position overflow": ". " + big + " 9223372036854775807:9223372036854775807:f\n",
		"number overflow":   ". " + big + " 0:9223372036854775808:f\n",
	} {
		if _, err := keep.NewCollection(text, nil); !errors.Is(err, keep.ErrInvalidManifest) || len(err.Error()) > 1000 {
			t.Errorf("%s: %.1000v", name, err)
		}
	}
	c := newCollection(t, "", newMemStore(), 0)
	deep := ""
	for i := 0; ; i++ {
		deep += "d/"
		if err := c.Mkdir(deep); err != nil {
			if !errors.Is(err, syscall.ENAMETOOLONG) || i < 2048 {
				t.Errorf("depth %d: %v", i, err)
			}
			break
		}
		if i%512 != 511 {
			continue
		}
		// Deep trees can be walked and written.
		if _, err := c.MarshalManifest(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if err := c.Mkdir("e"); err != nil {
		t.Fatal(err)
	}
	if err := c.Rename("d", "e/d"); !errors.Is(err, syscall.ENAMETOOLONG) {
		t.Errorf("rename to too great a depth: %v", err)
	}
	if err := c.Splice("e/d", c, "d"); !errors.Is(err, syscall.ENAMETOOLONG) {
		t.Errorf("splice to too great a depth: %v", err)
	}
}

// Errors of a manifest say where, and give no signature away.
func TestManifestErrors(t *testing.T) {
	sig := "+A1c9ff9c4e35987c9e7e99c97e2677686ed2d878f@7fffffff"
	for text, want := range map[string]string{
		sample + ". acbd18db4cc2f85cedef654fccc4a4d8+3" + sig + " 0:4:f\n":                                         `line 5: file token "0:4:f"`,
		sample + ". acbd18db4cc2f85cedef654fccc4a4d8+3" + sig + "+lower 0:3:f\n":                                   `line 5: invalid block locator "acbd18db4cc2f85cedef654fccc4a4d8+..."`,
		"./dir acbd18db4cc2f85cedef654fccc4a4d8+3" + sig + " 0:3:f 0:3:f/g\n":                                      "both a file and a directory",
		fmt.Sprintf(". acbd18db4cc2f85cedef654fccc4a4d8+3%s 0:3:f acbd18db4cc2f85cedef654fccc4a4d8+3%[1]s\n", sig): "want POSITION:LENGTH:NAME",
	} {
		_, err := keep.NewCollection(text, nil)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), sig[:20]) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

func TestRefreshSignatures(t *testing.T) {
	sign := func(text string, unix int64) string {
		return signer.SignManifest(text, "token", time.Unix(unix, 0))
	}
	c := newCollection(t, sign(sample, 1000), newMemStore(), 0)
	for _, tc := range []struct{ refresh, want string }{
		{sign(sample, 2000), sign(sample, 2000)},
		{sign(sample, 1500), sign(sample, 2000)},
		{sample, sign(sample, 2000)},
		{"any text", sign(sample, 2000)},
		{sign(". 37b51d194a7513e45b56f6524f2d51f2+3 acbd18db4cc2f85cedef654fccc4a4d8+4 0:1:other\n", 3000), sign(sample, 2000)},
		{sign(". acbd18db4cc2f85cedef654fccc4a4d8+3 0:1:other\n", 3000), sign(sample, 3000)},
	} {
		c.RefreshSignatures(tc.refresh)
		got := marshal(t, c)
		// The placeholder of an empty directory needs no signature.
		want := strings.Replace(tc.want, tc.want[strings.Index(tc.want, "d41d8"):strings.Index(tc.want, " 0:0:\\056")], "d41d8cd98f00b204e9800998ecf8427e+0", 1)
		if got != want {
			t.Errorf("refreshed with %q: %q, want %q", tc.refresh, got, want)
		}
	}
}

func TestSignedUntil(t *testing.T) {
	const block, sig = "acbd18db4cc2f85cedef654fccc4a4d8+3", "0123456789abcdef0123456789abcdef01234567@"
	for text, want := range map[string]int64{
		block: -1, block + "+A" + sig + "00000010": 16, block + "+Rzbbbb-" + sig + "00000020": 32,
		block + "+Rzbbbb" + sig + "00000020": -1, block + "+Z" + sig + "00000020": -1,
	} {
		loc, err := keep.ParseLocator(text)
		if err != nil {
			t.Fatal(err)
		}
		if at, ok := loc.SignedUntil(); ok != (want >= 0) || ok && at.Unix() != want {
			t.Errorf("%s: %v %v", text, at, ok)
		}
	}
}

func TestSplicePendingWithoutWriter(t *testing.T) {
	src := newCollection(t, "", newMemStore(), 0)
	writeFile(t, src, "f", []byte("abc"))
	dst := newCollection(t, "", nil, 0)
	if err := dst.Splice("f", src, "f"); err != nil {
		t.Fatal(err)
	}
	if _, err := dst.MarshalManifest(t.Context()); !errors.Is(err, keep.ErrNoWriter) {
		t.Error(err)
	}
}
