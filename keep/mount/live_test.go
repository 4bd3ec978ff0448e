package mount

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crunch-oci/keep"
)

// mountTmp mounts with a new collection, whose directory it returns.
func mountTmp(t testing.TB) (*world, string) {
	t.Helper()
	w := newWorld(t)
	w.mount("--mount-tmp", "tmp0")
	return w, w.path("tmp0")
}

// record reads .arvados#collection.
func record(t testing.TB, dir string) map[string]any {
	t.Helper()
	text, err := os.ReadFile(dir + "/" + recordName)
	if err != nil {
		t.Fatal(err)
	}
	var rec map[string]any
	if err := json.Unmarshal(text, &rec); err != nil {
		t.Fatal(err)
	}
	return rec
}

// saved is the collection according to .arvados#collection, with its blocks from
// the keepstore.
func (w *world) saved(dir string) *keep.Collection {
	w.t.Helper()
	client, err := keep.NewClient(keep.ClientConfig{
		Services: keep.FixedServices{{UUID: "zzzzz-bi6l4-000000000000000", URL: w.url, Type: "disk"}},
		Token:    token, DefaultReplication: 1,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { client.Close() })
	c, err := keep.NewCollection(record(w.t, dir)["manifest_text"].(string), client)
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

func content(t testing.TB, c *keep.Collection, name string) string {
	t.Helper()
	f, err := c.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	data, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// What a program writes is what .arvados#collection says, byte for byte in the
// form of the reference.
func TestTmpCollection(t *testing.T) {
	w, dir := mountTmp(t)
	text, err := os.ReadFile(dir + "/" + recordName)
	must(t, err)
	const empty = `{
    "manifest_text": "",
    "portable_data_hash": "d41d8cd98f00b204e9800998ecf8427e+0",
    "storage_classes_desired": [
        "default"
    ],
    "uuid": null
}
`
	if string(text) != empty {
		t.Errorf("record of an empty collection: %s", text)
	}
	must(t, os.WriteFile(dir+"/foo", []byte("foo"), 0o600))
	must(t, os.Mkdir(dir+"/sub dir", 0o700))
	must(t, os.Mkdir(dir+"/sub dir/empty", 0o700))
	must(t, os.WriteFile(dir+"/sub dir/b:\\r", []byte("bar"), 0o600))
	f, err := os.OpenFile(dir+"/foo", os.O_WRONLY|os.O_APPEND, 0)
	must(t, err)
	_, err = f.WriteString("bar")
	must(t, err)
	must(t, f.Close())
	rec := record(t, dir)
	manifest := rec["manifest_text"].(string)
	unsigned := regexp.MustCompile(`\+A[0-9a-f]+@[0-9a-f]{8}`).ReplaceAllString(manifest, "")
	const want = ". 3858f62230ac3c915f300c664312c63f+6 0:6:foo\n" +
		"./sub\\040dir 37b51d194a7513e45b56f6524f2d51f2+3 0:3:b\\072\\134r\n" +
		"./sub\\040dir/empty d41d8cd98f00b204e9800998ecf8427e+0 0:0:\\056\n"
	if unsigned != want || manifest == unsigned {
		t.Errorf("manifest\n%s", manifest)
	}
	if rec["portable_data_hash"] != keep.PortableDataHash(want) {
		t.Errorf("hash %v", rec["portable_data_hash"])
	}
	if got := content(t, w.saved(dir), "foo"); got != "foobar" {
		t.Errorf("stored %q", got)
	}
	// The size is right once the file is open, and it is not listed.
	g, err := os.Open(dir + "/" + recordName)
	must(t, err)
	defer g.Close()
	if st, _ := g.Stat(); st.Mode() != 0o444 || st.Size() != int64(len(manifest))+int64(len(empty))-int64(len("d41d8cd98f00b204e9800998ecf8427e+0"))+int64(len(rec["portable_data_hash"].(string)))+3+2+3 {
		t.Errorf("record has mode %v and %d bytes", st.Mode(), st.Size())
	}
	list, err := os.ReadDir(dir)
	must(t, err)
	if len(list) != 2 || list[0].Name() != "foo" {
		t.Errorf("listed: %v", list)
	}
}

// Each request that cannot be satisfied gets its error number.
func TestTmpErrors(t *testing.T) {
	w, dir := mountTmp(t)
	pdh := w.publish(". "+w.put([]byte("foo"))+" 0:3:foo\n", time.Now().Add(time.Hour))
	must(t, os.WriteFile(dir+"/f", []byte("x"), 0o600))
	must(t, os.Mkdir(dir+"/d", 0o700))
	must(t, os.Mkdir(dir+"/d/e", 0o700))
	must(t, os.Mkdir(dir+"/d2", 0o700))
	must(t, os.WriteFile(dir+"/d2/g", nil, 0o600))
	open := func(name string, flags int) error {
		f, err := os.OpenFile(name, flags, 0o600)
		if err == nil {
			f.Close()
		}
		return err
	}
	rec := dir + "/" + recordName
	in := w.path("by_id", pdh)
	for _, tc := range []struct {
		name string
		err  error
		want syscall.Errno
	}{
		{"symlink", os.Symlink("f", dir+"/l"), syscall.ENOSYS},
		{"link", os.Link(dir+"/f", dir+"/l"), syscall.ENOSYS},
		{"mkfifo", unix.Mkfifo(dir+"/l", 0o600), syscall.ENOTSUP},
		{"socket", unix.Mknod(dir+"/l", unix.S_IFSOCK|0o600, 0), syscall.ENOTSUP},
		{"device", unix.Mknod(dir+"/l", unix.S_IFCHR|0o600, 0x103), syscall.ENOTSUP},
		{"setxattr", unix.Setxattr(dir+"/f", "user.x", []byte("y"), 0), syscall.EOPNOTSUPP},
		{"mkdir over file", os.Mkdir(dir+"/f", 0o700), syscall.EEXIST},
		{"mkdir in file", os.Mkdir(dir+"/f/x", 0o700), syscall.ENOTDIR},
		{"mkdir without parent", os.Mkdir(dir+"/no/x", 0o700), syscall.ENOENT},
		{"exclusive create", open(dir+"/f", os.O_CREATE|os.O_EXCL|os.O_RDWR), syscall.EEXIST},
		{"open directory", open(dir+"/d", os.O_RDWR), syscall.EISDIR},
		{"open missing", open(dir+"/no", os.O_RDWR), syscall.ENOENT},
		{"rmdir full", unix.Rmdir(dir + "/d"), syscall.ENOTEMPTY},
		{"rmdir file", unix.Rmdir(dir + "/f"), syscall.ENOTDIR},
		{"unlink directory", unix.Unlink(dir + "/d"), syscall.EISDIR},
		{"unlink missing", unix.Unlink(dir + "/no"), syscall.ENOENT},
		{"rename to full directory", unix.Rename(dir+"/d", dir+"/d2"), syscall.ENOTEMPTY},
		{"rename directory to file", unix.Rename(dir+"/d", dir+"/f"), syscall.ENOTDIR},
		{"rename file to directory", unix.Rename(dir+"/f", dir+"/d"), syscall.EISDIR},
		{"rename into itself", unix.Rename(dir+"/d", dir+"/d/e/x"), syscall.EINVAL},
		{"rename, not to replace", unix.Renameat2(unix.AT_FDCWD, dir+"/f", unix.AT_FDCWD, dir+"/d2/g", unix.RENAME_NOREPLACE), syscall.EEXIST},
		{"exchange", unix.Renameat2(unix.AT_FDCWD, dir+"/f", unix.AT_FDCWD, dir+"/d2/g", unix.RENAME_EXCHANGE), syscall.EINVAL},
		{"rename to the input", unix.Rename(dir+"/f", in+"/f"), syscall.EPERM},
		{"rename from the input", unix.Rename(in+"/foo", dir+"/foo"), syscall.EPERM},
		{"truncate beyond measure", unix.Truncate(dir+"/f", 1<<50), syscall.EFBIG},
		{"write the record", open(rec, os.O_RDWR), syscall.EPERM},
		{"remove the record", unix.Unlink(rec), syscall.EPERM},
		{"rename the record", unix.Rename(rec, dir+"/x"), syscall.EPERM},
		{"replace the record", unix.Rename(dir+"/f", rec), syscall.EPERM},
		{"write to the input", open(in+"/foo", os.O_RDWR), syscall.EPERM},
		{"create in the input", open(in+"/new", os.O_RDWR|os.O_CREATE), syscall.EPERM},
		{"create in the root", open(w.path("new"), os.O_RDWR|os.O_CREATE), syscall.EPERM},
		{"long name", os.Mkdir(dir+"/"+strings.Repeat("x", 2000), 0o700), syscall.ENAMETOOLONG},
	} {
		if tc.name == "link" && errors.Is(tc.err, syscall.EPERM) {
			continue // what newer kernels make of ENOSYS
		}
		if !errors.Is(tc.err, tc.want) {
			t.Errorf("%s: %v, want %v", tc.name, tc.err, tc.want)
		}
	}
	// Accepted.
	stamp := time.Unix(1e9, 0)
	for name, err := range map[string]error{
		"chmod":                          os.Chmod(dir+"/f", 0o400),
		"chown":                          os.Chown(dir+"/f", 12, 34),
		"utimes":                         os.Chtimes(dir+"/f", stamp, stamp),
		"mknod":                          unix.Mknod(dir+"/regular", 0o600, 0),
		"rename onto an empty directory": unix.Rename(dir+"/d2", dir+"/d/e"),
	} {
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if st, err := os.Stat(dir + "/f"); err != nil || st.Mode() != 0o777 || !st.ModTime().Equal(stamp) {
		t.Errorf("after chmod and utimes: %v %v", st, err)
	}
	if _, err := os.Stat(dir + "/d/e/g"); err != nil {
		t.Error(err)
	}
}

// What is written shows in the statistics.
func TestTmpStatistics(t *testing.T) {
	w := newWorld(t)
	w.mount("--mount-tmp", "tmp0", "--crunchstat-interval", "0.05")
	must(t, os.WriteFile(w.path("tmp0", "f"), []byte("hello"), 0o600))
	w.waitLog(regexp.MustCompile(`(?m)^crunchstat: blkio:0:0 5 write 0 read -- interval 0\.0500 seconds `))
	w.waitLog(regexp.MustCompile(`(?m)^crunchstat: fuseops 1 write 0 read -- `))
	w.waitLog(regexp.MustCompile(`(?m)^crunchstat: fuseop:write 1 count `))
	w.waitLog(regexp.MustCompile(`(?m)^crunchstat: fuseop:create 1 count `))
}

// Without --read-write nothing is writable.
func TestTmpReadOnly(t *testing.T) {
	w := newWorld(t)
	w.mount("--mount-tmp", "tmp0", "--read-only")
	dir := w.path("tmp0")
	if err := os.Mkdir(dir+"/x", 0o700); !errors.Is(err, syscall.EROFS) {
		t.Error(err)
	}
	if st, err := os.Stat(dir); err != nil || st.Mode().Perm() != 0o555 {
		t.Errorf("%v %v", st, err)
	}
}

// A file without a name goes on, and other handles see each other's writes.
func TestTmpUnlinked(t *testing.T) {
	_, dir := mountTmp(t)
	f, err := os.OpenFile(dir+"/f", os.O_RDWR|os.O_CREATE, 0o600)
	must(t, err)
	defer f.Close()
	g, err := os.Open(dir + "/f")
	must(t, err)
	defer g.Close()
	must(t, os.Remove(dir+"/f"))
	must(t, os.WriteFile(dir+"/f", []byte("another"), 0o600))
	_, err = f.WriteAt([]byte("hello"), 100_000)
	must(t, err)
	buf := make([]byte, 7)
	if _, err := g.ReadAt(buf, 99_998); err != nil || string(buf) != "\x00\x00hello" {
		t.Errorf("%q %v", buf, err)
	}
	must(t, f.Truncate(100_002))
	var st unix.Stat_t
	must(t, unix.Fstat(int(g.Fd()), &st))
	if st.Size != 100_002 || st.Nlink != 0 {
		t.Errorf("size %d, %d links", st.Size, st.Nlink)
	}
	if text, err := os.ReadFile(dir + "/f"); string(text) != "another" {
		t.Errorf("%q %v", text, err)
	}
	// A directory without a name takes nothing.
	must(t, os.Mkdir(dir+"/d", 0o700))
	d, err := unix.Open(dir+"/d", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	must(t, err)
	defer unix.Close(d)
	must(t, os.Remove(dir+"/d"))
	if err := unix.Mkdirat(d, "x", 0o700); err != unix.ENOENT {
		t.Errorf("mkdir in a removed directory: %v", err)
	}
}

// fallocate, holes and mappings.
func TestTmpSparse(t *testing.T) {
	w, dir := mountTmp(t)
	f, err := os.OpenFile(dir+"/f", os.O_RDWR|os.O_CREATE, 0o600)
	must(t, err)
	defer f.Close()
	fd := int(f.Fd())
	const part = 1 << 16
	must(t, unix.Fallocate(fd, 0, 0, 20*part))
	_, err = f.WriteAt([]byte("abc"), 10*part)
	must(t, err)
	m, err := unix.Mmap(fd, 0, 20*part, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(t, err)
	if got := string(m[10*part-1 : 10*part+4]); got != "\x00abc\x00" {
		t.Errorf("mapped %q", got)
	}
	copy(m[15*part:], "mapped")
	must(t, unix.Msync(m, unix.MS_SYNC))
	must(t, unix.Munmap(m))
	must(t, unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 10*part+1, 2*part))
	if err := unix.Fallocate(fd, unix.FALLOC_FL_COLLAPSE_RANGE, 0, part); err != unix.EOPNOTSUPP {
		t.Errorf("collapse: %v", err)
	}
	got := content(t, w.saved(dir), "f")
	if len(got) != 20*part || got[10*part:10*part+3] != "a\x00\x00" || got[15*part:15*part+7] != "mapped\x00" || strings.Count(got, "\x00") != 20*part-7 {
		t.Errorf("%d bytes, %q, %q", len(got), got[10*part:10*part+3], got[15*part:15*part+7])
	}
}

// While Keep takes nothing, programs are told so, the log says it once, and when
// it is back nothing is lost.
func TestTmpKeepAway(t *testing.T) {
	w := newWorld(t)
	var away atomic.Bool
	real, _ := http.NewRequest("GET", w.url, nil)
	w.url = newHTTPServer(t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if away.Load() && r.Method == "PUT" {
			http.Error(rw, "full up", http.StatusServiceUnavailable)
			return
		}
		proxyTo(t, real.URL.String(), rw, r)
	}))
	w.mount("--mount-tmp", "tmp0")
	dir := w.path("tmp0")
	must(t, os.WriteFile(dir+"/before", []byte("before"), 0o600))
	away.Store(true)
	if _, err := os.ReadFile(dir + "/" + recordName); !errors.Is(err, syscall.EIO) {
		t.Errorf("record while Keep is away: %v", err)
	}
	w.waitLog(regexp.MustCompile(`ERROR: Keep write error: .*full up`))
	f, err := os.OpenFile(dir+"/f", os.O_RDWR|os.O_CREATE, 0o600)
	must(t, err)
	waitFor(t, "a write error", func() bool {
		_, err := f.WriteAt([]byte("x"), 0)
		return errors.Is(err, syscall.EIO)
	})
	if err := f.Sync(); !errors.Is(err, syscall.EIO) {
		t.Errorf("fsync: %v", err)
	}
	if err := f.Close(); !errors.Is(err, syscall.EIO) {
		t.Errorf("close: %v", err)
	}
	away.Store(false)
	waitFor(t, "Keep's return", func() bool { return os.WriteFile(dir+"/after", []byte("after"), 0o600) == nil })
	c := w.saved(dir)
	if a, b := content(t, c, "before"), content(t, c, "after"); a != "before" || b != "after" {
		t.Errorf("stored %q, %q", a, b)
	}
}

// proxyTo passes a request on.
func proxyTo(t testing.TB, url string, rw http.ResponseWriter, r *http.Request) {
	out := r.Clone(r.Context())
	out.RequestURI = ""
	target, _ := http.NewRequest("GET", url, nil)
	out.URL.Scheme, out.URL.Host, out.Host = "http", target.URL.Host, target.URL.Host
	resp, err := http.DefaultTransport.RoundTrip(out)
	if err != nil {
		http.Error(rw, err.Error(), http.StatusBadGateway)
		return
	}
	defer resp.Body.Close()
	for k, v := range resp.Header {
		rw.Header()[k] = v
	}
	rw.WriteHeader(resp.StatusCode)
	_, _ = io.Copy(rw, resp.Body)
}

// Memory does not grow with what is written.
func TestTmpMemory(t *testing.T) {
	if os.Getenv("KEEP_TEST_LONG") == "" {
		t.Skip("writes 1 GiB; KEEP_TEST_LONG=1 runs it")
	}
	w, dir := mountTmp(t)
	f, err := os.Create(dir + "/f")
	must(t, err)
	defer f.Close()
	buf := make([]byte, 1<<20)
	for i := range 1024 {
		copy(buf, fmt.Sprint(i))
		_, err := f.Write(buf)
		must(t, err)
	}
	must(t, f.Close())
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", w.cmd.Process.Pid))
	must(t, err)
	var peak int64
	for line := range strings.Lines(string(status)) {
		if _, err := fmt.Sscanf(line, "VmHWM: %d kB", &peak); err == nil {
			break
		}
	}
	// The store in memory shares the page cache, not the process.
	if peak > 1<<20 {
		t.Errorf("the server took %d MiB", peak>>10)
	}
	t.Logf("the server took %d MiB", peak>>10)
}

// A listing shows each entry once, whatever else changes meanwhile, and does not
// bring back what was removed.
func TestTmpListing(t *testing.T) {
	_, dir := mountTmp(t)
	var names []string
	for i := range 600 {
		name := fmt.Sprintf("%04d", i)
		names = append(names, name)
		must(t, os.WriteFile(filepath.Join(dir, name), nil, 0o600))
	}
	d, err := os.Open(dir)
	must(t, err)
	defer d.Close()
	first, err := d.Readdirnames(10)
	must(t, err)
	for _, name := range names[300:] {
		must(t, os.Remove(filepath.Join(dir, name)))
	}
	rest, err := d.Readdirnames(-1)
	must(t, err)
	all := append(first, rest...)
	if !slices.Equal(all[:300], names[:300]) {
		t.Error("entries that stayed are not listed once each")
	}
	for _, name := range names[300:] {
		if _, err := os.Stat(filepath.Join(dir, name)); !errors.Is(err, os.ErrNotExist) {
			t.Fatalf("%s: %v", name, err)
		}
	}
	must(t, os.RemoveAll(dir+"/0001"))
	if list, err := os.ReadDir(dir); err != nil || len(list) != 299 {
		t.Errorf("%d entries, %v", len(list), err)
	}
}

// A block that cannot be had because its connection is cut off is an error, not
// the end of the file.
func TestTmpReadCutOff(t *testing.T) {
	w := newWorld(t)
	real := w.url
	w.url = newHTTPServer(t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			panic(http.ErrAbortHandler)
		}
		proxyTo(t, real, rw, r)
	}))
	w.mount("--mount-tmp", "tmp0")
	name := w.path("tmp0", "f")
	must(t, os.WriteFile(name, []byte("hello"), 0o600))
	record(t, w.path("tmp0")) // from now on it is in Keep only
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_DIRECT, 0)
	must(t, err)
	defer f.Close()
	if n, err := f.ReadAt(make([]byte, 100), 0); !errors.Is(err, syscall.EIO) {
		t.Errorf("read %d bytes, %v", n, err)
	}
}

// A container may run for longer than block signatures last.
func TestLiveSignaturesRenewed(t *testing.T) {
	const ttl = 16 * time.Second
	w := newWorldTTL(t, ttl)
	// The mount takes them for old as soon as it looks, every 4 s.
	w.mountEnv([]string{fmt.Sprintf("MOUNT_TEST_TTL=%d", 2*ttl/time.Second)}, "--mount-tmp", "tmp0")
	dir := w.path("tmp0")
	must(t, os.WriteFile(dir+"/file", []byte("content"), 0o666))
	expiry := func() time.Time { return signatureExpiry(record(t, dir)["manifest_text"].(string)) }
	first := expiry()
	if first.IsZero() {
		t.Fatal("no signature")
	}
	waitFor(t, "newer signatures", func() bool { return expiry().After(first) })
	if got := content(t, w.saved(dir), "file"); got != "content" {
		t.Errorf("%q", got)
	}
}
