package capture

import (
	"context"
	"errors"
	"fmt"
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

type result struct {
	manifest string
	err      error
	log      []string
	blocks   *store
}

func (r result) must(t testing.TB) string {
	t.Helper()
	if r.err != nil {
		t.Fatal(r.err)
	}
	return r.manifest
}

// capture runs c with what it leaves out.
func capture(t testing.TB, c Config) result {
	t.Helper()
	return captureTo(t, t.Context(), c, new(store))
}

func captureTo(t testing.TB, ctx context.Context, c Config, blocks *store) result {
	t.Helper()
	out, err := keep.NewCollection("", blocks)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	log := new(lines)
	c.Log = log
	if c.Collections == nil {
		c.Collections = manifests{}
	}
	manifest, err := Run(ctx, c, out)
	return result{manifest, err, log.list, blocks}
}

func tmpOutput() map[string]arvados.Mount {
	return map[string]arvados.Mount{"/out": {Kind: "tmp"}}
}

// local captures the output directory that the operations make.
func local(t testing.TB, ops ...operation) result {
	t.Helper()
	dir := t.TempDir()
	fill(t, dir, ops)
	return capture(t, Config{Mounts: tmpOutput(), OutputPath: "/out", HostDir: dir})
}

func paths(t testing.TB, manifest string) []string {
	t.Helper()
	list := []string{}
	for _, e := range tree(t, manifest) {
		if e.EmptyDir {
			e.Path += "/"
		}
		list = append(list, e.Path)
	}
	return list
}

func wantPaths(t testing.TB, manifest string, want ...string) {
	t.Helper()
	if got := paths(t, manifest); !slices.Equal(got, want) {
		t.Errorf("output %q, want %q", got, want)
	}
}

// No link reaches the host: whatever it says, it means a place in the container.
func TestLinksNeverLeaveTheOutput(t *testing.T) {
	host := filepath.Join(t.TempDir(), "host")
	if err := os.WriteFile(host, []byte("host secret"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, target := range []string{
		"/out/../../../../../../../../../../" + host, "../" + host, "/out/.." + host, host, "/proc/self/root" + host,
		"/proc/self/fd/0", "/proc/self/cwd", "d/../../" + host, "/", "..", "/out/..", "up/" + host, "abs", "d/up2/" + host, "magic/etc/passwd",
	} {
		r := local(t,
			operation{Op: "dir", Path: "d"},
			operation{Op: "symlink", Path: "up", Target: "../../../../../../.."},
			operation{Op: "symlink", Path: "d/up2", Target: "../.."},
			operation{Op: "symlink", Path: "abs", Target: host},
			operation{Op: "symlink", Path: "magic", Target: "/proc/self/root"},
			operation{Op: "symlink", Path: "zz", Target: target},
		)
		if r.err == nil || !strings.Contains(r.err.Error(), fmt.Sprintf("not in any mount (symlink \"/out/zz\" -> %q)", target)) {
			t.Errorf("%q: %v", target, r.err)
		}
		for _, block := range r.blocks.blocks {
			if strings.Contains(string(block), "secret") {
				t.Errorf("%q: copied the host's file", target)
			}
		}
	}
}

// Links are followed as the kernel does in the container.
func TestLinksMeanWhatTheContainerSaw(t *testing.T) {
	for _, c := range []struct {
		target, want string
	}{
		{"/out/d/f", "d/f"},
		{"//out//d/./f", "d/f"},
		{"d/../d/f", "d/f"},
		{"missing/../d/f", "d/f"}, // as the reference: cleaned first
		{"e/l/../f", "d/f"},       // e/l is d/sub, whose parent is d
		{"e/l/g", "d/sub/g"},
		{"e/l/", "d/sub"},
		{"e/abs/f", "d/f"},
		{"e/chain", "d/f"},
		{"../../../../out/d/f", "d/f"},
	} {
		r := local(t,
			operation{Op: "file", Path: "d/f", Content: "d/f"},
			operation{Op: "file", Path: "e/f", Content: "e/f"},
			operation{Op: "file", Path: "f", Content: "f"},
			operation{Op: "file", Path: "d/sub/g", Content: "d/sub/g"},
			operation{Op: "symlink", Path: "e/l", Target: "../d/sub"},
			operation{Op: "symlink", Path: "e/abs", Target: "/out/d"},
			operation{Op: "symlink", Path: "e/chain", Target: "abs/f"},
			operation{Op: "symlink", Path: "zz", Target: c.target},
		)
		manifest := r.must(t)
		name := "zz"
		if c.want == "d/sub" {
			name, c.want = "zz/g", "d/sub/g"
		}
		if got := read(t, r.blocks, manifest, name); got != c.want {
			t.Errorf("%q is %q, want %q", c.target, got, c.want)
		}
	}
}

func TestAllBadLinksAreNamed(t *testing.T) {
	r := local(t,
		operation{Op: "symlink", Path: "a", Target: "/etc/hosts"},
		operation{Op: "symlink", Path: "d/b", Target: "nothing"},
		operation{Op: "symlink", Path: "e", Target: "d"},
		operation{Op: "file", Path: "good"},
	)
	if r.err == nil {
		t.Fatal("no error")
	}
	want := scanError + `cannot output file "/etc/hosts": not in any mount (symlink "/out/a" -> "/etc/hosts"); all links with problems must be fixed, also:` +
		"\n" + `lstat "/out/d/nothing": lstat `
	if got := r.err.Error(); !strings.HasPrefix(got, want) || strings.Count(got, "symlink") != 2 {
		t.Errorf("error %s", got)
	}
	if slices.ContainsFunc(r.log, func(l string) bool { return strings.HasPrefix(l, "copying") }) {
		t.Errorf("copied all the same: %q", r.log)
	}
}

func TestManyBadLinks(t *testing.T) {
	var ops []operation
	for i := range 300 {
		ops = append(ops, operation{Op: "symlink", Path: fmt.Sprint(i), Target: "/nowhere"})
	}
	r := local(t, ops...)
	if r.err == nil || strings.Count(r.err.Error(), "\n") != maxProblems || !strings.HasSuffix(r.err.Error(), "perhaps more)") {
		t.Errorf("error %v", r.err)
	}
}

// Directories linked to each other must not be walked exponentially often.
func TestLinkMaze(t *testing.T) {
	var ops []operation
	for i := range 12 {
		for j := range 12 {
			ops = append(ops, operation{Op: "symlink", Path: fmt.Sprintf("d%02d/l%02d", i, j), Target: fmt.Sprintf("../d%02d", j)})
		}
	}
	if r := local(t, ops...); r.err == nil || !strings.Contains(r.err.Error(), "too many symlinks, or symlink cycle") {
		t.Errorf("error %v", r.err)
	}
}

// budgeted scans with a small number of entries that links may lead to.
func budgeted(t *testing.T, dir string, entries int) error {
	t.Helper()
	out, err := keep.NewCollection("", new(store))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	s, err := newScan(Config{Mounts: tmpOutput(), OutputPath: "/out", HostDir: dir, Log: new(lines)}, out)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	s.linked = entries
	return s.run(t.Context())
}

// A cycle is noticed at its first turn, not after eleven, which would list each
// file of the directory 4^11 times.
func TestCyclesAreNotWalked(t *testing.T) {
	dir := t.TempDir()
	fill(t, dir, []operation{{Op: "file", Path: "f"}, {Op: "symlink", Path: "a", Target: "."}, {Op: "symlink", Path: "b", Target: "../out"},
		{Op: "symlink", Path: "c", Target: "/out/"}, {Op: "symlink", Path: "d", Target: "a"}})
	if err := budgeted(t, dir, 10); err == nil || strings.Count(err.Error(), errLinks.Error()+" (symlink \"/out/") != 4 {
		t.Errorf("error %v", err)
	}
}

func TestLinksThatMultiply(t *testing.T) {
	dir := t.TempDir()
	for i := range 11 {
		for j := range 10 {
			fill(t, dir, []operation{{Op: "symlink", Path: fmt.Sprintf("d%02d/l%d", i, j), Target: fmt.Sprintf("../d%02d", i+1)}})
		}
	}
	fill(t, dir, []operation{{Op: "file", Path: "d11/f"}})
	if err := budgeted(t, dir, 10_000); !errors.Is(err, errTooManyLinked) {
		t.Errorf("error %v", err)
	}
}

func TestNamesThatAreNotUTF8(t *testing.T) {
	r := local(t, operation{Op: "file", Path: "a\xff", Content: "1"}, operation{Op: "file", Path: "a\xfe", Content: "2"},
		operation{Op: "file", Path: "\xc3/\xa9", Content: "3"})
	manifest := r.must(t)
	wantPaths(t, manifest, "a\xfe", "a\xff", "\xc3/\xa9")
	for name, want := range map[string]string{"a\xff": "1", "a\xfe": "2", "\xc3/\xa9": "3"} {
		if got := read(t, r.blocks, manifest, name); got != want {
			t.Errorf("%q holds %q, want %q", name, got, want)
		}
	}
}

func TestSpecialFiles(t *testing.T) {
	dir := t.TempDir()
	defer unix.Umask(unix.Umask(0))
	if err := unix.Mknod(filepath.Join(dir, "block"), unix.S_IFBLK|0o660, int(unix.Mkdev(7, 200))); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mknod(filepath.Join(dir, "char"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5))); err != nil {
		t.Fatal(err)
	}
	fill(t, dir, []operation{{Op: "fifo", Path: "fifo"}, {Op: "symlink", Path: "link", Target: "fifo"}})
	r := capture(t, Config{Mounts: tmpOutput(), OutputPath: "/out", HostDir: dir})
	wantPaths(t, r.must(t))
	want := []string{
		`Skipping unsupported file type (mode 400000660) in output dir: "/out/block"`,
		`Skipping unsupported file type (mode 410000666) in output dir: "/out/char"`,
		`Skipping unsupported file type (mode 200000644) in output dir: "/out/fifo"`,
		`Skipping unsupported file type (mode 200000644) in output dir: "/out/fifo"`,
	}
	if !slices.Equal(r.log, want) {
		t.Errorf("log %q\nwant %q", r.log, want)
	}
}

// hook runs f when the line with the given text is logged.
type hook struct {
	lines
	text string
	f    func()
}

func (h *hook) Printf(format string, args ...any) {
	h.lines.Printf(format, args...)
	if strings.Contains(fmt.Sprintf(format, args...), h.text) {
		h.f()
	}
}

// What changes between the scan and the copy is copied as it is then, or
// refused, and never waited for.
func TestFilesThatChange(t *testing.T) {
	long := strings.Repeat("0123456789abcdef", readAheadBytes/16) + "the end"
	for _, c := range []struct {
		name   string
		change func(file string) error
		want   string // content, or an error's text
		fails  bool
	}{
		{"grows", func(f string) error { return os.WriteFile(f, []byte(long+long), 0o644) }, long + long, false},
		{"shrinks", func(f string) error { return os.Truncate(f, 3) }, "012", false},
		{"goes away", os.Remove, "no such file or directory", true},
		{"becomes a FIFO", func(f string) error { return errors.Join(os.Remove(f), unix.Mkfifo(f, 0o644)) }, "no longer a regular file", true},
		{"becomes a link", func(f string) error { return errors.Join(os.Remove(f), os.Symlink("/etc/passwd", f)) }, "too many levels of symbolic links", true},
		{"becomes a directory", func(f string) error { return errors.Join(os.Remove(f), os.Mkdir(f, 0o755)) }, "no longer a regular file", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			fill(t, dir, []operation{{Op: "file", Path: "f", Content: long}, {Op: "fifo", Path: "z"}})
			log := &hook{text: "Skipping", f: func() {
				if err := c.change(filepath.Join(dir, "f")); err != nil {
					t.Error(err)
				}
			}}
			blocks := new(store)
			out, err := keep.NewCollection("", blocks)
			if err != nil {
				t.Fatal(err)
			}
			defer out.Close()
			manifest, err := Run(t.Context(), Config{Mounts: tmpOutput(), OutputPath: "/out", HostDir: dir, Log: log}, out)
			switch {
			case c.fails:
				if err == nil || !strings.HasPrefix(err.Error(), `error copying file "f" into output collection: `) || !strings.HasSuffix(err.Error(), c.want) {
					t.Errorf("error %v", err)
				}
			case err != nil:
				t.Error(err)
			default:
				if got := read(t, blocks, manifest, "f"); got != c.want {
					t.Errorf("%d bytes, want %d", len(got), len(c.want))
				}
			}
		})
	}
}

func TestUnstorableBlocks(t *testing.T) {
	dir := t.TempDir()
	fill(t, dir, []operation{{Op: "file", Path: "f", Content: "x"}})
	r := captureTo(t, t.Context(), Config{Mounts: tmpOutput(), OutputPath: "/out", HostDir: dir}, &store{err: errors.New("disk full")})
	if r.err == nil || !strings.HasPrefix(r.err.Error(), "error flushing output collection file data: ") || !strings.Contains(r.err.Error(), "disk full") {
		t.Errorf("error %v", r.err)
	}
}

func TestMissingOutputDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "none")
	r := capture(t, Config{Mounts: tmpOutput(), OutputPath: "/out", HostDir: dir})
	if r.err == nil || !strings.HasPrefix(r.err.Error(), scanError+`lstat "/out": `) || !strings.Contains(r.err.Error(), dir+": no such file or directory") {
		t.Errorf("error %v", r.err)
	}
}

func TestStopping(t *testing.T) {
	dir := t.TempDir()
	var ops []operation
	for i := range 500 {
		ops = append(ops, operation{Op: "file", Path: fmt.Sprintf("d/%d", i), Content: "x"})
	}
	fill(t, dir, ops)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	out, err := keep.NewCollection("", new(store))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	_, err = Run(ctx, Config{Mounts: tmpOutput(), OutputPath: "/out", HostDir: dir, Log: &hook{text: `"d/17"`, f: cancel}}, out)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

// localizer answers like a Keep server that fetches remote blocks.
type localizer struct {
	mu    sync.Mutex
	asked []string
	err   error
}

func (l *localizer) LocalLocator(_ context.Context, loc keep.Locator) (keep.Locator, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.asked = append(l.asked, loc.String())
	if l.err != nil {
		return keep.Locator{}, l.err
	}
	return keep.ParseLocator(loc.WithoutHints().String() + "+A" + strings.Repeat("0", 40) + "@7fffffff")
}

func TestRemoteBlocksAreMadeLocal(t *testing.T) {
	const foo, bar = "acbd18db4cc2f85cedef654fccc4a4d8+3", "37b51d194a7513e45b56f6524f2d51f2+3"
	sig := "-" + strings.Repeat("f", 40) + "@7fffffff"
	in := manifests{"x": ". " + foo + "+Rzzzzz" + sig + " " + bar + "+A" + strings.Repeat("1", 40) + "@7fffffff 0:3:a+Rb 3:3:b\n" +
		"./d " + foo + "+Rzzzzz" + sig + " 0:3:c\n"}
	c := Config{
		Mounts:     map[string]arvados.Mount{"/out": {Kind: "tmp"}, "/out/m": {Kind: "collection", PortableDataHash: "x"}},
		OutputPath: "/out", HostDir: t.TempDir(), Collections: in,
	}
	if r := capture(t, c); !errors.Is(r.err, errNoLocalizer) {
		t.Errorf("error %v", r.err)
	}
	blocks := new(localizer)
	c.Blocks = blocks
	r := capture(t, c)
	local := "+A" + strings.Repeat("0", 40) + "@7fffffff"
	want := "./m " + foo + local + " " + bar + "+A" + strings.Repeat("1", 40) + "@7fffffff 0:3:a+Rb 3:3:b\n./m/d " + foo + local + " 0:3:c\n"
	if got := r.must(t); got != want {
		t.Errorf("manifest %q\n    want %q", got, want)
	}
	if len(blocks.asked) != 1 {
		t.Errorf("asked for %q", blocks.asked)
	}
	if !slices.Contains(r.log, "Copying 2 data blocks from remote input collections...") {
		t.Errorf("log %q", r.log)
	}
	c.Blocks = &localizer{err: errors.New("no such cluster")}
	if r := capture(t, c); r.err == nil || !strings.Contains(r.err.Error(), "no such cluster") || strings.Contains(r.err.Error(), sig) {
		t.Errorf("error %v", r.err)
	}
}

func TestLiveOutputHasNoMountPoints(t *testing.T) {
	const block = "d41d8cd98f00b204e9800998ecf8427e+0"
	r := capture(t, Config{
		Mounts: map[string]arvados.Mount{
			"/out":   {Kind: "collection", Writable: true},
			"/out/x": {Kind: "collection", PortableDataHash: "unused", ExcludeFromOutput: true},
			"/out/t": {Kind: "text", ExcludeFromOutput: true},
		},
		SecretMounts: map[string]arvados.Mount{"/out/d/s": {Kind: "text"}},
		OtherBinds:   []string{"/out/ca.crt"},
		OutputPath:   "/out",
		Live:         manifests{"/out": ". " + block + " 0:0:ca.crt 0:0:keep 0:0:t\n./d " + block + " 0:0:s\n./x " + block + " 0:0:\\056\n"}.OpenCollection,
	})
	wantPaths(t, r.must(t), "d/", "keep")
}

func TestLocalOutputHasNoMountPoints(t *testing.T) {
	dir := t.TempDir()
	fill(t, dir, []operation{{Op: "file", Path: "etc/ca.crt"}, {Op: "dir", Path: "x/y"}, {Op: "file", Path: "f"}})
	r := capture(t, Config{
		Mounts:     map[string]arvados.Mount{"/out": {Kind: "tmp"}, "/out/x": {Kind: "collection", PortableDataHash: "unused", ExcludeFromOutput: true}},
		OtherBinds: []string{"/out/etc/ca.crt"}, OutputPath: "/out", HostDir: dir,
	})
	wantPaths(t, r.must(t), "etc/", "f")
}

// A mount of which the globs keep nothing leaves no directories behind.
func TestFilteredMountLeavesNoParents(t *testing.T) {
	r := capture(t, Config{
		Mounts: map[string]arvados.Mount{
			"/out": {Kind: "tmp"}, "/out/a/b/m": {Kind: "collection", PortableDataHash: "x"},
			"/out/a/e": {Kind: "collection"},
		},
		OutputPath: "/out", OutputGlob: []string{"**/*.txt", "a/e"}, HostDir: t.TempDir(),
		Collections: manifests{"x": "./d acbd18db4cc2f85cedef654fccc4a4d8+3 0:3:foo\n"},
	})
	wantPaths(t, r.must(t), "a/e/")
}

// A broken link that the globs do not keep is nobody's business.
func TestBadLinksOutsideTheGlobs(t *testing.T) {
	dir := t.TempDir()
	fill(t, dir, []operation{{Op: "symlink", Path: "tmp/l", Target: "gone"}, {Op: "file", Path: "a.txt"}, {Op: "symlink", Path: "b.txt", Target: "a.txt"}})
	r := capture(t, Config{Mounts: tmpOutput(), OutputPath: "/out", OutputGlob: []string{"*.txt"}, HostDir: dir})
	wantPaths(t, r.must(t), "a.txt", "b.txt")
}

func TestEachCollectionIsFetchedOnce(t *testing.T) {
	fetched := 0
	mounts := tmpOutput()
	for i := range 10 {
		mounts[fmt.Sprintf("/out/m%d", i)] = arvados.Mount{Kind: "collection", PortableDataHash: "x"}
	}
	r := capture(t, Config{Mounts: mounts, OutputPath: "/out", HostDir: t.TempDir(), Collections: opener(func(ctx context.Context, id string) (*keep.Collection, error) {
		fetched++
		return manifests{"x": ". acbd18db4cc2f85cedef654fccc4a4d8+3 0:3:foo\n"}.OpenCollection(ctx, id)
	})})
	if len(paths(t, r.must(t))) != 10 || fetched != 1 {
		t.Errorf("%d files, fetched %d times", len(paths(t, r.manifest)), fetched)
	}
}

type opener func(context.Context, string) (*keep.Collection, error)

func (o opener) OpenCollection(ctx context.Context, id string) (*keep.Collection, error) {
	return o(ctx, id)
}

// An error of the API is not blamed on a link, nor does the scan go on.
func TestUnreadableCollection(t *testing.T) {
	dir := t.TempDir()
	fill(t, dir, []operation{{Op: "symlink", Path: "a", Target: "/in/x"}, {Op: "symlink", Path: "b", Target: "/nowhere"}})
	mounts := tmpOutput()
	mounts["/in"] = arvados.Mount{Kind: "collection", PortableDataHash: "x"}
	r := capture(t, Config{Mounts: mounts, OutputPath: "/out", HostDir: dir})
	if r.err == nil || !strings.Contains(r.err.Error(), `collection x: no collection "x"`) || strings.Contains(r.err.Error(), "nowhere") {
		t.Errorf("error %v", r.err)
	}
}

// The same output gives the same manifest, however the readers are scheduled.
func TestManifestIsDeterministic(t *testing.T) {
	dir := t.TempDir()
	var ops []operation
	for i := range 300 {
		ops = append(ops, operation{Op: "file", Path: fmt.Sprintf("d%d/f%03d", i%7, i), Content: strings.Repeat(fmt.Sprint(i), i*10)})
	}
	fill(t, dir, ops)
	first := ""
	for range 5 {
		r := capture(t, Config{Mounts: tmpOutput(), OutputPath: "/out", HostDir: dir})
		if r.must(t); first == "" {
			first = r.manifest
		}
		if r.manifest != first {
			t.Fatal("manifests differ")
		}
		for _, op := range ops[:20] {
			if got := read(t, r.blocks, r.manifest, op.Path); got != op.Content {
				t.Errorf("%s differs", op.Path)
			}
		}
	}
}

func BenchmarkSmallFiles(b *testing.B) {
	dir := b.TempDir()
	const files = 20_000
	for i := range files {
		name := filepath.Join(dir, fmt.Sprintf("d%02d/f%05d", i%100, i))
		if i < 100 {
			if err := os.Mkdir(filepath.Dir(name), 0o755); err != nil {
				b.Fatal(err)
			}
		}
		if err := os.WriteFile(name, []byte(strings.Repeat(name, 20)), 0o644); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		capture(b, Config{Mounts: tmpOutput(), OutputPath: "/out", HostDir: dir}).must(b)
	}
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N*files), "µs/file")
}
