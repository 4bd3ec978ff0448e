package imagestore

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"crunch-oci/imagestore/archive"
	"crunch-oci/imagestore/internal/imagetest"
	. "crunch-oci/imagestore/internal/tartest"
	"crunch-oci/imagestore/internal/treetest"
	"crunch-oci/internal/leaktest"
)

// TestMain runs the test binary as another user of a store if it is told to.
func TestMain(m *testing.M) {
	if os.Getenv("IMAGESTORE_TEST_USER") != "" {
		if err := otherUser(os.Args[1:]); err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	leaktest.Main(m)
}

// otherUser unpacks the tarball args[1] with the id args[2] into the store
// args[0]. It says on its standard output what it does, and stops after reading
// args[3] bytes, until it is told to go on.
func otherUser(args []string) error {
	s, err := Open(args[0], Options{})
	if err != nil {
		return err
	}
	f, err := os.Open(args[1])
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err != nil {
		return err
	}
	pauseAt, err := strconv.ParseInt(args[3], 10, 64)
	if err != nil {
		return err
	}
	fmt.Println("started")
	snap, err := s.Unpack(context.Background(), Key{ID: args[2]}, func(ctx context.Context) (*archive.Image, error) {
		fmt.Println("opened")
		return archive.Open(ctx, &pausing{r: f, left: pauseAt}, st.Size(), archive.Options{WantID: args[2]})
	}, nil)
	if err != nil {
		return err
	}
	fmt.Println("unpacked")
	_, _ = io.Copy(io.Discard, os.Stdin) // holds the image until then
	return snap.Close()
}

type pausing struct {
	r    io.ReaderAt
	mu   sync.Mutex
	left int64
}

func (p *pausing) ReadAt(b []byte, off int64) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	n, err := p.r.ReadAt(b, off)
	if p.left > 0 {
		if p.left -= int64(n); p.left <= 0 {
			fmt.Println("paused")
			_, _ = bufio.NewReader(os.Stdin).ReadString('\n')
		}
	}
	return n, err
}

// process is another user of a store.
type process struct {
	t     *testing.T
	cmd   *exec.Cmd
	stdin io.WriteCloser
	lines chan string
	end   sync.Once
}

func startUser(t *testing.T, store, tarball, id string, pauseAt int64) *process {
	t.Helper()
	cmd := exec.Command(os.Args[0], store, tarball, id, fmt.Sprint(pauseAt))
	cmd.Env = append(os.Environ(), "IMAGESTORE_TEST_USER=1")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &process{t: t, cmd: cmd, stdin: in, lines: make(chan string, 100)}
	go func() {
		defer close(p.lines)
		sc := bufio.NewScanner(out)
		for sc.Scan() {
			p.lines <- sc.Text()
		}
	}()
	t.Cleanup(p.kill)
	return p
}

// until waits for a line and gives those before it.
func (p *process) until(want string) []string {
	p.t.Helper()
	var seen []string
	for line := range p.lines {
		if line == want {
			return seen
		}
		seen = append(seen, line)
	}
	p.t.Fatalf("the other process ended after %q, before %q", seen, want)
	return nil
}

func (p *process) kill() {
	p.end.Do(func() {
		if p.cmd.ProcessState == nil {
			_ = p.cmd.Process.Kill()
			for range p.lines {
			}
			_ = p.cmd.Wait()
		}
	})
}

// image for the tests with processes: enough files that there is something to
// interrupt.
func processImage(t *testing.T) (m imagetest.Image, tarball string, want map[string]string) {
	t.Helper()
	rnd := rand.New(rand.NewPCG(9, 9))
	for l := range 3 {
		var es []Entry
		for i := range 60 {
			es = append(es, File(fmt.Sprintf("l%d/d%d/f%d", l, i%7, i), strings.Repeat(fmt.Sprint(i), rnd.IntN(20000))))
		}
		m.Layers = append(m.Layers, Tar(t, es...))
	}
	tarball = filepath.Join(t.TempDir(), "image.tar")
	if err := os.WriteFile(tarball, Tar(t, imagetest.DockerLegacy(m, false)...), 0o600); err != nil {
		t.Fatal(err)
	}
	snap := unpack(t, openStore(t, t.TempDir()), m)
	return m, tarball, list(t, mount(t, snap), treetest.Options{})
}

// Four processes want an image; one unpacks it, all get it.
func TestProcessesUnpackOnce(t *testing.T) {
	m, tarball, want := processImage(t)
	root := smallFS(t, "size=128m") // quicker than a disk
	var ps []*process
	for range 4 {
		ps = append(ps, startUser(t, root, tarball, m.ID(), 0))
	}
	opened := 0
	for _, p := range ps {
		for _, line := range p.until("unpacked") {
			if line == "opened" {
				opened++
			}
		}
	}
	if opened != 1 {
		t.Errorf("the tarball was opened %d times", opened)
	}
	s := openStore(t, root)
	snap, err := s.Lookup(Key{ID: m.ID()})
	if err != nil {
		t.Fatal(err)
	}
	defer snap.Close()
	compare(t, "", want, list(t, mount(t, snap), treetest.Options{}))
}

// A process waits for another one; that one is killed; the first takes over.
func TestTakeOverFromTheDead(t *testing.T) {
	m, tarball, want := processImage(t)
	root := smallFS(t, "size=128m") // quicker than a disk
	p := startUser(t, root, tarball, m.ID(), 1<<20)
	p.until("paused")
	b, err := os.ReadFile(tarball)
	if err != nil {
		t.Fatal(err)
	}
	s := openStore(t, root) // does not disturb the living
	var once sync.Once
	snap, err := s.Unpack(t.Context(), Key{ID: m.ID()}, opener(b, archive.Options{WantID: m.ID()}), func(pr Progress) {
		if pr.Waiting {
			once.Do(func() { go p.kill() })
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	defer snap.Close()
	compare(t, "", want, list(t, mount(t, snap), treetest.Options{}))
	tidyUp(t, s)
	checkTidy(t, root)
}

func TestWaitingCanBeCancelled(t *testing.T) {
	m, tarball, _ := processImage(t)
	root := smallFS(t, "size=128m") // quicker than a disk
	p := startUser(t, root, tarball, m.ID(), 1<<20)
	p.until("paused")
	ctx, cancel := context.WithCancel(t.Context())
	_, err := openStore(t, root).Unpack(ctx, Key{ID: m.ID()}, nil, func(pr Progress) {
		if pr.Waiting {
			cancel()
		}
	})
	if err != context.Canceled {
		t.Errorf("error %v", err)
	}
	fmt.Fprintln(p.stdin, "go on")
	p.until("unpacked")
}

// Whenever a process is killed, what it leaves is never taken for complete, and
// the next one removes it.
func TestKilledAtAnyMoment(t *testing.T) {
	m, tarball, want := processImage(t)
	b, err := os.ReadFile(tarball)
	if err != nil {
		t.Fatal(err)
	}
	rounds := 14
	if testing.Short() {
		rounds = 6
	}
	rnd := rand.New(rand.NewPCG(1, uint64(time.Now().UnixNano())))
	for i := range rounds {
		root := smallFS(t, "size=128m") // quicker than a disk
		var p *process
		if i%2 == 0 { // at a point of the reading
			p = startUser(t, root, tarball, m.ID(), 1+rnd.Int64N(int64(len(b))))
			for line := range p.lines {
				if line == "paused" || line == "unpacked" {
					break
				}
			}
		} else { // at a point in time
			p = startUser(t, root, tarball, m.ID(), 0)
			p.until("opened")
			killer := time.NewTimer(time.Duration(rnd.Int64N(int64(100 * time.Millisecond))))
			<-killer.C
		}
		p.kill()
		s := openStore(t, root)
		if left, _ := os.ReadDir(filepath.Join(root, "tmp")); len(left) != 0 {
			t.Errorf("tmp holds %v", left)
		}
		snap, err := s.Unpack(t.Context(), Key{ID: m.ID()}, opener(b, archive.Options{WantID: m.ID()}), nil)
		if err != nil {
			t.Fatal(err)
		}
		compare(t, fmt.Sprint("round ", i), want, list(t, mount(t, snap), treetest.Options{}))
		snap.Close()
		tidyUp(t, s)
		checkTidy(t, root)
	}
}

// tidyUp waits for what is removed in the background.
func tidyUp(t testing.TB, s *Store) {
	t.Helper()
	s.background.tasks.Wait()
}

// checkTidy checks that a store holds nothing but complete things.
func checkTidy(t *testing.T, root string) {
	t.Helper()
	if left, _ := os.ReadDir(filepath.Join(root, "tmp")); len(left) != 0 {
		t.Errorf("tmp holds %v", left)
	}
	layers, _ := os.ReadDir(filepath.Join(root, "layers"))
	for _, l := range layers {
		for _, f := range []string{"fs", "facts.json", "state.json"} {
			if _, err := os.Lstat(filepath.Join(root, "layers", l.Name(), f)); err != nil {
				t.Error(err)
			}
		}
	}
}

// A layer that a living process uses is not removed.
func TestInUse(t *testing.T) {
	m, tarball, _ := processImage(t)
	root := smallFS(t, "size=128m") // quicker than a disk
	p := startUser(t, root, tarball, m.ID(), 0)
	p.until("unpacked")
	s := openStore(t, root)
	id := m.DiffIDs()[0].Encoded()
	if err := s.discard(id, false); err == nil {
		t.Error("a layer in use was removed")
	}
	p.stdin.Close()
	if err := p.cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if err := s.discard(id, false); err != nil {
		t.Error(err)
	}
	if _, err := s.Lookup(Key{ID: m.ID()}); err != ErrNotFound {
		t.Errorf("an image without one of its layers: %v", err)
	}
}
