package capture

import (
	"context"
	"crypto/md5"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"crunch-oci/arvados"
	"crunch-oci/keep"
)

type vector struct {
	Name            string
	OutputPath      string                   `json:"output_path"`
	Mounts          map[string]arvados.Mount `json:"mounts"`
	SecretMounts    map[string]arvados.Mount `json:"secret_mounts"`
	OutputGlob      []string                 `json:"output_glob"`
	Collections     map[string]string
	LiveCollections map[string]string `json:"live_collections"`
	OutputDir       []operation       `json:"output_dir"`
	Expect          expectation
	Better          json.RawMessage
}

type operation struct{ Op, Path, Target, Content string }

type expectation struct {
	Error        string
	ManifestText string `json:"manifest_text"`
	Tree         []entry
	Log          []string
}

type entry struct {
	Path     string
	Size     int64
	EmptyDir bool `json:"empty_dir"`
}

func loadVectors(t testing.TB) []vector {
	t.Helper()
	text, err := os.ReadFile("../../testdata/spec/mounts-and-output.json")
	if err != nil {
		t.Fatal(err)
	}
	var all struct{ Capture []vector }
	if err := json.Unmarshal(text, &all); err != nil {
		t.Fatal(err)
	}
	return all.Capture
}

// fill makes the output directory of a vector.
func fill(t testing.TB, dir string, ops []operation) {
	t.Helper()
	for _, op := range ops {
		name := filepath.Join(dir, op.Path)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		switch op.Op {
		case "dir":
			err = os.MkdirAll(name, 0o755)
		case "file":
			err = os.WriteFile(name, []byte(op.Content), 0o644)
		case "symlink":
			err = os.Symlink(op.Target, name)
		case "hardlink":
			err = os.Link(filepath.Join(dir, op.Target), name)
		case "fifo":
			err = unix.Mkfifo(name, 0o644)
		case "socket":
			var l *net.UnixListener
			// A short name: socket paths are at most 107 bytes.
			if l, err = net.ListenUnix("unix", &net.UnixAddr{Name: short(t, name)}); err == nil {
				l.SetUnlinkOnClose(false)
				l.Close()
			}
		default:
			t.Fatalf("unknown operation %q", op.Op)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func short(t testing.TB, name string) string {
	t.Helper()
	d, err := os.Open(filepath.Dir(name))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), filepath.Base(name))
}

// store keeps blocks in memory.
type store struct {
	mu     sync.Mutex
	blocks map[string][]byte
	writes int
	err    error // of WriteBlock
}

func (s *store) ReadBlock(_ context.Context, loc keep.Locator) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if b, ok := s.blocks[loc.Hash()]; ok {
		return b, nil
	}
	return nil, keep.ErrNotFound
}

func (s *store) WriteBlock(_ context.Context, data []byte, _ keep.WriteOptions) (keep.Locator, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return keep.Locator{}, s.err
	}
	hash := fmt.Sprintf("%x", md5.Sum(data))
	if s.blocks == nil {
		s.blocks = make(map[string][]byte)
	}
	s.blocks[hash] = slices.Clone(data)
	s.writes++
	return keep.ParseLocator(fmt.Sprintf("%s+%d", hash, len(data)))
}

// manifests are collections by ID.
type manifests map[string]string

func (m manifests) OpenCollection(_ context.Context, id string) (*keep.Collection, error) {
	text, ok := m[id]
	if !ok {
		return nil, fmt.Errorf("no collection %q", id)
	}
	return keep.NewCollection(text, nil)
}

// lines is a log.
type lines struct {
	mu   sync.Mutex
	list []string
}

func (l *lines) Printf(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.list = append(l.list, fmt.Sprintf(format, args...))
}

// tree lists the files and empty directories of a manifest.
func tree(t testing.TB, manifest string) []entry {
	t.Helper()
	c, err := keep.NewCollection(manifest, nil)
	if err != nil {
		t.Fatalf("%v in %q", err, manifest)
	}
	list := []entry{}
	err = c.Walk(".", func(name string, info keep.FileInfo) error {
		if !info.IsDir() {
			list = append(list, entry{Path: name, Size: info.Size()})
			return nil
		}
		content, err := c.ReadDir(name)
		if len(content) == 0 && name != "." {
			list = append(list, entry{Path: name, EmptyDir: true})
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(list, func(a, b entry) int { return strings.Compare(a.Path, b.Path) })
	return list
}

// changed lists every vector whose expectation is not that of the reference,
// with the reason.
var changed = map[string]struct {
	why  string
	edit func(*expectation)
}{
	"symlink cycle":                                                         {namesLinks, links(`/ctr/outdir/dir2/l_dir1" -> "../dir1`, `/ctr/outdir/dir1/l_dir2" -> "../dir2`)},
	"symlink to itself":                                                     {namesLinks, links(`/ctr/outdir/l" -> "l`)},
	"symlink to the output directory itself":                                {namesLinks, links(`/ctr/outdir/l" -> ".`)},
	"symlink chain, 12 links":                                               {namesLinks, links(`/ctr/outdir/l12" -> "l11`)},
	"symlink target missing":                                                {namesLinks, links(`/ctr/outdir/symlink" -> "./missing`)},
	"symlink target outside every mount":                                    {namesLinks, links(`/ctr/outdir/symlink" -> "../boop`)},
	"absolute symlink outside every mount":                                  {namesLinks, links(`/ctr/outdir/baz" -> "/etc/hosts`)},
	"symlink to a missing path in a mounted collection":                     {namesLinks, links(`/ctr/outdir/l" -> "/mnt/nope`)},
	"symlink to a text mount outside the output":                            {namesLinks, links(`/ctr/outdir/l" -> "/t`)},
	"symlink to a json mount inside the output":                             {namesLinks, links(`/ctr/outdir/l" -> "j.json`)},
	"exclude_from_output on a text mount inside the output is not honoured": {"section 15: exclude_from_output holds for all mounts below the output", empty},
	"exclude_from_output on a staged writable collection is not honoured":   {"section 15: exclude_from_output holds for all mounts below the output", empty},
	"output_glob naming a single-file collection mount exactly": {globByDest, func(e *expectation) {
		*e = expectation{
			ManifestText: ". acbd18db4cc2f85cedef654fccc4a4d8+3 0:3:foo.txt\n",
			Tree:         []entry{{Path: "foo.txt", Size: 3}},
			Log:          []string{`copying "foo.txt" from 1f4b0bc7583c2a7f9102c395f4ffc5e3+45/foo`},
		}
	}},
	"output_glob naming a text mount exactly": {globByDest, func(e *expectation) {
		*e = expectation{
			Tree: []entry{{Path: "t.txt", Size: 1}, {Path: "u.txt", Size: 1}},
			Log:  []string{`copying "t.txt" (1 bytes)`, `copying "u.txt" (1 bytes)`},
		}
	}},
	"output_glob and a symlink to a file of the output directory": {globByDest, func(e *expectation) {
		*e = expectation{
			Tree: []entry{{Path: "a.txt", Size: 4}, {Path: "b.txt", Size: 1}, {Path: "c.txt", Size: 1}},
			Log:  []string{`copying "a.txt" (4 bytes)`, `copying "b.txt" (1 bytes)`, `copying "c.txt" (1 bytes)`},
		}
	}},
	"absolute symlink with dot-dot leaving the output directory": {"section 15: never leave the output directory on the host", func(e *expectation) {
		*e = expectation{Error: scanError + `cannot output file "/etc/hostname": not in any mount (symlink "/ctr/outdir/l" -> "/ctr/outdir/../../../../../../../../../../etc/hostname")`}
	}},
	"symlink to a shorter tmp mount": {"section 15: an error naming link and target", func(e *expectation) {
		*e = expectation{Error: scanError + `cannot output file "/tmp": it is in the temporary directory "/tmp", which is not part of the output (symlink "/ctr/outdir/l" -> "/tmp")`}
	}},
	"symlink to another tmp mount": {"section 15: an error naming link and target", func(e *expectation) {
		*e = expectation{Error: scanError + `cannot output file "/other/scratch/file": it is in the temporary directory "/other/scratch", which is not part of the output (symlink "/ctr/outdir/l" -> "/other/scratch/file")`}
	}},
	"symlink into a staged writable collection": {"section 15: copy the local file", func(e *expectation) {
		*e = expectation{
			Tree: []entry{{Path: "l", Size: 3}, {Path: "w/foo", Size: 3}},
			Log:  []string{`copying "l" (3 bytes)`, `copying "w/foo" (3 bytes)`},
		}
	}},
	"regular file at the place of a mount's parent directory": {"the cause is added", func(e *expectation) {
		*e = expectation{
			Error: `error copying file "m" into output collection: invalid operation: a mount and a file want the same place: open m: is a directory`,
			Log:   []string{`copying "m/c" from 1f4b0bc7583c2a7f9102c395f4ffc5e3+45/.`, `copying "m" (1 bytes)`},
		}
	}},
}

const (
	scanError  = "error scanning files to copy to output: "
	namesLinks = "section 15: name the offending links, all of them"
	globByDest = "section 15: judge globs by destination path, a file mount as a file"
)

func links(list ...string) func(*expectation) {
	return func(e *expectation) {
		e.Error += fmt.Sprintf(` (symlink "%s")`, list[0])
		for i, l := range list[1:] {
			if i == 0 {
				e.Error += "; all links with problems must be fixed, also:"
			}
			e.Error += fmt.Sprintf("\ntoo many symlinks, or symlink cycle (symlink %q)", l)
			e.Error = strings.ReplaceAll(e.Error, `\"`, `"`)
		}
	}
}

func empty(e *expectation) { *e = expectation{Tree: []entry{}, Log: []string{}} }

func TestCaptureVectors(t *testing.T) {
	defer unix.Umask(unix.Umask(0o022))
	names := make(map[string]bool)
	for _, v := range loadVectors(t) {
		names[v.Name] = true
		t.Run(v.Name, func(t *testing.T) {
			if c, ok := changed[v.Name]; ok {
				c.edit(&v.Expect)
			} else if v.Better != nil {
				t.Errorf("this vector is marked %s and must be in the list of changes", v.Better)
			}
			v.run(t)
		})
	}
	for name := range changed {
		if !names[name] {
			t.Errorf("change of unknown vector %q", name)
		}
	}
	for name := range layout {
		if !names[name] {
			t.Errorf("exception for unknown vector %q", name)
		}
	}
}

func (v vector) run(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "out")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	fill(t, dir, v.OutputDir)
	log := new(lines)
	blocks := new(store)
	out, err := keep.NewCollection("", blocks)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	manifest, err := Run(t.Context(), Config{
		Mounts: v.Mounts, SecretMounts: v.SecretMounts, OutputPath: v.OutputPath, OutputGlob: v.OutputGlob,
		HostDir: dir, Collections: manifests(v.Collections), Log: log,
		Live: manifests(v.LiveCollections).OpenCollection,
	}, out)
	if got := strings.Join(log.list, "\n"); v.Expect.Log != nil && got != strings.Join(v.Expect.Log, "\n") {
		t.Errorf("log\n%s\nwant\n%s", got, strings.Join(v.Expect.Log, "\n"))
	}
	if want := strings.ReplaceAll(v.Expect.Error, "<host output directory>", dir); want != "" {
		if err == nil || err.Error() != want {
			t.Errorf("error %v\n want %s", err, want)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	got := tree(t, manifest)
	slices.SortFunc(v.Expect.Tree, func(a, b entry) int { return strings.Compare(a.Path, b.Path) })
	if !slices.Equal(got, v.Expect.Tree) {
		t.Errorf("tree %v\n want %v", got, v.Expect.Tree)
	}
	if v.Expect.ManifestText != "" && manifest != v.Expect.ManifestText && layout[v.Name] == "" {
		t.Errorf("manifest %q\n    want %q", manifest, v.Expect.ManifestText)
	}
	for _, op := range v.OutputDir {
		if op.Op == "file" && slices.ContainsFunc(got, func(e entry) bool { return e.Path == op.Path && e.Size == int64(len(op.Content)) }) {
			if content := read(t, blocks, manifest, op.Path); content != op.Content {
				t.Errorf("%s holds %q, want %q", op.Path, content, op.Content)
			}
		}
	}
}

// layout lists the vectors whose manifest text differs only in how files share
// blocks, which is no part of the contract.
var layout = map[string]string{
	"special characters in names":                  "files of a directory share a block although a subdirectory comes between them",
	"small files of one directory share one block": "files of a directory share a block although a subdirectory comes between them",
	"symlinks inside the output directory":         "the block is not shared by two files of the same content",
}

func read(t testing.TB, blocks *store, manifest, name string) string {
	t.Helper()
	c, err := keep.NewCollection(manifest, blocks)
	if err != nil {
		t.Fatal(err)
	}
	f, err := c.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	content, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}
