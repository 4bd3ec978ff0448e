package mount

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"sort"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crunch-oci/keep"
)

// A collection with everything that manifests allow is read through the mount
// and compared with what keep makes of it.
func TestContent(t *testing.T) {
	for name, args := range map[string][]string{
		"memory": nil, "disk": {"--disk-cache", "--disk-cache-dir", t.TempDir() + "/keep", "--file-cache", "10%"},
	} {
		t.Run(name, func(t *testing.T) { testContent(t, args...) })
	}
}

func testContent(t *testing.T, args ...string) {
	w := newWorld(t)
	a, b := testBytes(1, 3_000_000), testBytes(2, 1_500_000)
	la, lb := w.put(a), w.put(b)
	manifest := ". " + la + " " + lb + " 0:10:first 2999990:20:across 0:4500000:all 5:0:empty 4499999:1:last\n" +
		"./a " + lb + " 100:100:x 0:50:x 100:100:x\n" + // a file of several parts
		"./a/deep\\040er/dir " + la + " 0:5:\\134back\\072slash\n" +
		"./e d41d8cd98f00b204e9800998ecf8427e+0 0:0:\\056\n" + // an empty directory
		"./x\\057y " + la + " 7:7:z/z\n"
	pdh := w.publish(manifest, time.Now().Add(time.Hour))
	w.mount(args...)

	coll, err := keep.NewCollection(manifest, memory{a, b})
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	err = coll.Walk(".", func(name string, info keep.FileInfo) error {
		want = append(want, name)
		path := w.path("by_id", pdh, name)
		st, err := os.Lstat(path)
		if err != nil {
			return err
		}
		if st.IsDir() != info.IsDir() || !st.IsDir() && st.Size() != info.Size() {
			t.Errorf("%s: %v %d", name, st.Mode(), st.Size())
		}
		if info.IsDir() {
			return nil
		}
		f, err := coll.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		wantData, err := io.ReadAll(f)
		if err != nil {
			return err
		}
		got, err := os.ReadFile(path)
		if err != nil || !bytes.Equal(got, wantData) {
			t.Errorf("%s: %d bytes, %v; want %d bytes", name, len(got), err, len(wantData))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	root := w.path("by_id", pdh)
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(root, path)
		got = append(got, rel)
		return err
	})
	sort.Strings(got)
	sort.Strings(want)
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("walk: %q %v, want %q", got, err, want)
	}
	if w.requests(pdh) != 1 {
		t.Errorf("%d API requests for one collection", w.requests(pdh))
	}
}

// memory is a block store of the given blocks.
type memory [][]byte

func (m memory) ReadBlock(_ context.Context, loc keep.Locator) ([]byte, error) {
	for _, b := range m {
		if sum := md5.Sum(b); hex.EncodeToString(sum[:]) == loc.Hash() {
			return b, nil
		}
	}
	return nil, keep.ErrNotFound
}

func TestTree(t *testing.T) {
	w := newWorld(t)
	loc := w.put([]byte("foobar"))
	pdh := w.publish(". "+loc+" 0:3:foo 3:3:dir/bar\n", time.Now().Add(time.Hour))
	other := w.publish(". "+loc+" 0:6:foobar\n", time.Now().Add(time.Hour))
	uuid := "zzzzz-4zz18-aaaaaaaaaaaaaaa"
	modified := time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC)
	w.answer(uuid, Record{PortableDataHash: pdh, ManifestText: w.signer.SignManifest(". "+loc+" 0:3:foo 3:3:dir/bar\n", token, time.Now().Add(time.Hour)),
		ModifiedAt: modified, Fields: map[string]any{"uuid": uuid, "name": "né"}})
	w.mount()
	list := func(parts ...string) string {
		entries, err := os.ReadDir(w.path(parts...))
		var names []string
		for _, e := range entries {
			names = append(names, e.Name())
		}
		if err != nil {
			names = append(names, err.Error())
		}
		return strings.Join(names, " ")
	}
	if got := list(); got != "by_id by_uuid" {
		t.Errorf("root: %s", got)
	}
	if got := list("by_id"); got != "README" {
		t.Errorf("by_id: %s", got)
	}
	if text, err := os.ReadFile(w.path("by_id/README")); err != nil || !strings.Contains(string(text), "portable data hash") {
		t.Errorf("README: %q %v", text, err)
	}

	absent := "00000000000000000000000000000000+99"
	for _, name := range []string{absent, "x", "README2", pdh[:33], strings.ToUpper(pdh), pdh + "x", uuid} {
		if _, err := os.Stat(w.path("by_id", name)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("by_id/%s: %v", name, err)
		}
	}
	// Absence is not remembered: what appears later is found.
	before := w.requests(absent)
	if _, err := os.Stat(w.path("by_id", absent)); !errors.Is(err, fs.ErrNotExist) || w.requests(absent) != before+1 {
		t.Errorf("second lookup: %v, %d requests", err, w.requests(absent))
	}
	w.waitLog(regexp.MustCompile("WARNING: collection " + regexp.QuoteMeta(absent) + ": not found"))

	// Temporary API errors are EIO, and cured by trying again.
	broken := w.publish(". "+loc+" 1:2:oo\n", time.Now().Add(time.Hour))
	good, _ := os.ReadFile(filepath.Join(w.api, broken))
	w.answerText(broken, "503 overloaded")
	if _, err := os.Stat(w.path("by_id", broken)); !errors.Is(err, syscall.EIO) {
		t.Errorf("API error: %v", err)
	}
	w.answerText(broken, string(good))
	if text, err := os.ReadFile(w.path("by_id", broken, "oo")); err != nil || string(text) != "oo" {
		t.Errorf("after an API error: %q %v", text, err)
	}
	// So is a manifest that is not the one asked for.
	wrong := "11111111111111111111111111111111+51"
	w.answerText(wrong, string(good))
	if _, err := os.Stat(w.path("by_id", wrong)); !errors.Is(err, syscall.EIO) {
		t.Errorf("wrong manifest: %v", err)
	}

	for _, p := range []string{"by_id/" + pdh, "by_id/" + other, "by_uuid/" + pdh, "by_uuid/" + uuid} {
		if _, err := os.Stat(w.path(p)); err != nil {
			t.Errorf("%s: %v", p, err)
		}
	}
	if got, want := list("by_id"), sorted("README", broken, pdh, other); got != want {
		t.Errorf("by_id: %s, want %s", got, want)
	}
	if got, want := list("by_uuid"), sorted("README", pdh, uuid); got != want {
		t.Errorf("by_uuid: %s, want %s", got, want)
	}
	if got := list("by_id", pdh); got != "dir foo" {
		t.Errorf("collection: %s", got)
	}
	if _, err := os.Stat(w.path("by_id", pdh, "nope")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("absent file: %v", err)
	}
	if _, err := os.Stat(w.path("by_id", pdh, "foo/x")); !errors.Is(err, syscall.ENOTDIR) {
		t.Errorf("below a file: %v", err)
	}

	type attrs struct {
		mode         uint32
		size, blocks int64
		mtime        int64
	}
	for p, want := range map[string]attrs{
		"":                          {0o40555, 0, 1, -1},
		"by_id":                     {0o40555, 0, 1, -1},
		"by_id/README":              {0o100444, -1, 1, -1},
		"by_id/" + pdh:              {0o40555, 0, 1, 0},
		"by_id/" + pdh + "/foo":     {0o100555, 3, 1, 0},
		"by_id/" + pdh + "/dir":     {0o40555, 0, 1, 0},
		"by_id/" + pdh + "/dir/bar": {0o100555, 3, 1, 0},
		"by_uuid/" + uuid + "/foo":  {0o100777, 3, 1, modified.Unix()},
	} {
		var st unix.Stat_t
		if err := unix.Lstat(w.path(p), &st); err != nil {
			t.Errorf("%s: %v", p, err)
			continue
		}
		got := attrs{st.Mode, st.Size, st.Blocks, st.Mtim.Sec}
		if want.mtime < 0 {
			want.mtime = got.mtime
		}
		if want.size < 0 {
			want.size = got.size
		}
		if got != want || st.Nlink != 1 || int(st.Uid) != os.Getuid() || int(st.Gid) != os.Getgid() || st.Blksize != 512 || st.Ctim != st.Mtim {
			t.Errorf("%s: %+v nlink %d uid %d gid %d blksize %d, want %+v", p, got, st.Nlink, st.Uid, st.Gid, st.Blksize, want)
		}
	}
	var sfs unix.Statfs_t
	if err := unix.Statfs(w.path("by_id"), &sfs); err != nil || sfs.Bsize != 131072 || sfs.Bavail == 0 || sfs.Ffree == 0 {
		t.Errorf("statfs: %+v %v", sfs, err)
	}
}

func sorted(names ...string) string {
	sort.Strings(names)
	return strings.Join(names, " ")
}

func TestRecordFile(t *testing.T) {
	w := newWorld(t)
	loc := w.put([]byte("foobar"))
	manifest := ". " + loc + " 0:3:fo\\040o<é>\n./dir " + loc + " 0:1:f\n"
	pdh := w.publish(manifest, time.Now().Add(time.Hour))
	uuid := "zzzzz-4zz18-aaaaaaaaaaaaaaa"
	w.answer(uuid, Record{PortableDataHash: pdh, ManifestText: manifest, ModifiedAt: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
		Fields: map[string]any{"uuid": uuid, "name": "né 😀", "properties": map[string]any{}}})
	w.mount()
	text, err := os.ReadFile(w.path("by_id", pdh, ".arvados#collection"))
	if err != nil {
		t.Fatal(err)
	}
	form := regexp.MustCompile(`^\{
    "manifest_text": "\. [0-9a-f]{32}\+6\+A[0-9a-f]{40}@[0-9a-f]{8} 0:3:fo\\\\040o<\\u00e9>\\n\./dir [^"]+\\n",
    "portable_data_hash": "` + regexp.QuoteMeta(pdh) + `",
    "uuid": "` + regexp.QuoteMeta(pdh) + `"
\}
$`)
	if !form.Match(text) {
		t.Errorf("record of a portable data hash:\n%s", text)
	}
	st, err := os.Stat(w.path("by_id", pdh, ".arvados#collection"))
	if err != nil || st.Size() != int64(len(text)) || st.Mode() != 0o444 {
		t.Errorf("stat: %v %v, read %d bytes", st, err, len(text))
	}
	if _, err := os.Stat(w.path("by_id", pdh, "dir", ".arvados#collection")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("in a subdirectory: %v", err)
	}
	text, err = os.ReadFile(w.path("by_uuid", uuid, ".arvados#collection"))
	var got map[string]any
	if err != nil || json.Unmarshal(text, &got) != nil {
		t.Fatalf("%s %v", text, err)
	}
	if got["uuid"] != uuid || got["name"] != "né 😀" || got["manifest_text"] != manifest || got["modified_at"] != "2026-01-02T03:04:05Z" ||
		!bytes.Contains(text, []byte(`"n\u00e9 \ud83d\ude00"`)) {
		t.Errorf("record of a UUID:\n%s", text)
	}
}

// Everything that would change something is refused as programs expect it.
func TestErrno(t *testing.T) {
	for _, mode := range []string{"--read-write", "--read-only"} {
		t.Run(mode, func(t *testing.T) {
			w := newWorld(t)
			loc := w.put([]byte("foobar"))
			pdh := w.publish(". "+loc+" 0:3:foo 3:3:dir/bar\n", time.Now().Add(time.Hour))
			w.mount(mode)
			refused := syscall.Errno(syscall.EROFS)
			if mode == "--read-write" {
				refused = syscall.EPERM
			}
			c := w.path("by_id", pdh) + "/"
			open := func(path string, flags int) error {
				fd, err := unix.Open(path, flags, 0o666)
				if err == nil {
					unix.Close(fd)
				}
				return err
			}
			for name, x := range map[string]struct {
				got  error
				want syscall.Errno
			}{
				"create":             {open(c+"new", unix.O_CREAT|unix.O_WRONLY), refused},
				"create in by_id":    {open(w.path("by_id/new"), unix.O_CREAT|unix.O_WRONLY), refused},
				"mkdir":              {unix.Mkdir(c+"new", 0o777), refused},
				"mkdir in root":      {unix.Mkdir(w.path("new"), 0o777), refused},
				"unlink":             {unix.Unlink(c + "foo"), refused},
				"rmdir":              {unix.Rmdir(c + "dir"), refused},
				"rename":             {unix.Rename(c+"foo", c+"bar"), refused},
				"mknod":              {unix.Mknod(c+"new", unix.S_IFREG|0o666, 0), refused},
				"mkfifo":             {unix.Mknod(c+"new", unix.S_IFIFO|0o666, 0), syscall.ENOTSUP},
				"open for writing":   {open(c+"foo", unix.O_RDWR), syscall.EPERM},
				"truncate":           {unix.Truncate(c+"foo", 1), syscall.EROFS},
				"symlink":            {unix.Symlink("x", c+"new"), syscall.ENOSYS},
				"readlink":           {readlink(c + "foo"), syscall.EINVAL},
				"chmod":              {unix.Chmod(c+"foo", 0o600), 0},
				"chown":              {unix.Chown(c+"foo", 1, 1), 0},
				"utimes":             {unix.Utimes(c+"foo", []unix.Timeval{{}, {}}), 0},
				"access":             {unix.Access(c+"foo", unix.R_OK|unix.W_OK|unix.X_OK), 0},
				"open directory rw":  {open(c+"dir", unix.O_RDWR), syscall.EISDIR},
				"open file as dir":   {open(c+"foo", unix.O_DIRECTORY), syscall.ENOTDIR},
				"exclusive existing": {open(c+"foo", unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY), syscall.EEXIST},
				"getxattr":           {getxattr(c + "foo"), syscall.EOPNOTSUPP},
				"name too long":      {open(c+strings.Repeat("x", 5000), 0), syscall.ENAMETOOLONG},
			} {
				if !(x.got == nil && x.want == 0) && !errors.Is(x.got, x.want) {
					t.Errorf("%s: %v, want %v", name, x.got, x.want)
				}
			}
			if text, err := os.ReadFile(c + "foo"); err != nil || string(text) != "foo" {
				t.Errorf("afterwards: %q %v", text, err)
			}
		})
	}
}

func readlink(path string) error {
	_, err := unix.Readlink(path, make([]byte, 100))
	return err
}

func getxattr(path string) error {
	_, err := unix.Getxattr(path, "user.x", make([]byte, 100))
	return err
}

// Names are bytes.
func TestNonUTF8Names(t *testing.T) {
	w := newWorld(t)
	loc := w.put([]byte("foobar"))
	names := []string{"\xff\xfe", "caf\xe9", "new\nline", "a b", `back\slash`, "c:d", strings.Repeat("n", 255), "*"}
	var manifest strings.Builder
	manifest.WriteString("./d\\377 " + loc)
	sort.Strings(names)
	for _, n := range names {
		manifest.WriteString(" 0:3:")
		for _, c := range []byte(n) {
			fmt.Fprintf(&manifest, "\\%03o", c)
		}
	}
	// Names that the kernel cannot handle do not hide the others.
	manifest.WriteString(" 0:3:nul\\000 0:3:" + strings.Repeat("l", 2000) + "\n")
	pdh := w.publish(manifest.String(), time.Now().Add(time.Hour))
	w.mount()
	entries, err := os.ReadDir(w.path("by_id", pdh, "d\xff"))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
		text, err := os.ReadFile(w.path("by_id", pdh, "d\xff", e.Name()))
		if err != nil || string(text) != "foo" {
			t.Errorf("%q: %q %v", e.Name(), text, err)
		}
	}
	if !slices.Equal(got, names) {
		t.Errorf("got %q, want %q", got, names)
	}
}

func TestManyFiles(t *testing.T) {
	const n = 20_000
	w := newWorld(t)
	data := testBytes(3, n)
	loc := w.put(data)
	var manifest strings.Builder
	manifest.WriteString(". " + loc)
	for i := range n {
		fmt.Fprintf(&manifest, " %d:1:file-%05d", i, i)
	}
	manifest.WriteString("\n")
	pdh := w.publish(manifest.String(), time.Now().Add(time.Hour))
	w.mount()
	for range 2 { // the second time from the kernel's memory
		entries, err := os.ReadDir(w.path("by_id", pdh))
		if err != nil || len(entries) != n {
			t.Fatalf("%d entries, %v", len(entries), err)
		}
		for i, e := range entries {
			info, err := e.Info()
			if e.Name() != fmt.Sprintf("file-%05d", i) || err != nil || info.Size() != 1 {
				t.Fatalf("entry %d: %v %v", i, info, err)
			}
		}
	}
	for i := 0; i < n; i += 997 {
		text, err := os.ReadFile(w.path("by_id", pdh, fmt.Sprintf("file-%05d", i)))
		if err != nil || string(text) != string(data[i:i+1]) {
			t.Errorf("file %d: %q %v", i, text, err)
		}
	}
}

// Many readers of the same and of different files, in order and at random.
func TestConcurrentReaders(t *testing.T) {
	w := newWorld(t)
	const blockSize, blocks = 2_000_000, 5
	var content []byte
	manifest := "."
	for i := range blocks {
		b := testBytes(uint64(10+i), blockSize)
		content = append(content, b...)
		manifest += " " + w.put(b)
	}
	manifest += fmt.Sprintf(" 0:%d:whole 1999999:2:seam\n", len(content))
	pdh := w.publish(manifest, time.Now().Add(time.Hour))
	w.mount("--file-cache", "5000000") // holds two blocks
	var wg sync.WaitGroup
	for r := range 8 {
		wg.Go(func() {
			f, err := os.Open(w.path("by_id", pdh, "whole"))
			if err != nil {
				t.Error(err)
				return
			}
			defer f.Close()
			if r%2 == 0 {
				got, err := io.ReadAll(f)
				if err != nil || !bytes.Equal(got, content) {
					t.Errorf("read through: %d bytes, %v", len(got), err)
				}
				return
			}
			buf := make([]byte, 10_000)
			for i := range 50 {
				off := (i*7919*(r+1)*1000 + r) % (len(content) - len(buf))
				if _, err := f.ReadAt(buf, int64(off)); err != nil || !bytes.Equal(buf, content[off:off+len(buf)]) {
					t.Errorf("at %d: %v", off, err)
				}
			}
		})
	}
	wg.Wait()
	// A read across the end gives what there is.
	f, err := os.Open(w.path("by_id", pdh, "whole"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	buf := make([]byte, 100)
	if n, err := f.ReadAt(buf, int64(len(content)-7)); n != 7 || err != io.EOF {
		t.Errorf("at the end: %d %v", n, err)
	}
	if n, err := f.ReadAt(buf, int64(len(content)+1000)); n != 0 || err != io.EOF {
		t.Errorf("beyond the end: %d %v", n, err)
	}
}

// Programs run from the mount, as other users too.
func TestExecute(t *testing.T) {
	program, err := os.ReadFile("/bin/echo")
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t)
	loc := w.put(program)
	pdh := w.publish(fmt.Sprintf("./bin %s 0:%d:echo\n", loc, len(program)), time.Now().Add(time.Hour))
	w.mount()
	if err := os.Chmod(filepath.Dir(w.dir), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, uid := range []uint32{0, 65534} {
		cmd := exec.Command(w.path("by_id", pdh, "bin/echo"), "hello")
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		if out, err := cmd.CombinedOutput(); err != nil || string(out) != "hello\n" {
			t.Errorf("as user %d: %q %v", uid, out, err)
		}
	}
}

// testBytes are pseudo-random and the same for the same seed.
func testBytes(seed uint64, n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}).Read(b)
	return b
}
