// Package libct is the only place that calls runc's libcontainer, whose Go API
// its maintainers do not promise to keep. It turns a runtime specification
// into a process that waits to execute the container's command, and nothing
// more; what it means to create, start, kill and delete a container is decided
// by package oci.
package libct

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/seccomp"
	"github.com/opencontainers/runc/libcontainer/specconv"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// SeccompEnabled tells whether this program can enforce system call filters:
// whether it was built with libseccomp (build tag "seccomp").
const SeccompEnabled = seccomp.Enabled

// Container is a libcontainer container.
type Container struct {
	ctr      *libcontainer.Container
	spec     *specs.Process
	process  *libcontainer.Process
	stateDir string

	// A system call filter that is still to be loaded, and what belongs to it;
	// see LoadFilter.
	filter  *filter
	config  *configs.Config
	profile *configs.Seccomp
}

// bundleLabel is how libcontainer keeps the bundle's directory.
const bundleLabel = "bundle="

// New prepares a container from a specification with absolute paths, which comes
// from the bundle in the directory bundle. Of the node, only stateDir/id is made;
// nothing runs yet. Destroy undoes it.
func New(stateDir, id, bundle string, spec *specs.Spec) (*Container, error) {
	redirectLog()
	config, err := specconv.CreateLibcontainerConfig(&specconv.CreateOpts{CgroupName: id, Spec: spec})
	if err != nil {
		return nil, fmt.Errorf("runtime configuration: %w", err)
	}
	// Hooks are told of it. libcontainer supposes that it is the working directory.
	config.Labels = slices.DeleteFunc(config.Labels, func(l string) bool { return strings.HasPrefix(l, bundleLabel) })
	config.Labels = append(config.Labels, bundleLabel+bundle)
	// For the first stage of the container's init only: the later stages are
	// clones, which do not inherit it. See Init.
	config.ParentDeathSignal = int(unix.SIGKILL)
	c := &Container{spec: spec.Process, stateDir: filepath.Join(stateDir, id)}
	if err := c.takeFilter(config); err != nil {
		return nil, err
	}
	if c.ctr, err = libcontainer.Create(stateDir, id, config); err != nil {
		return nil, fmt.Errorf("prepare container: %w", err)
	}
	return c, nil
}

// CgroupDirs returns the directories of the container's cgroup, by controller
// ("" is v2), whether they exist yet or not.
func (c *Container) CgroupDirs() (map[string]string, error) {
	state, err := c.ctr.State()
	if err != nil {
		return nil, fmt.Errorf("find the container's cgroup: %w", err)
	}
	return maps.Clone(state.CgroupPaths), nil
}

// Start makes the container's init, which sets everything up and then waits to
// execute the command. The streams may be nil, meaning /dev/null. lifeline is
// the container's end of a connected pair of sockets (see Init); it stays the
// caller's to close. A reaper, if not nil, is the program (package reaper) that is
// executed in place of the command, and executes that as its child, or after
// itself; the creator must have written WithReaper to the lifeline.
//
// Start must be called on a thread that lives as long as the container should:
// its end ends the container.
func (c *Container) Start(stdin, stdout, stderr, lifeline, reaper *os.File, asChild bool) error {
	process, err := newProcess(c.spec)
	if err != nil {
		return err
	}
	process.Init = true
	// A nil *os.File in these interfaces would not be nil.
	if stdin != nil {
		process.Stdin = stdin
	}
	if stdout != nil {
		process.Stdout = stdout
	}
	if stderr != nil {
		process.Stderr = stderr
	}
	process.ExtraFiles = []*os.File{lifeline} // becomes lifelineFd
	if reaper != nil {
		process.ExtraFiles = append(process.ExtraFiles, reaper) // becomes reaperFd
		mode := "exec"
		if asChild {
			mode = "run"
		}
		process.Args = append([]string{fmt.Sprintf("/proc/self/fd/%d", reaperFd), mode}, process.Args...)
	}
	if err := c.ctr.Start(process); err != nil {
		return err
	}
	c.process = process
	return nil
}

// PID returns the process id of the container's init after Start.
func (c *Container) PID() int {
	pid, err := c.process.Pid()
	if err != nil {
		return 0
	}
	return pid
}

// Signal sends a signal to the container's init. The error is
// os.ErrProcessDone if it has ended.
func (c *Container) Signal(sig syscall.Signal) error {
	return c.process.Signal(sig)
}

// Wait waits for the container's init to end and reaps it. It must be called
// once after Start, on the thread that called Start, which must have no other
// children.
func (c *Container) Wait() (syscall.WaitStatus, error) { return wait(c.process) }

func wait(p *libcontainer.Process) (syscall.WaitStatus, error) {
	if pid, err := p.Pid(); err == nil {
		awaitExit(pid)
	}
	state, err := p.Wait()
	if state == nil {
		return 0, fmt.Errorf("wait for a process of the container: %w", err)
	}
	status, ok := state.Sys().(syscall.WaitStatus)
	if !ok {
		return 0, fmt.Errorf("wait for a process of the container: status of type %T", state.Sys())
	}
	return status, nil
}

// ErrNotReady is returned by Release when the init has ended before it could
// execute the command.
var ErrNotReady = errors.New("the container's init ended before the command was executed")

// Release lets a waiting init go on and execute the command. await is called
// meanwhile, and must return when the init has done so, failed, or ended.
//
// libcontainer's init waits for a reader of a fifo, and writes a byte to it
// when it has found one. libcontainer's own way to be that reader
// (Container.Exec) blocks in open(2), which leaves a thread behind for ever if
// the init is killed meanwhile, and looks for that only ten times a second. A
// non-blocking open needs neither.
func (c *Container) Release(await func()) error {
	if c.filter != nil {
		return errors.New("start the container's init: its system call filter has not been loaded")
	}
	fifo, err := unix.Open(c.fifo(), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("start the container's init: %w", &os.PathError{Op: "open", Path: c.fifo(), Err: err})
	}
	defer unix.Close(fifo)
	await()
	var b [1]byte
	if n, _ := unix.Read(fifo, b[:]); n != 1 {
		return ErrNotReady
	}
	return os.Remove(c.fifo())
}

func (c *Container) fifo() string { return filepath.Join(c.stateDir, "exec.fifo") }

// Destroy removes the container's cgroup and state. Its processes must be
// gone.
func (c *Container) Destroy() error {
	if err := c.ctr.Destroy(); err != nil {
		return fmt.Errorf("remove container: %w", err)
	}
	return nil
}

// logLevel is that of logrus.WarnLevel: what OnWarning passes on. Without it the
// container's init tells each of its steps to a parent that drops them.
const logLevel = "3"

// newProcess translates the specification's process.
func newProcess(p *specs.Process) (*libcontainer.Process, error) {
	lp := &libcontainer.Process{
		LogLevel:        logLevel,
		Args:            p.Args,
		Env:             p.Env,
		UID:             int(p.User.UID),
		GID:             int(p.User.GID),
		Cwd:             p.Cwd,
		Label:           p.SelinuxLabel,
		NoNewPrivileges: &p.NoNewPrivileges,
		AppArmorProfile: p.ApparmorProfile,
	}
	if c := p.Capabilities; c != nil {
		lp.Capabilities = &configs.Capabilities{
			Bounding:    c.Bounding,
			Effective:   c.Effective,
			Inheritable: c.Inheritable,
			Permitted:   c.Permitted,
			Ambient:     c.Ambient,
		}
	}
	for _, g := range p.User.AdditionalGids {
		lp.AdditionalGroups = append(lp.AdditionalGroups, int(g))
	}
	for _, r := range p.Rlimits {
		kind, ok := Rlimits[r.Type]
		if !ok {
			return nil, fmt.Errorf("resource limit %q is not known", r.Type)
		}
		lp.Rlimits = append(lp.Rlimits, configs.Rlimit{Type: kind, Soft: r.Soft, Hard: r.Hard})
	}
	return lp, nil
}

// Rlimits are the resources of getrlimit(2) by their names in the OCI runtime
// specification (process.rlimits).
var Rlimits = map[string]int{
	"RLIMIT_AS":         unix.RLIMIT_AS,
	"RLIMIT_CORE":       unix.RLIMIT_CORE,
	"RLIMIT_CPU":        unix.RLIMIT_CPU,
	"RLIMIT_DATA":       unix.RLIMIT_DATA,
	"RLIMIT_FSIZE":      unix.RLIMIT_FSIZE,
	"RLIMIT_LOCKS":      unix.RLIMIT_LOCKS,
	"RLIMIT_MEMLOCK":    unix.RLIMIT_MEMLOCK,
	"RLIMIT_MSGQUEUE":   unix.RLIMIT_MSGQUEUE,
	"RLIMIT_NICE":       unix.RLIMIT_NICE,
	"RLIMIT_NOFILE":     unix.RLIMIT_NOFILE,
	"RLIMIT_NPROC":      unix.RLIMIT_NPROC,
	"RLIMIT_RSS":        unix.RLIMIT_RSS,
	"RLIMIT_RTPRIO":     unix.RLIMIT_RTPRIO,
	"RLIMIT_RTTIME":     unix.RLIMIT_RTTIME,
	"RLIMIT_SIGPENDING": unix.RLIMIT_SIGPENDING,
	"RLIMIT_STACK":      unix.RLIMIT_STACK,
}
