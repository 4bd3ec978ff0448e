package transfer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"crunch-oci/arvados"
	"crunch-oci/cmd/crunch-run/wire"
	"crunch-oci/keep"
	"crunch-oci/localcluster"
)

// session connects to a cluster of the test's own, as its user.
func session(t *testing.T) *Session {
	t.Helper()
	c, err := localcluster.Start(t.Context(), localcluster.Options{Dir: t.TempDir(), NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	api, blocks, closer, err := wire.Connect(t.Context(), arvados.Config{Host: c.Host(), Token: c.UserToken(), CAFile: c.CAFile()}, 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := closer(); err != nil {
			t.Error(err)
		}
	})
	return &Session{API: api, Blocks: blocks, Close: closer}
}

// tree writes files below a new directory. A name that ends in a slash is a
// directory; "->" in a content makes a link.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range slices.Sorted(maps.Keys(files)) {
		path := filepath.Join(dir, name)
		err := os.MkdirAll(filepath.Dir(path), 0o755)
		target, link := strings.CutPrefix(files[name], "->")
		switch {
		case err != nil:
		case strings.HasSuffix(name, "/"):
			err = os.MkdirAll(path, 0o755)
		case link:
			err = os.Symlink(target, path)
		default:
			err = os.WriteFile(path, []byte(files[name]), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// content is what a directory holds, in the form that tree takes.
func content(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		name, _ := filepath.Rel(dir, path)
		if d.IsDir() {
			out[name+"/"] = ""
			return nil
		}
		data, err := os.ReadFile(path)
		out[name] = string(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// What is stored comes back the same: names of all kinds, links as what they lead
// to, empty files and directories.
func TestThereAndBack(t *testing.T) {
	s := session(t)
	big := strings.Repeat("0123456789abcdef", 1<<16)
	dir := tree(t, map[string]string{
		"plain": "text", "empty": "", "with space and \\ and :": "odd", "new\nline": "odder",
		"sub/deep/file": big, "sub/link": "->deep/file", "elsewhere": "->sub/deep", "emptydir/": "", ".hidden": "dot",
	})
	var log bytes.Buffer
	bar := NewBar(&log, "storing", TreeSize(dir))
	coll, err := s.PutTree(t.Context(), []string{dir + "/"}, map[string]any{"name": "there"}, bar)
	if err != nil {
		t.Fatal(err)
	}
	bar.End()
	bar.End() // says it once
	if got := log.String(); strings.Count(got, "\n") != 1 || !strings.HasPrefix(got, "storing: 3MiB in ") {
		t.Errorf("said %q", got)
	}
	back := filepath.Join(t.TempDir(), "new", "dir")
	if err := s.Export(t.Context(), coll.UUID, ".", back); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"plain": "text", "empty": "", "with space and \\ and :": "odd", "new\nline": "odder", "sub/": "", "sub/deep/": "", "sub/deep/file": big,
		"sub/link": big, "elsewhere/": "", "elsewhere/file": big, "emptydir/": "", ".hidden": "dot",
	}
	if got := content(t, back); !maps.Equal(got, want) {
		t.Errorf("came back as %.300q", slices.Sorted(maps.Keys(got)))
	}
	// Parts of it, by portable data hash as well.
	part := t.TempDir()
	if err := s.Export(t.Context(), coll.PortableDataHash, "sub/deep", part); err != nil {
		t.Fatal(err)
	}
	if got := content(t, part); !maps.Equal(got, map[string]string{"file": big}) {
		t.Errorf("a part is %.200q", got)
	}
	// What is there is not written over, and half files do not stay.
	if err := s.Export(t.Context(), coll.UUID, "sub/deep", part); !errors.Is(err, os.ErrExist) {
		t.Errorf("written over: %v", err)
	}
}

// Several paths make one collection: directories under their names, and nothing
// twice.
func TestPutTree(t *testing.T) {
	s := session(t)
	dir := tree(t, map[string]string{"a/x": "1", "b/a/x": "2", "b/f": "3", "f": "4", "loop/up/up": "->..", "dangling/l": "->nowhere", "self/l": "->l"})
	special := t.TempDir()
	if err := unix.Mkfifo(filepath.Join(special, "pipe"), 0o644); err != nil {
		t.Fatal(err)
	}
	in := func(names ...string) (out []string) {
		for _, n := range names {
			out = append(out, dir+"/"+n)
		}
		return out
	}
	coll, err := s.PutTree(t.Context(), in("b", "f"), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	back := t.TempDir()
	if err := s.Export(t.Context(), coll.UUID, ".", back); err != nil {
		t.Fatal(err)
	}
	if got := content(t, back); !maps.Equal(got, map[string]string{"b/": "", "b/a/": "", "b/a/x": "2", "b/f": "3", "f": "4"}) {
		t.Errorf("made %q", got)
	}
	for name, c := range map[string]struct {
		paths []string
		says  string
	}{
		"missing":        {in("nosuch"), "no such file"},
		"same file":      {in("f", "f"), `two files "f"`},
		"same directory": {in("a", "b/a"), `two directories "a"`},
		"special file":   {[]string{special}, "neither a file nor a directory"},
		"a pipe itself":  {[]string{special + "/pipe"}, "neither a file nor a directory"},
		"dangling link":  {in("dangling"), "no such file"},
		"link back up":   {in("loop"), "does a link lead back up?"},
		"link to itself": {in("self"), "does a link lead back up?"},
		"no name":        {[]string{""}, "no such file"},
	} {
		if _, err := s.PutTree(t.Context(), c.paths, nil, nil); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A name that is no UTF-8 is stored or refused, never changed.
func TestOddNames(t *testing.T) {
	s := session(t)
	for _, name := range []string{"\x80\xff", "a\x01b", "\u202e", "...", `back\\slash`, `\\040`} {
		dir := tree(t, map[string]string{name: "x"})
		coll, err := s.PutTree(t.Context(), []string{dir + "/"}, nil, nil)
		if err != nil {
			if !strings.Contains(err.Error(), "UTF-8") {
				t.Errorf("%q: %v", name, err)
			}
			continue
		}
		back := t.TempDir()
		if err := s.Export(t.Context(), coll.UUID, ".", back); err != nil {
			t.Errorf("%q: %v", name, err)
		} else if got := content(t, back); !maps.Equal(got, map[string]string{name: "x"}) {
			t.Errorf("%q came back as %q", name, got)
		}
	}
}

// An interrupted transfer ends at once.
func TestInterrupted(t *testing.T) {
	s := session(t)
	dir := tree(t, map[string]string{"f": "x"})
	stop := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(stop)
	if _, err := s.PutTree(ctx, []string{dir}, nil, nil); !errors.Is(err, stop) {
		t.Errorf("%v", err)
	}
}

// A file whose blocks are lost leaves nothing that looks like it.
func TestExportOfLostBlocks(t *testing.T) {
	s := session(t)
	coll, err := s.PutTree(t.Context(), []string{tree(t, map[string]string{"a": "1", "b": "2"}) + "/"}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	s.Blocks = lost{s.Blocks}
	back := t.TempDir()
	if err := s.Export(t.Context(), coll.UUID, ".", back); !errors.Is(err, errLost) {
		t.Errorf("%v", err)
	}
	if got := content(t, back); len(got) != 0 {
		t.Errorf("left %q", got)
	}
}

var errLost = errors.New("the block is lost")

// lost is a Keep that has lost all blocks.
type lost struct{ keep.BlockStore }

func (lost) ReadBlock(context.Context, keep.Locator) ([]byte, error) { return nil, errLost }

func TestFullName(t *testing.T) {
	for in, want := range map[string]string{
		"debian": "debian:latest", "debian:12": "debian:12", "lab/tools": "lab/tools:latest", "host:5000/tools": "host:5000/tools:latest", "host:5000/tools:1": "host:5000/tools:1",
	} {
		if got := FullName(in); got != want {
			t.Errorf("%s is %s, want %s", in, got, want)
		}
	}
}

// An image is stored once. Names are added, also later, and it is found by them,
// in the project it was put into.
func TestPutImage(t *testing.T) {
	s := session(t)
	id := "sha256:" + strings.Repeat("ab", 32)
	path := filepath.Join(tree(t, map[string]string{"image.tar": "no image, but nobody looks"}), "image.tar")
	img := &Image{Path: path, Size: 26, ID: id}
	put := func(o ImageOptions) arvados.Collection {
		t.Helper()
		c, err := s.PutImage(t.Context(), img, o, nil)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	links := func() (out []string) {
		t.Helper()
		all, err := listAll[arvados.Link](t.Context(), s.API, "links", map[string]any{"order": "name"})
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range all {
			out = append(out, l.LinkClass+" "+l.Name)
		}
		return out
	}
	var project struct {
		UUID string `json:"uuid"`
	}
	if err := s.API.Call(t.Context(), "POST", "groups", map[string]any{"group": map[string]any{"name": "p", "group_class": "project"}}, &project); err != nil {
		t.Fatal(err)
	}
	first := put(ImageOptions{Names: []string{"lab/tools"}, Project: project.UUID})
	if first.Name != "Docker image lab tools:latest sha256:ababa" {
		t.Errorf("the collection is called %q", first.Name)
	}
	again := put(ImageOptions{Names: []string{"lab/tools:latest", "other:1"}})
	if again.UUID != first.UUID {
		t.Error("stored twice")
	}
	want := []string{"docker_image_repo+tag lab/tools:latest", "docker_image_repo+tag other:1", "docker_image_hash " + id}
	if got := links(); !slices.Equal(got, want) {
		t.Errorf("links %q", got)
	}
	images, err := s.Images(t.Context())
	if err != nil || len(images) != 2 || images[0].ID != id || images[0].Name != "lab/tools:latest" || images[1].Name != "other:1" || images[0].SizeOnKeep != 26 {
		t.Errorf("images %+v %v", images, err)
	}
	if forced := put(ImageOptions{Force: true}); forced.UUID == first.UUID {
		t.Error("not stored again by force")
	}
	// In the trash it is as if it was not there.
	if err := s.API.Call(t.Context(), "POST", "groups/"+project.UUID+"/trash", nil, nil); err != nil {
		t.Fatal(err)
	}
	if images, err := s.Images(t.Context()); err != nil || len(images) != 1 || images[0].Name != "" {
		t.Errorf("images %+v %v", images, err)
	}
}

func TestExamineRefuses(t *testing.T) {
	dir := tree(t, map[string]string{"text": "no tarball", "empty": ""})
	for _, name := range []string{"text", "empty", "nosuch", "."} {
		path := filepath.Join(dir, name)
		if img, err := Examine(t.Context(), path, t.TempDir()); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %+v %v", name, img, err)
		}
	}
}

// Lists longer than a page are read whole.
func TestListAll(t *testing.T) {
	s := session(t)
	for i := range 7 {
		if _, err := s.API.CreateCollection(t.Context(), map[string]any{"name": fmt.Sprint(i)}, false, "uuid"); err != nil {
			t.Fatal(err)
		}
	}
	all, err := listPages[arvados.Collection](t.Context(), s.API, "collections", map[string]any{"order": "name", "select": []string{"uuid", "name"}}, 3)
	var names string
	for _, c := range all {
		names += c.Name
	}
	if err != nil || names != "0123456" {
		t.Errorf("%q %v", names, err)
	}
}

// A nil bar shows nothing; one for what needed no work says nothing.
func TestBar(t *testing.T) {
	var none *Bar
	none.Add(1)
	none.Set(1)
	none.End()
	var log bytes.Buffer
	NewBar(&log, "idle", 100).End()
	if log.Len() > 0 {
		t.Errorf("said %q", log.String())
	}
	b := NewBar(&log, "busy", 10)
	if _, err := io.Copy(io.Discard, &countingReader{ctx: t.Context(), r: strings.NewReader("0123456789"), count: b.Add}); err != nil {
		t.Fatal(err)
	}
	b.End()
	if !strings.HasPrefix(log.String(), "busy: 10B in ") {
		t.Errorf("said %q", log.String())
	}
}

// Trees deeper than the directories that are kept open come out whole, also what
// follows the way back up.
func TestExportOfDeepTrees(t *testing.T) {
	s := session(t)
	files, want := map[string]string{}, map[string]string{}
	at := ""
	for i := range 60 {
		at += "d/"
		want[at] = ""
		files[at+"f"], want[at+"f"] = fmt.Sprint(i), fmt.Sprint(i)
		if i%25 == 3 {
			files[at+"e/e/f"], want[at+"e/"], want[at+"e/e/"], want[at+"e/e/f"] = "side", "", "", "side"
		}
	}
	coll, err := s.PutTree(t.Context(), []string{tree(t, files) + "/"}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	back := t.TempDir()
	if err := s.Export(t.Context(), coll.UUID, ".", back); err != nil {
		t.Fatal(err)
	}
	if got := content(t, back); !maps.Equal(got, want) {
		t.Errorf("%d entries came back, want %d", len(got), len(want))
	}
}
