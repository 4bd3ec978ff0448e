package diskcache

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crunch-oci/keep"
	"crunch-oci/keep/keeptest"
)

// The layout is the documented one, which other programs use too.
func TestLayout(t *testing.T) {
	w := newWorld(t)
	c, told := w.open("100000000")
	loc := w.put(1, 300_000)
	w.read(c, loc)
	info, err := os.Stat(w.path(loc))
	if err != nil || info.Mode() != 0o600 || info.Size() != 300_000 {
		t.Fatal(info, err)
	}
	for _, dir := range []string{w.dir, filepath.Dir(w.path(loc)), filepath.Join(w.dir, "tmp")} {
		if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
			t.Error(dir, info.Mode(), err)
		}
	}
	if names, _ := filepath.Glob(filepath.Join(w.dir, "tmp/*.tmp")); len(names) > 0 {
		t.Error("left behind:", names)
	}
	if s := c.Stats(); w.gets() != 1 || s.Misses != 1 || s.Hits != 1 || s.Fetched != 300_000 || told.String() != "" {
		t.Errorf("%d requests, %+v, %s", w.gets(), s, told)
	}
	if _, err := c.ReadBlockAt(t.Context(), loc, make([]byte, 2), 299_999); !errors.Is(err, keep.ErrChecksum) {
		t.Errorf("read past the end: %v", err)
	}
	// A block that was written is kept, too.
	written, err := c.WriteBlock(t.Context(), []byte("written"), keep.WriteOptions{})
	if err != nil {
		t.Fatal(err)
	}
	w.read(c, written)
	if w.gets() != 1 {
		t.Error("a written block was fetched")
	}
}

// What one process has fetched, the next one finds, and those that want the same
// block at the same time share one fetch.
func TestProcessesShare(t *testing.T) {
	w := newWorld(t)
	loc := w.put(1, 1<<20)
	gate, asked := make(chan struct{}), make(chan struct{}, 10)
	w.srv.Inject(-1, func(*keeptest.Server, http.ResponseWriter, *http.Request) bool {
		asked <- struct{}{}
		<-gate
		return false
	})
	a, b := startReader(t, w.url, w.dir, "100000000"), startReader(t, w.url, w.dir, "100000000")
	a.ask(loc)
	<-asked
	b.ask(loc)
	c, _ := w.open("100000000")
	ours := make(chan error, 1)
	go func() { _, err := c.ReadBlock(t.Context(), loc); ours <- err }()
	close(gate)
	if got := []string{a.line(), b.line()}; got[0] != loc.Hash() || got[1] != loc.Hash() {
		t.Error(got)
	}
	if err := <-ours; err != nil {
		t.Error(err)
	}
	a.end()
	b.end()
	startReader(t, w.url, w.dir, "100000000").read(loc)
	if w.gets() != 1 {
		t.Errorf("fetched %d times", w.gets())
	}
}

// A process that is killed, or hangs, in the middle of a block does not keep
// others from having it.
func TestKilledWhileFetching(t *testing.T) {
	for _, how := range []string{"killed before", "killed meanwhile", "stopped"} {
		t.Run(how, func(t *testing.T) {
			w := newWorld(t)
			loc := w.put(1, 4<<20)
			half := make(chan struct{})
			w.srv.Inject(1, func(s *keeptest.Server, rw http.ResponseWriter, r *http.Request) bool {
				data := s.Block(loc.Hash())
				rw.Header().Set("Content-Length", strconv.Itoa(len(data)))
				_, _ = rw.Write(data[:len(data)/2])
				rw.(http.Flusher).Flush()
				close(half)
				<-r.Context().Done()
				return true
			})
			first := startReader(t, w.url, w.dir, "100000000")
			first.ask(loc)
			<-half
			temp := filepath.Join(w.dir, "tmp", loc.Hash()+".tmp")
			waitFor(t, "the temporary file", func() bool { _, err := os.Stat(temp); return err == nil })
			switch how {
			case "killed before":
				first.kill()
			case "stopped":
				_ = first.cmd.Process.Signal(unix.SIGSTOP)
			}
			second := startReader(t, w.url, w.dir, "100000000", stuckVar+"=300ms")
			second.ask(loc)
			if how == "killed meanwhile" {
				first.kill()
			}
			if got := second.line(); got != loc.Hash() {
				t.Error(got)
			}
			second.end()
			if n, bytes := w.blocks(); n != 1 || bytes != 4<<20 {
				t.Errorf("%d blocks of %d bytes", n, bytes)
			}
			if _, err := os.Stat(temp); how == "killed before" && err == nil {
				t.Error("the dead process's file is still there")
			}
		})
	}
}

// Processes that evict at the same time stay below the sum of their limits, and
// nobody ever reads a wrong byte.
func TestTwoEvictors(t *testing.T) {
	w := newWorld(t)
	const size, each = 128 << 10, 2 << 20
	var locs []keep.Locator
	for i := range 80 {
		locs = append(locs, w.put(uint64(i), size))
	}
	limit := strconv.Itoa(each)
	readers := []*reader{startReader(t, w.url, w.dir, limit), startReader(t, w.url, w.dir, limit)}
	var wg sync.WaitGroup
	for i, r := range readers {
		wg.Go(func() {
			for j := range 2 * len(locs) {
				r.read(locs[(j*(2*i+3)+40*i)%len(locs)])
			}
		})
	}
	wg.Wait()
	// Each may be ahead of its last count by a 64th of what is allowed.
	if n, bytes := w.blocks(); bytes > 2*each+4*size {
		t.Errorf("%d blocks, %d bytes", n, bytes)
	} else if bytes < each/2 {
		t.Errorf("only %d bytes are left", bytes)
	}
	// A process that was killed counts no more.
	readers[0].kill()
	readers[1].read(locs[3])
	readers[1].end()
	if n, bytes := w.blocks(); bytes > each {
		t.Errorf("%d blocks, %d bytes after the end", n, bytes)
	}
	if names, _ := filepath.Glob(filepath.Join(w.dir, "tmp/*")); len(names) != 1 {
		t.Error("left behind:", names)
	}
}

// The block that was not used for the longest time goes first, whoever used it.
func TestOldestGoesFirst(t *testing.T) {
	w := newWorld(t)
	var locs []keep.Locator
	for i := range 8 {
		locs = append(locs, w.put(uint64(i), 100_000))
	}
	c, _ := w.open("1000000")
	for i, loc := range locs {
		w.read(c, loc)
		old := time.Now().Add(time.Duration(i-100) * time.Hour)
		if i == 0 {
			old = time.Now() // the first was used again
		}
		if err := os.Chtimes(w.path(loc), old, time.Time{}); err != nil {
			t.Fatal(err)
		}
	}
	c.Close()
	c, _ = w.open("400000")
	defer c.Close()
	for i, loc := range locs {
		_, err := os.Stat(w.path(loc))
		if kept := err == nil; kept != (i == 0 || i > 5) {
			t.Errorf("block %d: kept %v", i, kept)
		}
	}
}

// A file that is not what its name says is fetched again, and mended.
func TestDamagedFiles(t *testing.T) {
	for name, damage := range map[string]func(path string) error{
		"one bit": func(path string) error {
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			b := make([]byte, 1)
			_, _ = f.ReadAt(b, 77_777)
			b[0] ^= 4
			_, err = f.WriteAt(b, 77_777)
			return err
		},
		"short":         func(path string) error { return os.Truncate(path, 99_999) },
		"long":          func(path string) error { return os.Truncate(path, 100_001) },
		"empty":         func(path string) error { return os.Truncate(path, 0) },
		"link":          func(path string) error { return errors.Join(os.Remove(path), os.Symlink("/etc/passwd", path)) },
		"pipe":          func(path string) error { return errors.Join(os.Remove(path), unix.Mkfifo(path, 0o600)) },
		"for everybody": func(path string) error { return os.Chmod(path, 0o666) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			loc := w.put(1, 100_000)
			startReader(t, w.url, w.dir, "10000000").read(loc)
			if err := damage(w.path(loc)); err != nil {
				t.Fatal(err)
			}
			c, told := w.open("10000000")
			w.read(c, loc)
			if w.gets() != 2 || !strings.Contains(told.String(), loc.Hash()) {
				t.Errorf("%d requests; %s", w.gets(), told)
			}
			startReader(t, w.url, w.dir, "10000000").read(loc)
			if info, err := os.Lstat(w.path(loc)); w.gets() != 2 || err != nil || info.Mode() != 0o600 {
				t.Errorf("not mended: %d requests, %v", w.gets(), info)
			}
		})
	}
}

// A file that becomes unreadable while it is open is fetched again, too.
func TestTruncatedWhileOpen(t *testing.T) {
	w := newWorld(t)
	loc := w.put(1, 100_000)
	c, _ := w.open("10000000")
	w.read(c, loc)
	if err := os.Truncate(w.path(loc), 10); err != nil {
		t.Fatal(err)
	}
	w.read(c, loc)
	if w.gets() != 2 {
		t.Errorf("%d requests", w.gets())
	}
}

// A full disk costs speed and nothing else.
func TestNoSpace(t *testing.T) {
	t.Run("blocks are evicted", func(t *testing.T) {
		w := newWorld(t)
		w.tmpfs(2 << 20)
		c, _ := w.open("1000000000")
		for i := range 20 {
			w.read(c, w.put(uint64(i), 500_000))
		}
		if n, _ := w.blocks(); n < 2 || w.gets() != 20 {
			t.Errorf("%d blocks left, %d requests", n, w.gets())
		}
	})
	t.Run("by others", func(t *testing.T) {
		w := newWorld(t)
		w.tmpfs(2 << 20)
		c, told := w.open("1000000000")
		first := w.put(100, 100_000)
		w.read(c, first)
		fill, err := os.Create(filepath.Join(filepath.Dir(w.dir), "fill"))
		if err != nil {
			t.Fatal(err)
		}
		defer fill.Close()
		for err == nil {
			_, err = fill.Write(make([]byte, 4096))
		}
		for i := range 5 {
			w.read(c, w.put(uint64(i), 500_000))
		}
		if !strings.Contains(told.String(), "no space left") || strings.Count(told.String(), "\n") != 1 {
			t.Errorf("warnings: %s", told)
		}
		w.read(c, first)
	})
}

// On a read-only file system what is there is used.
func TestReadOnly(t *testing.T) {
	w := newWorld(t)
	w.tmpfs(4 << 20)
	there, other := w.put(1, 100_000), w.put(2, 100_000)
	r := startReader(t, w.url, w.dir, "10000000")
	r.read(there)
	r.end()
	if err := unix.Mount("", filepath.Dir(w.dir), "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	c, told := w.open("10000000")
	w.read(c, there)
	w.read(c, other)
	w.read(c, other)
	if w.gets() != 2 || !strings.Contains(told.String(), "read-only file system") {
		t.Errorf("%d requests; %s", w.gets(), told)
	}
}

// Where the directory cannot be made the warning says why.
func TestReadOnlyNeverUsed(t *testing.T) {
	w := newWorld(t)
	w.tmpfs(4 << 20)
	if err := unix.Mount("", filepath.Dir(w.dir), "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	c, told := w.open("10000000")
	w.read(c, w.put(1, 100_000))
	if !strings.Contains(told.String(), w.dir) || !strings.Contains(told.String(), "read-only file system") {
		t.Errorf("warnings %q", told)
	}
}

// A directory that cannot be used, or not safely, is said to be so, and blocks
// are held in memory.
func TestUnusableDirectory(t *testing.T) {
	for name, make := range map[string]func(dir string) error{
		"file":     func(dir string) error { return os.WriteFile(dir, nil, 0o600) },
		"writable": func(dir string) error { return errors.Join(os.Mkdir(dir, 0o777), os.Chmod(dir, 0o777)) },
		"foreign":  func(dir string) error { return errors.Join(os.Mkdir(dir, 0o755), os.Chown(dir, 65534, 65534)) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			if err := make(w.dir); err != nil {
				t.Fatal(err)
			}
			c, told := w.open("10%")
			loc := w.put(1, 100_000)
			w.read(c, loc)
			c.Prefetch(w.put(2, 1000))
			if !strings.Contains(told.String(), w.dir) || w.gets() == 0 {
				t.Errorf("warnings %q", told)
			}
			if n, _ := w.blocks(); n > 0 {
				t.Error("a block was written")
			}
		})
	}
}

// Somebody who clears the directory while it is in use costs fetches, no more.
func TestDirectoryRemoved(t *testing.T) {
	w := newWorld(t)
	c, told := w.open("100000000")
	held, other := w.put(1, 300_000), w.put(2, 300_000)
	w.read(c, held)
	if err := os.RemoveAll(w.dir); err != nil {
		t.Fatal(err)
	}
	w.read(c, held) // it is still open
	w.read(c, other)
	again, _ := w.open("100000000")
	w.read(again, held)
	w.read(again, other)
	if n, _ := w.blocks(); n != 2 || w.gets() != 3 || told.String() != "" {
		t.Errorf("%d blocks, %d requests, %s", n, w.gets(), told)
	}
}

// What dead processes left is removed; what others may still use is not.
func TestSweep(t *testing.T) {
	w := newWorld(t)
	old := time.Now().Add(-time.Hour)
	if err := errors.Join(os.MkdirAll(filepath.Join(w.dir, "tmp"), 0o700), os.Mkdir(filepath.Join(w.dir, "abc"), 0o700)); err != nil {
		t.Fatal(err)
	}
	for name, age := range map[string]time.Time{
		"tmp/x.tmp": old, "tmp/y.tmp": time.Now(), "tmp/1.budget": time.Now(), "tmp/other": old,
		"abc/tmp123.keepcacheblock": old, "abc/readme": old,
	} {
		path := filepath.Join(w.dir, name)
		if err := errors.Join(os.WriteFile(path, []byte("9\n"), 0o600), os.Chtimes(path, age, age)); err != nil {
			t.Fatal(err)
		}
	}
	c, _ := w.open("10%")
	defer c.Close()
	for name, want := range map[string]bool{
		"tmp/x.tmp": false, "tmp/y.tmp": true, "tmp/1.budget": false, "tmp/other": true,
		"abc/tmp123.keepcacheblock": false, "abc/readme": true,
	} {
		if _, err := os.Stat(filepath.Join(w.dir, name)); (err == nil) != want {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Keep's own errors are not the disk's, and nothing is left of the attempt.
func TestMissingBlock(t *testing.T) {
	w := newWorld(t)
	c, told := w.open("10%")
	loc := w.put(1, 1000)
	w.srv.Delete(loc.Hash())
	if _, err := c.ReadBlock(t.Context(), loc); !errors.Is(err, keep.ErrNotFound) {
		t.Error(err)
	}
	if names, _ := filepath.Glob(filepath.Join(w.dir, "tmp/*.tmp")); len(names) > 0 || told.String() != "" {
		t.Error(names, told)
	}
	w.srv.Inject(-1, keeptest.Corrupt)
	if _, err := c.ReadBlock(t.Context(), w.put(2, 1000)); !errors.Is(err, keep.ErrChecksum) {
		t.Error(err)
	}
	if n, _ := w.blocks(); n > 0 {
		t.Error("a wrong block was kept")
	}
}

// Blocks are fetched ahead, and more blocks than may be open are no problem.
func TestPrefetch(t *testing.T) {
	w := newWorld(t)
	c, _ := w.open("10%")
	c.maxOpen = 3
	var locs []keep.Locator
	for i := range 12 {
		locs = append(locs, w.put(uint64(i), 10_000))
		c.Prefetch(locs[i])
	}
	waitFor(t, "the blocks", func() bool { n, _ := w.blocks(); return n == len(locs) })
	for _, loc := range locs {
		w.read(c, loc)
	}
	if w.gets() != len(locs) || c.lru.Len() != 3 {
		t.Errorf("%d requests, %d open", w.gets(), c.lru.Len())
	}
}

// A block that cannot be fetched ahead is not asked for again and again.
func TestPrefetchInVain(t *testing.T) {
	w := newWorld(t)
	c, _ := w.open("10%")
	loc, err := keep.ParseLocator(hashOf([]byte("missing")) + "+7")
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		c.Prefetch(loc)
		c.tasks.Wait()
	}
	if n := w.gets(); n != 1 {
		t.Errorf("%d requests", n)
	}
	if _, err := c.ReadBlock(t.Context(), loc); !errors.Is(err, keep.ErrNotFound) || w.gets() != 2 {
		t.Errorf("%v after %d requests", err, w.gets())
	}
}

func TestParseLimit(t *testing.T) {
	for text, want := range map[string]string{
		"0": "{0 0}", "5000000000": "{5000000000 0}", "10%": "{0 10}", "100%": "{0 100}",
		"": "", "-1": "", "0%": "", "101%": "", "x": "", "1.5%": "", "9999999999999999999": "",
	} {
		l, err := ParseLimit(text)
		if (err == nil) != (want != "") || err == nil && fmt.Sprint(l) != want {
			t.Errorf("%q: %v %v", text, l, err)
		}
	}
}
