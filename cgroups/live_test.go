package cgroups

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// patience is for watchdogs: the machine may be busy.
const patience = 2 * time.Minute

// ownDirs returns the directories of a group called name below this process's
// own group, in every hierarchy mounted here. On pure v2 it is beside that group:
// a group with processes cannot have children with controllers.
func ownDirs(t *testing.T, name string) map[string]string {
	t.Helper()
	mounts, err := os.ReadFile("/proc/mounts")
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	hierarchies := parseMounts(string(mounts))
	dirs := make(map[string]string)
	for controller, group := range groupsOf(string(self)) {
		if mount, ok := hierarchies[controller]; ok {
			if Unified() {
				group = filepath.Dir(group)
			}
			dirs[controller] = filepath.Join("/", mount, group, name)
		}
	}
	if len(dirs) == 0 {
		t.Fatal("no cgroup hierarchy is mounted")
	}
	return dirs
}

// testName is a path two levels deep that no other test process uses.
func testName() string { return "crunch-oci-test-" + strconv.Itoa(os.Getpid()) + "/leaf" }

// newLive makes a real group and removes it, with all in it, at the end.
func newLive(t *testing.T, dirs map[string]string) *Cgroup {
	t.Helper()
	c, err := New(dirs)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := errors.Join(c.Kill(ctx), c.Delete(ctx)); err != nil {
			t.Error(err)
		}
		for _, d := range c.Made {
			if _, err := os.Stat(d); err == nil {
				t.Errorf("%s is left behind", d)
			}
		}
	})
	if err := c.Create(); err != nil {
		t.Fatal(err)
	}
	if dir := c.Dirs[""]; dir != "" && Unified() {
		// Each parent passes on what it has got from its own.
		for _, d := range []string{filepath.Dir(filepath.Dir(dir)), filepath.Dir(dir)} {
			if err := os.WriteFile(filepath.Join(d, "cgroup.subtree_control"), []byte("+cpu +memory +pids"), 0); err != nil {
				t.Fatal(err)
			}
		}
	}
	// A v1 cpuset takes no process before it has CPUs and memory nodes.
	if leaf := c.Dirs["cpuset"]; leaf != "" && filepath.Base(leaf) == "leaf" {
		for _, dir := range []string{filepath.Dir(leaf), leaf} {
			for _, f := range []string{"cpuset.cpus", "cpuset.mems"} {
				b, err := os.ReadFile(filepath.Join(dir, "..", f))
				if err == nil {
					err = os.WriteFile(filepath.Join(dir, f), b, 0)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	return c
}

// startIn runs a shell script inside the group.
func startIn(t *testing.T, c *Cgroup, script string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/bin/sh", "-c", "read go && "+script)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	for _, dir := range c.unique() {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(cmd.Process.Pid)), 0); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := stdin.Write([]byte("go\n")); err != nil {
		t.Fatal(err)
	}
	return cmd
}

func waitFor(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// Kill ends a group that forks all the time, by cgroup.kill as well as by the
// freezer, and Delete removes everything.
func TestKillForkingGroup(t *testing.T) {
	all := ownDirs(t, testName())
	v1 := maps.Clone(all)
	delete(v1, "")
	plain := maps.Clone(v1)
	delete(plain, "freezer")
	frozen := v1
	if len(v1) == 0 {
		frozen = all // what cgroup.kill leaves for it to do
	}
	for _, tc := range []struct {
		name  string
		dirs  map[string]string
		pidfd error // what the kernel says to it
	}{
		{"all hierarchies", all, nil},
		{"v1 only", v1, nil},
		{"without freezer", plain, nil},
		{"before Linux 5.3", frozen, unix.ENOSYS},
		{"pidfd_open is forbidden", frozen, unix.EPERM},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if len(tc.dirs) == 0 {
				t.Skip("no v1 hierarchy is mounted")
			}
			if tc.pidfd != nil {
				pidfdOpen = func(int, int) (int, error) { return -1, tc.pidfd }
				t.Cleanup(func() { pidfdOpen = unix.PidfdOpen })
			}
			c := newLive(t, tc.dirs)
			if dir := c.Dirs["pids"]; dir != "" {
				if err := os.WriteFile(filepath.Join(dir, "pids.max"), []byte("200"), 0); err != nil {
					t.Fatal(err)
				}
			}
			cmd := startIn(t, c, "while :; do (sleep 600 & sleep 600 &) ; done 2>/dev/null")
			waitFor(t, "children", func() bool { pids, err := c.Procs(); return err == nil && len(pids) > 20 })
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			if err := c.Kill(ctx); err != nil {
				t.Fatal(err)
			}
			if pids, err := c.Procs(); err != nil || len(pids) != 0 {
				t.Errorf("left: %v, %v", pids, err)
			}
			_ = cmd.Wait()
			if err := c.Delete(ctx); err != nil {
				t.Error(err)
			}
			if c.Exists() {
				t.Error("group still exists")
			}
		})
	}
}

// A group that cannot be ended must not be reported as ended.
func TestDeleteOfBusyGroupFails(t *testing.T) {
	c := newLive(t, ownDirs(t, testName()))
	startIn(t, c, "sleep 600")
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Millisecond)
	defer cancel()
	err := c.Delete(ctx)
	if err == nil || !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "killed first") {
		t.Errorf("Delete of a busy group: %v", err)
	}
	if pids, err := c.Procs(); err != nil || len(pids) == 0 {
		t.Errorf("the group lost its processes: %v, %v", pids, err)
	}
}

// The record of a group written before its creation is enough for another
// process to find and remove it, with parents, but not parents in use.
func TestRecordIsEnoughToCleanUp(t *testing.T) {
	c := newLive(t, ownDirs(t, testName()))
	record, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	sibling := filepath.Join(filepath.Dir(c.unique()[0]), "sibling")
	if err := os.Mkdir(sibling, 0o755); err != nil {
		t.Fatal(err)
	}
	var found Cgroup
	if err := json.Unmarshal(record, &found); err != nil {
		t.Fatal(err)
	}
	if err := found.Delete(t.Context()); err != nil {
		t.Fatal(err)
	}
	if c.Exists() {
		t.Error("leaf left behind")
	}
	if _, err := os.Stat(sibling); err != nil {
		t.Errorf("a neighbour was removed: %v", err)
	}
	if err := os.Remove(sibling); err != nil {
		t.Fatal(err)
	}
	if err := found.Delete(t.Context()); err != nil {
		t.Errorf("second Delete: %v", err)
	}
}

// Containers that start and end together share a parent, which whoever is last
// removes: nobody's Create may fail because of that.
func TestCreateWhileParentIsRemoved(t *testing.T) {
	var wg sync.WaitGroup
	base := ownDirs(t, "crunch-oci-test-race-"+strconv.Itoa(os.Getpid()))
	for i := range 4 {
		wg.Go(func() {
			for range 50 {
				dirs := make(map[string]string)
				for k, d := range base {
					dirs[k] = filepath.Join(d, strconv.Itoa(i))
				}
				c, err := New(dirs)
				if err == nil {
					err = c.Create()
				}
				if err == nil {
					err = c.Delete(context.Background())
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	for _, d := range base {
		if _, err := os.Stat(d); err == nil {
			t.Errorf("%s is left behind", d)
		}
	}
}

func TestSharedParentIsRemovedByTheLast(t *testing.T) {
	base := ownDirs(t, "crunch-oci-test-last-"+strconv.Itoa(os.Getpid()))
	at := func(name string) *Cgroup {
		dirs := make(map[string]string)
		for k, d := range base {
			dirs[k] = filepath.Join(d, name)
		}
		c, err := New(dirs)
		if err == nil {
			err = c.Create()
		}
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	first := at("a")
	second := at("b")
	for _, c := range []*Cgroup{first, second} {
		if err := c.Delete(t.Context()); err != nil {
			t.Error(err)
		}
	}
	for _, d := range base {
		if _, err := os.Stat(d); err == nil {
			t.Errorf("%s is left behind", d)
		}
	}
}

// Whoever made the shared parent may have been killed before it was marked as
// made. When that is cleaned up the parent is in use, and whoever is last removes
// it all the same.
func TestSharedParentThatWasNotMarked(t *testing.T) {
	base := ownDirs(t, "crunch-oci-test-mark-"+strconv.Itoa(os.Getpid()))
	at := func(name string) *Cgroup {
		dirs := make(map[string]string)
		for k, d := range base {
			dirs[k] = filepath.Join(d, name)
		}
		c, err := New(dirs)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	killed := at("a")
	for _, d := range base {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	other := at("b")
	if err := other.Create(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []*Cgroup{killed, other} {
		if err := c.Delete(t.Context()); err != nil {
			t.Error(err)
		}
	}
	for _, d := range base {
		if _, err := os.Stat(d); err == nil {
			t.Errorf("%s is left behind", d)
			_ = os.Remove(d)
		}
	}
}

func TestOOMKillsAndStats(t *testing.T) {
	c := newLive(t, ownDirs(t, testName()))
	if n, err := c.OOMKills(); err != nil || n != 0 {
		t.Fatalf("before: %d, %v", n, err)
	}
	limit, dir := "memory.max", c.Dirs[""]
	if d, ok := c.Dirs["memory"]; ok {
		limit, dir = "memory.limit_in_bytes", d
	}
	const bytesLimit = 16 << 20
	if err := os.WriteFile(filepath.Join(dir, limit), []byte(strconv.Itoa(bytesLimit)), 0); err != nil {
		t.Fatal(err)
	}
	// The shell outlives its child, which is the one that is killed.
	cmd := startIn(t, c, "head -c 200M /dev/zero | tail; sleep 600")
	waitFor(t, "an OOM kill", func() bool { n, err := c.OOMKills(); return err == nil && n > 0 })
	s := Reader{FS: os.DirFS("/")}.Cgroup(c)
	st := s.Stats()
	if st.Memory.Limit != known(bytesLimit) || st.Memory.Peak.N < bytesLimit/2 || !st.Memory.RSS.Known {
		t.Errorf("memory %+v", st.Memory)
	}
	if !st.CPU.Known || st.CPU.Count < 1 || st.PIDs.Current.N < 1 {
		t.Errorf("cpu %+v, pids %+v", st.CPU, st.PIDs)
	}
	if !slices.ContainsFunc(s.Files(), func(f string) bool { return strings.HasSuffix(f, "/leaf/memory.stat") }) {
		t.Errorf("files %v", s.Files())
	}
	own, err := Reader{FS: os.DirFS("/")}.Process(cmd.Process.Pid)
	if err != nil || !slices.ContainsFunc(own.Files(), func(f string) bool { return strings.HasSuffix(f, "/leaf/memory.stat") }) {
		t.Errorf("found by process: %v, %v", own, err)
	}
}

func TestErrors(t *testing.T) {
	if _, err := New(map[string]string{"": "relative"}); err == nil {
		t.Error("relative directory accepted")
	}
	c := &Cgroup{Dirs: map[string]string{"cpu": t.TempDir()}}
	if _, err := c.OOMKills(); !errors.Is(err, ErrNotSupported) {
		t.Errorf("OOMKills without memory controller: %v", err)
	}
	dir := t.TempDir()
	c = &Cgroup{Dirs: map[string]string{"memory": dir}}
	if err := os.WriteFile(filepath.Join(dir, "memory.oom_control"), []byte("under_oom 0\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := c.OOMKills(); !errors.Is(err, ErrNotSupported) {
		t.Errorf("OOMKills of an old kernel: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Procs(); err == nil {
		t.Error("a process of another PID namespace passed unnoticed")
	}
}

// On v2 a group with processes can have groups with controllers below it once
// the processes have moved aside, and is as before when the last one has left.
func TestVacate(t *testing.T) {
	if !Unified() {
		t.Skip("only pure cgroup v2 needs it; vmtest runs this there")
	}
	c := newLive(t, ownDirs(t, testName()))
	dir := c.Dirs[""]
	group := strings.TrimPrefix(dir, unifiedMountpoint)
	cmd := startIn(t, c, "sleep 600")
	first, err := Vacate(group)
	if err != nil {
		t.Fatal(err)
	}
	second, err := Vacate(group)
	if err != nil {
		t.Fatal(err)
	}
	below := filepath.Join(dir, "below")
	if err := os.Mkdir(below, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(below, "memory.max"), []byte("16777216"), 0); err != nil {
		t.Errorf("limit below: %v", err)
	}
	// systemd does this to units that are not delegated.
	if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("-memory"), 0); !errors.Is(err, unix.EBUSY) {
		t.Errorf("the controller can be taken away: %v", err)
	}
	own, err := Reader{FS: os.DirFS("/")}.Process(cmd.Process.Pid)
	if err != nil || !slices.ContainsFunc(own.Files(), func(f string) bool { return strings.HasSuffix(f, "/leaf/memory.stat") }) {
		t.Errorf("statistics of the process are not the whole group's: %v, %v", own, err)
	}
	if err := first(); err != nil {
		t.Error(err)
	}
	if procs, err := readProcs(filepath.Join(dir, "cgroup.procs")); err != nil || len(procs) != 0 {
		t.Errorf("one has left, the other still needs the room: %v, %v", procs, err)
	}
	if err := os.Remove(below); err != nil {
		t.Fatal(err)
	}
	if err := second(); err != nil {
		t.Error(err)
	}
	procs, err := readProcs(filepath.Join(dir, "cgroup.procs"))
	if err != nil || !slices.Contains(procs, cmd.Process.Pid) {
		t.Errorf("processes %v, %v", procs, err)
	}
	if entries, _ := filepath.Glob(dir + "/*/"); len(entries) != 0 {
		t.Errorf("left behind: %v", entries)
	}
}

func TestPIDLimit(t *testing.T) {
	c := newLive(t, ownDirs(t, testName()))
	if _, limit, limited := c.PIDLimit(); limited {
		t.Errorf("a new group is limited to %d processes", limit)
	}
	dir, ok := c.Dirs["pids"]
	if !ok {
		dir = c.Dirs[""]
	}
	if err := os.WriteFile(filepath.Join(dir, "pids.max"), []byte("2"), 0); err != nil {
		t.Fatal(err)
	}
	startIn(t, c, "(sleep 600 & sleep 600; sleep 600)")
	waitFor(t, "a process that could not be made", func() bool { return c.PIDRefusals() > 0 })
	if current, limit, limited := c.PIDLimit(); !limited || limit != 2 || current > 2 {
		t.Errorf("%d of %d, %v", current, limit, limited)
	}
}
