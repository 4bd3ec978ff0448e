package capture

import (
	"context"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"crunch-oci/keep"
	"crunch-oci/keep/keeptest"
)

// failing is a file of noise on a file system that begins to fail.
type failing struct {
	fs.Inode
	size  int64
	errno atomic.Int32 // what reads of the second half say
}

func (f *failing) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode, out.Size, out.Blocks = 0o644|syscall.S_IFREG, uint64(f.size), uint64(f.size/512)
	return 0
}

func (f *failing) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return nil, 0, 0
}

func (f *failing) Read(_ context.Context, _ fs.FileHandle, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	if e := f.errno.Load(); e != 0 && off >= f.size/2 {
		return nil, syscall.Errno(e)
	}
	n := max(0, min(int64(len(dest)), f.size-off))
	_, _ = rand.NewChaCha8([32]byte{byte(off >> 12), byte(off >> 20)}).Read(dest[:n])
	return fuse.ReadResultData(dest[:n]), 0
}

// A file that can be read no more, for whatever reason, while it is sent, is at
// fault: no Keep service is blamed, or asked again.
func TestReadErrors(t *testing.T) {
	for _, errno := range []syscall.Errno{syscall.EIO, syscall.ESTALE, syscall.ETIMEDOUT, syscall.EINVAL, syscall.ECONNRESET} {
		t.Run(errno.Error(), func(t *testing.T) {
			dir := t.TempDir()
			root := new(fs.Inode)
			f := &failing{size: keep.MaxBlockSize/2 + 1<<20}
			server, err := fs.Mount(dir, root, &fs.Options{
				OnAdd: func(ctx context.Context) {
					root.AddChild("f", root.NewPersistentInode(ctx, f, fs.StableAttr{Mode: syscall.S_IFREG}), false)
				},
			})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = server.Unmount() })
			store := new(keeptest.Server)
			var requests atomic.Int32
			store.Inject(-1, func(*keeptest.Server, http.ResponseWriter, *http.Request) bool {
				requests.Add(1)
				f.errno.Store(int32(errno))
				_ = f.NotifyContent(0, 0) // nothing of it is cached
				return false
			})
			_, err = captureInto(t, t.Context(), dir, keeptest.NewClient(t, nil, store.Start(t)))
			if err == nil || !strings.HasPrefix(err.Error(), `error copying file "f" into output collection: `) || !strings.Contains(err.Error(), errno.Error()) ||
				!strings.Contains(err.Error(), filepath.Join(dir, "f")) || requests.Load() != 1 {
				t.Errorf("after %d requests: %v", requests.Load(), err)
			}
		})
	}
}
