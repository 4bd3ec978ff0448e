package imagestore

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"crunch-oci/imagestore/layer"

	"golang.org/x/sys/unix"
)

// A layer is unpacked without looking at those below it, so that all images can
// share it. Two things come out wrong in a stack of such layers:
//
//   - A directory that a layer only implies (it holds usr/bin/x and no entry for
//     usr/bin) hides the owner, mode and times that a lower layer gave it, since
//     the overlay takes them from the topmost directory.
//   - A directory with whiteouts that exists in no other layer is not merged, and
//     the kernel then shows the whiteouts as broken entries.
//
// Both are put right by one more layer on top of all, the cover: empty
// directories, which merge with those below and carry the right metadata. Most
// images need none.

// stack is how the layers of an image are to be mounted.
type stack struct {
	uses  []*use   // of everything in lower
	lower []string // below layers/, the topmost first
	root  string   // which of lower describes the root directory
}

// stack puts layers in use, the lowest first, on top of each other. Those that
// an opaque root hides are given back.
func (s *Store) stack(ctx context.Context, uses []*use) (stack, error) {
	var st stack
	all := make([]facts, len(uses))
	bottom := 0
	for i, u := range uses {
		var err error
		if all[i], err = s.readFacts(u.id); err != nil {
			return st, fmt.Errorf("image store: %w", err)
		}
		if all[i].OpaqueRoot {
			bottom = i
		}
	}
	closeAll(uses[:bottom])
	uses, all = uses[bottom:], all[bottom:]
	for i, u := range slices.Backward(uses) {
		st.lower = append(st.lower, u.id)
		if st.root == "" && !all[i].ImplicitRoot {
			st.root = u.id
		}
	}
	if st.root == "" {
		st.root = st.lower[0] // has what a directory without entry gets
	}
	st.uses = uses
	dirs, err := s.coverDirs(ctx, st.lower, all)
	if err != nil {
		return st, err
	}
	if len(dirs) == 0 {
		return st, nil
	}
	id := coverID(st.lower)
	u, err := s.ensure(ctx, id, func() {}, func(c *claim) error { return makeCover(c, dirs) })
	if err != nil {
		return st, err
	}
	st.uses = append(st.uses, u)
	st.lower = append([]string{id}, st.lower...)
	return st, nil
}

func coverID(lower []string) string {
	sum := sha256.Sum256([]byte(strings.Join(lower, "\n")))
	return "cover-" + hex.EncodeToString(sum[:])
}

// coverDir is a directory of the cover, and the one whose metadata it carries.
type coverDir struct{ path, like string }

// coverDirs decides which directories need covering, parents first. lower is the
// stack, the topmost first; all are the facts about it, the lowest first.
func (s *Store) coverDirs(ctx context.Context, lower []string, all []facts) ([]coverDir, error) {
	n := len(lower)
	p := coverPlan{levels: make([]*level, n), like: make(map[string]string)}
	for i := range p.levels {
		f := all[n-1-i]
		p.levels[i] = &level{
			fs:        filepath.Join(s.layerPath(lower[i]), "fs"),
			implicit:  pathSet(f.Implicit),
			whiteouts: pathSet(f.Whiteouts),
			seen:      make(map[string]kind),
		}
	}
	if err := p.make(ctx); err != nil {
		return nil, fmt.Errorf("image store: %w", err)
	}
	var out []coverDir
	for path, like := range p.like {
		out = append(out, coverDir{path, like})
	}
	slices.SortFunc(out, func(a, b coverDir) int { return cmp.Compare(a.path, b.path) })
	return out, nil
}

// coverPlan is a cover that is being worked out.
type coverPlan struct {
	levels []*level          // the topmost first
	like   map[string]string // by path, the directory whose metadata it carries
}

// make looks at every directory that may need covering.
func (p *coverPlan) make(ctx context.Context) error {
	for _, l := range p.levels {
		for _, paths := range []map[string]bool{l.implicit, l.whiteouts} {
			for path := range paths {
				if err := p.add(ctx, path, false); err != nil {
					return err
				}
			}
		}
	}
	// The cover needs the parents as well, and what they carry will be seen.
	for _, covered := range slices.Collect(maps.Keys(p.like)) {
		for up := path.Dir(covered); up != "."; up = path.Dir(up) {
			if err := p.add(ctx, up, true); err != nil {
				return err
			}
		}
	}
	return nil
}

// add adds the directory path if it needs covering, or always.
func (p *coverPlan) add(ctx context.Context, path string, always bool) error {
	if _, ok := p.like[path]; ok {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	merged, err := viewOf(p.levels, path)
	if err != nil || len(merged) == 0 {
		return err
	}
	source := merged[0]
	for _, l := range merged {
		if !l.implicit[path] {
			source = l
			break
		}
	}
	bare := len(merged) == 1 && merged[0].whiteouts[path]
	if always || bare || source != merged[0] {
		p.like[path] = filepath.Join(source.fs, path)
	}
	return nil
}

func pathSet(paths [][]byte) map[string]bool {
	m := make(map[string]bool, len(paths))
	for _, p := range paths {
		m[string(p)] = true
	}
	return m
}

// level is one layer while a cover is being worked out.
type level struct {
	fs                  string
	implicit, whiteouts map[string]bool
	seen                map[string]kind
}

// kind is what a layer has to say about a path.
type kind int

const (
	absent    kind = iota // nothing
	directory             // merges with a lower one
	opaque                // a directory that hides what is below
	other                 // hides what is below: a whiteout, or anything but a directory
)

// kindOf looks at p itself; its parents are known to be directories.
func (l *level) kindOf(p string) (kind, error) {
	if k, ok := l.seen[p]; ok {
		return k, nil
	}
	k, err := lookAt(filepath.Join(l.fs, p))
	if err == nil {
		l.seen[p] = k
	}
	return k, err
}

func lookAt(name string) (kind, error) {
	var st unix.Stat_t
	err := unix.Lstat(name, &st)
	switch {
	case err == unix.ENOENT:
		return absent, nil
	case err != nil:
		return absent, &os.PathError{Op: "lstat", Path: name, Err: err}
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return other, nil
	}
	var buf [1]byte
	n, err := unix.Lgetxattr(name, "trusted.overlay.opaque", buf[:])
	if err == nil && n == 1 && buf[0] == 'y' {
		return opaque, nil
	}
	return directory, nil
}

// viewOf gives the layers whose directories the overlay merges as p, the
// topmost first; none if p is not a directory in the end.
func viewOf(levels []*level, p string) ([]*level, error) {
	var v []*level
	for _, l := range levels {
		k, last, err := l.reach(p)
		if err != nil {
			return nil, err
		}
		if k == directory || k == opaque {
			v = append(v, l)
		}
		if last {
			break
		}
	}
	return v, nil
}

// reach walks down to p in one layer. last says that lower layers cannot be
// seen at p, because of what p or one of its parents is here.
func (l *level) reach(p string) (k kind, last bool, err error) {
	for i := 0; i <= len(p); i++ {
		if i < len(p) && p[i] != '/' {
			continue
		}
		k, err = l.kindOf(p[:i])
		switch {
		case err != nil:
			return absent, false, err
		case k == absent:
			return absent, last, nil
		case k == other:
			return other, true, nil
		case k == opaque:
			last = true
		}
	}
	return k, last, nil
}

// makeCover fills the claimed directory. The parents come before what is in
// them; metadata last, the deepest first, because it includes the times.
func makeCover(c *claim, dirs []coverDir) error {
	fs := filepath.Join(c.path, "fs")
	if err := os.Mkdir(fs, 0o755); err != nil {
		return err
	}
	for _, d := range dirs {
		if err := os.Mkdir(filepath.Join(fs, d.path), 0o700); err != nil {
			return err
		}
	}
	for _, d := range slices.Backward(dirs) {
		if err := copyMetadata(d.like, filepath.Join(fs, d.path), 0); err != nil {
			return err
		}
	}
	return writeJSON(filepath.Join(c.path, "facts.json"), facts{ImplicitRoot: true}, false)
}

// copyMetadata gives directory dst the owner, mode (with extra bits set), times
// and extended attributes of directory src, but for those that steer an overlay.
func copyMetadata(src, dst string, extra uint32) error {
	var st unix.Stat_t
	if err := unix.Lstat(src, &st); err != nil {
		return &os.PathError{Op: "lstat", Path: src, Err: err}
	}
	if err := os.Lchown(dst, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := unix.Chmod(dst, st.Mode&0o7777|extra); err != nil {
		return &os.PathError{Op: "chmod", Path: dst, Err: err}
	}
	names, err := listXattrs(src)
	if err != nil {
		return err
	}
	for _, name := range names {
		rest, steers := strings.CutPrefix(name, "trusted.overlay.")
		if steers && !strings.HasPrefix(rest, "overlay.") {
			continue
		}
		if err := copyXattr(src, dst, name); err != nil {
			return err
		}
	}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, dst, []unix.Timespec{st.Atim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &os.PathError{Op: "utimensat", Path: dst, Err: err}
	}
	return nil
}

func listXattrs(name string) ([]string, error) {
	buf := make([]byte, 64<<10) // XATTR_LIST_MAX
	n, err := unix.Llistxattr(name, buf)
	if err == unix.ENOTSUP {
		return nil, nil
	}
	if err != nil {
		return nil, &os.PathError{Op: "listxattr", Path: name, Err: err}
	}
	var out []string
	for _, x := range strings.Split(string(buf[:n]), "\x00") {
		if x != "" {
			out = append(out, x)
		}
	}
	return out, nil
}

// copyXattr copies one attribute. That the upper directory's file system does
// not take it is no reason to fail, nor are labels of the node itself.
func copyXattr(src, dst, name string) error {
	if name == "security.selinux" {
		return nil
	}
	buf := make([]byte, 64<<10) // XATTR_SIZE_MAX
	n, err := unix.Lgetxattr(src, name, buf)
	if err != nil {
		return &os.PathError{Op: "getxattr " + name, Path: src, Err: err}
	}
	err = unix.Lsetxattr(dst, name, buf[:n], 0)
	if err != nil && !errors.Is(err, unix.ENOTSUP) {
		statfs := func(st *unix.Statfs_t) error { return unix.Statfs(filepath.Dir(dst), st) }
		return fmt.Errorf("%s: %w", dst, layer.XattrError(name, n, statfs, err))
	}
	return nil
}
