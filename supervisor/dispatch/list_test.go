package dispatch

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode"

	"golang.org/x/sys/unix"

	"crunch-oci/internal/filelock"
)

// held makes a lock file that this process holds.
func held(t *testing.T, path, content string) {
	t.Helper()
	f, err := openOrCreate(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	if err := filelock.Flock(f, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(content); err != nil {
		t.Fatal(err)
	}
}

// A supervisor survives the list's signal and gets it, once it listens.
func TestListSignals(t *testing.T) {
	d, seen := lockDir(t, "accept usr2 stay")
	if got := detach(t, d, nil); got.code != 0 {
		t.Fatal(got)
	}
	await(t, seen, "listening")
	list(t, d, Found{})
	await(t, seen, "usr2")
}

// Whatever lies in the directory, the list tells of what runs, and of nothing
// else.
func TestListOfStrangeFiles(t *testing.T) {
	d, _ := lockDir(t, "accept stay")
	if got := detach(t, d, nil); got.code != 0 {
		t.Fatal(got)
	}
	at := func(name string) string { return filepath.Join(string(d), lockPrefix+name+lockSuffix) }
	content := read(t, d.RunLock(uuid))
	pid := strings.TrimSuffix(content[strings.LastIndex(content, ":")+1:], "}\n")

	held(t, at("a-line-break"), `{"UUID":"zzzzz-dz642-00000000000000a\nbroken","PID":`+pid+`}`)
	held(t, at("a-blank"), `{"UUID":"zzzzz-dz642-00000000000000b stale","PID":`+pid+`}`)
	held(t, at("other-letters"), `{"UUID":"zzzzz-dz642-00000000000000C","PID":`+pid+`}`)
	held(t, at("negative"), `{"UUID":"zzzzz-dz642-00000000000000d","PID":-1}`)
	held(t, at("group"), `{"UUID":"zzzzz-dz642-00000000000000d","PID":-`+pid+`}`)
	held(t, at("too-large"), `{"UUID":"zzzzz-dz642-00000000000000e","PID":99999999999999999999}`)
	held(t, at("fraction"), `{"UUID":"zzzzz-dz642-00000000000000f","PID":1.5}`)
	held(t, at("wrong-types"), `{"UUID":5,"PID":"x"}`)
	held(t, at("array"), `[`)
	held(t, at("binary"), "\x00\xff\xfe")
	held(t, at("cut"), content[:20])
	held(t, at("deep"), strings.Repeat("[", 60<<10))
	held(t, at("huge"), `{"UUID":"`+strings.Repeat("x", 10<<20))
	held(t, at("copy"), content)
	if err := unix.Truncate(at("huge"), 1<<40); err != nil { // a hole
		t.Fatal(err)
	}
	if err := os.Symlink(d.RunLock(uuid), at("link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/nonexistent", at("lost-link")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(at("pipe"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(at("directory")+"/"+filepath.Base(d.RunLock(uuid)), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mknod(at("device"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", at("socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()

	held(t, at("foreign"), strings.ReplaceAll(content, uuid, "zzzzz-dz642-00000000000000f"))
	if err := os.Chown(at("foreign"), 65534, 65534); err != nil {
		t.Fatal(err)
	}

	out, errs := list(t, d, Found{})
	if want := uuid + "\n"; out != want {
		t.Errorf("printed %q, want %q", out, want)
	}
	for _, name := range []string{"a-line-break", "a-blank", "other-letters", "negative", "group", "too-large", "fraction", "wrong-types", "array", "binary", "cut", "deep", "huge", "link", "lost-link", "pipe", "directory", "device", "socket", "foreign"} {
		if !strings.Contains(errs, at(name)) {
			t.Errorf("nothing is said about %s:\n%s", name, errs)
		}
	}
	for line := range strings.Lines(errs) {
		if len(line) > 300 || strings.ContainsFunc(strings.TrimSuffix(line, "\n"), unicode.IsControl) {
			t.Errorf("stderr %.300q", line)
		}
	}
}

func TestListStale(t *testing.T) {
	d, _ := lockDir(t, "accept stay")
	if got := detach(t, d, nil); got.code != 0 {
		t.Fatal(got)
	}
	// The number of a supervisor that has ended now is that of another one's;
	// what it has started still holds its lock.
	const dead = "zzzzz-dz642-000000000000000"
	held(t, d.RunLock(dead), strings.ReplaceAll(read(t, d.RunLock(uuid)), uuid, dead))
	out, errs := list(t, d, Found{Broken: true, Alive: []string{"zzzzz-dz642-00000000000000x", uuid, "local.5"}})
	if want := "broken\n" + dead + " stale\n" + uuid + "\nzzzzz-dz642-00000000000000x stale\n"; out != want || errs != "" {
		t.Errorf("printed %q, want %q; %s", out, want, errs)
	}
	write(t, d.Broken(), "")
	if out, _ := list(t, d, Found{Broken: true}); strings.Count(out, "broken\n") != 1 {
		t.Errorf("printed %q", out)
	}
}

func TestListWithoutDirectory(t *testing.T) {
	out, errs := list(t, Dir(t.TempDir()+"/missing"), Found{})
	if out+errs != "" {
		t.Errorf("%q %q", out, errs)
	}
	file := t.TempDir() + "/file"
	write(t, file, "")
	if out, errs := list(t, Dir(file), Found{Broken: true}); out != "broken\n" || !strings.Contains(errs, file) {
		t.Errorf("%q %q", out, errs)
	}
}

func TestMarkBroken(t *testing.T) {
	d := Dir(t.TempDir())
	for range 2 {
		if err := d.MarkBroken(); err != nil {
			t.Error(err)
		}
	}
	if info, err := os.Stat(d.Broken()); err != nil || info.Size() != 0 || info.Mode().Perm() != 0o700 {
		t.Errorf("%v %v", info, err)
	}
	if out, _ := list(t, d, Found{}); out != "broken\n" {
		t.Errorf("printed %q", out)
	}
	if err := Dir("/nonexistent").MarkBroken(); err == nil {
		t.Error("no error")
	}
}

func TestSavePrices(t *testing.T) {
	d := Dir(t.TempDir())
	// What somebody has put where the new file will be first.
	target := t.TempDir() + "/target"
	write(t, target, "precious")
	if err := os.Symlink(target, d.Prices()+"~"+strconv.Itoa(os.Getpid())); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ stdin, want string }{{"[1]", "[1]"}, {"", "[1]"}, {"not JSON\n", "not JSON\n"}} {
		if err := d.SavePrices(strings.NewReader(c.stdin)); err != nil || read(t, d.Prices()) != c.want {
			t.Errorf("%q: %v %q", c.stdin, err, read(t, d.Prices()))
		}
	}
	if read(t, target) != "precious" {
		t.Error("a link has been followed")
	}
	if entries, _ := os.ReadDir(string(d)); len(entries) != 1 {
		t.Errorf("left behind: %v", entries)
	}
	if data, err := d.ReadPrices(); err != nil || string(data) != "not JSON\n" {
		t.Errorf("read again: %q %v", data, err)
	}
	if info, _ := os.Stat(d.Prices()); info.Mode().Perm()&0o700 != 0o700 {
		t.Error(info.Mode())
	}
	err := Dir(string(d) + "/missing").SavePrices(strings.NewReader("[]"))
	if err == nil || !strings.HasPrefix(err.Error(), "error writing price data to ") {
		t.Error(err)
	}
	if err := os.Mkdir(string(d)+"/d", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(string(d)+"/d/"+pricesName+"/x", 0o700); err != nil {
		t.Fatal(err)
	}
	err = Dir(string(d) + "/d").SavePrices(strings.NewReader("[]"))
	if err == nil || !strings.HasPrefix(err.Error(), "error renaming ") {
		t.Error(err)
	}
	if entries, _ := os.ReadDir(string(d) + "/d"); len(entries) != 1 {
		t.Errorf("left behind: %v", entries)
	}
	if _, err := readWithin(io.LimitReader(zeros{}, maxPrices+1), 10*pricesPatience); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Error(err)
	}
	r, w := io.Pipe() // a session that hangs
	defer w.Close()
	if _, err := readWithin(r, time.Millisecond); err == nil {
		t.Error("no error")
	}
}

// What others put in the place of the list is neither waited for nor believed.
func TestReadPricesOfOthers(t *testing.T) {
	for name, c := range map[string]struct {
		put  func(path string) error
		want error
	}{
		"nothing": {func(string) error { return nil }, fs.ErrNotExist},
		"pipe":    {func(path string) error { return unix.Mkfifo(path, 0o666) }, errNotRegular},
		"link":    {func(path string) error { return os.Symlink("/etc/passwd", path) }, errNotRegular},
		"foreign": {func(path string) error {
			return errors.Join(os.WriteFile(path, []byte("[]"), 0o666), os.Chown(path, 12345, 12345))
		}, errForeign},
	} {
		d := Dir(t.TempDir())
		if err := c.put(d.Prices()); err != nil {
			t.Fatal(err)
		}
		if data, err := d.ReadPrices(); !errors.Is(err, c.want) {
			t.Errorf("%s: %q, %v", name, data, err)
		}
	}
}

func FuzzProcinfo(f *testing.F) {
	f.Add([]byte(`{"UUID":"zzzzz-dz642-000000000000001","PID":17}` + "\n"))
	f.Add([]byte(`{"uuid":"a\nb","PID":-1}`))
	f.Add([]byte("null"))
	f.Add([]byte("garbage\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := readProcinfo(bytes.NewReader(data))
		if err != nil {
			return
		}
		if err := p.bogus(); err != nil {
			if strings.ContainsAny(err.Error(), "\n\r\x00") || len(err.Error()) > 300 {
				t.Errorf("%q", err)
			}
			return
		}
		if again, err := readProcinfo(bytes.NewReader(p.line())); err != nil || again != p {
			t.Errorf("%+v is read as %+v: %v", p, again, err)
		}
		if want := fmt.Sprintf("{\"UUID\":%q,\"PID\":%d}\n", p.UUID, p.PID); string(p.line()) != want {
			t.Errorf("written as %q, want %q", p.line(), want)
		}
	})
}
