package unfinished

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const uuid = "zzzzz-dz642-000000000000000"

func TestKeepTakeRemove(t *testing.T) {
	dir := Dir(filepath.Join(t.TempDir(), "a", "b"))
	if list, err := dir.List(); list != nil || err != nil {
		t.Errorf("list of nothing: %v, %v", list, err)
	}
	code := 3
	signed := ". acbd18db4cc2f85cedef654fccc4a4d8+3+A0123456789abcdef0123456789abcdef01234567@6a0c3f80 0:3:foo\n"
	r := Result{UUID: uuid, APIHost: "api.example", State: "Complete", ExitCode: &code, SavedAt: time.Now(), Output: NewCollection(signed, "", []string{"hot"})}
	k, err := dir.Keep(r)
	if err != nil {
		t.Fatal(err)
	}
	r.Log = NewCollection(signed, "abc+1", nil)
	if err := k.Update(r); err != nil {
		t.Fatal(err)
	}
	if err := k.Sync(); err != nil {
		t.Error(err)
	}
	text, err := os.ReadFile(k.Path())
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(text), "+A") {
		t.Errorf("there is a signature in it:\n%s", text)
	}
	for path, want := range map[string]fs.FileMode{k.Path(): 0o600, string(dir): 0o700} {
		if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != want {
			t.Errorf("%s: mode %v, %v", path, fi.Mode(), err)
		}
	}

	// While the supervisor lives it can be seen, and nothing else.
	list, err := dir.List()
	if err != nil || len(list) != 1 || !list[0].InUse || *list[0].ExitCode != 3 || list[0].Log.PDH != "abc+1" {
		t.Errorf("list %+v, %v", list, err)
	}
	if _, _, err := dir.Take(uuid); !errors.Is(err, ErrInUse) {
		t.Errorf("taken although it is in use: %v", err)
	}
	if err := k.Close(); err != nil {
		t.Error(err)
	}
	if list, _ := dir.List(); len(list) != 1 || list[0].InUse {
		t.Errorf("list %+v", list)
	}
	k, got, err := dir.Take(uuid)
	if err != nil || got.Output.StorageClasses[0] != "hot" {
		t.Fatalf("%+v, %v", got, err)
	}
	if err := k.Remove(); err != nil {
		t.Error(err)
	}
	if _, _, err := dir.Take(uuid); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("there is one still: %v", err)
	}
	if left, _ := os.ReadDir(string(dir)); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

// A UUID becomes part of a path.
func TestUUIDIsChecked(t *testing.T) {
	dir := Dir(t.TempDir())
	for _, bad := range []string{"", "../../../../etc/x", "zzzzz-dz642-00000000000000/", "zzzzz-4zz18-000000000000000", "ZZZZZ-dz642-000000000000000"} {
		if _, err := dir.Keep(Result{UUID: bad}); err == nil {
			t.Errorf("%q is kept", bad)
		}
		if _, _, err := dir.Take(bad); err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// One damaged file does not hide the others.
func TestDamagedFile(t *testing.T) {
	dir := Dir(t.TempDir())
	k, err := dir.Keep(Result{UUID: uuid})
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	for name, text := range map[string]string{
		"zzzzz-dz642-111111111111111.json": "{",
		"zzzzz-dz642-222222222222222.json": `{"uuid":"` + uuid + `"}`,
		"README":                           "not one of ours",
	} {
		if err := os.WriteFile(filepath.Join(string(dir), name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	list, err := dir.List()
	if len(list) != 1 || list[0].UUID != uuid {
		t.Errorf("list %+v", list)
	}
	if err == nil || !strings.Contains(err.Error(), "111111111111111") || !strings.Contains(err.Error(), "222222222222222") {
		t.Errorf("error %v", err)
	}
}

// What is no file among the results is named, and hides no result; nobody waits
// for a pipe that nobody writes to.
func TestStrangeFiles(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	id := func(i int) string { return fmt.Sprintf("zzzzz-dz642-%015d", i) }
	kept, err := Dir(base).Keep(Result{UUID: id(9), State: "Complete"})
	if err != nil {
		t.Fatal(err)
	}
	if err := kept.Close(); err != nil {
		t.Fatal(err)
	}
	path := func(i int) string { return filepath.Join(base, id(i)+".json") }
	if err := errors.Join(unix.Mkfifo(path(1), 0o600), os.Mkdir(path(2), 0o700), os.Symlink(path(9), path(3))); err != nil {
		t.Fatal(err)
	}
	list, err := Dir(base).List()
	if len(list) != 1 || list[0].UUID != id(9) {
		t.Errorf("list is %+v", list)
	}
	for i := 1; i <= 3; i++ {
		want := path(i) + ": not a regular file"
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("List: %v, should be about %s", err, want)
		}
		if _, _, err := Dir(base).Take(id(i)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Take: %v, should be about %s", err, want)
		}
	}
}
