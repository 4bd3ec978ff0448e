package main_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// patience bounds whatever must happen and is not measured. Where everything is
// emulated it takes some twenty times as long.
var patience = func() time.Duration {
	if inMachine {
		return 10 * time.Minute
	}
	return 2 * time.Minute
}()

// inMachine says that these are the virtual machine of package vmtest, and its
// kernel, which lacks nothing that these tests need.
var inMachine = os.Getenv("VMTEST_MACHINE") != ""

// node stands for a compute node: every path the program uses lies below dir,
// every cgroup below one of its own, so that tests do not meet, and what is left
// behind is found.
type node struct {
	dir    string
	cgroup string // a name below our own group in each hierarchy
	// netns is the path of the network namespace that the program is run in; "" is
	// the machine's.
	netns string
	// prefix is a command that runs the program.
	prefix []string
	env    []string // further settings
}

var nodeCount atomic.Int64

// newNode makes a node that must be clean again when the test ends.
func newNode(t testing.TB) *node {
	t.Helper()
	return newNodeIn(t, t.TempDir())
}

func newNodeIn(t testing.TB, dir string) *node {
	t.Helper()
	n, err := makeNode(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		n.mustBeClean(t)
		n.removeCgroups()
	})
	return n
}

func makeNode(dir string) (*node, error) {
	n := &node{dir: dir, cgroup: fmt.Sprintf("e2e-%d-%d", os.Getpid(), nodeCount.Add(1))}
	for _, d := range []string{n.store(), n.runtime(), n.locks(), n.tmp()} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, err
		}
	}
	return n, nil
}

func (n *node) store() string      { return filepath.Join(n.dir, "store") }
func (n *node) results() string    { return filepath.Join(n.dir, "local") }
func (n *node) unfinished() string { return filepath.Join(n.dir, "unfinished") }
func (n *node) runtime() string    { return filepath.Join(n.dir, "run") }
func (n *node) keepCache() string  { return filepath.Join(n.dir, "keepcache") }
func (n *node) locks() string      { return filepath.Join(n.dir, "lock") }
func (n *node) tmp() string        { return filepath.Join(n.dir, "tmp") }

// settings are the variables that make this node.
func (n *node) settings() []string {
	return append([]string{
		"CRUNCH_RUN_STORE_DIR=" + n.store(), "CRUNCH_RUN_LOCAL_DIR=" + n.results(), "CRUNCH_RUN_RUNTIME_DIR=" + n.runtime(), "CRUNCH_RUN_UNFINISHED_DIR=" + n.unfinished(),
		"CRUNCH_RUN_LOCK_DIR=" + n.locks(), "CRUNCH_RUN_KEEP_CACHE_DIR=" + n.keepCache(), "CRUNCH_RUN_CGROUP_BASE=" + n.cgroup,
		// The bridge is tested in a network namespace of its own.
		"CRUNCH_RUN_NETWORK=none", "TMPDIR=" + n.tmp(),
	}, n.env...)
}

// mustBeClean fails the test unless everything that the program made on the node
// is gone. It does not wait: when the program has ended, so has its clean-up.
func (n *node) mustBeClean(t testing.TB) {
	t.Helper()
	left, err := n.leftovers()
	if err != nil {
		t.Errorf("look for leftovers: %v", err)
	}
	for _, l := range left {
		t.Errorf("left behind on the node: %s", l)
	}
}

// leftovers lists mounts, processes, cgroups, and files that are neither image
// nor result.
func (n *node) leftovers() (left []string, err error) {
	mounts, err := n.mounts()
	for _, m := range mounts {
		left = append(left, "mount "+m)
	}
	processes := n.processes()
	for _, p := range processes {
		left = append(left, "process "+p.String())
	}
	groups, err2 := n.cgroups()
	for _, g := range groups {
		left = append(left, "cgroup "+g)
	}
	err = errors.Join(err, err2)
	for _, dir := range []string{n.runtime(), n.locks(), n.tmp(), n.unfinished(), filepath.Join(n.store(), "tmp")} {
		entries, err3 := os.ReadDir(dir)
		if err3 != nil && !errors.Is(err3, os.ErrNotExist) {
			err = errors.Join(err, err3)
		}
		for _, e := range entries {
			if e.Name() == "crunch-run-all.lock" || e.Name() == gpuLocks || e.Name() == "crunch-run-ids" {
				continue // meant to stay
			}
			left = append(left, "file "+filepath.Join(dir, e.Name()))
		}
	}
	return left, err
}

// mounts are the mounts below the node's directory in the host's mount
// namespace, where none should ever appear.
func (n *node) mounts() ([]string, error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var found []string
	for line := range strings.Lines(string(text)) {
		if strings.Contains(line, n.dir+"/") {
			found = append(found, strings.TrimSpace(line))
		}
	}
	return found, nil
}

// foundProcess is a process of a node.
type foundProcess struct {
	pid     int
	command string
	exe     string
	// contained is true for those in the container's cgroup.
	contained bool
}

func (p foundProcess) String() string { return fmt.Sprintf("%d %q", p.pid, p.command) }

// processes are the living processes of the node: those with its settings in
// their environment, and those in its cgroups.
func (n *node) processes() []foundProcess {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	var found []foundProcess
	for _, dir := range dirs {
		// Whatever cannot be read has just ended.
		environ, _ := os.ReadFile(dir + "/environ")
		groups, _ := os.ReadFile(dir + "/cgroup")
		contained := bytes.Contains(groups, []byte("/"+n.cgroup+"/"))
		// Some dispatchers pass none of the settings on.
		ours := bytes.Contains(environ, []byte(n.store()+"\x00")) ||
			bytes.Contains(environ, []byte("TMPDIR="+n.tmp()+"\x00")) && !bytes.Contains(environ, []byte("CRUNCH_RUN_STORE_DIR="))
		if !contained && !ours {
			continue
		}
		status, _ := os.ReadFile(dir + "/stat")
		if i := bytes.LastIndexByte(status, ')'); i < 0 || i+2 >= len(status) || status[i+2] == 'Z' || status[i+2] == 'X' {
			continue
		}
		pid, _ := strconv.Atoi(filepath.Base(dir))
		cmdline, _ := os.ReadFile(dir + "/cmdline")
		command := strings.TrimSpace(strings.ReplaceAll(string(cmdline), "\x00", " "))
		exe, _ := os.Readlink(dir + "/exe")
		found = append(found, foundProcess{pid, command, exe, contained})
	}
	return found
}

// cgroups are the directories of the node's cgroups in all hierarchies.
func (n *node) cgroups() ([]string, error) {
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, err
	}
	mountinfo, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var found []string
	for line := range strings.Lines(string(mountinfo)) {
		before, after, ok := strings.Cut(line, " - ")
		fields, kind := strings.Fields(before), strings.Fields(after)
		if !ok || len(fields) < 5 || len(kind) < 3 || kind[0] != "cgroup" && kind[0] != "cgroup2" {
			continue
		}
		for group := range strings.Lines(string(own)) {
			f := strings.SplitN(strings.TrimSpace(group), ":", 3)
			if len(f) != 3 || f[1] == "" != (kind[0] == "cgroup2") || f[1] != "" && !slices.Contains(strings.Split(kind[2], ","), f[1]) {
				continue
			}
			dir := filepath.Join(fields[4], strings.TrimPrefix(f[2], fields[3]), n.cgroup)
			if _, err := os.Stat(dir); err == nil {
				found = append(found, dir)
			}
		}
	}
	return found, nil
}

// removeCgroups removes what a failed test has left, so that it does not stay for
// ever. Files of a test go with its directory.
func (n *node) removeCgroups() {
	dirs, _ := n.cgroups()
	for _, dir := range dirs {
		_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() && path != dir {
				_ = os.Remove(path)
			}
			return nil
		})
		_ = os.Remove(dir)
	}
}

// waitFor polls what the kernel or another process does in its own time.
func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	for !ok() {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			t.Fatalf("waited in vain for: %s", what)
		}
	}
}

// waitDead waits until no process of the node is alive, which after a kill -9
// of the supervisor is the kernel's work.
func (n *node) waitDead(t testing.TB) {
	t.Helper()
	waitFor(t, "the death of the node's processes", func() bool { return len(n.processes()) == 0 && !n.locked(t) })
}

// locked tells whether a run's lock is held. A dying process has lost its
// environment, by which it is found, some time before it closes its files.
func (n *node) locked(t testing.TB) bool {
	t.Helper()
	locks, err := filepath.Glob(filepath.Join(n.runtime(), "*", "lock"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range locks {
		f, err := os.Open(path)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		// Asking takes no lock, which another test's child would inherit.
		holder := unix.Flock_t{Type: unix.F_WRLCK}
		err = unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &holder)
		_ = f.Close()
		if err != nil {
			t.Fatal(err)
		}
		if holder.Type != unix.F_UNLCK {
			return true
		}
	}
	return false
}
