package mount

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"crunch-oci/keep"
)

// fsxOps is the number of operations of one test.
func fsxOps(short, long int) int {
	if n, err := strconv.Atoi(os.Getenv("KEEP_TEST_FSX_OPS")); err == nil {
		return n
	}
	if os.Getenv("KEEP_TEST_LONG") != "" {
		return long
	}
	return short
}

func TestFsx(t *testing.T) {
	w, dir := mountTmp(t)
	x := &fsx{t: t, rnd: rand.New(rand.NewSource(1)), dir: dir, ops: fsxOps(1500, 200_000)}
	x.run()
	x.check(w)
}

// check compares what is stored with the model.
func (x *fsx) check(w *world) {
	n := 0
	for _, top := range x.tops {
		c := w.saved(x.dir + "/" + top)
		must(x.t, c.Walk("", func(name string, info keep.FileInfo) error {
			if info.IsDir() || !strings.HasPrefix(name, x.mine) {
				return nil
			}
			n++
			if file := x.model[top+name]; file == nil || content(x.t, c, name) != string(file.data) {
				x.t.Errorf("%s: %d bytes are stored, not the right ones", top+name, info.Size())
			}
			return nil
		}))
	}
	if n != len(x.model) {
		x.t.Errorf("%d files are stored, want %d", n, len(x.model))
	}
}

// The same with a keepstore that fails every fifth request, and a client that
// does not try again.
func TestFsxFlakyKeep(t *testing.T) {
	w := newWorld(t)
	flaky := newFlakyKeep(t, w)
	w.mount("--mount-tmp", "tmp0", "--ram-cache", "--file-cache", fmt.Sprint(1<<20))
	x := &fsx{t: t, rnd: rand.New(rand.NewSource(3)), dir: w.path("tmp0"), flaky: true, ops: fsxOps(1500, 200_000)}
	x.run()
	flaky.recover(x)
	waitFor(t, "Keep's return", func() bool {
		_, err := os.ReadFile(x.dir + "/" + recordName)
		return err == nil
	})
	x.check(w)
}

// flakyKeep stands before a keepstore and fails every fifth request.
type flakyKeep struct {
	mu            sync.Mutex
	rnd           *rand.Rand
	well          bool
	seen, refused int
}

func newFlakyKeep(t *testing.T, w *world) *flakyKeep {
	k := &flakyKeep{rnd: rand.New(rand.NewSource(2))}
	real := w.url
	w.url = newHTTPServer(t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		k.mu.Lock()
		fail := !k.well && k.rnd.Intn(5) == 0
		how := k.rnd.Intn(3)
		k.seen++
		if fail {
			k.refused++
		}
		k.mu.Unlock()
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
	return k
}

// recover ends the failures, of which there must have been some.
func (k *flakyKeep) recover(x *fsx) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.well = true
	x.t.Logf("%d of %d requests and %d calls have failed", k.refused, k.seen, x.failures)
	if k.refused == 0 || x.failures == 0 {
		x.t.Error("nothing has failed")
	}
}

// The same on a collection with a record, which is mounted anew now and then.
func TestFsxSaved(t *testing.T) {
	w, dir := mountSaved(t, func(*world) string { return "" }, "--refresh-time", "0.5")
	x := &fsx{t: t, rnd: rand.New(rand.NewSource(4)), dir: dir, ops: fsxOps(600, 20_000), again: func() { w.remount("--refresh-time", "0.5") }}
	x.run()
	x.check(w)
}

// With a keepstore that fails every fifth request, and an API server that saves
// not always.
func TestFsxSavedFlaky(t *testing.T) {
	w := newWorld(t)
	flaky := newFlakyKeep(t, w)
	w.upstream("")
	w.mount("--refresh-time", "0.5")
	x := &fsx{t: t, rnd: rand.New(rand.NewSource(5)), dir: w.path("by_uuid", savedUUID), flaky: true, ops: fsxOps(600, 20_000)}
	refuse, rnd := filepath.Join(w.api, savedUUID+".refuse"), rand.New(rand.NewSource(6))
	x.before = func() {
		if rnd.Intn(2) == 0 {
			must(t, os.WriteFile(refuse, []byte("503 try later"), 0o600))
		} else {
			_ = os.Remove(refuse)
		}
	}
	x.run()
	_ = os.Remove(refuse)
	flaky.recover(x)
	waitFor(t, "Keep's return", func() bool {
		_, err := os.ReadFile(x.dir + "/" + recordName)
		return err == nil
	})
	x.check(w)
	w.remount()
	x.verify()
}

// Two nodes do it to the same collection at the same time, each with its own files.
func TestFsxTwoNodes(t *testing.T) {
	w, one := mountSaved(t, func(*world) string { return "" }, "--refresh-time", "0.05")
	other := w.another("--refresh-time", "0.05")
	nodes := []*fsx{
		{t: t, rnd: rand.New(rand.NewSource(7)), dir: one, mine: "1"},
		{t: t, rnd: rand.New(rand.NewSource(8)), dir: other.path("by_uuid", savedUUID), mine: "2"},
	}
	var wg sync.WaitGroup
	for _, x := range nodes {
		x.ops = fsxOps(400, 10_000)
		wg.Add(1)
		go func() {
			defer wg.Done() // also when a check has ended the goroutine
			x.run()
		}()
	}
	wg.Wait()
	// Each has the other's files, and nothing was taken for a conflict.
	files := len(nodes[0].model) + len(nodes[1].model)
	for i, x := range nodes {
		waitFor(t, "the other's files", func() bool {
			for name, file := range nodes[1-i].model {
				if data, err := os.ReadFile(x.dir + "/" + name); err != nil || !bytes.Equal(data, file.data) {
					return false
				}
			}
			return true
		})
		x.check(w)
	}
	if on := w.onRecord(); len(on) != files+2 {
		t.Errorf("%d names on record, want %d", len(on), files+2)
	}
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

// Several programs write to their parts of one file, and append to another one,
// while that is stored and renamed all the time.
func TestConcurrentWriters(t *testing.T) {
	for name, mount := range map[string]func() (*world, string){
		"new": func() (*world, string) { return mountTmp(t) },
		"saved": func() (*world, string) {
			return mountSaved(t, func(*world) string { return "" }, "--refresh-time", "0.05")
		},
	} {
		t.Run(name, func(t *testing.T) {
			const writers, part, steps = 4, 40_000, 60
			w, dir := mount()
			must(t, os.WriteFile(dir+"/f0", make([]byte, writers*part), 0o666))
			files := make([]*os.File, writers)
			for i := range files {
				f, err := os.OpenFile(dir+"/f0", os.O_RDWR, 0)
				must(t, err)
				files[i] = f
			}
			model := make([]byte, writers*part)
			var wg sync.WaitGroup
			for i, f := range files {
				log, err := os.OpenFile(dir+"/log", os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o666)
				must(t, err)
				wg.Go(func() {
					rnd := rand.New(rand.NewSource(int64(i)))
					mine := model[i*part : (i+1)*part]
					for range steps {
						off := rnd.Intn(part)
						p := mine[off : off+rnd.Intn(part-off)]
						rnd.Read(p)
						got := make([]byte, len(p))
						_, err := f.WriteAt(p, int64(i*part+off))
						if err == nil {
							_, err = f.ReadAt(got, int64(i*part+off))
						}
						if err != nil || !bytes.Equal(got, p) {
							t.Errorf("writer %d: %v, or other content than was written", i, err)
							return
						}
						if _, err := fmt.Fprintf(log, "%d\n", i); err != nil {
							t.Error(err)
						}
					}
					if err := errors.Join(f.Close(), log.Close()); err != nil {
						t.Error(err)
					}
				})
			}
			done := make(chan struct{})
			go func() { wg.Wait(); close(done) }()
			now := "f0"
			for i, busy := 1, true; busy; i++ {
				next := fmt.Sprint("f", i)
				must(t, os.Rename(dir+"/"+now, dir+"/"+next))
				now = next
				record(t, dir)
				select {
				case <-done:
					busy = false
				default:
				}
			}
			c := w.saved(dir)
			if content(t, c, now) != string(model) {
				t.Error("the file is stored wrongly")
			}
			if n := len(content(t, c, "log")); n != 2*writers*steps {
				t.Errorf("%d bytes in the log, want %d", n, 2*writers*steps)
			}
		})
	}
}
