package supervisor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"crunch-oci/arvados"
	"crunch-oci/imagestore"
	"crunch-oci/internal/syncbuf"
	"crunch-oci/keep"
	"crunch-oci/keep/keeptest"
	"crunch-oci/oci"
	"crunch-oci/supervisor/joblog"
	"crunch-oci/supervisor/rundir"
	"crunch-oci/supervisor/unfinished"
)

// world is everything around one supervisor: a node and a cluster. Whatever is
// done to it goes through op, which writes the trace and makes trouble.
type world struct {
	t   *testing.T
	dir string
	sup *Supervisor

	api     *fakeAPI
	keep    *keeptest.Server
	mounter *fakeMounter
	runtime *fakeRuntime
	stderr  syncbuf.Buffer
	logTree *keep.Collection
	image   string // name of the tarball

	ctx, stopping context.Context
	giveUp, stop  context.CancelCauseFunc

	client  *arvados.Client
	closers []func() error

	mu    sync.Mutex
	trace []string
	ops   []string
	// at calls trouble before the operation of that number, from 1; 0: never.
	at      int
	before  int // length of the trace at the time of trouble
	trouble func(ctx context.Context, op string) error

	fail func(ctx context.Context, op string) error // may be nil

	immortal bool // containers survive Kill, and everything

	broken []string // errors that marked the node
	err    error    // of Run
}

// newWorld makes a world in which a run succeeds.
func newWorld(t *testing.T) *world {
	t.Helper()
	fds := openFiles(t)
	w := &world{t: t, dir: t.TempDir(), keep: new(keeptest.Server)}
	t.Cleanup(func() {
		w.close()
		w.checkNothingLeft(fds)
	})
	w.ctx, w.giveUp = context.WithCancelCause(context.Background())
	w.stopping, w.stop = context.WithCancelCause(context.Background())
	w.api = startAPI(w)
	client := w.api.client(t)
	w.closers = append(w.closers, func() error { w.api.Close(); return nil }, func() error { client.Close(); return nil })
	services := keep.FixedServices{w.keep.Start(t)}

	data, id := tarball(t)
	w.image = id + ".tar"
	pdh := w.store("IMAGE", w.image, data)
	w.api.record = map[string]any{
		"uuid": testUUID, "state": "Locked", "command": []string{"./cmd", "arg"}, "container_image": pdh, "cwd": ".",
		"environment": map[string]any{"FOO": "bar"}, "mounts": map[string]any{"/out": map[string]any{"kind": "tmp"}},
		"output_path": "/out", "priority": 1, "runtime_constraints": map[string]any{"ram": 1000000, "vcpus": 1},
		"output_storage_classes": []string{"default"}, "output": nil, "log": nil, "exit_code": nil, "gateway_address": nil,
	}
	w.api.secrets = make(map[string]any)
	account := func(token string, classes []string) *fakeAccount {
		c, err := keep.NewClient(keep.ClientConfig{
			Services: services, Token: token, Retries: -1, DefaultReplication: 1, StorageClasses: classes,
			// With one try, a time-out that fits real machines is one of the test.
			HTTPClient: &http.Client{Transport: new(http.Transport)}, IdleTimeout: watchdog,
		})
		if err != nil {
			t.Fatal(err)
		}
		a := &fakeAccount{api: client.WithToken(token), client: c, blocks: keep.NewCache(c, 1<<20)}
		w.closers = append(w.closers, a.close)
		return a
	}
	var err error
	if w.logTree, err = account(dispatcherToken, nil).NewCollection(); err != nil {
		t.Fatal(err)
	}
	w.closers = append(w.closers, w.logTree.Close)
	w.client = client
	store, err := imagestore.Open(w.mkdir("store"), imagestore.Options{})
	if err != nil {
		t.Fatal(err)
	}
	w.closers = append(w.closers, func() error { store.Close(context.Background()); return nil })
	runDir, err := rundir.Create(t.Context(), w.mkdir("run"), testUUID, nil)
	if err != nil {
		t.Fatal(err)
	}
	w.closers = append(w.closers, func() error { return runDir.Remove(nil) })
	w.mounter = &fakeMounter{w: w}
	w.runtime = &fakeRuntime{w: w, program: writeResult}
	began := time.Date(2026, 1, 2, 11, 0, 0, 0, time.UTC)
	var asked atomic.Bool
	w.sup = &Supervisor{
		UUID: testUUID, Version: "1.0 (go1.26)", Identity: "uid=0(root) gid=0(root) groups=0(root)",
		Log: w.newLog(nil), Records: client, Login: func(token string, classes []string) (Account, error) { return account(token, classes), nil },
		Mounter: w.mounter, Images: fakeImages{store, w}, Runtime: w.runtime, Meter: fakeMeter{w.runtime}, GPUs: &fakeGPUs{w: w},
		RunDir: runDir, Scratch: w.mkdir("scratch"),
		Network: func(api bool) (Network, error) {
			if api {
				return Network{Kind: oci.NetworkHost}, nil
			}
			return Network{Kind: oci.NetworkNone}, nil
		},
		Cgroup: func(context.Context, int) (string, error) { return "/crunch-run/" + testUUID, nil }, Gateway: fakeGateway{new([]string)}, HourlyPrice: 1.5,
		TempDir: w.dir, NodeJSON: []byte(`{"Price":1.5}`), StatsInterval: time.Hour,
		MarkBroken: func(_ context.Context, err error) {
			w.note("mark node as broken")
			w.broken = append(w.broken, err.Error())
		},
		Unfinished: unfinished.Dir(filepath.Join(w.dir, "unfinished")), APIHost: "api.example",
		Observer: observer{w},
		// Every run takes two hours.
		Now: func() time.Time {
			if !asked.Swap(true) {
				return began
			}
			return began.Add(2 * time.Hour)
		},
	}
	return w
}

// newLog makes the log; saving, if not nil, is called at the begin of a save.
func (w *world) newLog(saving func(context.Context)) *joblog.Log {
	log, err := joblog.New(joblog.Config{
		UUID: testUUID, Tree: noticing{joblog.InCollection(w.logTree), saving}, Saver: fakeSaver{w.client}, Stderr: &w.stderr,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return log
}

// noticing is a tree that tells when it is saved.
type noticing struct {
	joblog.Tree
	saving func(context.Context)
}

func (n noticing) MarshalManifest(ctx context.Context) (string, error) {
	if n.saving != nil {
		n.saving(ctx)
	}
	return n.Tree.MarshalManifest(ctx)
}

// writeResult is the program that most tests run.
func writeResult(g *guest) int {
	_, _ = io.WriteString(g.stdout, "hello\n")
	_, _ = io.WriteString(g.stderr, "warning\n")
	if os.WriteFile(filepath.Join(g.host("/out"), "result"), []byte("1"), 0o644) != nil {
		return 99
	}
	return 0
}

// untilStopped is what writeResult does if nobody stops the run before it is
// waited for.
func untilStopped(w *world) func(*guest) int {
	return func(g *guest) int {
		code := writeResult(g)
		select {
		case <-g.awaited:
		case <-g.killed:
		}
		if w.stopping.Err() != nil {
			<-g.killed
		}
		return code
	}
}

// untilKilled is a program that ends only when it must.
func untilKilled(g *guest) int {
	<-g.killed
	return 0
}

func exits(code int) func(*guest) int { return func(*guest) int { return code } }

// store makes a collection with one file and returns its portable data hash,
// which traces call by the name given.
func (w *world) store(name, file string, data []byte) string {
	return w.collection(name, fmt.Sprintf(". %s 0:%d:%s\n", w.keep.Put(data), len(data), file))
}

func (w *world) collection(name, manifest string) string {
	pdh := w.api.put(manifest)
	w.api.names[pdh] = name
	return pdh
}

// mount adds a mount to the record.
func (w *world) mount(target string, m map[string]any) {
	w.api.record["mounts"].(map[string]any)[target] = m
}

// input mounts a collection with one file, which takes a FUSE server.
func (w *world) input() {
	w.mount("/in", map[string]any{"kind": "collection", "portable_data_hash": w.store("INPUT", "data", []byte("input"))})
}

func (w *world) mkdir(name string) string {
	path := filepath.Join(w.dir, name)
	if err := os.Mkdir(path, 0o700); err != nil {
		w.t.Fatal(err)
	}
	return path
}

// run runs the supervisor to its end.
func (w *world) run() {
	w.t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.err = w.sup.Run(w.ctx, w.stopping)
	}()
	select {
	case <-done:
	case <-time.After(watchdog):
		w.note("HANGS")
		w.t.Errorf("the run does not end; so far:\n%s", strings.Join(w.trace, "\n"))
		w.giveUp(errors.New("watchdog"))
		<-done
	}
	// Waits for requests whose client has gone.
	w.api.Close()
	w.checkInvariants()
}

// watchdog ends what should have ended long before.
const watchdog = 2 * time.Minute

// op is an operation that waits for ctx at most, and can fail.
func (w *world) op(ctx context.Context, name string) error {
	w.note(name)
	w.mu.Lock()
	w.ops = append(w.ops, name)
	meddle := w.at == len(w.ops)
	if meddle {
		w.before = len(w.trace)
	}
	w.mu.Unlock()
	if strings.HasPrefix(name, "container POST collections") || strings.Contains(name, `"state":"C`) {
		for _, p := range w.runtime.made {
			if p.alive() && !w.immortal {
				w.t.Errorf("%s: while the container is alive", name)
			}
		}
	}
	if meddle {
		return w.trouble(ctx, name)
	}
	if w.fail != nil {
		return w.fail(ctx, name)
	}
	return nil
}

// cleanupOp is an operation that nothing may interrupt.
func (w *world) cleanupOp(ctx context.Context, name string) error {
	if ctx.Err() != nil {
		w.t.Errorf("%s: it is cancelled", name)
	}
	return w.op(context.WithoutCancel(ctx), name)
}

func (w *world) note(line string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if n := len(w.trace); n == 0 || w.trace[n-1] != line { // retries are one
		w.trace = append(w.trace, line)
	}
}

// observer puts the steps into the trace.
type observer struct{ w *world }

func (o observer) Step(name string)                { o.w.note("step: " + name) }
func (observer) ImageProgress(imagestore.Progress) {}
func (observer) Output(string) io.Writer           { return io.Discard }
func (o observer) Started(time.Time)               {}
func (o observer) Ended(u Usage)                   { o.w.note(fmt.Sprintf("ended with %d", u.ExitCode)) }

// checkInvariants checks what holds after every run, however it went.
func (w *world) checkInvariants() {
	w.t.Helper()
	for _, p := range w.runtime.made {
		if (p.alive() || !p.deleted) && !w.immortal {
			w.t.Errorf("container left behind (alive %v)", p.alive())
		}
	}
	if !w.mounter.allExited() {
		w.t.Error("FUSE server left behind")
	}
	if m := mountsBelow(w.t, w.dir); len(m) > 0 {
		w.t.Errorf("mounts left behind: %v", m)
	}
	said := w.stderr.String()
	for _, c := range w.api.called() {
		said += fmt.Sprint(c.Params)
	}
	for _, text := range w.savedFiles() {
		said += text
	}
	for _, secret := range []string{"secretsecret", "dispatchersecret"} {
		if strings.Contains(said, secret) {
			w.t.Errorf("secret %q is told:\n%s", secret, said)
		}
	}
	// A container that is final has let go of everything.
	final := -1
	for i, line := range w.trace {
		if strings.Contains(line, `"state":"Complete"`) || strings.Contains(line, `"state":"Cancelled"`) {
			final = i
		}
	}
	for i, line := range w.trace {
		for _, late := range []string{"delete container", "stop FUSE server", "kill container"} {
			if line == late && final >= 0 && i > final {
				w.t.Errorf("%q comes after the final update", line)
			}
		}
	}
}

// close takes the world apart.
func (w *world) close() {
	w.giveUp(nil)
	w.stop(nil)
	for _, m := range mountsBelow(w.t, w.dir) {
		_ = unix.Unmount(m, unix.MNT_DETACH)
	}
	for _, f := range slices.Backward(w.closers) {
		if err := f(); err != nil {
			w.t.Error(err)
		}
	}
}

// checkNothingLeft checks that the process is as it was.
func (w *world) checkNothingLeft(before []string) {
	// Servers that have been closed still end their connections, which goleak
	// gives half a second: not enough where many want the processors.
	var leak error
	var after []string
	again := time.NewTicker(10 * time.Millisecond)
	defer again.Stop()
	for began := time.Now(); time.Since(began) < watchdog; <-again.C {
		leak = goleak.Find(goleak.IgnoreAnyFunction("crunch-oci/internal/forkthread.serve"))
		if after = openFiles(w.t); leak == nil && len(after) <= len(before) {
			return
		}
	}
	if leak != nil {
		w.t.Error(leak)
	}
	if len(after) > len(before) {
		w.t.Errorf("open files\n%q, before\n%q", after, before)
	}
}

// openFiles lists what the descriptors of this process point to, without those
// of the Go runtime itself, and without the handle of procfs that filepath-securejoin
// opens once and keeps.
func openFiles(t testing.TB) (list []string) {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		name := "/proc/self/fd/" + fd.Name()
		target, err := os.Readlink(name)
		var fs unix.Statfs_t
		if err == nil && target == "/" && unix.Statfs(name, &fs) == nil && fs.Type == unix.PROC_SUPER_MAGIC {
			continue
		}
		if err == nil && target != "anon_inode:[eventpoll]" && target != "anon_inode:[eventfd]" {
			list = append(list, target)
		}
	}
	return list
}

func mountsBelow(t testing.TB, dir string) (list []string) {
	t.Helper()
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if path := strings.Fields(line)[4]; strings.HasPrefix(path, dir+"/") {
			list = append(list, path)
		}
	}
	return list
}

// savedFiles is the content of the log collection as last saved.
func (w *world) savedFiles() map[string]string { return w.files(w.api.collections[w.api.savedLog]) }

// files is the content of the files at the top of a manifest.
func (w *world) files(manifest string) map[string]string {
	w.t.Helper()
	files := make(map[string]string)
	if manifest == "" {
		return files
	}
	c, err := keep.NewCollection(manifest, memoryOf{w.keep})
	if err != nil {
		w.t.Fatal(err)
	}
	for _, name := range topFiles(manifest) {
		f, err := c.Open(name)
		if err != nil {
			w.t.Fatal(err)
		}
		text, err := io.ReadAll(f)
		if err != nil {
			w.t.Fatal(err)
		}
		files[name] = string(text)
		_ = f.Close()
	}
	return files
}

// memoryOf reads the blocks of a server without asking it.
type memoryOf struct{ *keeptest.Server }

func (m memoryOf) ReadBlock(_ context.Context, loc keep.Locator) ([]byte, error) {
	return m.Block(loc.Hash()), nil
}

func (m memoryOf) WriteBlock(context.Context, []byte, keep.WriteOptions) (keep.Locator, error) {
	return keep.Locator{}, errors.ErrUnsupported
}

var stamp = regexp.MustCompile(`(?m)^(` + testUUID + ` )?\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z `)

// messages are the lines of crunch-run.txt as last saved.
func (w *world) messages() string { return w.readable(w.savedFiles()["crunch-run.txt"]) }

// said are the lines on stderr.
func (w *world) said() string { return w.readable(w.stderr.String()) }

// readable takes out of a log what differs from run to run.
func (w *world) readable(text string) string {
	host, _ := os.Hostname()
	text = stamp.ReplaceAllString(text, "")
	text = strings.NewReplacer(w.dir, "DIR", "'"+host+"'", "'HOST'", testUUID, "UUID", strings.TrimSuffix(w.image, ".tar"), "sha256:IMAGE",
		strings.TrimPrefix(w.api.URL, "https://"), "API").Replace(text)
	for pdh, name := range w.api.names {
		text = strings.ReplaceAll(text, pdh, name)
	}
	return requestID.ReplaceAllString(text, "req-ID")
}

var requestID = regexp.MustCompile(`req-[0-9a-z]{20}`)
