package mount

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// gets is what a keepstore was asked for.
type gets struct {
	mu     sync.Mutex
	hashes map[string]bool
	fail   bool
}

// watchGets puts a proxy before the keepstore that takes notes.
func watchGets(w *world) *gets {
	g := &gets{hashes: map[string]bool{}}
	old := w.url
	w.url = newHTTPServer(w.t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		g.mu.Lock()
		g.hashes[r.URL.Path[1:33]] = true
		g.mu.Unlock()
		resp, err := http.Get(old + r.URL.Path + "?api_token=" + token)
		if err != nil {
			rw.WriteHeader(500)
			return
		}
		defer resp.Body.Close()
		g.mu.Lock()
		g.fail = g.fail || resp.StatusCode != 200
		g.mu.Unlock()
		rw.Header().Set("Content-Length", resp.Header.Get("Content-Length"))
		rw.WriteHeader(resp.StatusCode)
		_, _ = io.Copy(rw, resp.Body)
	}))
	return g
}

func (g *gets) asked(locator string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.hashes[locator[:32]]
}

func (g *gets) refused() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.fail
}

// Somebody who reads a file through finds the next blocks already there;
// somebody who looks at its head does not cause them to be fetched.
func TestReadAhead(t *testing.T) {
	w := newWorld(t)
	var locs []string
	manifest := "."
	for i := range 5 {
		locs = append(locs, w.put(testBytes(uint64(i), 40<<20)))
		manifest += " " + locs[i]
	}
	pdh := w.publish(fmt.Sprintf("%s 0:%d:f\n", manifest, 5*40<<20), time.Now().Add(time.Hour))
	asked := watchGets(w).asked
	w.mount()
	f, err := os.Open(w.path("by_id", pdh, "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := io.ReadFull(f, make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	if asked(locs[1]) {
		t.Error("the second block was fetched for a look at the head")
	}
	if _, err := io.ReadFull(f, make([]byte, 4<<20)); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the next block to be fetched", func() bool { return asked(locs[1]) })
	if asked(locs[3]) {
		t.Error("a later block was fetched much too early")
	}
	// The further somebody has read, the further it is looked ahead.
	if _, err := io.ReadFull(f, make([]byte, 45<<20)); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "more blocks to be fetched", func() bool { return asked(locs[2]) && asked(locs[3]) })
}

// The same for the small files of a directory, read one after the other.
func TestReadAheadSmallFiles(t *testing.T) {
	w := newWorld(t)
	first, second := w.put(testBytes(1, 100_000)), w.put(testBytes(2, 100_000))
	var manifest strings.Builder
	manifest.WriteString(". " + first + " " + second)
	for i := range 200 {
		fmt.Fprintf(&manifest, " %d:1000:file-%03d", i*1000, i)
	}
	manifest.WriteString("\n")
	pdh := w.publish(manifest.String(), time.Now().Add(time.Hour))
	asked := watchGets(w).asked
	w.mount()
	for i := range 95 {
		if _, err := os.ReadFile(w.path("by_id", pdh, fmt.Sprintf("file-%03d", i))); err != nil {
			t.Fatal(err)
		}
	}
	waitFor(t, "the second block to be fetched", func() bool { return asked(second) })
}

// Inode numbers are those of the listing, distinct, and fit 32-bit programs.
func TestInodeNumbers(t *testing.T) {
	w := newWorld(t)
	loc := w.put([]byte("foobar"))
	w.mount()
	seen := map[uint64]string{}
	for _, name := range []string{"a", "b"} {
		pdh := w.publish(". "+loc+" 0:3:"+name+" 3:3:dir/bar\n", time.Now().Add(time.Hour))
		if _, err := os.Stat(w.path("by_id", pdh)); err != nil {
			t.Fatal(err)
		}
	}
	err := filepath.WalkDir(w.dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := os.Lstat(path)
		if err != nil {
			return err
		}
		ino := info.Sys().(*syscall.Stat_t).Ino
		if seen[ino] != "" || ino == 0 || ino >= 1<<32 {
			t.Errorf("%s has number %d, like %q", path, ino, seen[ino])
		}
		seen[ino] = path
		return nil
	})
	if err != nil || len(seen) != 13 {
		t.Errorf("%d files, %v", len(seen), err)
	}
	for ino, path := range seen {
		if path == w.dir {
			continue
		}
		if got := listedIno(t, filepath.Dir(path), filepath.Base(path)); got != ino {
			t.Errorf("%s: number %d in the listing, %d in stat", path, got, ino)
		}
	}
}

func listedIno(t *testing.T, dir, name string) uint64 {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	buf := make([]byte, 8192)
	n, err := unix.Getdents(fd, buf)
	if err != nil {
		t.Fatal(err)
	}
	for buf = buf[:n]; len(buf) > 0; {
		ino := *(*uint64)(unsafe.Pointer(&buf[0]))
		reclen := *(*uint16)(unsafe.Pointer(&buf[16]))
		if got, _, _ := strings.Cut(string(buf[19:reclen]), "\x00"); got == name {
			return ino
		}
		buf = buf[reclen:]
	}
	return 0
}

// Aborting the connection, as an administrator may, ends the server, and it
// takes its mount along.
func TestAborted(t *testing.T) {
	w := newWorld(t)
	w.mount()
	mounts, err := fuseMounts(w.dir)
	if err != nil || len(mounts) != 1 || mounts[0].fstype != "fuse.arv-mount" {
		t.Fatalf("%+v %v", mounts, err)
	}
	kb, err := os.ReadFile("/sys/class/bdi/" + mounts[0].device + "/read_ahead_kb")
	if err != nil || string(kb) != "1024\n" {
		t.Errorf("kernel read-ahead: %q %v", kb, err)
	}
	// What is not, or no longer, mounted there is left alone.
	for point, device := range map[string]string{w.dir: "0:1", t.TempDir(): mounts[0].device, t.TempDir(): ""} {
		if err := abortMount(point, device); err != nil {
			t.Errorf("abort of %s at %s: %v", device, point, err)
		}
	}
	if _, err := os.ReadDir(w.dir); err != nil {
		t.Fatalf("somebody else's connection has been aborted: %v", err)
	}
	if err := abortMount(w.dir, mounts[0].device); err != nil {
		t.Fatal(err)
	}
	<-w.exited
	if w.mounted() {
		t.Errorf("still mounted\n%s", w.stderr)
	}
	if err := abortConnection("8:0"); err == nil || !regexp.MustCompile("not that of a FUSE").MatchString(err.Error()) {
		t.Errorf("abort of a disk: %v", err)
	}
}
