package oci_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"crunch-oci/oci"
)

// silentFile is an executable file whose content nobody gets to see, and no
// error either before give is called.
type silentFile struct {
	fs.Inode
	asked, answer chan struct{}
	once          sync.Once
	give          func()
}

func (f *silentFile) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode, out.Size = 0o755, 1<<20
	return 0
}

func (f *silentFile) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return nil, 0, 0
}

func (f *silentFile) Read(context.Context, fs.FileHandle, []byte, int64) (fuse.ReadResult, syscall.Errno) {
	f.once.Do(func() { close(f.asked) })
	<-f.answer
	return nil, syscall.EIO
}

// mountSilent mounts a file system in which the file "cmd" does not answer.
func mountSilent(t *testing.T) (dir string, file *silentFile) {
	t.Helper()
	dir = t.TempDir()
	file = &silentFile{asked: make(chan struct{}), answer: make(chan struct{})}
	file.give = sync.OnceFunc(func() { close(file.answer) })
	root := &fs.Inode{}
	server, err := fs.Mount(dir, root, &fs.Options{
		MountOptions: fuse.MountOptions{DirectMountStrict: true, AllowOther: true},
		OnAdd: func(ctx context.Context) {
			root.AddChild("cmd", root.NewPersistentInode(ctx, file, fs.StableAttr{Mode: fuse.S_IFREG}), true)
		},
	})
	must(t, err)
	t.Cleanup(func() {
		file.give()
		must(t, server.Unmount())
		server.Wait()
	})
	return dir, file
}

// A command on a file system that does not answer is never executed. Whoever
// waits for it can stop doing so, and gets rid of it.
func TestStartCanBeInterrupted(t *testing.T) {
	dir, file := mountSilent(t)
	req := newRequest(t, newID(), "")
	req.Command = []string{"/silent/cmd"}
	req.Mounts = []oci.Mount{{Source: dir, Target: "/silent", ReadOnly: true}}
	b, err := create(t, req, nil)
	must(t, err)
	ctx, cancel := context.WithCancelCause(t.Context())
	started := make(chan error, 1)
	go func() { started <- b.ctr.Start(ctx) }()
	select {
	case <-file.asked:
	case err := <-started:
		t.Fatalf("Start: %v", err)
	}
	cancel(errTest)
	select {
	case err := <-started:
		if !errors.Is(err, errTest) {
			t.Errorf("Start: %v", err)
		}
	case <-time.After(2 * time.Minute):
		t.Fatal("Start waits for a file system that does not answer")
	}
	// It may be stuck in the kernel until the server answers or ends.
	short, cancelShort := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancelShort()
	if err := b.ctr.Kill(short); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	file.give()
	if status := b.wait(); status.Signal != syscall.SIGKILL && status.Code != 137 {
		t.Errorf("exit %v", status)
	}
}

// An interrupted start is not forgotten: what would have been executed is not,
// also when the interruption comes while it is.
func TestStartInterruptedAtAnyMoment(t *testing.T) {
	for delay := time.Duration(0); ; delay += max(200*time.Microsecond, delay/10) {
		req := newRequest(t, newID(), "touch /work/ran; sleep 600")
		b, err := create(t, req, nil)
		must(t, err)
		ctx, cancel := context.WithTimeoutCause(t.Context(), delay, errTest)
		err = b.ctr.Start(ctx)
		cancel()
		if err == nil {
			break
		}
		if !errors.Is(err, errTest) {
			t.Fatalf("after %v: %v", delay, err)
		}
		if delay == 0 {
			b.delete()
			if _, err := os.Stat(filepath.Join(req.RootfsPath, "work/ran")); err == nil {
				t.Error("the command ran")
			}
		} else if status := b.wait(); status.Code != 137 {
			t.Errorf("after %v: exit %v", delay, status)
		}
	}
}
