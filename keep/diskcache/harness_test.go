package diskcache

import (
	"bufio"
	"context"
	"crypto/md5"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crunch-oci/internal/forkthread"
	"crunch-oci/internal/mountns/mountnstest"
	"crunch-oci/keep"
	"crunch-oci/keep/keeptest"
)

// Several processes share a cache: this binary again, in another role.
const roleVar = "DISKCACHE_TEST_ROLE"

// stuckVar is stuckAfter for such a process.
const stuckVar = "DISKCACHE_TEST_STUCK"

func TestMain(m *testing.M) {
	if os.Getenv(roleVar) != "" {
		os.Exit(readerRole())
	}
	stuckAfter = time.Hour
	os.Exit(mountnstest.Run(m))
}

// readerRole reads the blocks named on its standard input, one locator a line,
// and answers each with its MD5, or an error.
func readerRole() int {
	stuckAfter = time.Hour // on a busy machine the others are slow
	if d, err := time.ParseDuration(os.Getenv(stuckVar)); err == nil {
		stuckAfter = d
	}
	limit, _ := ParseLimit(os.Getenv("LIMIT"))
	client, err := keep.NewClient(keep.ClientConfig{
		Services: keep.FixedServices{{UUID: "zzzzz-bi6l4-000000000000000", URL: os.Getenv("KEEP"), Type: "disk"}},
		Token:    keeptest.Token,
	})
	if err != nil {
		fmt.Println(err)
		return 1
	}
	defer client.Close()
	c := Open(Config{Source: client, Dir: os.Getenv("DIR"), Limit: limit, Warn: func(s string) { fmt.Fprintln(os.Stderr, s) }})
	fmt.Println("open")
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		loc, err := keep.ParseLocator(lines.Text())
		if err != nil {
			fmt.Println(err)
			continue
		}
		data, err := c.ReadBlock(context.Background(), loc)
		if err != nil {
			fmt.Println(err)
			continue
		}
		fmt.Println(hashOf(data))
	}
	if err := c.Close(); err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}

// reader is such a process.
type reader struct {
	t   *testing.T
	cmd *exec.Cmd
	in  *os.File
	out *bufio.Reader
}

func startReader(t *testing.T, url, dir, limit string, env ...string) *reader {
	t.Helper()
	r := &reader{t: t, cmd: exec.Command("/proc/self/exe")}
	r.cmd.Env = append(os.Environ(), roleVar+"=reader", "KEEP="+url, "DIR="+dir, "LIMIT="+limit, "GORACE=atexit_sleep_ms=0")
	r.cmd.Env = append(r.cmd.Env, env...)
	r.cmd.Stderr = os.Stderr
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stdin, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	r.cmd.Stdin, r.in = stdin, w
	out, err := r.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	forkthread.Do(func() { err = r.cmd.Start() })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.cmd.Process.Kill(); r.in.Close() })
	r.out = bufio.NewReader(out)
	if got := r.line(); got != "open" {
		t.Fatalf("reader: %q", got)
	}
	return r
}

func (r *reader) ask(loc keep.Locator) {
	if _, err := fmt.Fprintln(r.in, loc); err != nil {
		r.t.Error(err)
	}
}

func (r *reader) line() string {
	line, err := r.out.ReadString('\n')
	if err != nil {
		r.t.Errorf("reader ended: %v", err)
	}
	return strings.TrimSuffix(line, "\n")
}

// read reads a block, which must be right.
func (r *reader) read(loc keep.Locator) {
	r.t.Helper()
	r.ask(loc)
	if got := r.line(); got != loc.Hash() {
		r.t.Errorf("reader of %s: %s", loc.WithoutHints(), got)
	}
}

// end lets the process close its cache and end.
func (r *reader) end() {
	r.t.Helper()
	r.in.Close()
	if err := r.cmd.Wait(); err != nil {
		r.t.Error(err)
	}
}

func (r *reader) kill() {
	_ = r.cmd.Process.Kill()
	_ = r.cmd.Wait()
}

// world is a keepstore and a directory.
type world struct {
	t   *testing.T
	srv *keeptest.Server
	url string
	dir string
	svc keep.Service
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, srv: &keeptest.Server{}, dir: filepath.Join(t.TempDir(), "keep")}
	w.svc = w.srv.Start(t)
	w.url = w.svc.URL
	return w
}

// open opens the cache in this process.
func (w *world) open(limit string) (*Cache, *warnings) {
	w.t.Helper()
	l, err := ParseLimit(limit)
	if err != nil {
		w.t.Fatal(err)
	}
	told := new(warnings)
	c := Open(Config{Source: keeptest.NewClient(w.t, nil, w.svc), Dir: w.dir, Limit: l, Memory: 4 << 20, Warn: told.add})
	w.t.Cleanup(func() { c.Close() })
	return c, told
}

type warnings struct {
	mu   sync.Mutex
	text strings.Builder
}

func (w *warnings) add(s string) { w.mu.Lock(); defer w.mu.Unlock(); w.text.WriteString(s + "\n") }

func (w *warnings) String() string { w.mu.Lock(); defer w.mu.Unlock(); return w.text.String() }

// put stores a block of random bytes.
func (w *world) put(seed uint64, size int) keep.Locator {
	data := make([]byte, size)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), 7})
	_, _ = r.Read(data)
	return w.srv.Put(data)
}

// gets is how often the keepstore was asked for a block.
func (w *world) gets() (n int) {
	for _, r := range w.srv.Requests() {
		if r.Method == "GET" {
			n++
		}
	}
	return n
}

func (w *world) path(loc keep.Locator) string {
	return filepath.Join(w.dir, loc.Hash()[:3], loc.Hash()+".keepcacheblock")
}

// blocks counts what is in the directory.
func (w *world) blocks() (n int, bytes int64) {
	names, _ := filepath.Glob(filepath.Join(w.dir, "???", "*.keepcacheblock"))
	for _, name := range names {
		if info, err := os.Stat(name); err == nil {
			n++
			bytes += info.Size()
		}
	}
	return n, bytes
}

// read reads a block in ranges and as a whole; both must be right.
func (w *world) read(c *Cache, loc keep.Locator) {
	w.t.Helper()
	want := w.srv.Block(loc.Hash())
	part := make([]byte, len(want)/3)
	if _, err := c.ReadBlockAt(w.t.Context(), loc, part, int64(len(want)/2)); err != nil || string(part) != string(want[len(want)/2:][:len(part)]) {
		w.t.Errorf("range of %s: wrong data, or %v", loc.WithoutHints(), err)
	}
	if data, err := c.ReadBlock(w.t.Context(), loc); err != nil || hashOf(data) != loc.Hash() {
		w.t.Errorf("block %s: wrong data, or %v", loc.WithoutHints(), err)
	}
}

// tmpfs puts the directory onto a file system of so many bytes.
func (w *world) tmpfs(size int) {
	w.t.Helper()
	if os.Getuid() != 0 {
		w.t.Skip("mounting needs root")
	}
	mnt := w.t.TempDir()
	if err := unix.Mount("tmpfs", mnt, "tmpfs", 0, "size="+strconv.Itoa(size)); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = unix.Unmount(mnt, unix.MNT_DETACH) })
	w.dir = filepath.Join(mnt, "keep")
}

func hashOf(data []byte) string {
	sum := md5.Sum(data)
	return hex.EncodeToString(sum[:])
}

func waitFor(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for start := time.Now(); !cond(); time.Sleep(2 * time.Millisecond) {
		if time.Since(start) > time.Minute {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}
