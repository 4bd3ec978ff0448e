package cgroups

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// supervisorLeaf is the group that processes are moved into to make room beside
// them (see Vacate).
const supervisorLeaf = "crunch-run-supervisor"

// limitsPin is an empty group beside supervisorLeaf that has all controllers for
// groups below it, of which there are none: the kernel takes no controller from a
// group while a group below passes it on. systemd would take them, and with them
// the limits of containers, from the groups of units without Delegate=, whenever
// it is told to reload (cgroup-v2.rst, "Top-down Constraint").
const limitsPin = "crunch-run-limits"

// aboveLeaf gives the group that a process was in before Vacate.
func aboveLeaf(group string) string {
	if path.Base(group) == supervisorLeaf {
		return path.Dir(group)
	}
	return group
}

// Vacate makes it possible on cgroup v2 to have groups with controllers below
// group, a path below the mount point, by moving the processes in it into a leaf
// of its own: a group with processes passes no controllers on (cgroup-v2.rst, "No
// Internal Process Constraint"). Several processes may do so for the same group.
//
// leave moves them back, unless others still need the room. Where cgroups are not
// v2, or group is the root, there is nothing to do.
func Vacate(group string) (leave func() error, err error) {
	if !needsRoom(group) {
		return func() error { return nil }, nil
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("make room in cgroup %s: %w", group, err)
		}
	}()
	dir := filepath.Join(unifiedMountpoint, group)
	leaf, err := holdLeaf(filepath.Join(dir, supervisorLeaf))
	if err != nil {
		return nil, err
	}
	leave = func() error {
		_ = leaf.Close()
		return Rejoin(group)
	}
	pin := filepath.Join(dir, limitsPin)
	err = errors.Join(moveAll(dir, leaf.Name()), passOn(dir))
	if err == nil {
		err = errors.Join(makeGroup(pin), passOn(pin))
	}
	if err != nil {
		return nil, errors.Join(err, leave())
	}
	return leave, nil
}

func needsRoom(group string) bool { return Unified() && path.Clean(group) != "/" }

// holdLeaf makes the leaf and takes a shared lock on it, which says that somebody
// needs the room beside it.
func holdLeaf(path string) (*os.File, error) {
	for {
		if err := makeGroup(path); err != nil {
			return nil, err
		}
		leaf, err := lockGroup(path, unix.LOCK_SH)
		if !errors.Is(err, os.ErrNotExist) {
			return leaf, err
		}
		// Its last user has just removed it.
	}
}

// lockGroup opens a group's directory with a lock (flock(2)). It fails with
// os.ErrNotExist if there is none, or no longer.
func lockGroup(path string, how int) (*os.File, error) {
	dir, err := os.OpenFile(path, unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(dir.Fd()), how); err != nil {
		return nil, errors.Join(&os.PathError{Op: "flock", Path: path, Err: err}, dir.Close())
	}
	var held, named unix.Stat_t
	err = unix.Fstat(int(dir.Fd()), &held)
	if err == nil {
		err = unix.Lstat(path, &named)
	}
	if err == nil && held.Ino != named.Ino {
		err = unix.ENOENT
	}
	if err != nil {
		_ = dir.Close()
		return nil, &os.PathError{Op: "lock", Path: path, Err: err}
	}
	return dir, nil
}

// Rejoin undoes what Vacate has done for processes that have left, or died. It
// does nothing as long as anybody needs the room.
func Rejoin(group string) error {
	if !needsRoom(group) {
		return nil
	}
	dir := filepath.Join(unifiedMountpoint, group)
	leaf, err := lockGroup(filepath.Join(dir, supervisorLeaf), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.EWOULDBLOCK) {
		return nil
	}
	if err == nil {
		err = errors.Join(rejoin(dir, leaf.Name()), leaf.Close())
	}
	if err != nil {
		return fmt.Errorf("leave cgroup %s: %w", group, err)
	}
	return nil
}

// moveAll moves all processes from one group to another.
func moveAll(from, to string) error {
	// New ones may be forked meanwhile.
	for range 100 {
		pids, err := readProcs(filepath.Join(from, "cgroup.procs"))
		if err != nil {
			return err
		}
		if len(pids) == 0 {
			return nil
		}
		for _, pid := range pids {
			err := os.WriteFile(filepath.Join(to, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0)
			if err != nil && !errors.Is(err, unix.ESRCH) {
				return err
			}
		}
	}
	return fmt.Errorf("processes in %s multiply faster than they can be moved", from)
}

// passOn makes all controllers of a group available in the groups below it.
func passOn(dir string) error {
	available, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return err
	}
	for _, c := range strings.Fields(string(available)) {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+c), 0); err != nil {
			return fmt.Errorf("pass on the controller %s: %w", c, err)
		}
	}
	return nil
}

// rejoin moves everything back, unless there are other groups in dir.
func rejoin(dir, leaf string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() && e.Name() != supervisorLeaf && e.Name() != limitsPin {
			return nil
		}
	}
	if err := unix.Rmdir(filepath.Join(dir, limitsPin)); err != nil && err != unix.ENOENT {
		return err
	}
	passed, err := os.ReadFile(filepath.Join(dir, "cgroup.subtree_control"))
	if err != nil {
		return err
	}
	for _, c := range strings.Fields(string(passed)) {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("-"+c), 0); err != nil {
			return err
		}
	}
	if err := moveAll(leaf, dir); err != nil {
		return err
	}
	err = unix.Rmdir(leaf)
	if err == unix.ENOENT {
		return nil
	}
	return err
}
