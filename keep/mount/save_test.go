package mount

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crunch-oci/keep"
)

const savedUUID = "zzzzz-4zz18-aaaaaaaaaaaaaaa"

// mountSaved mounts with a collection that has a record, whose directory it
// returns.
func mountSaved(t *testing.T, manifest func(w *world) string, args ...string) (*world, string) {
	t.Helper()
	w := newWorld(t)
	w.upstream(manifest(w))
	w.mount(args...)
	return w, w.path("by_uuid", savedUUID)
}

// upstream is somebody else who saves the collection.
func (w *world) upstream(manifest string) { w.upstreamOf(savedUUID, manifest) }

func (w *world) upstreamOf(uuid, manifest string) {
	w.t.Helper()
	w.answer(uuid, Record{PortableDataHash: keep.PortableDataHash(manifest), ModifiedAt: time.Now(),
		ManifestText: w.signer.SignManifest(manifest, token, time.Now().Add(time.Hour)), Fields: map[string]any{"uuid": uuid}})
}

// onRecord is the collection as the API has it: its files with their content.
func (w *world) onRecord() map[string]string { return w.onRecordOf(savedUUID) }

func (w *world) onRecordOf(uuid string) map[string]string {
	w.t.Helper()
	text, err := os.ReadFile(filepath.Join(w.api, uuid))
	must(w.t, err)
	var rec Record
	must(w.t, json.Unmarshal(text, &rec))
	client, err := keep.NewClient(keep.ClientConfig{
		Services: keep.FixedServices{{UUID: "zzzzz-bi6l4-000000000000000", URL: w.url, Type: "disk"}},
		Token:    token, DefaultReplication: 1,
	})
	must(w.t, err)
	defer client.Close()
	c, err := keep.NewCollection(rec.ManifestText, client)
	must(w.t, err)
	files := make(map[string]string)
	must(w.t, c.Walk("", func(name string, info keep.FileInfo) error {
		if info.IsDir() {
			files[name+"/"] = ""
		} else {
			files[name] = content(w.t, c, name)
		}
		return nil
	}))
	delete(files, "./")
	return files
}

func (w *world) wantOnRecord(when string, want map[string]string) {
	w.t.Helper()
	w.wantOnRecordOf(savedUUID, when, want)
}

func (w *world) wantOnRecordOf(uuid, when string, want map[string]string) {
	w.t.Helper()
	got := w.onRecordOf(uuid)
	for name, text := range want {
		if have, ok := got[name]; !ok || have != text {
			w.t.Errorf("%s: %q is %q (%v) on record, want %q", when, name, have, ok, text)
		}
	}
	if len(got) != len(want) {
		w.t.Errorf("%s: on record %q, want %q", when, got, want)
	}
}

func (w *world) saves() int {
	text, _ := os.ReadFile(filepath.Join(w.api, savedUUID+".saves"))
	return len(text)
}

// When close, fsync, unlink, rmdir and rename return, the record says what the
// directory does.
func TestSave(t *testing.T) {
	w, dir := mountSaved(t, func(w *world) string { return ". " + w.put([]byte("foobar")) + " 0:3:foo 3:3:bar\n" })
	var st unix.Stat_t
	must(t, unix.Stat(dir, &st))
	if st.Mode != 0o40777 {
		t.Errorf("mode %o", st.Mode)
	}
	must(t, os.WriteFile(dir+"/new", []byte("n"), 0o666))
	w.wantOnRecord("close", map[string]string{"foo": "foo", "bar": "bar", "new": "n"})
	f, err := os.OpenFile(dir+"/foo", os.O_RDWR, 0)
	must(t, err)
	_, err = f.WriteAt([]byte("X"), 1)
	must(t, err)
	must(t, f.Sync())
	w.wantOnRecord("fsync", map[string]string{"foo": "fXo", "bar": "bar", "new": "n"})
	n := w.saves()
	must(t, f.Close())
	if w.saves() != n {
		t.Error("saved again at close without a change")
	}
	must(t, unix.Unlink(dir+"/new"))
	w.wantOnRecord("unlink", map[string]string{"foo": "fXo", "bar": "bar"})
	must(t, os.Mkdir(dir+"/d", 0o777))
	must(t, os.Rename(dir+"/bar", dir+"/d/bar"))
	w.wantOnRecord("rename", map[string]string{"foo": "fXo", "d/": "", "d/bar": "bar"})
	must(t, unix.Unlink(dir+"/d/bar"))
	must(t, unix.Rmdir(dir+"/d"))
	w.wantOnRecord("rmdir", map[string]string{"foo": "fXo"})
	if text, err := os.ReadFile(dir + "/foo"); err != nil || string(text) != "fXo" {
		t.Errorf("%q %v", text, err)
	}
	rec := record(t, dir)
	if rec["uuid"] != savedUUID || !strings.Contains(rec["manifest_text"].(string), ":foo") {
		t.Errorf("record %v", rec)
	}
	// What nobody waits for is saved when the mount ends.
	must(t, os.Mkdir(dir+"/last", 0o777))
	must(t, w.cmd.Process.Signal(syscall.SIGTERM))
	<-w.exited
	w.wantOnRecord("the end", map[string]string{"foo": "fXo", "last/": ""})
	noSecrets(t, w)
}

// What others save meanwhile is merged, and nothing of either side is lost.
func TestSaveMerges(t *testing.T) {
	var one, two, three string
	w, dir := mountSaved(t, func(w *world) string {
		one, two, three = w.put([]byte("one")), w.put([]byte("two")), w.put([]byte("three"))
		return ". " + one + " 0:3:both 0:3:mine 0:3:theirs 0:3:gone\n"
	}, "--refresh-time", "3600")
	must(t, os.WriteFile(dir+"/mine", []byte("here"), 0o666))
	old, err := os.Open(dir + "/theirs")
	must(t, err)
	defer old.Close()
	w.upstream(". " + one + " " + two + " " + three + " 3:3:both 0:3:mine 6:5:theirs 3:3:new\n")
	must(t, os.WriteFile(dir+"/both", []byte("here"), 0o666))
	got := w.onRecord()
	var conflict string
	for name := range got {
		if regexp.MustCompile(`^both~\d{8}-\d{6}~conflict~$`).MatchString(name) {
			conflict = name
		}
	}
	w.wantOnRecord("merge", map[string]string{"both": "here", conflict: "two", "mine": "one", "theirs": "three", "new": "two"})
	w.waitLog(regexp.MustCompile("WARNING: collection " + savedUUID + `.*"both~`))
	if text, err := os.ReadFile(dir + "/new"); err != nil || string(text) != "two" {
		t.Errorf("added by others: %q %v", text, err)
	}
	if text, err := io.ReadAll(old); err != nil || string(text) != "one" {
		t.Errorf("replaced while open: %q %v", text, err)
	}
}

// Two directories of the same collection, each with its own changes, end with the
// same content, whatever the order in which they are saved.
func TestSaveTwice(t *testing.T) {
	w, one := mountSaved(t, func(w *world) string { return ". " + w.put([]byte("foo")) + " 0:3:foo\n" },
		"--mount-by-id", "again", "--refresh-time", "0.05")
	two := w.path("again", savedUUID)
	want := map[string]string{"foo": "foo"}
	var wg sync.WaitGroup
	for i, dir := range []string{one, two} {
		for j := range 10 {
			name := string(rune('a'+i)) + string(rune('0'+j))
			want[name] = name
			wg.Go(func() {
				if err := os.WriteFile(dir+"/"+name, []byte(name), 0o666); err != nil {
					t.Error(err)
				}
			})
		}
	}
	wg.Wait()
	w.wantOnRecord("both", want)
	for _, dir := range []string{one, two} {
		waitFor(t, "all files in "+dir, func() bool {
			list, err := os.ReadDir(dir)
			return err == nil && len(list) == len(want)
		})
	}
}

// Two nodes that save the same collection all the time lose nothing of each
// other's, and end with the same content.
func TestSaveTwoNodes(t *testing.T) {
	w, one := mountSaved(t, func(w *world) string {
		return ". " + w.put([]byte("foo")) + " 0:3:foo\n./d " + w.put([]byte("g")) + " 0:1:g\n"
	},
		"--refresh-time", "0.05")
	two := w.another("--refresh-time", "0.05").path("by_uuid", savedUUID)
	want := map[string]string{"foo": "foo", "d/": "", "d/g": "g"}
	var wg sync.WaitGroup
	for i, dir := range []string{one, two} {
		who := string(rune('a' + i))
		for j := range 25 {
			name := who + strconv.Itoa(j)
			want["d/"+name] = name
		}
		want[who+"24"] = who
		wg.Go(func() {
			for j := range 25 {
				name := who + strconv.Itoa(j)
				err := errors.Join(os.WriteFile(dir+"/d/"+name, []byte(name), 0o666), os.WriteFile(dir+"/"+name, []byte(who), 0o666))
				if j > 0 {
					err = errors.Join(err, os.Remove(dir+"/"+who+strconv.Itoa(j-1)))
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	w.wantOnRecord("both", want)
	for _, dir := range []string{one, two} {
		waitFor(t, "all files in "+dir, func() bool {
			list, err := os.ReadDir(dir)
			below, err2 := os.ReadDir(dir + "/d")
			return err == nil && err2 == nil && len(list) == 4 && len(below) == 51
		})
	}
}

// An API server that does not replace single files gets whole manifests.
func TestSaveWhole(t *testing.T) {
	for _, how := range []string{"refuse", "ignore"} {
		t.Run(how, func(t *testing.T) {
			w, dir := mountSaved(t, func(w *world) string { return ". " + w.put([]byte("foo")) + " 0:3:foo\n" })
			must(t, os.WriteFile(filepath.Join(w.api, savedUUID+".replace"), []byte(how), 0o600))
			must(t, unix.Unlink(dir+"/foo"))
			w.wantOnRecord("unlink", nil)
			must(t, os.WriteFile(dir+"/new", []byte("new"), 0o666))
			w.wantOnRecord("new file", map[string]string{"new": "new"})
			before := w.saves()
			must(t, os.WriteFile(dir+"/other", []byte("other"), 0o666))
			w.wantOnRecord("other file", map[string]string{"new": "new", "other": "other"})
			if n := w.saves() - before; n != 1 {
				t.Errorf("%d requests to save once it is known", n)
			}
		})
	}
}

// An API server that refuses to replace single files is asked again: at the next
// save, and more and more rarely as long as it goes on refusing.
func TestSaveSingleFilesAgain(t *testing.T) {
	w, dir := mountSaved(t, func(w *world) string { return ". " + w.put([]byte("foo")) + " 0:3:foo\n" })
	how := filepath.Join(w.api, savedUUID+".replace")
	n := 0
	saves := func(count int, want string) {
		t.Helper()
		before := w.saves()
		for range count {
			must(t, os.WriteFile(dir+"/"+strconv.Itoa(n), []byte("x"), 0o666))
			n++
		}
		text, err := os.ReadFile(filepath.Join(w.api, savedUUID+".saves"))
		must(t, err)
		if got := string(text[before:]); got != want {
			t.Errorf("%d saves: requests %s, want %s", count, got, want)
		}
	}
	must(t, os.WriteFile(how, []byte("refuse"), 0o600))
	saves(1, "rw")
	must(t, os.Remove(how))
	saves(2, "rr")
	must(t, os.WriteFile(how, []byte("refuse"), 0o600))
	saves(11, "rw"+"rwww"+"rwwwwwww")
	must(t, os.Remove(how))
	saves(2, "rr")
	if got := w.onRecord(); len(got) != 1+n {
		t.Errorf("on record %q", got)
	}
}

// An API server that takes nothing, and says no word about it, is not asked again
// and again by who waits for the save.
func TestSaveNothing(t *testing.T) {
	w, dir := mountSaved(t, func(w *world) string { return ". " + w.put([]byte("foo")) + " 0:3:foo\n" })
	how := filepath.Join(w.api, savedUUID+".replace")
	must(t, os.WriteFile(how, []byte("nothing"), 0o600))
	if err := os.WriteFile(dir+"/new", []byte("new"), 0o666); !errors.Is(err, syscall.EIO) {
		t.Errorf("close: %v", err)
	}
	w.waitLog(regexp.MustCompile("ERROR: collection " + savedUUID + " cannot be saved.*" + "old content"))
	must(t, os.Remove(how))
	waitFor(t, "another attempt", func() bool { _, ok := w.onRecord()["new"]; return ok })
}

// A name that the kernel still takes for what others have replaced leads to the
// new file when it is opened for writing.
func TestSaveStaleName(t *testing.T) {
	var one, two string
	w, dir := mountSaved(t, func(w *world) string {
		one, two = w.put([]byte("one")), w.put([]byte("two"))
		return ". " + one + " 0:3:f\n./d " + one + " 0:3:g\n"
	}, "--refresh-time", "3600")
	for _, name := range []string{"/f", "/d/g"} {
		_, err := os.Stat(dir + name)
		must(t, err)
	}
	w.upstream(". " + one + " " + two + " 3:3:f\n")
	must(t, os.WriteFile(dir+"/other", nil, 0o666)) // which merges
	f, err := os.OpenFile(dir+"/f", os.O_RDWR|os.O_APPEND, 0)
	must(t, err)
	_, err = f.WriteString("!")
	must(t, err)
	must(t, f.Close())
	w.wantOnRecord("appended", map[string]string{"f": "two!", "other": ""})
	if err := os.WriteFile(dir+"/d/new", nil, 0o666); !errors.Is(err, syscall.ENOENT) {
		t.Errorf("create in a directory that others have removed: %v", err)
	}
}

// What cannot be saved is said by fsync and close, stays, and is saved as soon as
// that is possible.
func TestSaveErrors(t *testing.T) {
	w, dir := mountSaved(t, func(w *world) string { return ". " + w.put([]byte("foo")) + " 0:3:foo\n" }, "--refresh-time", "0.05")
	refuse := filepath.Join(w.api, savedUUID+".refuse")
	must(t, os.WriteFile(refuse, []byte("503 try later"), 0o600))
	f, err := os.Create(dir + "/new")
	must(t, err)
	_, err = f.WriteString("n")
	must(t, err)
	if err := f.Sync(); !errors.Is(err, syscall.EIO) {
		t.Errorf("fsync: %v", err)
	}
	if err := f.Close(); !errors.Is(err, syscall.EIO) {
		t.Errorf("close: %v", err)
	}
	w.waitLog(regexp.MustCompile("ERROR: collection " + savedUUID + " cannot be saved.*503 try later"))
	must(t, unix.Unlink(dir+"/foo"))
	must(t, os.Remove(refuse))
	waitFor(t, "another attempt", func() bool { _, ok := w.onRecord()["new"]; return ok })
	w.wantOnRecord("later", map[string]string{"new": "n"})

	must(t, os.WriteFile(refuse, []byte("403"), 0o600))
	if err := os.WriteFile(dir+"/x", []byte("x"), 0o666); !errors.Is(err, syscall.EPERM) {
		t.Errorf("close of what may not be saved: %v", err)
	}
	if _, err := os.OpenFile(dir+"/x", os.O_RDWR, 0); !errors.Is(err, syscall.EPERM) {
		t.Errorf("open where nothing may be saved: %v", err)
	}
	if text, err := os.ReadFile(dir + "/x"); err != nil || string(text) != "x" {
		t.Errorf("what may not be saved: %q %v", text, err)
	}
	must(t, os.Remove(refuse))
	waitFor(t, "permission", func() bool {
		f, err := os.OpenFile(dir+"/x", os.O_RDWR, 0)
		if err == nil {
			f.Close()
		}
		return err == nil
	})
	w.wantOnRecord("permitted", map[string]string{"new": "n", "x": "x"})
	noSecrets(t, w)
}

// Without --read-write nothing of it can be changed.
func TestSaveReadOnly(t *testing.T) {
	w, dir := mountSaved(t, func(w *world) string { return ". " + w.put([]byte("foo")) + " 0:3:foo\n" }, "--read-only")
	for name, err := range map[string]error{
		"create": os.WriteFile(dir+"/new", nil, 0o666), "unlink": unix.Unlink(dir + "/foo"), "mkdir": unix.Mkdir(dir+"/d", 0o777),
		"rename": unix.Rename(dir+"/foo", dir+"/x"), "truncate": unix.Truncate(dir+"/foo", 0),
	} {
		if !errors.Is(err, syscall.EROFS) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := os.OpenFile(dir+"/foo", os.O_RDWR, 0); !errors.Is(err, syscall.EPERM) {
		t.Errorf("open for writing: %v", err)
	}
	var st unix.Stat_t
	must(t, unix.Stat(dir+"/foo", &st))
	if st.Mode != 0o100555 || w.saves() != 0 {
		t.Errorf("mode %o, %d saves", st.Mode, w.saves())
	}
}
