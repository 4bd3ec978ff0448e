// Package systemd asks systemd, where it is PID 1, for a place in the control
// group tree: a scope of our own below crunch-run.slice with the right to make
// groups in it. systemd is the only writer of the tree outside of what it has
// delegated (systemd's CGROUP_DELEGATION.md); a group made elsewhere may lose its
// controllers when units change.
package systemd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"github.com/coreos/go-systemd/v22/dbus"
	godbus "github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

// Slice holds the scopes of all containers.
const Slice = "crunch-run.slice"

// Running tells whether systemd is PID 1 (sd_booted(3)).
func Running() bool {
	var st unix.Stat_t
	return unix.Lstat("/run/systemd/system", &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR
}

// Delegated tells whether systemd has handed over a group, a path below the mount
// point of cgroup v2, or one above it, to whoever runs there (Delegate=).
func Delegated(group string) bool {
	for ; group != "/" && group != "."; group = path.Dir(group) {
		var value [1]byte
		// systemd marks such groups (CGROUP_DELEGATION.md, "Delegation").
		if n, err := unix.Lgetxattr(path.Join("/sys/fs/cgroup", group), "trusted.delegate", value[:]); err == nil && n == 1 && value[0] == '1' {
			return true
		}
	}
	return false
}

// Scope is a transient scope unit. It lives as long as any process in it.
type Scope struct {
	// Unit is its name, "crunch-run-<name>.scope".
	Unit string
	// Group is its control group, a path below the mount point of the hierarchies.
	Group string
}

// Start makes a scope for name, which must be unique among the living ones, and
// moves the process pid into it, to a group "keeper" of its own: groups beside
// that one may have controllers also on cgroup v2.
//
// The scope is delegated: systemd does not look into it, nor does it end it when
// a process in it runs out of memory.
func Start(ctx context.Context, name string, pid int) (_ *Scope, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("make systemd scope for %s: %w", name, err)
		}
	}()
	if name == "" || strings.ContainsFunc(name, func(r rune) bool {
		return !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_", r)
	}) {
		return nil, fmt.Errorf("%q is not the name of a unit", name)
	}
	// By way of the bus, or of systemd's own socket on a small node without one.
	conn, err := dbus.NewWithContext(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	s := &Scope{Unit: "crunch-run-" + name + ".scope"}
	done := make(chan string, 1)
	_, err = conn.StartTransientUnitContext(ctx, s.Unit, "fail", []dbus.Property{
		dbus.PropDescription("Arvados container " + name),
		dbus.PropSlice(Slice),
		dbus.PropPids(uint32(pid)),
		property("Delegate", true),
		property("DefaultDependencies", false),
		// As every stop of a container. Its first process ignores TERM unless it
		// asks for it (pid_namespaces(7)), for which systemd would wait 90 s.
		property("KillSignal", int32(unix.SIGKILL)),
		property("CollectMode", "inactive-or-failed"),
		property("CPUAccounting", true),
		property("MemoryAccounting", true),
		property("TasksAccounting", true),
	}, done)
	if err != nil {
		return nil, err
	}
	select {
	case result := <-done:
		if result != "done" {
			return nil, fmt.Errorf("systemd's job for %s ended with %q", s.Unit, result)
		}
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	group, err := conn.GetUnitTypePropertyContext(ctx, s.Unit, "Scope", "ControlGroup")
	if err != nil {
		return nil, err
	}
	var ok bool
	if s.Group, ok = group.Value.Value().(string); !ok || !path.IsAbs(s.Group) {
		return nil, fmt.Errorf("systemd does not say where %s is in the control group tree", s.Unit)
	}
	return s, s.settle(pid)
}

func property(name string, value any) dbus.Property {
	return dbus.Property{Name: name, Value: godbus.MakeVariant(value)}
}

// settle makes room for groups with controllers: on v2 only a group without
// processes passes controllers on.
func (s *Scope) settle(pid int) error {
	const mount = "/sys/fs/cgroup"
	dir := path.Join(mount, s.Group)
	available, err := os.ReadFile(path.Join(dir, "cgroup.controllers"))
	if errors.Is(err, os.ErrNotExist) {
		return nil // v1, or hybrid: any group passes on
	}
	if err != nil {
		return err
	}
	keeper := path.Join(dir, "keeper")
	if err := os.Mkdir(keeper, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	if err := os.WriteFile(path.Join(keeper, "cgroup.procs"), fmt.Append(nil, pid), 0); err != nil {
		return err
	}
	for _, c := range strings.Fields(string(available)) {
		if err := os.WriteFile(path.Join(dir, "cgroup.subtree_control"), []byte("+"+c), 0); err != nil {
			return fmt.Errorf("pass on the controller %s: %w", c, err)
		}
	}
	return nil
}
