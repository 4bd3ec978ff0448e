package supervisor

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"crunch-oci/arvados"
	"crunch-oci/cgroups"
	"crunch-oci/imagestore"
	"crunch-oci/imagestore/archive"
	"crunch-oci/keep"
	"crunch-oci/keep/keeptest"
	"crunch-oci/oci"
	"crunch-oci/supervisor/joblog"
	"crunch-oci/supervisor/stats"
)

// The images of the tests consist of one layer with an empty file. tarball
// returns what docker save writes for one, and its id.
func tarball(tb testing.TB) (data []byte, id string) {
	tb.Helper()
	layer := tarOf(tb, map[string][]byte{"bin/cmd": nil})
	config, err := json.Marshal(map[string]any{
		"architecture": "amd64", "os": "linux",
		"config": map[string]any{"Env": []string{"PATH=/bin", "IMAGE=yes"}, "WorkingDir": "/work"},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{fmt.Sprintf("sha256:%x", sha256.Sum256(layer))}},
	})
	if err != nil {
		tb.Fatal(err)
	}
	name := fmt.Sprintf("%x", sha256.Sum256(config))
	manifest := fmt.Sprintf(`[{"Config":"%s.json","RepoTags":["test:latest"],"Layers":["l/layer.tar"]}]`, name)
	return tarOf(tb, map[string][]byte{name + ".json": config, "l/layer.tar": layer, "manifest.json": []byte(manifest)}), "sha256:" + name
}

func tarOf(tb testing.TB, files map[string][]byte) []byte {
	tb.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	names := make([]string, 0, len(files))
	for name := range files {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(len(files[name])), Mode: 0o755}
		if err := errors.Join(w.WriteHeader(h), second(w.Write(files[name]))); err != nil {
			tb.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return b.Bytes()
}

func second[T any](_ T, err error) error { return err }

// fakeAccount reads and writes through the real clients, with a token.
type fakeAccount struct {
	api    *arvados.Client
	client *keep.Client
	blocks *keep.Cache
}

func (a *fakeAccount) close() error { return errors.Join(a.blocks.Close(), a.client.Close()) }

func (a *fakeAccount) SecretMounts(ctx context.Context, uuid string) (map[string]arvados.Mount, error) {
	return a.api.SecretMounts(ctx, uuid)
}

func (a *fakeAccount) OpenCollection(ctx context.Context, id string) (*keep.Collection, error) {
	record, err := a.api.GetCollection(ctx, id)
	if err != nil {
		return nil, err
	}
	return keep.NewCollection(record.ManifestText, a.blocks)
}

func (a *fakeAccount) NewCollection() (*keep.Collection, error) {
	return keep.NewCollection("", a.blocks)
}
func (a *fakeAccount) Localizer() keep.Localizer { return a.client }

func (a *fakeAccount) SaveCollection(ctx context.Context, name, manifest string) (string, error) {
	saved, err := a.api.CreateCollection(ctx, map[string]any{
		"is_trashed": true, "name": name, "manifest_text": manifest,
	}, true, "portable_data_hash")
	return saved.PortableDataHash, err
}

// fakeSaver saves logs as the dispatcher.
type fakeSaver struct{ api *arvados.Client }

func (s fakeSaver) CreateCollection(ctx context.Context, r joblog.Request) (uuid, pdh string, err error) {
	saved, err := s.api.CreateCollection(ctx, attributes(r), r.EnsureUniqueName, r.Select...)
	return saved.UUID, saved.PortableDataHash, err
}

func (s fakeSaver) UpdateCollection(ctx context.Context, uuid string, r joblog.Request) (string, error) {
	saved, err := s.api.UpdateCollection(ctx, uuid, attributes(r), r.Select...)
	return saved.PortableDataHash, err
}

func (s fakeSaver) SetContainerLog(ctx context.Context, pdh string) error {
	return s.api.UpdateContainer(ctx, testUUID, map[string]any{"log": pdh})
}

func attributes(r joblog.Request) (attrs map[string]any) {
	text, err := json.Marshal(r.Collection)
	if err == nil {
		err = json.Unmarshal(text, &attrs)
	}
	if err != nil {
		panic(err)
	}
	return attrs
}

// fakeImages is a real store whose unpacking can be made to fail.
type fakeImages struct {
	*imagestore.Store
	w *world
}

func (i fakeImages) Unpack(ctx context.Context, key imagestore.Key, open func(context.Context) (*archive.Image, error), progress func(imagestore.Progress)) (*imagestore.Snapshot, error) {
	if err := i.w.op(ctx, "unpack image"); err != nil {
		return nil, err
	}
	return i.Store.Unpack(ctx, key, open, progress)
}

// fakeMounter starts FUSE servers that serve nothing.
type fakeMounter struct {
	w       *world
	started []*fakeMount
	// script is what a server does, until stopped is closed; its result is how
	// it ended. Nil: it waits.
	script func(m *fakeMount) error
}

func (*fakeMounter) Version() string { return "fake 1.0" }

type fakeMount struct {
	w              *world
	args           []string
	stdout, stderr io.Writer
	stopped        chan struct{}
	stopOnce       sync.Once
	exited         chan struct{}
	err            error
}

func (f *fakeMounter) Start(ctx context.Context, args []string, token string, stdout, stderr io.Writer, inherit ...*os.File) (Mount, error) {
	if err := f.w.op(ctx, "start FUSE server"); err != nil {
		return nil, fmt.Errorf("while trying to start arv-mount: %w", err)
	}
	if token != containerToken || len(inherit) != 1 {
		return nil, fmt.Errorf("FUSE server started with token %q and %d files", token, len(inherit))
	}
	if _, err := os.Stat(args[len(args)-1]); err != nil {
		return nil, err
	}
	m := &fakeMount{w: f.w, args: args, stdout: stdout, stderr: stderr, stopped: make(chan struct{}), exited: make(chan struct{})}
	f.started = append(f.started, m)
	go func() {
		defer close(m.exited)
		if f.script != nil {
			m.err = f.script(m)
			return
		}
		<-m.stopped
	}()
	return m, nil
}

func (m *fakeMount) Exited() <-chan struct{} { return m.exited }
func (m *fakeMount) Err() error              { return m.err }
func (m *fakeMount) PID() int                { return os.Getpid() }

func (m *fakeMount) Stop(ctx context.Context) error {
	err := m.w.cleanupOp(ctx, "stop FUSE server")
	m.stopOnce.Do(func() { close(m.stopped) })
	<-m.exited
	return err
}

// fakeRuntime makes containers whose program is a Go function.
type fakeRuntime struct {
	w       *world
	program func(*guest) int
	made    []*fakeProcess
	// clingy processes do not end by Kill before the FUSE server does, as one
	// that waits for it in the kernel.
	clingy bool
	// starting, if not nil, is called by a Start that then waits for ever.
	starting func()
	oom      bool
	// waitErr is what Wait says instead of an exit status.
	waitErr error
	// signalErr is what Signal says.
	signalErr error
}

func (*fakeRuntime) Version() string { return "fake 2.0" }

// guest is what the program sees.
type guest struct {
	stdin, stdout, stderr *os.File
	spec                  *specs.Spec
	signals               chan syscall.Signal
	killed                chan struct{}
	awaited               chan struct{} // closed when somebody waits for the end
}

// host is the host's path behind a path in the container.
func (g *guest) host(target string) string {
	for _, m := range g.spec.Mounts {
		if m.Destination == target {
			return m.Source
		}
	}
	return filepath.Join(g.spec.Root.Path, target)
}

type fakeProcess struct {
	rt      *fakeRuntime
	guest   guest
	ended   chan struct{}
	killed  sync.Once
	ending  sync.Once
	status  oci.ExitStatus
	started bool
	deleted bool
}

func (f *fakeRuntime) Create(ctx context.Context, id, bundle string, stdio oci.Stdio) (Process, error) {
	if err := f.w.op(ctx, "create container"); err != nil {
		return nil, err
	}
	if id != testUUID {
		return nil, fmt.Errorf("container id %q", id)
	}
	p := &fakeProcess{rt: f, ended: make(chan struct{})}
	p.guest.signals = make(chan syscall.Signal, 8)
	p.guest.killed, p.guest.awaited = make(chan struct{}), make(chan struct{})
	text, err := os.ReadFile(filepath.Join(bundle, "config.json"))
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(text, &p.guest.spec); err != nil {
		return nil, err
	}
	if _, err := os.Stat(filepath.Join(p.guest.spec.Root.Path, "bin/cmd")); err != nil {
		return nil, fmt.Errorf("the image is not mounted: %w", err)
	}
	for _, f := range []struct {
		to   **os.File
		from *os.File
	}{{&p.guest.stdin, stdio.Stdin}, {&p.guest.stdout, stdio.Stdout}, {&p.guest.stderr, stdio.Stderr}} {
		fd, err := unix.FcntlInt(f.from.Fd(), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			return nil, err
		}
		*f.to = os.NewFile(uintptr(fd), f.from.Name())
	}
	f.made = append(f.made, p)
	return p, nil
}

// end makes the process a dead one.
func (p *fakeProcess) end(s oci.ExitStatus) {
	p.ending.Do(func() {
		p.closeStdio()
		p.status = s
		close(p.ended)
	})
}

func (p *fakeProcess) closeStdio() {
	_, _, _ = p.guest.stdin.Close(), p.guest.stdout.Close(), p.guest.stderr.Close()
}

func (p *fakeProcess) alive() bool {
	select {
	case <-p.ended:
		return false
	default:
		return true
	}
}

func (p *fakeProcess) Start(ctx context.Context) error {
	// The trouble of the tests comes after the program has begun.
	if err := p.rt.w.op(context.WithoutCancel(ctx), "start container"); err != nil {
		p.end(oci.ExitStatus{Code: 1})
		return err
	}
	if p.rt.starting != nil {
		p.rt.starting()
		<-ctx.Done()
		return fmt.Errorf("start container: %w", context.Cause(ctx))
	}
	p.started = true
	go func() {
		code := p.rt.program(&p.guest)
		select {
		case <-p.guest.killed:
			p.end(oci.ExitStatus{Code: 128 + int(unix.SIGKILL), Signal: unix.SIGKILL})
		default:
			p.end(oci.ExitStatus{Code: code})
		}
	}()
	return nil
}

func (p *fakeProcess) Wait(ctx context.Context) (oci.ExitStatus, error) {
	if err := p.rt.w.op(ctx, "wait for container"); err != nil {
		return oci.ExitStatus{}, err
	}
	close(p.guest.awaited)
	select {
	case <-p.ended:
		return p.status, p.rt.waitErr
	case <-ctx.Done():
		return oci.ExitStatus{}, context.Cause(ctx)
	}
}

func (p *fakeProcess) Signal(sig syscall.Signal) error {
	p.rt.w.note(fmt.Sprintf("signal container: %v", sig))
	p.guest.signals <- sig
	return p.rt.signalErr
}

func (p *fakeProcess) Kill(ctx context.Context) error {
	if _, ok := ctx.Deadline(); !ok {
		p.rt.w.t.Error("a container is killed without a time limit")
	}
	if p.rt.w.immortal {
		p.closeStdio()
		return fmt.Errorf("1 process still alive: %w", context.DeadlineExceeded)
	}
	if !p.alive() {
		return nil
	}
	if err := p.rt.w.cleanupOp(ctx, "kill container"); err != nil {
		return err
	}
	if p.rt.clingy && !p.rt.w.mounter.allExited() {
		return fmt.Errorf("1 process still alive: %w", context.DeadlineExceeded)
	}
	p.killed.Do(func() { close(p.guest.killed) })
	if !p.started {
		p.end(oci.ExitStatus{Code: 128 + int(unix.SIGKILL), Signal: unix.SIGKILL})
	}
	<-p.ended
	return nil
}

func (f *fakeMounter) allExited() bool {
	for _, m := range f.started {
		select {
		case <-m.exited:
		default:
			return false
		}
	}
	return true
}

func (p *fakeProcess) Delete(ctx context.Context) error {
	if p.alive() {
		return errors.New("a living container cannot be deleted")
	}
	p.deleted = true
	return p.rt.w.cleanupOp(ctx, "delete container")
}

func (p *fakeProcess) PID() int                { return os.Getpid() }
func (p *fakeProcess) Cgroup() *cgroups.Cgroup { return nil }
func (p *fakeProcess) Warnings() []string      { return nil }

// fakeMeter measures constants.
type fakeMeter struct{ rt *fakeRuntime }

func (fakeMeter) Host(processes func() map[string]int) stats.Sources {
	return stats.Sources{Processes: func() (list []stats.Process, err error) {
		for name := range processes() {
			list = append(list, stats.Process{Name: name, RSS: 4096})
		}
		return list, nil
	}}
}

func (fakeMeter) Container(Process) stats.Sources {
	return stats.Sources{
		Memory: func() stats.Memory { return stats.Memory{RSS: stats.Value{N: 8192, Known: true}} },
		CPU:    func() stats.CPU { return stats.CPU{User: time.Second, CPUs: 2, Known: true} },
	}
}

func (m fakeMeter) Usage(Process) Usage {
	return Usage{OOMKilled: m.rt.oom, PeakMemory: 8192, CPU: time.Second}
}

// refuseWrites makes Keep read-only.
func refuseWrites(_ *keeptest.Server, w http.ResponseWriter, r *http.Request) bool {
	if r.Method == http.MethodGet {
		return false
	}
	http.Error(w, "full", http.StatusServiceUnavailable)
	return true
}
