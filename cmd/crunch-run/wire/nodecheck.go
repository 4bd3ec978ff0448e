package wire

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"crunch-oci/internal/idmap"
	"crunch-oci/oci"
	"crunch-oci/supervisor/config"
	"crunch-oci/supervisor/nodecheck"
	"crunch-oci/supervisor/rundir"
)

// Check checks this node. What it makes is recorded in the runtime directory, so
// that the next start removes it if the program is killed.
func Check(ctx context.Context, o nodecheck.Options) *nodecheck.Report {
	if o.SiteErr != nil {
		o.NewDir = newTempDir
		return nodecheck.Run(ctx, o)
	}
	r := &recorded{site: o.Site, name: fmt.Sprintf("check.%d", os.Getpid())}
	o.NewDir, o.Trial = r.newDir, r.trial
	o.GPUs = func(ctx context.Context) ([]string, error) { return describeGPUs(ctx, GPUNode(o.Site)) }
	report := nodecheck.Run(ctx, o)
	// What cannot be removed has been reported. Where that is because a disk does
	// not answer, it stays on record.
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		_ = r.close()
	}()
	patience := cleanupTimeout
	if report.Hung {
		patience = closePatience
	}
	late := time.NewTimer(patience)
	defer late.Stop()
	select {
	case <-closed:
	case <-late.C:
	}
	return report
}

// closePatience is how long the end of a check of which a part hangs waits for
// what may never end either.
const closePatience = 100 * time.Millisecond

// newTempDir makes a directory that nobody else knows of.
func newTempDir(parent string) (string, func() error, error) {
	dir, err := os.MkdirTemp(parent, ".crunch-run-check-")
	return dir, func() error { return os.RemoveAll(dir) }, err
}

// recorded makes things that are on record in a runtime directory, which is made
// for the first of them.
type recorded struct {
	site config.Site
	name string

	mu   sync.Mutex
	dir  *rundir.Dir
	err  error
	made int
	// parents are directories that the check has made itself.
	parents []string
}

// open makes the runtime directory, and says if that could not be done: the
// check goes on without a record then.
func (r *recorded) open() (*rundir.Dir, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.dir == nil && r.err == nil {
		for p := r.site.RuntimeDir; ; p = filepath.Dir(p) {
			if _, err := os.Lstat(p); err == nil || p == "/" {
				break
			}
			r.parents = append(r.parents, p)
		}
		r.dir, r.err = rundir.Create(context.Background(), r.site.RuntimeDir, r.name, removers)
	}
	return r.dir, r.err
}

func (r *recorded) newDir(parent string) (string, func() error, error) {
	dir, err := r.open()
	if err != nil {
		return newTempDir(parent)
	}
	r.mu.Lock()
	r.made++
	path := filepath.Join(parent, fmt.Sprintf(".crunch-run-%s-%d", r.name, r.made))
	r.mu.Unlock()
	if err := dir.Own(rundir.Thing{Kind: ownsDir, ID: path}); err != nil {
		return "", nil, err
	}
	if err := os.Mkdir(path, 0o700); err != nil {
		return "", nil, err
	}
	return path, func() error { return os.RemoveAll(path) }, nil
}

// close removes the runtime directory, and those above it that the check has
// made.
func (r *recorded) close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.dir == nil {
		return nil
	}
	err := r.dir.Remove(removers)
	for _, p := range r.parents {
		_ = os.Remove(p) // unless somebody else uses it by now
	}
	return err
}

// trial runs /true in a container, with all limits.
func (r *recorded) trial(ctx context.Context, rootfs string) (warnings []string, err error) {
	dir, err := r.open()
	if err != nil {
		return nil, err
	}
	place, err := Job{UUID: r.name, Site: r.site}.placement(func(format string, args ...any) {
		warnings = append(warnings, strings.TrimPrefix(fmt.Sprintf(format, args...), "warning: "))
	})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, place.close(ctx)) }()
	path, err := place.place(ctx, 0)
	if err != nil {
		return warnings, err
	}
	confine, err := confinement(r.site, func(string, ...any) {}) // looked at by itself
	if err != nil {
		return warnings, err
	}
	confine.IDs = idmap.Range{} // the root is the host's; what user namespaces need is tried by itself
	const ram = 64 << 20
	spec, err := oci.NewSpec(oci.Request{
		RootfsPath: rootfs, Command: []string{"/true"}, Hostname: "check", CgroupsPath: path,
		Limits: oci.Limits{NanoCPUs: 1e9, RAM: ram, Shm: r.site.ShmSize}, NoSeccomp: !r.site.Seccomp,
		NoNewPrivileges: r.site.NoNewPrivileges, Confinement: confine,
	})
	if err != nil {
		return nil, err
	}
	bundle := filepath.Join(dir.Path(), "bundle")
	if err := oci.WriteBundle(bundle, spec); err != nil {
		return nil, err
	}
	state := filepath.Join(dir.Path(), "oci")
	if err := dir.Own(rundir.Thing{Kind: ownsContainer, ID: filepath.Join(state, r.name)}); err != nil {
		return nil, err
	}
	rt := oci.Runtime{StateDir: state, Warn: func(string) {}}
	c, err := rt.Create(ctx, r.name, bundle, oci.Stdio{})
	if err != nil {
		return nil, err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
		defer cancel()
		err = errors.Join(err, c.Delete(ctx))
	}()
	if err := c.Start(ctx); err != nil {
		return append(warnings, c.Warnings()...), err
	}
	status, err := c.Wait(ctx)
	if err == nil && status.Code != 0 {
		err = fmt.Errorf("its program ended with %s", status)
	}
	return append(warnings, c.Warnings()...), err
}
