package wire

import (
	"context"
	"fmt"
	"io"
	"os"

	"crunch-oci/arvados"
	"crunch-oci/cgroups"
	"crunch-oci/keep/mount"
	"crunch-oci/oci"
	"crunch-oci/supervisor"
	"crunch-oci/supervisor/config"
	"crunch-oci/supervisor/joblog"
	"crunch-oci/supervisor/keepmount"
	"crunch-oci/supervisor/stats"
	"crunch-oci/supervisor/stats/kernel"
)

// mounter starts this program, or the site's command, as the FUSE server.
type mounter struct {
	site    config.Site
	cluster arvados.Config
	version string
	runLock *os.File // may be nil
	facts   *clusterFacts
}

// keepCacheDir is the directory in which FUSE servers share blocks. Other
// programs than ours have their own idea of how to share one: each evicts down
// to its own limit.
func keepCacheDir(site config.Site) string {
	if len(site.KeepMount) > 0 {
		return ""
	}
	return site.KeepCacheDir
}

// Version implements supervisor.Mounter.
func (m mounter) Version() string {
	if len(m.site.KeepMount) > 0 {
		return fmt.Sprintf("%q", m.site.KeepMount)
	}
	return "crunch-run keep-mount " + m.version
}

// Start implements supervisor.Mounter.
func (m mounter) Start(ctx context.Context, args []string, token string, stdout, stderr io.Writer, inherit ...*os.File) (supervisor.Mount, error) {
	command, readyVar := m.site.KeepMount, ""
	if len(command) == 0 {
		command, readyVar = []string{"/proc/self/exe", "keep-mount"}, mount.ReadyFD
	}
	if m.runLock != nil {
		inherit = append(inherit[:len(inherit):len(inherit)], m.runLock)
	}
	env := clusterEnv(m.cluster)
	env["ARVADOS_API_TOKEN"] = token
	if len(m.site.KeepMount) == 0 {
		env[clusterVariable] = m.facts.handOver(ctx)
	}
	s, err := keepmount.Start(ctx, keepmount.Config{
		Program: command[0], Args: append(command[1:len(command):len(command)], args...),
		Env:        mergeEnv(os.Environ(), env),
		ReadyVar:   readyVar,
		Mountpoint: args[len(args)-1], // the command line ends with it
		Stdout:     stdout, Stderr: stderr, Inherit: inherit,
	})
	if err != nil {
		return nil, err // not s: a nil *Server is no nil Mount
	}
	return s, nil
}

// runtime is oci.Runtime, whose containers are supervisor.Processes.
type runtime struct {
	*oci.Runtime
	version string
	created func(*oci.Container) // is told of each
}

// newRuntime returns the runtime that keeps its state in stateDir; what it has to
// say goes to the container's log.
func newRuntime(stateDir, version string, log *joblog.Log, created func(*oci.Container)) runtime {
	warn := func(text string) { log.Printf("warning: %s", text) }
	return runtime{&oci.Runtime{StateDir: stateDir, Warn: warn}, version, created}
}

// Version implements supervisor.Runtime.
func (r runtime) Version() string { return "crunch-run " + r.version + ", " + engineVersion() }

// Create implements supervisor.Runtime.
func (r runtime) Create(ctx context.Context, id, bundle string, stdio oci.Stdio) (supervisor.Process, error) {
	c, err := r.Runtime.Create(ctx, id, bundle, stdio)
	if err != nil {
		return nil, err
	}
	r.created(c)
	return c, nil
}

// meter reads the kernel's numbers.
type meter struct {
	scratch string // whose file system is the container's
	tempDir string // whose file system is the node's
}

// Host implements supervisor.Meter.
func (m meter) Host(processes func() map[string]int) stats.Sources {
	return kernel.Sources(kernel.Options{PID: os.Getpid(), TempDir: m.tempDir, Processes: processes})
}

// Container implements supervisor.Meter.
func (m meter) Container(p supervisor.Process) stats.Sources {
	return kernel.Sources(kernel.Options{PID: p.PID(), Cgroup: p.Cgroup(), TempDir: m.scratch})
}

// Usage implements supervisor.Meter.
func (m meter) Usage(p supervisor.Process) supervisor.Usage {
	s := cgroups.Reader{FS: os.DirFS("/")}.Cgroup(p.Cgroup()).Stats()
	kills, err := p.Cgroup().OOMKills()
	return supervisor.Usage{
		OOMKilled:  err == nil && kills > 0,
		PeakMemory: int64(s.Memory.Peak.N),
		CPU:        s.CPU.User + s.CPU.System,
	}
}
