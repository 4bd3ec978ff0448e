// Package powercut gives tests a disk that can lose its power: what the kernel had
// not written to it by then is gone, and of what it had written, but not flushed
// from the disk's own cache, any part may be.
//
// The disk is a loop device on a file that a FUSE server keeps account of, with a
// file system that a test may write to. Afterwards the test has the disk again as it
// was at any moment. Meanwhile the file system's journal is made to be written all the
// time, as other programs of a machine may do: names reach the disk early, content
// late.
//
// Only tests may import it (.depguard.yml): a program that does serves such a disk, and
// does nothing else, if its environment says so.
package powercut

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crunch-oci/internal/forkthread"
)

// filesystem is a kind of file system, and how it is mounted.
type filesystem struct {
	name string
	mkfs []string
	kind string
	// options are those of the first mount, again those of the disk found.
	options, again string
	// megabytes is the size of the disk.
	megabytes int64
}

// The file systems that nodes have: Red Hat's default, ext4 as some make it faster, and
// Debian's default.
var (
	ext4          = filesystem{"ext4", []string{"mke2fs", "-q", "-F", "-t", "ext4", "-E", "lazy_itable_init=0,lazy_journal_init=0"}, "ext4", "loop", "loop", 128}
	ext4Writeback = filesystem{"ext4 data=writeback", ext4.mkfs, "ext4", "loop,data=writeback,noauto_da_alloc", "loop,data=writeback", 128}
	xfs           = filesystem{"xfs", []string{"mkfs.xfs", "-q", "-f"}, "xfs", "loop,nouuid", "loop,nouuid", 320}
)

// moreMoments is set for tests that may take long: the number of moments to look at.
var moreMoments, _ = strconv.Atoi(os.Getenv("POWERCUT_MOMENTS"))

// filesystems are those to test with.
func filesystems() []filesystem {
	_ = exec.Command("modprobe", "xfs").Run()
	known, err := os.ReadFile("/proc/filesystems")
	switch {
	case err == nil && !strings.Contains(string(known), "\txfs\n"):
		return []filesystem{ext4Writeback, ext4}
	case moreMoments > 0:
		return []filesystem{xfs, ext4Writeback, ext4}
	}
	return []filesystem{xfs}
}

// Disk is a disk with a file system.
type Disk struct {
	// Dir is where it is mounted, until Cut.
	Dir string

	t      *testing.T
	fs     filesystem
	work   string
	cut    func()
	end    Moment // valid after Cut
	at     replay
	chance *rand.Rand

	found int // how many there were
}

// Moment is one in the life of a disk: how much had happened to it.
type Moment int64

// Run runs test with a disk of each file system, as a subtest. The disk ends with it.
//
// test writes to the disk, calls Cut, and then Look.
func Run(t *testing.T, test func(t *testing.T, d *Disk)) {
	if os.Geteuid() != 0 {
		t.Skip("only root can mount a disk")
	}
	for _, fs := range filesystems() {
		t.Run(fs.name, func(t *testing.T) { test(t, newDisk(t, fs)) })
	}
}

func newDisk(t *testing.T, fs filesystem) *Disk {
	t.Helper()
	d := &Disk{t: t, fs: fs, work: t.TempDir(), chance: rand.New(rand.NewPCG(7, 7))}
	d.Dir = filepath.Join(d.work, "mnt")
	for _, name := range []string{d.Dir, d.path(mountName), d.path("found")} {
		d.must(os.Mkdir(name, 0o755))
	}
	content, err := os.Create(d.path(diskName))
	d.must(err)
	d.must(errors.Join(content.Truncate(fs.megabytes<<20), content.Close()))
	d.command(append(fs.mkfs, d.path(diskName))...)
	d.command("cp", "--sparse=always", d.path(diskName), d.path(baseName))
	end := d.serve()
	t.Cleanup(end)
	d.command("mount", "-t", fs.kind, "-o", fs.options, filepath.Join(d.path(mountName), diskName), d.Dir)
	calm := d.unrest()
	d.cut = sync.OnceFunc(func() {
		calm()
		d.must(unix.Unmount(d.Dir, 0))
		end()
	})
	t.Cleanup(d.cut)
	return d
}

func (d *Disk) path(name string) string { return filepath.Join(d.work, name) }

func (d *Disk) must(err error) {
	d.t.Helper()
	if err != nil {
		d.t.Fatal(err)
	}
}

func (d *Disk) command(args ...string) {
	d.t.Helper()
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		d.t.Fatalf("%q: %v\n%s", args, err, out)
	}
}

// serve starts the server, and gives what ends it.
func (d *Disk) serve() func() {
	d.t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), serveEnv+"="+d.work)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stdin, err := cmd.StdinPipe()
	d.must(err)
	stdout, err := cmd.StdoutPipe()
	d.must(err)
	forkthread.Do(func() { err = cmd.Start() })
	d.must(err)
	end := sync.OnceFunc(func() {
		_ = stdin.Close()
		// It waits for what has the disk in use, a mount that a failed test left.
		watchdog := time.AfterFunc(time.Minute, func() { _ = cmd.Process.Kill() })
		defer watchdog.Stop()
		if err := cmd.Wait(); err != nil {
			d.t.Errorf("the disk's server: %v", err)
		}
	})
	if _, err := bufio.NewReader(stdout).ReadString('\n'); err != nil {
		end()
		d.t.Fatalf("the disk's server did not start: %v", err)
	}
	return end
}

// Commit has the journal written, as the syncing of any file does: what was done to
// names before is on the disk, and of the content what happens to be.
func (d *Disk) Commit() {
	d.t.Helper()
	f, err := os.CreateTemp(d.Dir, "commit")
	d.must(err)
	d.must(errors.Join(f.Sync(), f.Close(), os.Remove(f.Name())))
}

// unrest has the journal written as long as it is not calmed.
func (d *Disk) unrest() (calm func()) {
	d.t.Helper()
	f, err := os.Create(filepath.Join(d.Dir, "unrest"))
	d.must(err)
	stop := make(chan struct{})
	var task sync.WaitGroup
	task.Go(func() {
		defer f.Close()
		for n := int64(0); ; n++ {
			select {
			case <-stop:
				return
			default:
			}
			if err := errors.Join(f.Truncate(n%1000), f.Sync()); err != nil {
				d.t.Errorf("unrest: %v", err)
				return
			}
		}
	})
	return func() { close(stop); task.Wait() }
}

// Now is the present moment: what was flushed before is in every disk found at it
// or later.
func (d *Disk) Now() Moment {
	d.t.Helper()
	info, err := os.Stat(d.path(logName))
	d.must(err)
	return Moment(info.Size())
}

// Cut ends the time in which the disk is written to, and returns its last moment.
// Nothing may have a file of it open.
func (d *Disk) Cut() Moment {
	d.t.Helper()
	d.end = d.Now()
	d.cut()
	return d.end
}

// Look runs look, as a subtest, with the disk as it is found if the power was lost at
// the moments named, and at others until there are n (or as many as the environment
// variable POWERCUT_MOMENTS says), in their order. The disk found is mounted at dir
// until look returns. It may be written to, which changes no other.
func (d *Disk) Look(n int, named []Moment, look func(t *testing.T, m Moment, dir string)) {
	d.t.Helper()
	moments := slices.Clone(named)
	for len(moments) < max(n, moreMoments) {
		moments = append(moments, Moment(d.chance.Int64N(int64(d.end)+1)))
	}
	slices.Sort(moments)
	for _, m := range moments {
		dir, undo := d.find(m)
		d.t.Run(fmt.Sprint(m), func(t *testing.T) { look(t, m, dir) })
		undo()
	}
}

// find mounts the disk of moment m: with all that had been flushed, and with what
// chance takes of the rest. Only one can be mounted at a time.
func (d *Disk) find(m Moment) (dir string, undo func()) {
	d.t.Helper()
	// A name of its own: the loop device of another may not have ended yet, with what
	// it remembers of its file.
	d.found++
	image := d.path(fmt.Sprint("image", d.found))
	pending := d.at.advance(d, m)
	d.command("cp", "--sparse=always", d.path("durable"), image)
	f, err := os.OpenFile(image, os.O_WRONLY, 0)
	d.must(err)
	// None, half or all of it in the mean: a disk may have no cache of its own.
	kept := d.chance.IntN(3)
	for _, w := range pending {
		const atom = 4096 // is written whole, or not
		for at := 0; at < len(w.data); at += atom {
			if kept == 0 || kept == 1 && d.chance.IntN(2) == 0 {
				continue
			}
			_, err := f.WriteAt(w.data[at:min(at+atom, len(w.data))], w.offset+int64(at))
			d.must(err)
		}
	}
	d.must(f.Close())
	dir = d.path("found")
	d.command("mount", "-t", d.fs.kind, "-o", d.fs.again, image, dir)
	undo = sync.OnceFunc(func() { d.must(errors.Join(unix.Unmount(dir, 0), os.Remove(image))) })
	d.t.Cleanup(undo)
	return dir, undo
}

// replay is the log up to some moment.
type replay struct {
	log     *os.File
	at      Moment
	pending []write
}

type write struct {
	offset int64
	data   []byte
}

// advance brings the file "durable" to what had been flushed at moment m, which is
// not before the last one, and gives what had been written since.
func (r *replay) advance(d *Disk, m Moment) []write {
	d.t.Helper()
	if m < r.at || r.log == nil {
		d.command("cp", "--sparse=always", d.path(baseName), d.path("durable"))
		if r.log == nil {
			f, err := os.Open(d.path(logName))
			d.must(err)
			d.t.Cleanup(func() { _ = f.Close() })
			r.log = f
		}
		r.at, r.pending = 0, nil
	}
	durable, err := os.OpenFile(d.path("durable"), os.O_WRONLY, 0)
	d.must(err)
	defer durable.Close()
	in := bufio.NewReaderSize(io.NewSectionReader(r.log, int64(r.at), int64(m-r.at)), 1<<20)
	for {
		var head record
		err := binary.Read(in, binary.LittleEndian, &head)
		data := make([]byte, head.Length)
		if err == nil {
			_, err = io.ReadFull(in, data)
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return r.pending // the last one was being written
		}
		d.must(err)
		r.at += Moment(recordSize + len(data))
		if head.Flush == 0 {
			r.pending = append(r.pending, write{int64(head.Offset), data})
			continue
		}
		for _, w := range r.pending {
			_, err := durable.WriteAt(w.data, w.offset)
			d.must(err)
		}
		r.pending = nil
	}
}
