package diskcache

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Limit is a size in bytes, or in percent of the file system if Percent is not
// 0. The zero value is the documented default, 10 percent.
type Limit struct {
	Bytes   int64
	Percent int
}

func (l Limit) of(total int64) int64 {
	switch {
	case l.Percent > 0:
		return total / 100 * int64(l.Percent)
	case l.Bytes > 0:
		return l.Bytes
	}
	return total / 10
}

// ParseLimit reads a number of bytes, or a percentage such as "10%".
func ParseLimit(text string) (Limit, error) {
	if p, ok := strings.CutSuffix(text, "%"); ok {
		n, err := strconv.Atoi(p)
		if err != nil || n < 1 || n > 100 {
			return Limit{}, errors.New("a percentage must be a whole number from 1% to 100%")
		}
		return Limit{Percent: n}, nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return Limit{}, errors.New("neither a number of bytes nor a percentage")
	}
	if n < 0 {
		return Limit{}, errors.New("negative size")
	}
	return Limit{Bytes: n}, nil
}

const (
	// mostOfDisk is how full the cache may make a file system, in percent,
	// whatever the limits are: other programs need it too.
	mostOfDisk = 90
	// tidyTo is how much of what is allowed is left after an eviction, in
	// percent, so that there is not one for each block.
	tidyTo = 95
	// tidyEvery is the part of what is allowed after which it is counted again:
	// other processes add to the directory, too.
	tidyEvery = 64
	// staleAfter is the least age of a temporary file that nobody has locked.
	staleAfter = time.Minute
)

// register says to other processes how much we may add.
func (d *dir) register() error {
	for {
		f, err := os.CreateTemp(filepath.Join(d.root, "tmp"), "*.budget")
		if err != nil {
			return err
		}
		if flock(f, unix.LOCK_EX) != nil || !sameFile(f, f.Name()) {
			_ = f.Close() // somebody took it for a dead process's
			continue
		}
		total, _, err := space(d.root)
		if err == nil {
			_, err = fmt.Fprintln(f, d.limit.of(total))
		}
		if err != nil && !errors.Is(err, unix.ENOSPC) {
			_ = os.Remove(f.Name())
			_ = f.Close()
			return err
		}
		d.budget = f
		return nil
	}
}

// close gives back what we were allowed. What remains is for the next process.
func (d *dir) close() error {
	if d.budget == nil {
		return nil
	}
	_ = os.Remove(d.budget.Name())
	_ = d.budget.Close()
	d.tidy(func(int64) {})
	return nil
}

// added notes that a block of so many bytes was added, and tells whether it is
// time to tidy.
func (d *dir) added(size int64) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.estimate += size
	d.since += size
	return d.estimate > d.allowed || d.since > d.allowed/tidyEvery
}

// tidy removes what dead processes have left behind, and the blocks that were
// not used for the longest time if there are more than allowed. letGo is asked
// to close blocks of ours. Errors mean that there is less room; whoever adds a
// block then will see them.
func (d *dir) tidy(letGo func(int64)) {
	lock := d.lockTidy()
	if lock == nil {
		return // another process is at it
	}
	defer lock.Close()
	d.sweep()
	files := d.list()
	var total int64
	for _, f := range files {
		total += f.size
	}
	allowed := d.allowance(total)
	if total > allowed {
		total -= d.evict(files, total-allowed/100*tidyTo, letGo)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.estimate, d.allowed, d.since = total, allowed, 0
}

// makeRoom removes blocks of about size bytes, and tells whether there were any.
func (d *dir) makeRoom(size int64, letGo func(int64)) bool {
	lock := d.lockTidy()
	if lock == nil {
		return true // another process makes room at this moment
	}
	defer lock.Close()
	d.sweep()
	freed := d.evict(d.list(), size, letGo)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.estimate -= freed
	return freed > 0
}

func (d *dir) lockTidy() *os.File {
	f, err := os.OpenFile(d.temp("tidy.lock"), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, fileMode)
	if err != nil {
		return nil
	}
	if flock(f, unix.LOCK_EX) != nil {
		_ = f.Close()
		return nil
	}
	return f
}

// allowance is how many bytes may be in the directory: what the processes that
// have it open may use together. If there are none, it is what the last one
// could have used, and not more than the default.
func (d *dir) allowance(used int64) int64 {
	total, free, err := space(d.root)
	if err != nil {
		return 0
	}
	allowed, alive := int64(0), false
	for _, name := range d.names("tmp", "", ".budget") {
		n, live := readBudget(name)
		if !live {
			_ = os.Remove(name)
			continue
		}
		alive = true
		allowed += min(n, total)
	}
	if !alive {
		allowed = min(d.limit.of(total), Limit{}.of(total))
	}
	return min(allowed, (free+used)/100*mostOfDisk)
}

// readBudget reads what a process may use, if it is alive.
func readBudget(name string) (n int64, live bool) {
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return 0, false
	}
	defer f.Close()
	if flock(f, unix.LOCK_SH) == nil {
		return 0, false
	}
	text := make([]byte, 32)
	k, _ := f.Read(text)
	n, _ = strconv.ParseInt(strings.TrimSpace(string(text[:k])), 10, 64)
	return max(n, 0), true
}

// sweep removes temporary files of processes that are gone. Those of other
// programs may not be locked while they are in use, so that they have to be of
// some age.
func (d *dir) sweep() {
	names := d.names("tmp", "", ".tmp")
	for _, sub := range d.subdirs() {
		names = append(names, d.names(sub, "tmp", suffix)...)
	}
	for _, name := range names {
		if info, err := os.Lstat(name); err == nil && time.Since(info.ModTime()) > staleAfter {
			removeUnlocked(name)
		}
	}
}

// file is a block in the directory.
type file struct {
	path string
	size int64
	used time.Time
}

func (d *dir) list() []file {
	var files []file
	for _, sub := range d.subdirs() {
		for _, name := range d.names(sub, sub, suffix) {
			var st unix.Stat_t
			if len(filepath.Base(name)) == 32+len(suffix) && unix.Lstat(name, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFREG {
				files = append(files, file{name, st.Size, time.Unix(st.Atim.Unix())})
			}
		}
	}
	return files
}

// subdirs are the directories of blocks.
func (d *dir) subdirs() (list []string) {
	entries, _ := os.ReadDir(d.root)
	for _, e := range entries {
		if len(e.Name()) == 3 && strings.Trim(e.Name(), "0123456789abcdef") == "" {
			list = append(list, e.Name())
		}
	}
	return list
}

// names are the paths in a subdirectory that begin and end so.
func (d *dir) names(sub, prefix, suffix string) (list []string) {
	entries, _ := os.ReadDir(filepath.Join(d.root, sub))
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), prefix) && strings.HasSuffix(e.Name(), suffix) {
			list = append(list, filepath.Join(d.root, sub, e.Name()))
		}
	}
	return list
}

// evict removes blocks of at least n bytes, if there are as many that nobody
// uses, and returns how many bytes it removed. The last one always stays.
func (d *dir) evict(files []file, n int64, letGo func(int64)) (freed int64) {
	letGo(n)
	slices.SortFunc(files, func(a, b file) int { return a.used.Compare(b.used) })
	for i, f := range files {
		if freed >= n || i == len(files)-1 {
			break
		}
		if removeUnlocked(f.path) {
			freed += f.size
		}
	}
	return freed
}

// removeUnlocked removes a file unless somebody has it locked.
func removeUnlocked(name string) bool {
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	return flock(f, unix.LOCK_EX) == nil && sameFile(f, name) && os.Remove(name) == nil
}

// space is the size of the file system and what is free for us, in bytes.
func space(path string) (total, free int64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return 0, 0, &os.PathError{Op: "statfs", Path: path, Err: err}
	}
	return int64(st.Blocks) * st.Bsize, int64(st.Bavail) * st.Bsize, nil
}
