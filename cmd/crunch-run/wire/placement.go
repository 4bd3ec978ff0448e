package wire

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"crunch-oci/cgroups"
	"crunch-oci/cgroups/systemd"
	"crunch-oci/internal/forkthread"
	"crunch-oci/supervisor/rundir"
)

// placement decides where the container's cgroup is made: where the site or the
// dispatcher says; otherwise in a scope that systemd makes, or below /crunch-run
// where there is no systemd.
type placement struct {
	uuid  string
	fixed string // unless it is a scope
	warn  func(format string, args ...any)

	mu     sync.Mutex
	keeper *keeper      // may be nil
	leave  func() error // may be nil: of the room made in our own group
}

func (j Job) placement(warn func(format string, args ...any)) (*placement, error) {
	p := &placement{uuid: j.UUID, warn: warn}
	if j.Site.CgroupBase == "" && j.Flags.CgroupParentSubsystem == "" && systemd.Running() {
		return p, nil
	}
	var err error
	p.fixed, err = j.fixedPlacement()
	return p, err
}

// makeRoom lets the scheduler's group, which this process is in, have groups with
// controllers below it, as v2 wants it. What that takes is recorded in dir.
func (j Job) makeRoom(p *placement, dir *rundir.Dir) error {
	if j.Flags.CgroupParentSubsystem == "" {
		return nil
	}
	group := path.Dir(p.fixed)
	if systemd.Running() && cgroups.Unified() && !systemd.Delegated(group) {
		p.warn("warning: systemd has not delegated the cgroup %s: a service there is stopped when the container runs out of memory, unless its unit has Delegate=yes", group)
	}
	if err := dir.Own(rundir.Thing{Kind: ownsRoom, ID: group}); err != nil {
		return err
	}
	var err error
	p.leave, err = cgroups.Vacate(group)
	return err
}

// ErrCgroupParent says that -cgroup-parent-subsystem names no cgroup of this
// process. Its message goes to stderr as it is, without the container's UUID
// (spec: cli-and-dispatch section 1.3).
var ErrCgroupParent = errors.New("fatal: cgroup parent subsystem")

func (j Job) fixedPlacement() (string, error) {
	text, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", fmt.Errorf("find own cgroup: %w", err)
	}
	p := cgroups.Placement{Parent: j.Site.CgroupBase, Subsystem: j.Flags.CgroupParentSubsystem}
	path, err := p.Path(j.UUID, string(text))
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrCgroupParent, err)
	}
	return path, nil
}

// scopeTimeout bounds what systemd may take to make a scope.
const scopeTimeout = 20 * time.Second

// place gives the container's cgroup in the terms of the OCI spec. A scope needs
// a process that keeps it until the last statistics have been read: mountPID, the
// FUSE server, or, where that is 0, one of our own.
func (p *placement) place(ctx context.Context, mountPID int) (string, error) {
	if p.fixed != "" {
		return p.fixed, nil
	}
	ctx, cancel := context.WithTimeout(ctx, scopeTimeout)
	defer cancel()
	pid := mountPID
	if pid == 0 {
		k, err := startKeeper()
		if err != nil {
			return "", fmt.Errorf("keep the container's cgroup: %w", err)
		}
		p.mu.Lock()
		p.keeper = k
		p.mu.Unlock()
		pid = k.cmd.Process.Pid
	}
	scope, err := systemd.Start(ctx, p.uuid, pid)
	if err == nil {
		return path.Join(scope.Group, "container"), nil
	}
	if ctx.Err() != nil && !errors.Is(context.Cause(ctx), context.DeadlineExceeded) {
		return "", context.Cause(ctx) // the run is being stopped
	}
	p.warn("warning: the container's cgroup is not in a scope of systemd, which may interfere with its limits: %v", err)
	fixed := path.Join(cgroups.DefaultParent, p.uuid)
	return fixed, nil
}

// close ends the keeper, if there is one, and with it the scope, and leaves the
// room made in our own group.
func (p *placement) close(context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var err error
	if p.keeper != nil {
		err = p.keeper.stop()
	}
	if p.leave != nil {
		err = errors.Join(err, p.leave())
	}
	return err
}

// KeeperRole is the sub-command that does nothing until its standard input ends.
const KeeperRole = "cgroup-keeper"

// Keep is that sub-command.
func Keep(stdin io.Reader) int {
	_, _ = io.Copy(io.Discard, stdin)
	return 0
}

// keeper is a process that is there only to be in a cgroup.
type keeper struct {
	cmd  *exec.Cmd
	life io.Closer
}

func startKeeper() (*keeper, error) {
	cmd := exec.Command("/proc/self/exe", KeeperRole)
	cmd.Args[0] = "crunch-run"
	cmd.Env = []string{"GOMAXPROCS=1"}
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL, Setsid: true}
	life, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	forkthread.Do(func() { err = cmd.Start() })
	if err != nil {
		return nil, err
	}
	return &keeper{cmd: cmd, life: life}, nil
}

func (k *keeper) stop() error {
	_ = k.life.Close()
	return k.cmd.Wait()
}
