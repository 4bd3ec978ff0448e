package main_test

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"crunch-oci/arvados"
	"crunch-oci/keep"
)

// cluster is a running "crunch-run cluster", seen over HTTPS and HTTP by a user
// and by a dispatcher.
type cluster struct {
	process        *process
	env            map[string]string
	user, dispatch *arvados.Client
	blocks         keep.BlockStore // with the user's token
	all            keep.BlockStore // with the dispatcher's
	keepURL        string
	ledger         *ledger
}

// ledger is what has been made on a cluster, by tests that run at the same time.
type ledger struct {
	mu       sync.Mutex
	requests map[string]string // UUID by that of the container
	secrets  []string          // that must not get into a log
}

func (l *ledger) submitted(container, request string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.requests[container] = request
}

func (l *ledger) requestOf(container string) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.requests[container]
}

func (l *ledger) hide(secrets ...string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.secrets = append(l.secrets, secrets...)
}

func (l *ledger) hidden() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.secrets)
}

// startCluster starts a cluster that ends with the test. It lives outside of the
// node: what it has on disk is not the supervisor's to clean.
func startCluster(t testing.TB, n *node) *cluster {
	t.Helper()
	dir := filepath.Join(n.dir, "cluster")
	c := connectCluster(t, n.start(t, run{args: []string{"cluster", "--dir", dir}, env: []string{"CRUNCH_RUN_STORE_DIR="}}))
	endCluster(t, c.process)
	return c
}

// endCluster ends a cluster with the test, unless the test has killed it.
func endCluster(t testing.TB, p *process) {
	t.Cleanup(func() {
		select {
		case <-p.done:
			if p.code == 128+int(syscall.SIGKILL) {
				return
			}
		default:
			p.signal(t, syscall.SIGTERM)
		}
		if code := p.wait(t); code != 0 {
			t.Errorf("crunch-run cluster ended with %d:\n%s", code, p.stderr.String())
		}
	})
}

// restart starts the cluster again after its process has been killed. The API
// is where it was; the block server gets a new port.
func (c *cluster) restart(t testing.TB, n *node) {
	t.Helper()
	args := []string{"cluster", "--dir", filepath.Join(n.dir, "cluster"), "--listen", c.env["ARVADOS_API_HOST"]}
	again := connectCluster(t, n.start(t, run{args: args, env: []string{"CRUNCH_RUN_STORE_DIR="}}))
	endCluster(t, again.process)
	again.ledger = c.ledger
	*c = *again
}

// connectCluster connects to a cluster that is being started.
func connectCluster(t testing.TB, p *process) *cluster {
	t.Helper()
	c := &cluster{process: p, env: make(map[string]string), ledger: &ledger{requests: make(map[string]string)}}
	c.process.stdout.mustSay(t, "export ARVADOS_DISPATCHER_TOKEN='")
	c.process.stdout.mustSay(t, "'\n")
	for line := range strings.Lines(c.process.stdout.String()) {
		k, v, _ := strings.Cut(strings.TrimPrefix(strings.TrimSpace(line), "export "), "=")
		c.env[k] = strings.Trim(v, "'")
	}
	c.connect(t)
	return c
}

// connect makes the clients.
func (c *cluster) connect(t testing.TB) {
	t.Helper()
	config := arvados.Config{Host: c.env["ARVADOS_API_HOST"], Token: c.env["ARVADOS_API_TOKEN"], CAFile: c.env["SSL_CERT_FILE"]}
	var err error
	if c.user, err = arvados.NewClient(config); err != nil {
		t.Fatal(err)
	}
	c.dispatch = c.user.WithToken(c.env["ARVADOS_DISPATCHER_TOKEN"])
	c.ledger.hide(c.env["ARVADOS_API_TOKEN"], c.env["ARVADOS_DISPATCHER_TOKEN"])
	services, err := c.user.KeepServices(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var fixed keep.FixedServices
	for _, s := range services {
		c.keepURL = s.URL()
		fixed = append(fixed, keep.Service{UUID: s.UUID, URL: s.URL(), Type: s.ServiceType})
	}
	c.blocks = openKeep(t, fixed, c.env["ARVADOS_API_TOKEN"])
	c.all = openKeep(t, fixed, c.env["ARVADOS_DISPATCHER_TOKEN"])
	t.Cleanup(c.user.Close)
}

func openKeep(t testing.TB, services keep.FixedServices, token string) keep.BlockStore {
	t.Helper()
	client, err := keep.NewClient(keep.ClientConfig{Services: services, Token: token, DefaultReplication: 1})
	if err != nil {
		t.Fatal(err)
	}
	cache := keep.NewCache(client, keep.MaxBlockSize)
	t.Cleanup(func() {
		_ = cache.Close()
		_ = client.Close()
	})
	return cache
}

// store makes a collection of files and returns its portable data hash.
func (c *cluster) store(t testing.TB, files map[string][]byte) string {
	t.Helper()
	readers := make(map[string]io.Reader)
	for name, data := range files {
		readers[name] = bytes.NewReader(data)
	}
	return c.storeFrom(t, readers).PortableDataHash
}

func (c *cluster) storeFrom(t testing.TB, files map[string]io.Reader) arvados.Collection {
	t.Helper()
	coll, err := keep.NewCollection("", c.blocks)
	if err != nil {
		t.Fatal(err)
	}
	defer coll.Close()
	for name, r := range files {
		if err := coll.MkdirAll(filepath.Dir(name)); err != nil {
			t.Fatal(err)
		}
		f, err := coll.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(f, r); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	manifest, err := coll.MarshalManifest(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	saved, err := c.user.CreateCollection(t.Context(), map[string]any{"manifest_text": manifest}, true, "uuid", "portable_data_hash")
	if err != nil {
		t.Fatal(err)
	}
	return saved
}

// storeImage stores an image as arv-keepdocker does: one file named by its id,
// and the link that says it is an image.
func (c *cluster) storeImage(t testing.TB, id string, tarball []byte) string {
	t.Helper()
	return c.storeImageFrom(t, id, bytes.NewReader(tarball))
}

func (c *cluster) storeImageFrom(t testing.TB, id string, tarball io.Reader) string {
	t.Helper()
	saved := c.storeFrom(t, map[string]io.Reader{id + ".tar": tarball})
	_, err := c.user.CreateLink(t.Context(), map[string]any{"link_class": "docker_image_hash", "name": id, "head_uuid": saved.UUID})
	if err != nil {
		t.Fatal(err)
	}
	return saved.PortableDataHash
}

// attrs are attributes of a container request.
type attrs map[string]any

// submit submits a container request for a shell command in an image, with some
// attributes set or replaced, and locks its container as a dispatcher does.
func (c *cluster) submit(t testing.TB, image string, command []string, other attrs) (container string) {
	t.Helper()
	uuid := c.request(t, image, command, other).ContainerUUID
	c.lock(t, uuid)
	return uuid
}

// request submits a container request and leaves its container Queued.
func (c *cluster) request(t testing.TB, image string, command []string, other attrs) arvados.ContainerRequest {
	t.Helper()
	request := attrs{
		"name": t.Name(), "state": "Committed", "priority": 1, "use_existing": false, "container_count_max": 1,
		"container_image": image, "command": command, "cwd": "/out", "output_path": "/out",
		"mounts":              attrs{"/out": attrs{"kind": "tmp", "capacity": 1 << 30}},
		"runtime_constraints": attrs{"vcpus": 1, "ram": 256 << 20},
	}
	maps.Copy(request, other)
	r, err := c.user.CreateContainerRequest(t.Context(), request)
	if err != nil {
		t.Fatal(err)
	}
	c.ledger.submitted(r.ContainerUUID, r.UUID)
	return r
}

func (c *cluster) lock(t testing.TB, uuid string) {
	t.Helper()
	if _, err := c.dispatch.Lock(t.Context(), uuid); err != nil {
		t.Fatal(err)
	}
}

func (c *cluster) container(t testing.TB, uuid string) arvados.Container {
	t.Helper()
	// Also from clean-up functions, when the test's context has ended.
	record, err := c.dispatch.GetContainer(context.WithoutCancel(t.Context()), uuid)
	if err != nil {
		t.Fatal(err)
	}
	return record
}

// supervise starts the supervisor of a container, as a dispatcher does.
func (c *cluster) supervise(t testing.TB, n *node, uuid string, flags ...string) *process {
	t.Helper()
	return n.start(t, run{args: append(flags, uuid), env: c.supervisorEnv()})
}

// supervisorEnv is what a dispatcher tells a supervisor about the cluster.
func (c *cluster) supervisorEnv() []string {
	return []string{
		"ARVADOS_API_HOST=" + c.env["ARVADOS_API_HOST"], "ARVADOS_API_TOKEN=" + c.env["ARVADOS_DISPATCHER_TOKEN"],
		"SSL_CERT_FILE=" + c.env["SSL_CERT_FILE"],
	}
}

// finished waits for a supervisor that is to end with code, checks that the node
// is clean, and returns the record in its final state.
func (c *cluster) finished(t testing.TB, n *node, p *process, uuid string, code int, state string) arvados.Container {
	t.Helper()
	if got := p.wait(t); got != code {
		t.Errorf("exit code %d, want %d; stderr:\n%s", got, code, tail(p.stderr.String(), 4000))
	}
	n.mustBeClean(t)
	record := c.container(t, uuid)
	if record.State != state {
		t.Fatalf("state %s, want %s; stderr:\n%s", record.State, state, tail(p.stderr.String(), 4000))
	}
	c.mustHideTokens(t, record, p)
	return record
}

// runOne submits and runs one container that is to be Complete.
func (c *cluster) runOne(t testing.TB, n *node, image string, command []string, other attrs) arvados.Container {
	t.Helper()
	uuid := c.submit(t, image, command, other)
	return c.finished(t, n, c.supervise(t, n, uuid), uuid, 0, arvados.StateComplete)
}

// collection opens a collection with the dispatcher's token: a log is not the
// user's before the request is final.
func (c *cluster) collection(t testing.TB, pdh string) *keep.Collection {
	t.Helper()
	record, err := c.dispatch.GetCollection(t.Context(), pdh, "manifest_text")
	if err != nil {
		t.Fatal(err)
	}
	coll, err := keep.NewCollection(record.ManifestText, c.all)
	if err != nil {
		t.Fatal(err)
	}
	return coll
}

// manifest is the text of a collection.
func (c *cluster) manifest(t testing.TB, pdh string) string {
	t.Helper()
	record, err := c.dispatch.GetCollection(t.Context(), pdh, "manifest_text")
	if err != nil {
		t.Fatal(err)
	}
	return record.ManifestText
}

// file reads a file of a collection; "" if there is none.
func (c *cluster) file(t testing.TB, pdh, name string) string {
	t.Helper()
	f, err := c.collection(t, pdh).Open(name)
	if err != nil {
		t.Errorf("collection %s: %v", pdh, err)
		return ""
	}
	defer f.Close()
	data, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// files are the contents of all files of a collection by name.
func (c *cluster) files(t testing.TB, pdh string) map[string]string {
	t.Helper()
	found := make(map[string]string)
	coll := c.collection(t, pdh)
	err := coll.Walk(".", func(name string, info keep.FileInfo) error {
		if !info.IsDir() {
			f, err := coll.Open(name)
			if err != nil {
				return err
			}
			defer f.Close()
			data, err := io.ReadAll(f)
			if err != nil {
				return err
			}
			found[name] = string(data)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// savedLog is the collection with a container's log that its user can read: the
// container's own, or else the request's.
func (c *cluster) savedLog(t testing.TB, record arvados.Container) string {
	t.Helper()
	if record.Log == "" {
		t.Fatalf("container in state %s has no log", record.State)
	}
	if record.State == arvados.StateComplete {
		return record.Log
	}
	request, err := c.user.GetContainerRequest(t.Context(), c.ledger.requestOf(record.UUID))
	if err != nil {
		t.Fatal(err)
	}
	return request.LogUUID
}

// logs are the files of a container's log.
func (c *cluster) logs(t testing.TB, record arvados.Container) map[string]string {
	t.Helper()
	files := c.files(t, c.savedLog(t, record))
	maps.DeleteFunc(files, func(name, _ string) bool { return strings.HasPrefix(name, "log for container ") })
	return files
}

// log reads a file of a container's log.
func (c *cluster) log(t testing.TB, record arvados.Container, name string) string {
	t.Helper()
	return c.file(t, c.savedLog(t, record), name)
}

// mustHideTokens fails the test if a secret got into the log or to stderr.
func (c *cluster) mustHideTokens(t testing.TB, record arvados.Container, p *process) {
	t.Helper()
	tokens := c.ledger.hidden()
	if auth, err := c.dispatch.ContainerAuth(t.Context(), record.UUID); err == nil {
		tokens = append(tokens, auth.APIToken)
	}
	texts := map[string]string{"stderr": p.stderr.String()}
	if record.Log != "" {
		maps.Copy(texts, c.logs(t, record))
	}
	for name, text := range texts {
		for _, token := range tokens {
			if secret := token[strings.LastIndexByte(token, '/')+1:]; strings.Contains(text, secret) {
				t.Errorf("%s shows a token", name)
			}
		}
	}
}

// stamped takes the time stamps off the lines of a log file, and fails the test
// if a line has none.
func stamped(t testing.TB, text string) string {
	t.Helper()
	var b strings.Builder
	for line := range strings.Lines(text) {
		stamp, rest, ok := strings.Cut(line, " ")
		if !ok || len(stamp) != len("2006-01-02T15:04:05.000000000Z") || !strings.HasSuffix(stamp, "Z") {
			t.Fatalf("line without a time stamp: %.200q", line)
		}
		b.WriteString(rest)
	}
	return b.String()
}

// readFile reads a file of the host.
func readFile(t testing.TB, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// finishedQuietly is finished for a Complete container whose logs are too large
// to be searched.
func (c *cluster) finishedQuietly(t testing.TB, n *node, p *process, uuid string) arvados.Container {
	t.Helper()
	if code := p.wait(t); code != 0 {
		t.Fatalf("exit code %d; stderr:\n%s", code, tail(p.stderr.String(), 4000))
	}
	n.mustBeClean(t)
	record := c.container(t, uuid)
	if record.State != arvados.StateComplete {
		t.Fatalf("state %s", record.State)
	}
	return record
}

// checkLines checks that r holds numbered lines (probe flood), each after a
// stamp of so many bytes, without a gap.
func checkLines(t testing.TB, r io.Reader, lines, stamp int) {
	t.Helper()
	b := bufio.NewReaderSize(r, 1<<20)
	for i := range lines {
		line, err := b.ReadSlice('\n')
		if err != nil {
			t.Fatalf("after %d lines: %v", i, err)
		}
		if len(line) != stamp+100 {
			t.Fatalf("line %d is %.200q", i, line)
		}
		if n, err := strconv.Atoi(strings.TrimLeft(string(line[stamp:len(line)-2]), "0") + string(line[len(line)-2])); err != nil || n != i {
			t.Fatalf("line %d is %.200q", i, line)
		}
	}
	if rest, _ := io.Copy(io.Discard, b); rest != 0 {
		t.Errorf("%d bytes too many", rest)
	}
}
