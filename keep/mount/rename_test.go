package mount

import (
	"bytes"
	"errors"
	"io"
	"math/rand"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const otherUUID = "zzzzz-4zz18-bbbbbbbbbbbbbbb"

// mountTwo mounts two collections with records, which hold one file each, and a
// new one.
func mountTwo(t *testing.T, args ...string) (w *world, one, two, tmp string) {
	w, one = mountSaved(t, func(w *world) string { return ". " + w.put([]byte("foo")) + " 0:3:foo\n" }, append(args, "--mount-tmp", "tmp0")...)
	w.upstreamOf(otherUUID, ". "+w.put([]byte("bar"))+" 0:3:bar\n")
	return w, one, w.path("by_uuid", otherUUID), w.path("tmp0")
}

func (w *world) refuse(uuid, how string) (end func()) {
	path := filepath.Join(w.api, uuid+".refuse")
	must(w.t, os.WriteFile(path, []byte(how), 0o600))
	return func() { must(w.t, os.Remove(path)) }
}

func inode(t *testing.T, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Stat(path, &st))
	return st.Ino
}

// Files and directories move between collections as they are: no block is read
// or written for it but what was not stored yet, the inode stays, and so do the
// files that are open.
func TestRenameAcross(t *testing.T) {
	w, one, two, tmp := mountTwo(t)
	must(t, os.MkdirAll(tmp+"/d/e", 0o777))
	must(t, os.WriteFile(tmp+"/d/e/f", []byte("12345678"), 0o666))
	f, err := os.OpenFile(tmp+"/d/e/f", os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	gone, err := os.Create(tmp + "/d/gone")
	must(t, err)
	defer gone.Close()
	must(t, os.Remove(tmp+"/d/gone"))
	dirIno, fileIno := inode(t, tmp+"/d"), inode(t, tmp+"/d/e/f")

	// From the new one to the first.
	must(t, os.Rename(tmp+"/d", one+"/D"))
	if a, b := inode(t, one+"/D"), inode(t, one+"/D/e/f"); a != dirIno || b != fileIno {
		t.Errorf("inodes %d and %d, were %d and %d", a, b, dirIno, fileIno)
	}
	w.wantOnRecord("moved in", map[string]string{"foo": "foo", "D/": "", "D/e/": "", "D/e/f": "12345678"})
	if _, err := os.Stat(tmp + "/d"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the old name: %v", err)
	}
	_, err = f.WriteAt([]byte("XY"), 2)
	must(t, err)
	_, err = gone.WriteString("still")
	must(t, err)
	if text := make([]byte, 5); true {
		if _, err := gone.ReadAt(text, 0); err != nil || string(text) != "still" {
			t.Errorf("a removed file that is open: %q %v", text, err)
		}
	}
	must(t, f.Sync())
	w.wantOnRecord("written by the open file", map[string]string{"foo": "foo", "D/": "", "D/e/": "", "D/e/f": "12XY5678"})

	// From the first to the second.
	must(t, os.Rename(one+"/D/e", two+"/e"))
	w.wantOnRecord("moved away", map[string]string{"foo": "foo", "D/": ""})
	w.wantOnRecordOf(otherUUID, "moved in", map[string]string{"bar": "bar", "e/": "", "e/f": "12XY5678"})
	_, err = f.WriteAt([]byte("!"), 8)
	must(t, err)
	must(t, f.Sync())
	w.wantOnRecordOf(otherUUID, "written by the open file", map[string]string{"bar": "bar", "e/": "", "e/f": "12XY5678!"})
	text, err := io.ReadAll(io.NewSectionReader(f, 0, 100))
	if err != nil || string(text) != "12XY5678!" || inode(t, two+"/e/f") != fileIno {
		t.Errorf("read from the open file: %q %v", text, err)
	}

	// In place of another, and back to the new one.
	must(t, os.Rename(one+"/foo", two+"/bar"))
	w.wantOnRecord("moved away", map[string]string{"D/": ""})
	w.wantOnRecordOf(otherUUID, "replaced", map[string]string{"bar": "foo", "e/": "", "e/f": "12XY5678!"})
	must(t, os.Rename(two+"/e", tmp+"/e"))
	w.wantOnRecordOf(otherUUID, "moved away", map[string]string{"bar": "foo"})
	if got := content(t, w.saved(tmp), "e/f"); got != "12XY5678!" {
		t.Errorf("in the new collection: %q", got)
	}
	w.remount()
	if text, err := os.ReadFile(two + "/bar"); err != nil || string(text) != "foo" {
		t.Errorf("after the mount's end: %q %v", text, err)
	}
	noSecrets(t, w)
}

// A move takes over blocks: nothing is sent or fetched.
func TestRenameAcrossMovesNoData(t *testing.T) {
	w := newWorld(t)
	var calls atomic.Int64
	real := w.url
	w.url = newHTTPServer(t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		calls.Add(1)
		proxyTo(t, real, rw, r)
	}))
	w.mount("--mount-tmp", "tmp0", "--mount-tmp", "tmp1", "--ram-cache")
	must(t, os.MkdirAll(w.path("tmp0", "d"), 0o777))
	data := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	must(t, os.WriteFile(w.path("tmp0", "d", "f"), data, 0o666))
	before := record(t, w.path("tmp0"))["manifest_text"].(string)
	stored := calls.Load()
	must(t, os.Rename(w.path("tmp0", "d"), w.path("tmp1", "d")))
	after := record(t, w.path("tmp1"))["manifest_text"].(string)
	if before != after || record(t, w.path("tmp0"))["manifest_text"] != "" {
		t.Errorf("before %q, after %q", before, after)
	}
	if n := calls.Load() - stored; stored == 0 || n != 0 {
		t.Errorf("%d requests to store it, %d to move it", stored, n)
	}
	if text, err := os.ReadFile(w.path("tmp1", "d", "f")); err != nil || !bytes.Equal(text, data) {
		t.Errorf("%d bytes, %v", len(text), err)
	}
}

func TestRenameAcrossErrors(t *testing.T) {
	w, one, two, tmp := mountTwo(t)
	must(t, os.MkdirAll(tmp+"/full/x", 0o777))
	must(t, os.Mkdir(tmp+"/empty", 0o777))
	must(t, os.WriteFile(tmp+"/file", nil, 0o666))
	must(t, os.Mkdir(one+"/d", 0o777))
	for what, c := range map[string]struct {
		from, to string
		flags    uint
		want     error
	}{
		"directory over a full one":        {one + "/d", tmp + "/full", 0, syscall.ENOTEMPTY},
		"directory over a file":            {one + "/d", tmp + "/file", 0, syscall.ENOTDIR},
		"file over a directory":            {one + "/foo", tmp + "/empty", 0, syscall.EISDIR},
		"without replacing":                {one + "/foo", tmp + "/file", unix.RENAME_NOREPLACE, syscall.EEXIST},
		"exchange":                         {one + "/foo", tmp + "/file", unix.RENAME_EXCHANGE, syscall.EINVAL},
		"what is not there":                {one + "/none", tmp + "/file", 0, syscall.ENOENT},
		"the record":                       {one + "/" + recordName, tmp + "/x", 0, syscall.EPERM},
		"to the record's name":             {one + "/foo", tmp + "/" + recordName, 0, syscall.EPERM},
		"a collection":                     {one, tmp + "/x", 0, syscall.EPERM},
		"from what is no collection":       {w.path("by_uuid", readmeName), tmp + "/x", 0, syscall.EPERM},
		"to what is no collection":         {tmp + "/file", w.path("x"), 0, syscall.EPERM},
		"to one that is shown by its UUID": {tmp + "/file", w.path("by_uuid", "x"), 0, syscall.EPERM},
	} {
		if err := unix.Renameat2(unix.AT_FDCWD, c.from, unix.AT_FDCWD, c.to, c.flags); err != c.want {
			t.Errorf("%s: %v, want %v", what, err, c.want)
		}
	}
	must(t, unix.Rename(one+"/d", tmp+"/empty"))
	w.wantOnRecord("after errors", map[string]string{"foo": "foo"})
	must(t, os.Rename(one+"/foo", tmp+"/file"))
	must(t, unix.Renameat2(unix.AT_FDCWD, tmp+"/file", unix.AT_FDCWD, two+"/new", unix.RENAME_NOREPLACE))
	w.wantOnRecordOf(otherUUID, "without replacing", map[string]string{"bar": "bar", "new": "foo"})
}

// When the collection that something is moved to cannot be saved, it stays where
// it was; when the other one cannot, both have it until that is saved.
func TestRenameAcrossSavesFail(t *testing.T) {
	w, one, two, tmp := mountTwo(t, "--refresh-time", "0.05")
	_, err := os.Stat(one)
	must(t, err)
	ino := inode(t, one+"/foo")
	foo, bar := map[string]string{"foo": "foo"}, map[string]string{"bar": "bar"}
	asBefore := func(when string) {
		t.Helper()
		w.wantOnRecord(when, foo)
		w.wantOnRecordOf(otherUUID, when, bar)
		for path, want := range map[string]string{one + "/foo": "foo", two + "/bar": "bar"} {
			if text, err := os.ReadFile(path); err != nil || string(text) != want {
				t.Errorf("%s: %s: %q %v", when, path, text, err)
			}
		}
		if inode(t, one+"/foo") != ino {
			t.Errorf("%s: another inode", when)
		}
	}
	for how, want := range map[string]error{"503 try later": syscall.EIO, "403": syscall.EPERM} {
		end := w.refuse(otherUUID, how)
		f, err := os.OpenFile(one+"/foo", os.O_RDONLY, 0)
		must(t, err)
		if err := os.Rename(one+"/foo", two+"/bar"); !errors.Is(err, want) {
			t.Errorf("to one that answers %s: %v", how, err)
		}
		f.Close()
		asBefore("destination not saved: " + how)
		end()
		waitFor(t, "saving", func() bool { return os.WriteFile(two+"/x", nil, 0o666) == nil })
		must(t, os.Remove(two+"/x"))
	}
	must(t, os.WriteFile(tmp+"/new", []byte("new"), 0o666))
	end := w.refuse(otherUUID, "503 try later")
	if err := os.Rename(tmp+"/new", two+"/new"); !errors.Is(err, syscall.EIO) {
		t.Errorf("from a new one: %v", err)
	}
	if text, err := os.ReadFile(tmp + "/new"); err != nil || string(text) != "new" {
		t.Errorf("it is gone: %q %v", text, err)
	}
	end()

	end = w.refuse(savedUUID, "403")
	if err := os.Rename(one+"/foo", two+"/bar"); !errors.Is(err, syscall.EPERM) {
		t.Errorf("from one that may not be changed: %v", err)
	}
	asBefore("source may not be saved")
	end()
	waitFor(t, "permission", func() bool { return os.WriteFile(one+"/x", nil, 0o666) == nil })
	must(t, os.Remove(one+"/x"))

	end = w.refuse(savedUUID, "503 try later")
	must(t, os.Rename(one+"/foo", two+"/bar"))
	w.wantOnRecord("source not saved", foo)
	w.wantOnRecordOf(otherUUID, "source not saved", map[string]string{"bar": "foo"})
	w.waitLog(regexp.MustCompile("collection " + savedUUID + " cannot be saved.*503 try later"))
	if _, err := os.Stat(one + "/foo"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the old name: %v", err)
	}
	end()
	must(t, os.WriteFile(one+"/x", nil, 0o666))
	w.wantOnRecord("saved later", map[string]string{"x": ""})
}

// Random operations on files of three collections, between which they are moved.
func TestFsxAcross(t *testing.T) {
	w, _, _, _ := mountTwo(t)
	w.upstreamOf(savedUUID, "")
	w.upstreamOf(otherUUID, "")
	x := &fsx{t: t, rnd: rand.New(rand.NewSource(9)), dir: w.dir, ops: fsxOps(600, 20_000), tops: []string{"tmp0/", "by_uuid/" + savedUUID + "/", "by_uuid/" + otherUUID + "/"}}
	x.run()
	x.verify()
	x.check(w)
	for _, uuid := range []string{savedUUID, otherUUID} {
		for name, text := range w.onRecordOf(uuid) {
			if file := x.model["by_uuid/"+uuid+"/"+name]; !strings.HasSuffix(name, "/") && (file == nil || string(file.data) != text) {
				t.Errorf("%s: %s has not %d bytes", uuid, name, len(text))
			}
		}
	}
}
