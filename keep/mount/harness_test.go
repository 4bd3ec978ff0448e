package mount

import (
	"bufio"
	"bytes"
	"context"
	"crypto/md5"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"os/signal"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"crunch-oci/internal/forkthread"
	"crunch-oci/internal/mountns/mountnstest"
	"crunch-oci/internal/syncbuf"
	"crunch-oci/keep"
	"crunch-oci/keep/diskcache"
	"crunch-oci/keep/keepstore"
)

// The mount under test runs in a process of its own, this binary again: a
// process must not use the mount that it serves.
const roleVar = "MOUNT_TEST_ROLE"

func TestMain(m *testing.M) {
	switch os.Getenv(roleVar) {
	case "":
		os.Exit(mountnstest.Run(m))
	case "mount":
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
		defer stop()
		os.Exit(Command{"keep-mount-test", "1.0", connectTest}.Main(ctx, os.Args[1:], os.Getenv, os.Stdout, os.Stderr))
	case "parent":
		os.Exit(parentRole())
	case "reader":
		os.Exit(readerRole())
	}
}

// patience is for watchdogs: the machine may be busy.
const patience = 2 * time.Minute

const (
	token      = "v2/zzzzz-gj3su-aey2u9zwnz5ggdk/secretsecretsecretsecretsecretsecretsecretsecretse"
	signingKey = "kq0xw7g3mwd5s1v9h2c8rj4t6y0b3n5f7z9l1p3a5e7u9i1o3q"
)

// connectTest is the backend of a mount under test: the real Keep client with
// its cache, and an API whose answers are files.
func connectTest(ctx context.Context, opts Options) (Backend, error) {
	retries, _ := strconv.Atoi(os.Getenv("MOUNT_TEST_RETRIES"))
	client, err := keep.NewClient(keep.ClientConfig{
		Services: keep.FixedServices{{UUID: "zzzzz-bi6l4-000000000000000", URL: os.Getenv("MOUNT_TEST_KEEP"), Type: "disk"}},
		Token:    token,
		Retries:  retries - 1,
		// The minutes of the real policy, compressed.
		RetryDelay: func(int) time.Duration { return 50 * time.Millisecond },
		// The keepstore has one volume.
		DefaultReplication: 1,
	})
	if err != nil {
		return Backend{}, err
	}
	ttl, _ := strconv.Atoi(os.Getenv("MOUNT_TEST_TTL"))
	if opts.Cache == DiskCache {
		cache := diskcache.Open(diskcache.Config{Source: client, Dir: opts.CacheDir, Warn: opts.Warn,
			Limit: diskcache.Limit{Bytes: opts.CacheBytes, Percent: opts.CachePercent}})
		return Backend{
			API: fileAPI(os.Getenv("MOUNT_TEST_API")), Blocks: cache, SignatureTTL: time.Duration(ttl) * time.Second,
			Close: func() error { return errors.Join(cache.Close(), client.Close()) },
		}, nil
	}
	cacheSize := opts.CacheBytes
	if cacheSize == 0 {
		cacheSize = 256 << 20
	}
	cache := keep.NewCache(client, cacheSize)
	return Backend{
		API:          fileAPI(os.Getenv("MOUNT_TEST_API")),
		Blocks:       cache,
		InMemory:     true,
		SignatureTTL: time.Duration(ttl) * time.Second,
		Counters: func() Counters {
			st := cache.Stats()
			return Counters{Gets: st.Hits + st.Misses, Hits: st.Hits, Misses: st.Misses}
		},
		Close: func() error { return errors.Join(cache.Close(), client.Close()) },
	}, nil
}

// fileAPI answers with the file ID in a directory: a record as JSON, or the
// text of a temporary error. No file means that there is no such record. Each
// request is noted by one byte in the file ID.requests.
type fileAPI string

func (dir fileAPI) Collection(ctx context.Context, id string) (Record, error) {
	f, err := os.OpenFile(filepath.Join(string(dir), id+".requests"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return Record{}, err
	}
	_, _ = f.WriteString(".")
	f.Close()
	text, err := os.ReadFile(filepath.Join(string(dir), id))
	if errors.Is(err, fs.ErrNotExist) {
		return Record{}, fmt.Errorf("collection %s: 404 Path not found: %w", id, fs.ErrNotExist)
	}
	if err != nil {
		return Record{}, err
	}
	var rec Record
	if json.Unmarshal(text, &rec) != nil {
		return Record{}, errors.New(string(text))
	}
	return rec, nil
}

// SaveCollection replaces the file ID, unless there is a file ID.refuse with
// "403" or the text of another error in it. Each request is noted in ID.saves: as r
// if single files are to be replaced, as w if the whole manifest is. A file ID.replace says what becomes of replace, "ignore" or "refuse"; with "nothing" in
// it nothing is ever replaced.
func (dir fileAPI) SaveCollection(ctx context.Context, id, manifest string, replace map[string]string) (Record, error) {
	f, err := os.OpenFile(filepath.Join(string(dir), id+".saves"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return Record{}, err
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		return Record{}, err
	}
	if replace != nil {
		_, _ = f.WriteString("r")
	} else {
		_, _ = f.WriteString("w")
	}
	if text, err := os.ReadFile(filepath.Join(string(dir), id+".refuse")); err == nil {
		if string(text) == "403" {
			return Record{}, fmt.Errorf("403 %w", fs.ErrPermission)
		}
		return Record{}, errors.New(string(text))
	}
	rec, err := dir.Collection(ctx, id)
	if err != nil {
		return Record{}, err
	}
	how, _ := os.ReadFile(filepath.Join(string(dir), id+".replace"))
	if string(how) == "nothing" {
		return rec, nil
	}
	if replace != nil && string(how) == "refuse" {
		return Record{}, fmt.Errorf("422: %w", ErrNoReplace)
	}
	switch {
	case replace == nil:
	case string(how) == "ignore":
		if !slices.ContainsFunc(slices.Collect(maps.Values(replace)), func(source string) bool { return source != "" }) {
			return rec, nil // no manifest_text was sent
		}
	default:
		if manifest, err = replaceFiles(rec.ManifestText, manifest, replace); err != nil {
			return Record{}, fmt.Errorf("%w: %w", ErrNoReplace, err)
		}
	}
	rec.ManifestText, rec.PortableDataHash, rec.ModifiedAt = manifest, keep.PortableDataHash(manifest), time.Now()
	text, err := json.Marshal(rec)
	if err != nil {
		return Record{}, err
	}
	tmp := filepath.Join(string(dir), id+".new")
	if err := os.WriteFile(tmp, text, 0o600); err != nil {
		return Record{}, err
	}
	return rec, os.Rename(tmp, filepath.Join(string(dir), id))
}

// replaceFiles does what the parameter of that name asks for.
func replaceFiles(current, manifest string, replace map[string]string) (string, error) {
	c, err := keep.NewCollection(current, nil)
	if err != nil {
		return "", err
	}
	src, err := keep.NewCollection(manifest, nil)
	if err != nil {
		return "", err
	}
	for _, target := range slices.Sorted(maps.Keys(replace)) {
		if source := replace[target]; source == "" {
			err = c.RemoveAll(target[1:])
		} else if err = c.MkdirAll(path.Dir(target[1:])); err == nil {
			err = c.Splice(target[1:], src, strings.TrimPrefix(source, "manifest_text/"))
		}
		if err != nil {
			return "", err
		}
	}
	return c.MarshalManifest(context.Background())
}

// world is a keepstore, an API and a mount of both.
type world struct {
	t      testing.TB
	store  *keepstore.Server
	signer keep.Signer
	url    string
	api    string // directory of fileAPI
	root   string // of the volume
	dir    string // mount point
	cmd    *exec.Cmd
	exited chan struct{}
	stderr *syncbuf.Buffer
}

func newWorld(t testing.TB) *world {
	t.Helper()
	return newWorldTTL(t, 336*time.Hour)
}

// newWorldTTL is newWorld with block signatures that last for ttl.
func newWorldTTL(t testing.TB, ttl time.Duration) *world {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
	w := &world{t: t, api: t.TempDir(), root: t.TempDir(), dir: t.TempDir(), stderr: new(syncbuf.Buffer)}
	w.signer = keep.Signer{Key: signingKey, TTL: ttl}
	var err error
	w.store, err = keepstore.New(keepstore.Config{
		BlobSigning: true, BlobSigningKey: signingKey, BlobSigningTTL: ttl, MaxKeepBlobBuffers: 8, NoSync: true,
		Volumes: []keepstore.VolumeConfig{{UUID: "zzzzz-nyw5e-000000000000000", Root: w.root}},
	})
	if err != nil {
		t.Fatal(err)
	}
	hs := httptest.NewServer(w.store)
	w.url = hs.URL
	t.Cleanup(func() {
		hs.Close()
		w.store.Close()
	})
	return w
}

// put stores a block and returns its locator without signature.
func (w *world) put(data []byte) string {
	w.t.Helper()
	sum := md5.Sum(data)
	hash := hex.EncodeToString(sum[:])
	req, _ := http.NewRequest("PUT", w.url+"/"+hash, bytes.NewReader(data))
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(resp.Body)
	if resp.StatusCode != 200 {
		w.t.Fatalf("PUT: %d %s", resp.StatusCode, text)
	}
	return strings.TrimSpace(string(text))
}

// publish makes a manifest available under its portable data hash, which it
// returns, signed until then.
func (w *world) publish(manifest string, expiry time.Time) string {
	w.t.Helper()
	pdh := keep.PortableDataHash(manifest)
	w.answer(pdh, Record{PortableDataHash: pdh, ManifestText: w.signer.SignManifest(manifest, token, expiry)})
	return pdh
}

// answer sets what the API says about id.
func (w *world) answer(id string, rec Record) {
	w.t.Helper()
	text, err := json.Marshal(rec)
	if err != nil {
		w.t.Fatal(err)
	}
	w.answerText(id, string(text))
}

func (w *world) answerText(id, text string) {
	w.t.Helper()
	tmp := filepath.Join(w.api, "tmp")
	if err := os.WriteFile(tmp, []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
	if err := os.Rename(tmp, filepath.Join(w.api, id)); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) requests(id string) int {
	text, _ := os.ReadFile(filepath.Join(w.api, id+".requests"))
	return len(text)
}

// mountCommand is the process that serves the mount.
func (w *world) mountCommand(args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), roleVar+"=mount", "MOUNT_TEST_KEEP="+w.url, "MOUNT_TEST_API="+w.api,
		"GORACE=atexit_sleep_ms=0")
	cmd.Dir = "/"
	cmd.Stderr = w.stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// mount starts the server as the supervisor does and waits until it is ready.
// Whatever happens, nothing stays mounted.
func (w *world) mount(args ...string) {
	w.t.Helper()
	w.mountEnv(nil, args...)
}

func (w *world) mountEnv(env []string, args ...string) {
	w.t.Helper()
	ready, readyW, err := os.Pipe()
	if err != nil {
		w.t.Fatal(err)
	}
	defer ready.Close()
	args = append([]string{"--foreground", "--read-write", "--allow-other", "--mount-by-pdh", "by_id", "--disable-event-listening",
		"--mount-by-id", "by_uuid"}, args...)
	w.cmd = w.mountCommand(append(args, w.dir)...)
	w.cmd.Env = append(append(w.cmd.Env, ReadyFD+"=3"), env...)
	w.cmd.ExtraFiles = []*os.File{readyW}
	forkthread.Do(func() { err = w.cmd.Start() })
	readyW.Close()
	if err != nil {
		w.t.Fatal(err)
	}
	w.exited = make(chan struct{})
	go func() { defer close(w.exited); _ = w.cmd.Wait() }()
	w.t.Cleanup(func() {
		_ = w.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-w.exited:
		case <-time.After(patience):
			w.t.Errorf("server does not end on SIGTERM:\n%s", w.stderr)
			_ = w.cmd.Process.Kill()
			<-w.exited
		}
		if strings.Contains(w.stderr.String(), "DATA RACE") || strings.Contains(w.stderr.String(), "panic") {
			w.t.Errorf("server's log:\n%s", w.stderr)
		}
		for unix.Unmount(w.dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) == nil {
			w.t.Error("server left its mount behind")
		}
	})
	line, err := bufio.NewReader(ready).ReadString('\n')
	if err != nil || line != "ready\n" {
		w.t.Fatalf("mount is not ready: %q %v\n%s", line, err, w.stderr)
	}
}

// path is a path in the mount.
func (w *world) path(parts ...string) string {
	return w.dir + "/" + strings.Join(parts, "/")
}

// waitLog waits for a line of the server, which comes through a pipe.
func (w *world) waitLog(line *regexp.Regexp) {
	w.t.Helper()
	for start := time.Now(); !line.MatchString(w.stderr.String()); time.Sleep(5 * time.Millisecond) {
		if time.Since(start) > patience {
			w.t.Fatalf("no line %s in\n%s", line, w.stderr)
		}
	}
}

func waitFor(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for start := time.Now(); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Since(start) > patience {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// unmount runs --unmount in a process of its own, as the supervisor does.
func (w *world) unmount(args ...string) (string, error) {
	cmd := w.mountCommand(append(args, fmt.Sprintf("--unmount-timeout=%.0f", patience.Seconds()), "--unmount", w.dir)...)
	cmd.Stderr = nil
	var out []byte
	var err error
	forkthread.Do(func() { out, err = cmd.CombinedOutput() })
	return string(out), err
}

func (w *world) mounted() bool {
	w.t.Helper()
	mounts, err := fuseMounts(w.dir)
	if err != nil {
		w.t.Fatal(err)
	}
	return len(mounts) > 0
}

// remount ends the server, which saves what is left, and starts another one.
func (w *world) remount(args ...string) {
	w.t.Helper()
	must(w.t, w.cmd.Process.Signal(syscall.SIGTERM))
	<-w.exited
	if code := w.cmd.ProcessState.ExitCode(); code != 0 {
		w.t.Errorf("server ended with %d:\n%s", code, w.stderr)
	}
	w.mount(args...)
}

// another is a second mount of the same cluster, as on another node.
func (w *world) another(args ...string) *world {
	w.t.Helper()
	o := *w
	o.dir, o.stderr = w.t.TempDir(), new(syncbuf.Buffer)
	o.mount(args...)
	return &o
}

func newHTTPServer(t testing.TB, h http.Handler) string {
	hs := httptest.NewServer(h)
	t.Cleanup(func() {
		hs.CloseClientConnections()
		hs.Close()
	})
	return hs.URL
}

func dupFD(f *os.File) (string, error) {
	fd, err := unix.Dup(int(f.Fd()))
	return strconv.Itoa(fd), err
}
