package cgroups

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ErrNotSupported is returned when the kernel, or the set of mounted
// controllers, does not offer what was asked for.
var ErrNotSupported = errors.New("not supported by this node's cgroups")

// unifiedMountpoint is where every distribution mounts cgroup v2.
const unifiedMountpoint = "/sys/fs/cgroup"

// Unified tells whether this node runs on pure cgroup v2.
func Unified() bool {
	var st unix.Statfs_t
	return unix.Statfs(unifiedMountpoint, &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC
}

// Cgroup is one control group. It is plain data: stored as JSON before Create,
// it lets another process find and remove what a killed one left behind.
type Cgroup struct {
	// Dirs maps a controller ("memory", "cpu", "name=systemd") to the group's
	// directory in that controller's hierarchy, as an absolute path; the key
	// "" is the v2 hierarchy. Controllers mounted together share a directory.
	Dirs map[string]string `json:"dirs"`
	// Made lists the directories, parents before children, that Delete may remove:
	// those that did not exist before the group, or were made for another group.
	Made []string `json:"made"`
}

// New describes the group with these directories (as in Dirs) without making
// it. Directories that do not exist yet, parents included, will be removed by
// Delete.
func New(dirs map[string]string) (*Cgroup, error) {
	c := &Cgroup{Dirs: dirs}
	for _, dir := range c.unique() {
		if !filepath.IsAbs(dir) || filepath.Clean(dir) != dir {
			return nil, fmt.Errorf("cgroup directory %q is not a clean absolute path", dir)
		}
		for d := range parents(dir) {
			// A parent that was made for another container may be removed with it,
			// and made again for this one: it is listed although it exists.
			if _, err := os.Lstat(d); !errors.Is(err, fs.ErrNotExist) && !isMadeByUs(d) {
				break
			}
			c.Made = append(c.Made, d)
		}
		c.Made = append(c.Made, dir)
	}
	slices.Sort(c.Made) // parents before children
	c.Made = slices.Compact(c.Made)
	return c, nil
}

// Create makes the group's directories. The runtime would make them, too, but fails
// if another container that ends removes their common parent, now empty, at the
// same moment. Create tries again.
func (c *Cgroup) Create() error {
	for _, dir := range c.unique() {
		if err := makeGroup(dir); err != nil {
			return fmt.Errorf("create cgroup: %w", err)
		}
	}
	return nil
}

// madeByUs is the extended attribute of directories made by this package. A
// parent shared by several containers was made by the first, and must be
// removed by whoever is last.
const madeByUs = "trusted.crunch-run"

// makeGroup makes dir and its missing parents.
func makeGroup(dir string) error {
	const attempts = 100
	var err error
	for range attempts {
		err = unix.Mkdir(dir, 0o755)
		switch {
		case err == nil:
			// Some kernels do not take it; Made names the directory all the same.
			_ = unix.Lsetxattr(dir, madeByUs, []byte("1"), 0)
			return nil
		case errors.Is(err, unix.EEXIST):
			return nil
		case !errors.Is(err, unix.ENOENT):
			return &fs.PathError{Op: "mkdir", Path: dir, Err: err}
		}
		if err := makeGroup(filepath.Dir(dir)); err != nil {
			return err
		}
	}
	return &fs.PathError{Op: "mkdir", Path: dir, Err: err}
}

func isMadeByUs(dir string) bool {
	var b [1]byte
	_, err := unix.Lgetxattr(dir, madeByUs, b[:])
	return err == nil
}

// Exists tells whether any of the group's directories exists.
func (c *Cgroup) Exists() bool {
	return slices.ContainsFunc(c.unique(), func(dir string) bool {
		_, err := os.Lstat(dir)
		return err == nil
	})
}

// Procs returns the ids of the processes in the group and in groups below it,
// in any hierarchy, sorted. A group that does not exist has none. A process of
// another PID namespace, which has no id here, is an error.
func (c *Cgroup) Procs() ([]int, error) {
	var pids []int
	for _, dir := range c.unique() {
		err := walk(dir, func(d string) error {
			p, err := readProcs(filepath.Join(d, "cgroup.procs"))
			pids = append(pids, p...)
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("list cgroup processes: %w", err)
		}
	}
	slices.Sort(pids)
	return slices.Compact(pids), nil
}

// readProcs reads a cgroup.procs file; a missing one (ENOENT), or one of a
// group that is being removed (ENODEV), is empty.
func readProcs(file string) ([]int, error) {
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var pids []int
	for line := range strings.Lines(string(b)) {
		pid, err := strconv.Atoi(strings.TrimSpace(line))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		if pid == 0 {
			return nil, fmt.Errorf("%s: holds a process of another PID namespace", file)
		}
		pids = append(pids, pid)
	}
	return pids, nil
}

// OOMKills returns how many processes of the group the kernel killed because the
// group was out of memory; on v2 also those of groups below it, of which v1 counts
// each for itself. It must be read before Delete. The error is ErrNotSupported
// without a memory controller.
func (c *Cgroup) OOMKills() (uint64, error) {
	file := ""
	if dir, ok := c.Dirs["memory"]; ok {
		file = filepath.Join(dir, "memory.oom_control")
	} else if dir, ok := c.Dirs[""]; ok {
		file = filepath.Join(dir, "memory.events")
	} else {
		return 0, fmt.Errorf("count OOM kills: no memory controller: %w", ErrNotSupported)
	}
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) && c.Exists() {
		return 0, fmt.Errorf("count OOM kills: %s: %w", file, ErrNotSupported)
	}
	if err != nil {
		return 0, fmt.Errorf("count OOM kills: %w", err)
	}
	n, ok := flatKeyed(string(b), "oom_kill")
	if !ok { // v1 before Linux 4.13
		return 0, fmt.Errorf("count OOM kills: no oom_kill in %s: %w", file, ErrNotSupported)
	}
	return n, nil
}

// Delete removes the group, the groups below it, and every parent that is now empty
// and was made by this package, for this group or another. It kills no process (see
// Kill), but waits, until ctx ends, for the kernel to let go of those that have just
// died. A group that is gone already is no error.
func (c *Cgroup) Delete(ctx context.Context) error {
	var errs []error
	for _, dir := range c.unique() {
		if err := removeGroup(ctx, dir); err != nil {
			errs = append(errs, err)
		}
	}
	for _, dir := range c.unique() {
		for d := range parents(dir) {
			if !slices.Contains(c.Made, d) && !isMadeByUs(d) {
				break
			}
			err := unix.Rmdir(d)
			if errors.Is(err, unix.EBUSY) || errors.Is(err, unix.ENOTEMPTY) {
				// In use by another container, whose owner must find the mark.
				// Whoever made it may have been killed before it was set.
				_ = unix.Lsetxattr(d, madeByUs, []byte("1"), 0)
				break
			}
			if err != nil && !errors.Is(err, unix.ENOENT) {
				errs = append(errs, &fs.PathError{Op: "rmdir", Path: d, Err: err})
				break
			}
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove cgroup: %w", err)
	}
	return nil
}

func removeGroup(ctx context.Context, dir string) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		err := removeTree(dir)
		if !errors.Is(err, unix.EBUSY) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: its processes must be killed first: %w", err, context.Cause(ctx))
		case <-tick.C:
		}
	}
}

// removeTree removes dir and the groups below it. Only directories can be
// removed in a cgroup file system; the files vanish with them.
func removeTree(dir string) error {
	err := unix.Rmdir(dir)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	entries, rerr := os.ReadDir(dir)
	if rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
		return rerr
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeTree(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
		return &fs.PathError{Op: "rmdir", Path: dir, Err: err}
	}
	return nil
}

// unique returns the directories without repetitions, sorted.
func (c *Cgroup) unique() []string {
	dirs := make([]string, 0, len(c.Dirs))
	for _, d := range c.Dirs {
		dirs = append(dirs, d)
	}
	slices.Sort(dirs)
	return slices.Compact(dirs)
}

// parents yields the parents of dir, the nearest first, without "/".
func parents(dir string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for d := filepath.Dir(dir); d != "/" && yield(d); d = filepath.Dir(d) {
		}
	}
}

// walk calls fn for dir and every group below it; groups that vanish meanwhile
// are passed over.
func walk(dir string, fn func(string) error) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return err
		case d.IsDir():
			return fn(path)
		}
		return nil
	})
}
