package mount

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"net/http"
	"os"
	"strconv"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// fsxOps is the number of operations of one test.
func fsxOps(t *testing.T, short int) int {
	if n, err := strconv.Atoi(os.Getenv("KEEP_TEST_FSX_OPS")); err == nil {
		return n
	}
	if os.Getenv("KEEP_TEST_LONG") != "" {
		return 200_000
	}
	return short
}

// fsx does to a few files on a mount, at random, what programs do, and to byte
// slices the same: an idea of Apple's fsx. When Keep fails, calls may fail
// with EIO, and have no effect then.
type fsx struct {
	t     *testing.T
	rnd   *rand.Rand
	dir   string
	flaky bool
	names []string
	model map[string]*fsxFile
	open  []*fsxHandle
	op    int
	// failures counts the calls that failed because Keep did.
	failures int
}

type fsxFile struct{ data []byte }

type fsxHandle struct {
	*os.File
	file   *fsxFile
	direct *os.File // reads past the kernel's cache
}

const fsxMax = 512 << 10

// failed tells whether a call has failed for Keep's sake.
func (x *fsx) failed(what string, err error) bool {
	if err == nil {
		return false
	}
	if !x.flaky || !errors.Is(err, syscall.EIO) {
		x.t.Fatalf("operation %d: %s: %v", x.op, what, err)
	}
	x.failures++
	return true
}

func (x *fsx) name() string { return x.names[x.rnd.Intn(len(x.names))] }

func (f *fsxFile) resize(n int) {
	if n <= len(f.data) {
		f.data = f.data[:n]
		return
	}
	f.data = append(f.data[:len(f.data):len(f.data)], make([]byte, n-len(f.data))...)
}

func (x *fsx) openOne(name string) {
	f, err := os.OpenFile(x.dir+"/"+name, os.O_RDWR|os.O_CREATE, 0o600)
	if x.failed("open", err) {
		return
	}
	direct, err := os.OpenFile(x.dir+"/"+name, os.O_RDONLY|unix.O_DIRECT, 0)
	if x.failed("open", err) {
		x.t.Fatal("opening a file does not need Keep")
	}
	if x.model[name] == nil {
		x.model[name] = new(fsxFile)
	}
	x.open = append(x.open, &fsxHandle{f, x.model[name], direct})
}

func (x *fsx) close(i int) {
	h := x.open[i]
	x.open = append(x.open[:i], x.open[i+1:]...)
	h.direct.Close()
	x.failed("close", h.Close())
}

// read compares a range with the model.
func (x *fsx) read(f *os.File, file *fsxFile, off, n int, tries int) {
	got := make([]byte, n)
	for try := 0; ; try++ {
		k, err := f.ReadAt(got, int64(off))
		want := file.data[min(off, len(file.data)):min(off+n, len(file.data))]
		if err == io.EOF {
			err = nil
		}
		if err != nil && try < tries && x.failed("read", err) {
			continue
		}
		if err != nil {
			x.t.Fatalf("operation %d: read %d bytes at %d: %v", x.op, n, off, err)
		}
		if k != len(want) || !bytes.Equal(got[:k], want) {
			i := 0
			for i < min(k, len(want)) && got[i] == want[i] {
				i++
			}
			x.t.Fatalf("operation %d: read of %d bytes at %d of %d: got %d, differ at %d", x.op, n, off, len(file.data), k, off+i)
		}
		return
	}
}

func (x *fsx) step() {
	if len(x.open) == 0 || x.rnd.Intn(50) == 0 {
		x.openOne(x.name())
		if len(x.open) > 6 {
			x.close(0)
		}
		return
	}
	i := x.rnd.Intn(len(x.open))
	h := x.open[i]
	off, n := x.rnd.Intn(fsxMax), x.rnd.Intn(64<<10)+1
	switch op := x.rnd.Intn(100); {
	case op < 30:
		if x.rnd.Intn(4) == 0 {
			off = len(h.file.data)
		}
		p := make([]byte, n)
		x.rnd.Read(p)
		if _, err := h.WriteAt(p, int64(off)); !x.failed("write", err) {
			h.file.resize(max(len(h.file.data), off+n))
			copy(h.file.data[off:], p)
		}
	case op < 40:
		if !x.failed("truncate", h.Truncate(int64(off))) {
			h.file.resize(off)
		}
	case op < 43:
		err := unix.Fallocate(int(h.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(off), int64(n))
		if !x.failed("punch", err) {
			clear(h.file.data[min(off, len(h.file.data)):min(off+n, len(h.file.data))])
		}
	case op < 55:
		x.read(h.File, h.file, off, n, 50)
	case op < 68:
		x.read(h.direct, h.file, off, n, 50)
	case op < 76:
		x.mapped(h, off, n)
	case op < 82:
		from, to := x.name(), x.name()
		if x.model[from] != nil && from != to {
			if !x.failed("rename", os.Rename(x.dir+"/"+from, x.dir+"/"+to)) {
				x.model[to] = x.model[from]
				delete(x.model, from)
			}
		}
	case op < 86:
		name := x.name()
		if x.model[name] != nil && !x.failed("remove", os.Remove(x.dir+"/"+name)) {
			delete(x.model, name)
		}
	case op < 89:
		x.close(i)
	case op < 91:
		x.failed("fsync", h.Sync())
	case op < 95:
		// Stores everything.
		_, err := os.ReadFile(x.dir + "/" + recordName)
		x.failed("record", err)
	default:
		st, err := os.Stat(x.dir + "/" + h.Name()[len(x.dir)+1:])
		if err == nil && x.model[h.Name()[len(x.dir)+1:]] == nil {
			x.t.Fatalf("operation %d: %s is still there", x.op, h.Name())
		}
		if err == nil && st.Size() != int64(len(x.model[h.Name()[len(x.dir)+1:]].data)) {
			x.t.Fatalf("operation %d: size of %s is %d", x.op, h.Name(), st.Size())
		}
	}
}

// mapped reads through a mapping and, while Keep is well, writes through it.
func (x *fsx) mapped(h *fsxHandle, off, n int) {
	n = min(n, len(h.file.data)-off)
	if n <= 0 {
		return
	}
	// A page that cannot be had would be a SIGBUS: have them all first.
	x.read(h.File, h.file, 0, len(h.file.data), 50)
	page := os.Getpagesize()
	start := off / page * page
	m, err := unix.Mmap(int(h.Fd()), int64(start), off-start+n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		x.t.Fatal(err)
	}
	defer unix.Munmap(m)
	// In a system call: a goroutine in a page fault holds up the others, among
	// them the keepstore.
	if err := unix.Madvise(m, unix.MADV_POPULATE_READ); err != nil {
		x.t.Fatal(err)
	}
	if !bytes.Equal(m[off-start:], h.file.data[off:off+n]) {
		x.t.Fatalf("operation %d: mapping of %d bytes at %d differs", x.op, n, off)
	}
	if !x.flaky && x.rnd.Intn(2) == 0 {
		if err := unix.Madvise(m, unix.MADV_POPULATE_WRITE); err != nil {
			x.t.Fatal(err)
		}
		x.rnd.Read(m[off-start:])
		copy(h.file.data[off:], m[off-start:])
		if err := unix.Msync(m, unix.MS_SYNC); err != nil {
			x.t.Fatal(err)
		}
	}
}

func (x *fsx) run(w *world, ops int) {
	x.names = []string{"a", "b", "c", "d"}
	x.model = make(map[string]*fsxFile)
	for x.op = range ops {
		x.step()
	}
	for len(x.open) > 0 {
		x.read(x.open[0].direct, x.open[0].file, 0, fsxMax+64<<10, 50)
		x.close(0)
	}
}

func TestFsx(t *testing.T) {
	w, dir := mountTmp(t)
	x := &fsx{t: t, rnd: rand.New(rand.NewSource(1)), dir: dir}
	x.run(w, fsxOps(t, 1500))
	x.check(w)
}

// check compares what is stored with the model.
func (x *fsx) check(w *world) {
	c := w.saved(x.dir)
	for name, file := range x.model {
		if got := content(x.t, c, name); got != string(file.data) {
			x.t.Errorf("%s: %d bytes are stored, not the right ones", name, len(got))
		}
	}
	if list, err := c.ReadDir(""); err != nil || len(list) != len(x.model) {
		x.t.Errorf("stored: %v, %v", list, err)
	}
}

// The same with a keepstore that fails every fifth request, and a client that
// does not try again.
func TestFsxFlakyKeep(t *testing.T) {
	w := newWorld(t)
	var mu sync.Mutex
	rnd, well, seen, refused := rand.New(rand.NewSource(2)), false, 0, 0
	real := w.url
	w.url = newHTTPServer(t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		mu.Lock()
		fail := !well && rnd.Intn(5) == 0
		how := rnd.Intn(3)
		seen++
		if fail {
			refused++
		}
		mu.Unlock()
		switch {
		case !fail:
			proxyTo(t, real, rw, r)
		case how == 0:
			http.Error(rw, "no luck", http.StatusServiceUnavailable)
		case how == 1:
			panic(http.ErrAbortHandler)
		default: // stored, but nobody is told; or read, but wrong
			proxyTo(t, real, &brokenWriter{rw}, r)
		}
	}))
	w.mount("--mount-tmp", "tmp0", "--ram-cache", "--file-cache", fmt.Sprint(1<<20))
	x := &fsx{t: t, rnd: rand.New(rand.NewSource(3)), dir: w.path("tmp0"), flaky: true}
	x.run(w, fsxOps(t, 1500))
	mu.Lock()
	well = true
	t.Logf("%d of %d requests and %d calls have failed", refused, seen, x.failures)
	if refused == 0 || x.failures == 0 {
		t.Error("nothing has failed")
	}
	mu.Unlock()
	waitFor(t, "Keep's return", func() bool {
		_, err := os.ReadFile(x.dir + "/" + recordName)
		return err == nil
	})
	x.check(w)
}

// brokenWriter spoils the body of a reply.
type brokenWriter struct{ http.ResponseWriter }

func (b *brokenWriter) Write(p []byte) (int, error) {
	q := bytes.Clone(p)
	for i := range q {
		q[i] ^= 0x55
	}
	return b.ResponseWriter.Write(q)
}
