// Package treetest describes a directory tree completely enough to compare two
// of them entry by entry: type, mode, owner, time, extended attributes, content,
// and which names are links to the same file.
package treetest

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Options leave out what the writer of one of the trees cannot express.
type Options struct {
	IgnoreRootTime bool
	// IgnoreDirTimes leaves out the modification times of all directories.
	IgnoreDirTimes bool
	// IgnoreXattr leaves out attributes by name.
	IgnoreXattr func(name string) bool
}

// List describes the tree below dir, one string per path ("." for dir itself).
func List(dir string, o Options) (map[string]string, error) {
	out := make(map[string]string)
	groups := make(map[[2]uint64][]string)
	err := walk(dir, ".", func(p string) error {
		full := filepath.Join(dir, p)
		var st unix.Stat_t
		if err := unix.Lstat(full, &st); err != nil {
			return fmt.Errorf("lstat %s: %w", full, err)
		}
		var b strings.Builder
		kind := st.Mode & unix.S_IFMT
		fmt.Fprintf(&b, "%s %04o %d:%d", kinds[kind], st.Mode&0o7777, st.Uid, st.Gid)
		isDir := kind == unix.S_IFDIR
		if !(isDir && o.IgnoreDirTimes || p == "." && o.IgnoreRootTime) {
			fmt.Fprintf(&b, " %d.%09d", st.Mtim.Sec, st.Mtim.Nsec)
		}
		switch kind {
		case unix.S_IFREG:
			sum, err := hashOf(full)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " %d %x", st.Size, sum)
		case unix.S_IFLNK:
			target, err := os.Readlink(full)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " -> %q", target)
		case unix.S_IFCHR, unix.S_IFBLK:
			fmt.Fprintf(&b, " %d:%d", unix.Major(uint64(st.Rdev)), unix.Minor(uint64(st.Rdev)))
		}
		xattrs, err := xattrsOf(full, o)
		if err != nil {
			return err
		}
		b.WriteString(xattrs)
		out[p] = b.String()
		if !isDir && st.Nlink > 1 {
			k := [2]uint64{st.Dev, st.Ino}
			groups[k] = append(groups[k], p)
		}
		return nil
	})
	for _, g := range groups {
		slices.Sort(g)
		for _, p := range g {
			if len(g) > 1 {
				out[p] += fmt.Sprintf(" links=%q", g)
			}
		}
	}
	return out, err
}

var kinds = map[uint32]string{
	unix.S_IFREG: "file", unix.S_IFDIR: "dir", unix.S_IFLNK: "link", unix.S_IFCHR: "char",
	unix.S_IFBLK: "block", unix.S_IFIFO: "fifo", unix.S_IFSOCK: "socket",
}

func walk(dir, p string, f func(string) error) error {
	if err := f(p); err != nil {
		return err
	}
	full := filepath.Join(dir, p)
	var st unix.Stat_t
	if err := unix.Lstat(full, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return err
	}
	d, err := os.Open(full)
	if err != nil {
		return err
	}
	names, err := d.Readdirnames(-1)
	d.Close()
	if err != nil {
		return err
	}
	slices.Sort(names)
	for _, n := range names {
		if err := walk(dir, filepath.Join(p, n), f); err != nil {
			return err
		}
	}
	return nil
}

func hashOf(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return nil, err
	}
	return h.Sum(nil)[:8], nil
}

func xattrsOf(name string, o Options) (string, error) {
	buf := make([]byte, 64<<10)
	n, err := unix.Llistxattr(name, buf)
	if errors.Is(err, unix.ENOTSUP) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("listxattr %s: %w", name, err)
	}
	keys := strings.Split(strings.TrimRight(string(buf[:n]), "\x00"), "\x00")
	slices.Sort(keys)
	var b strings.Builder
	for _, k := range keys {
		if k == "" || o.IgnoreXattr != nil && o.IgnoreXattr(k) {
			continue
		}
		v := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(name, k, v)
		if err != nil {
			return "", fmt.Errorf("getxattr %s %s: %w", name, k, err)
		}
		fmt.Fprintf(&b, " %s=%q", k, v[:n])
	}
	return b.String(), nil
}

// Diff gives a line for every path on which a and b do not agree.
func Diff(a, b map[string]string) []string {
	var out []string
	for p, x := range a {
		if y, ok := b[p]; !ok {
			out = append(out, fmt.Sprintf("%q: only in the first: %s", p, x))
		} else if x != y {
			out = append(out, fmt.Sprintf("%q:\n\t%s\n\t%s", p, x, y))
		}
	}
	for p, y := range b {
		if _, ok := a[p]; !ok {
			out = append(out, fmt.Sprintf("%q: only in the second: %s", p, y))
		}
	}
	slices.Sort(out)
	return out
}
