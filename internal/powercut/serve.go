package powercut

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// serveEnv makes a program that imports this package serve the disk in that
// directory, and nothing else, until its standard input ends. A process of its own
// is needed because pages of the tested program may have to be written to the disk
// before that program can go on.
const serveEnv = "POWERCUT_SERVE"

func init() {
	dir := os.Getenv(serveEnv)
	if dir == "" {
		return
	}
	if err := serve(dir); err != nil {
		fmt.Fprintln(os.Stderr, "powercut:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// What lies in a disk's directory.
const (
	mountName = "fuse"
	diskName  = "disk" // in mountName: the disk as a file; beside it: what it holds
	baseName  = "base" // what it held in the beginning
	logName   = "log"
)

func serve(dir string) error {
	content, err := os.OpenFile(filepath.Join(dir, diskName), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer content.Close()
	log, err := os.OpenFile(filepath.Join(dir, logName), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	d := &device{RawFileSystem: fuse.NewDefaultRawFileSystem(), content: content, log: log}
	mount := filepath.Join(dir, mountName)
	server, err := fuse.NewServer(d, mount, &fuse.MountOptions{
		FsName: "powercut", DirectMountStrict: true, MaxWrite: 1 << 20,
	})
	if err != nil {
		return err
	}
	go server.Serve()
	if err := server.WaitMount(); err != nil {
		return err
	}
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, os.Stdin)
	// The kernel takes its time to close the file of a loop device that nobody uses
	// any more: until then it is served.
	if err := unix.Unmount(mount, unix.MNT_DETACH); err != nil {
		return err
	}
	server.Wait()
	return nil
}

// device is a file system with one file, whose writes and flushes are logged in
// the order in which they arrive.
type device struct {
	fuse.RawFileSystem
	content *os.File

	mu  sync.Mutex
	log *os.File
}

// record is the head of an entry of the log.
type record struct {
	Flush  uint32 // 1: all writes before have reached the medium
	Length uint32 // of what follows, in bytes
	Offset uint64
}

const recordSize = 16

func (d *device) append(r record, data []byte) error {
	text, err := binary.Append(make([]byte, 0, recordSize+len(data)), binary.LittleEndian, r)
	if err == nil {
		_, err = d.log.Write(append(text, data...))
	}
	return err
}

func (d *device) attr(node uint64, out *fuse.Attr) fuse.Status {
	out.Ino, out.Nlink = node, 1
	if node == fuse.FUSE_ROOT_ID {
		out.Mode = fuse.S_IFDIR | 0o700
		return fuse.OK
	}
	info, err := d.content.Stat()
	if err != nil {
		return fuse.EIO
	}
	out.Mode, out.Size = fuse.S_IFREG|0o600, uint64(info.Size())
	return fuse.OK
}

func (d *device) Lookup(_ <-chan struct{}, header *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	if header.NodeId != fuse.FUSE_ROOT_ID || name != diskName {
		return fuse.ENOENT
	}
	out.NodeId = fuse.FUSE_ROOT_ID + 1
	return d.attr(out.NodeId, &out.Attr)
}

func (d *device) GetAttr(_ <-chan struct{}, input *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	return d.attr(input.NodeId, &out.Attr)
}

func (d *device) Open(_ <-chan struct{}, _ *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	out.OpenFlags = fuse.FOPEN_DIRECT_IO
	return fuse.OK
}

func (d *device) Read(_ <-chan struct{}, input *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	n, err := d.content.ReadAt(buf[:min(len(buf), int(input.Size))], int64(input.Offset))
	if err != nil && err != io.EOF {
		return nil, fuse.EIO
	}
	return fuse.ReadResultData(buf[:n]), fuse.OK
}

func (d *device) Write(_ <-chan struct{}, input *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, err := d.content.WriteAt(data, int64(input.Offset)); err != nil {
		return 0, fuse.EIO
	}
	if err := d.append(record{Length: uint32(len(data)), Offset: input.Offset}, data); err != nil {
		return 0, fuse.EIO
	}
	return uint32(len(data)), fuse.OK
}

func (d *device) Writev(<-chan struct{}, *fuse.WriteIn, [][]byte) (uint32, fuse.Status) {
	return 0, fuse.ENOSYS
}

func (d *device) Fsync(<-chan struct{}, *fuse.FsyncIn) fuse.Status {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.append(record{Flush: 1}, nil); err != nil {
		return fuse.EIO
	}
	return fuse.OK
}

func (d *device) Flush(<-chan struct{}, *fuse.FlushIn) fuse.Status { return fuse.OK }

func (d *device) Fallocate(<-chan struct{}, *fuse.FallocateIn) fuse.Status { return fuse.ENOSYS }
