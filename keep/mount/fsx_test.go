package mount

import (
	"bytes"
	"errors"
	"io"
	"maps"
	"math/rand"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// fsx does to a few files on a mount, at random, what programs do, and to byte
// slices the same: an idea of Apple's fsx. When Keep fails, calls may fail
// with EIO, and have no effect then.
type fsx struct {
	t     *testing.T
	rnd   *rand.Rand
	dir   string
	flaky bool
	// mine is what the names begin with, if others use the directory, too.
	mine string
	// tops are several collections below dir, each with a slash at its end.
	tops  []string
	names []string
	model map[string]*fsxFile
	open  []*fsxHandle
	ops   int // to be done
	op    int // under way
	// again is called now and then when no file is open: what is there must
	// survive it.
	again  func()
	before func() // each operation
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

func (x *fsx) top() string { return x.tops[x.rnd.Intn(len(x.tops))] }

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
	switch op := x.rnd.Intn(116); {
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
		_, err := os.ReadFile(x.dir + "/" + x.top() + recordName)
		x.failed("record", err)
	case op < 103:
		x.append(n)
	case op < 107:
		x.copyRange(h, off, n)
	case op < 110:
		if err := unix.Fallocate(int(h.Fd()), unix.FALLOC_FL_ZERO_RANGE, int64(off), int64(n)); !x.failed("zero", err) {
			h.file.resize(max(len(h.file.data), off+n))
			clear(h.file.data[off : off+n])
		}
	case op < 112:
		// Open files go with their directory.
		s, t := x.dir+"/"+x.top()+x.mine+"s", x.dir+"/"+x.top()+x.mine+"t"
		if !x.failed("rename", os.Rename(s, t)) {
			x.read(h.File, h.file, off, n, 50)
			p := make([]byte, n)
			x.rnd.Read(p)
			if _, err := h.WriteAt(p, int64(off)); !x.failed("write", err) {
				h.file.resize(max(len(h.file.data), off+n))
				copy(h.file.data[off:], p)
			}
			for x.failed("rename", os.Rename(t, s)) {
			}
		}
	case op < 114:
		x.list()
	case op < 115:
		x.unsupported(h)
	case op < 116 && x.again != nil && x.rnd.Intn(10) == 0:
		for len(x.open) > 0 {
			x.close(0)
		}
		x.again()
		x.verify()
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

// append writes at the end of a file, wherever that is.
func (x *fsx) append(n int) {
	name := x.name()
	file := x.model[name]
	if file == nil || len(file.data)+n > 2*fsxMax {
		return
	}
	f, err := os.OpenFile(x.dir+"/"+name, os.O_WRONLY|os.O_APPEND, 0)
	if x.failed("open", err) {
		return
	}
	p := make([]byte, n)
	x.rnd.Read(p)
	if _, err := f.Write(p); !x.failed("append", err) {
		file.data = append(file.data, p...)
	}
	x.failed("close", f.Close())
}

// copyRange has the kernel copy from one file to another one.
func (x *fsx) copyRange(to *fsxHandle, off, n int) {
	from := x.open[x.rnd.Intn(len(x.open))]
	if from.file == to.file || x.flaky {
		return // the kernel might copy less and say so only by a signal
	}
	at := x.rnd.Intn(fsxMax)
	rpos, wpos := int64(at), int64(off)
	done, err := unix.CopyFileRange(int(from.Fd()), &rpos, int(to.Fd()), &wpos, n, 0)
	if err != nil {
		x.t.Fatalf("operation %d: copy_file_range: %v", x.op, err)
	}
	if done > 0 {
		to.file.resize(max(len(to.file.data), off+done))
		copy(to.file.data[off:off+done], from.file.data[at:])
	}
}

// list compares the names with the model.
func (x *fsx) list() {
	var got []string
	var dirs []string
	for _, top := range x.tops {
		dirs = append(dirs, top, top+x.mine+"s/")
	}
	for _, dir := range dirs {
		list, err := os.ReadDir(x.dir + "/" + dir)
		if err != nil {
			x.t.Fatalf("operation %d: %v", x.op, err)
		}
		for _, e := range list {
			if !e.IsDir() && (strings.HasSuffix(dir, "s/") || strings.HasPrefix(e.Name(), x.mine)) {
				got = append(got, dir+e.Name())
			}
		}
	}
	slices.Sort(got)
	if want := slices.Sorted(maps.Keys(x.model)); !slices.Equal(got, want) {
		x.t.Fatalf("operation %d: listed %q, want %q", x.op, got, want)
	}
}

// unsupported is what has no place in a collection. It does no harm.
func (x *fsx) unsupported(h *fsxHandle) {
	name := x.dir + "/" + x.name()
	for what, c := range map[string]struct {
		got  error
		want []error
	}{
		"symlink":  {unix.Symlink("a", x.dir+"/"+x.tops[0]+"l"), []error{syscall.ENOSYS}},
		"link":     {unix.Link(h.Name(), x.dir+"/"+x.tops[0]+"l"), []error{syscall.ENOSYS, syscall.EPERM, syscall.ENOENT}},
		"mkfifo":   {unix.Mkfifo(x.dir+"/"+x.tops[0]+"l", 0o600), []error{syscall.ENOTSUP}},
		"setxattr": {unix.Fsetxattr(int(h.Fd()), "user.x", []byte("y"), 0), []error{syscall.EOPNOTSUPP}},
		"collapse": {unix.Fallocate(int(h.Fd()), unix.FALLOC_FL_COLLAPSE_RANGE, 0, 4096), []error{syscall.EOPNOTSUPP}},
		"exchange": {unix.Renameat2(unix.AT_FDCWD, name, unix.AT_FDCWD, h.Name(), unix.RENAME_EXCHANGE), []error{syscall.EINVAL, syscall.ENOENT, nil}}, // nil: of one name
	} {
		if !slices.Contains(c.want, c.got) {
			x.t.Fatalf("operation %d: %s: %v", x.op, what, c.got)
		}
	}
}

// verify compares all files with the model.
func (x *fsx) verify() {
	x.list()
	for name, file := range x.model {
		f, err := os.Open(x.dir + "/" + name)
		if err != nil {
			x.t.Fatalf("operation %d: %v", x.op, err)
		}
		x.read(f, file, 0, len(file.data)+1, 50)
		f.Close()
	}
}

func (x *fsx) run() {
	if x.tops == nil {
		x.tops = []string{""}
	}
	for _, top := range x.tops {
		for _, name := range []string{"a", "b", "c", "s/a", "s/b"} {
			x.names = append(x.names, top+x.mine+name)
		}
		must(x.t, os.Mkdir(x.dir+"/"+top+x.mine+"s", 0o777))
	}
	x.model = make(map[string]*fsxFile)
	for x.op = range x.ops {
		if x.before != nil {
			x.before()
		}
		x.step()
	}
	for len(x.open) > 0 {
		x.read(x.open[0].direct, x.open[0].file, 0, 2*fsxMax+64<<10, 50)
		x.close(0)
	}
}
