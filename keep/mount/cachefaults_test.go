package mount

import (
	"bytes"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crunch-oci/keep/keeptest"
)

// restarting is a keepstore that can be killed and come back at its address.
type restarting struct {
	t       *testing.T
	handler http.Handler
	addr    string

	mu  sync.Mutex
	srv *http.Server
}

func startRestarting(t *testing.T, h http.Handler) *restarting {
	r := &restarting{t: t, handler: h, addr: "127.0.0.1:0"}
	r.start()
	t.Cleanup(r.kill)
	return r
}

func (r *restarting) start() {
	l, err := net.Listen("tcp", r.addr)
	if err != nil {
		r.t.Error(err)
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.addr = l.Addr().String()
	r.srv = &http.Server{Handler: r.handler}
	go func(srv *http.Server) { _ = srv.Serve(l) }(r.srv)
}

// kill closes the listener and all connections, as the kernel does for a process
// that is killed.
func (r *restarting) kill() {
	r.mu.Lock()
	defer r.mu.Unlock()
	_ = r.srv.Close()
}

// diskWorld is a world whose blocks are at srv, in a collection of one file of
// three blocks, with the arguments for a disk cache.
func diskWorld(t *testing.T, srv *keeptest.Server, url string) (w *world, path string, data []byte, args []string) {
	w = newWorld(t)
	w.url = url
	manifest := "."
	for i := range 3 {
		block := testBytes(uint64(i), 2<<20)
		data = append(data, block...)
		manifest += " " + srv.Put(block).WithoutHints().String()
	}
	pdh := w.publish(manifest+" 0:6291456:sample.bam\n", time.Now().Add(time.Hour))
	w.dir = t.TempDir()
	return w, w.path("by_id", pdh, "sample.bam"), data, []string{"--disk-cache", "--disk-cache-dir", filepath.Join(t.TempDir(), "keep"), "--file-cache", "10%"}
}

// A keepstore that is killed in the middle of a block, and comes back, is not
// noticed by who reads.
func TestKeepstoreRestarts(t *testing.T) {
	srv := &keeptest.Server{}
	store := startRestarting(t, srv)
	w, path, data, args := diskWorld(t, srv, "http://"+store.addr)
	killed := make(chan struct{})
	srv.Inject(1, func(s *keeptest.Server, rw http.ResponseWriter, r *http.Request) bool {
		block := s.Block(r.URL.Path[1:33])
		rw.Header().Set("Content-Length", strconv.Itoa(len(block)))
		_, _ = rw.Write(block[:len(block)/2])
		rw.(http.Flusher).Flush()
		go func() { store.kill(); close(killed) }()
		<-r.Context().Done()
		return true
	})
	w.mountEnv([]string{"MOUNT_TEST_RETRIES=1000"}, args...)
	var got []byte
	read := make(chan error, 1)
	go func() {
		var err error
		got, err = os.ReadFile(path)
		read <- err
	}()
	<-killed
	store.start()
	if err := <-read; err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes, %v\n%s", len(got), err, w.stderr)
	}
}

// Servers that are busy for a while are asked again; if that lasts too long, or
// the token has expired, the read fails, and the log names block and file.
func TestKeepstoreRefuses(t *testing.T) {
	for name, tt := range map[string]struct {
		times  int
		fault  keeptest.Fault
		retry  string
		line   string // "" if the read succeeds
		blocks int
	}{
		"busy for a while": {5, keeptest.Status(503, "busy"), "10", "", 3},
		"busy for ever":    {-1, keeptest.Status(503, "busy"), "3", `Unhandled exception during FUSE operation: .*sample\.bam.*[0-9a-f]{32}\+2097152.*HTTP 503`, 0},
		"token expired":    {-1, keeptest.Status(401, "expired"), "3", `Unhandled exception during FUSE operation: .*sample\.bam.*[0-9a-f]{32}\+2097152.*HTTP 401`, 0},
		"not understood":   {-1, keeptest.Status(400, "bad"), "3", `Unhandled exception during FUSE operation: .*sample\.bam.*[0-9a-f]{32}\+2097152.*HTTP 400`, 0},
		"forbidden":        {-1, keeptest.Status(403, "no"), "3", `Block not found error: .*[0-9a-f]{32}\+2097152.*HTTP 403.*sample\.bam`, 0},
		"gone":             {-1, keeptest.Status(410, "gone"), "3", `Block not found error: .*[0-9a-f]{32}\+2097152.*sample\.bam`, 0},
		"lost":             {-1, keeptest.Status(404, "gone"), "3", `Block not found error: .*[0-9a-f]{32}\+2097152.*sample\.bam`, 0},
		"damaged":          {-1, keeptest.Corrupt, "3", `Unhandled exception during FUSE operation: .*sample\.bam.*[0-9a-f]{32}\+2097152.*checksum`, 0},
	} {
		t.Run(name, func(t *testing.T) {
			srv := &keeptest.Server{}
			w, path, data, args := diskWorld(t, srv, srv.Start(t).URL)
			srv.Inject(tt.times, tt.fault)
			w.mountEnv([]string{"MOUNT_TEST_RETRIES=" + tt.retry}, args...)
			got, err := os.ReadFile(path)
			if tt.line == "" {
				if err != nil || !bytes.Equal(got, data) {
					t.Errorf("%d bytes, %v\n%s", len(got), err, w.stderr)
				}
			} else {
				if !errors.Is(err, syscall.EIO) {
					t.Errorf("%d bytes, %v", len(got), err)
				}
				w.waitLog(regexp.MustCompile(`(?m)` + logLine + tt.line))
			}
			if cached, _ := filepath.Glob(filepath.Join(args[2], "???", "*.keepcacheblock")); len(cached) != tt.blocks {
				t.Errorf("%d blocks in the cache", len(cached))
			}
			noSecrets(t, w)
		})
	}
}

// A cache on a full or read-only disk is said to be so once, and nothing else is
// different.
func TestCacheDiskFails(t *testing.T) {
	for name, option := range map[string]struct {
		size string
		ro   uintptr
		line string
	}{
		"full":      {"size=1m", 0, "no space left on device"},
		"read-only": {"size=1m", unix.MS_RDONLY, "read-only file system"},
	} {
		t.Run(name, func(t *testing.T) {
			srv := &keeptest.Server{}
			w, path, data, args := diskWorld(t, srv, srv.Start(t).URL)
			mnt := filepath.Dir(args[2])
			if err := unix.Mount("tmpfs", mnt, "tmpfs", 0, option.size); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = unix.Unmount(mnt, unix.MNT_DETACH) })
			if err := os.MkdirAll(filepath.Join(args[2], "tmp"), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := unix.Mount("", mnt, "", unix.MS_REMOUNT|option.ro, ""); err != nil {
				t.Fatal(err)
			}
			w.mount(args...)
			if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, data) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
			line := regexp.MustCompile(`(?m)arvados_fuse\[\d+\] WARNING: block cache .*` + option.line)
			w.waitLog(line)
			if n := len(line.FindAllString(w.stderr.String(), -1)); n != 1 {
				t.Errorf("said %d times:\n%s", n, w.stderr)
			}
		})
	}
}

// A server that is killed while it fetches leaves a cache that the next one can
// use.
func TestServerKilledWhileCaching(t *testing.T) {
	srv := &keeptest.Server{}
	w, path, data, args := diskWorld(t, srv, srv.Start(t).URL)
	half := make(chan struct{})
	srv.Inject(1, func(s *keeptest.Server, rw http.ResponseWriter, r *http.Request) bool {
		block := s.Block(r.URL.Path[1:33])
		rw.Header().Set("Content-Length", strconv.Itoa(len(block)))
		_, _ = rw.Write(block[:len(block)/2])
		rw.(http.Flusher).Flush()
		close(half)
		<-r.Context().Done()
		return true
	})
	w.mount(args...)
	read := make(chan error, 1)
	go func() { _, err := os.ReadFile(path); read <- err }()
	<-half
	_ = w.cmd.Process.Kill()
	if err := <-read; err == nil {
		t.Error("read through a dead server")
	}
	<-w.exited
	if err := unix.Unmount(w.dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
		t.Fatal(err)
	}
	w.mount(args...)
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if cached, _ := filepath.Glob(filepath.Join(args[2], "???", "*.keepcacheblock")); len(cached) != 3 {
		t.Errorf("%d blocks in the cache", len(cached))
	}
}
