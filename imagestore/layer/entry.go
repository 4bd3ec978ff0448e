package layer

import (
	"archive/tar"
	"fmt"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// Names with a meaning of their own (image-spec layer.md, "Whiteouts").
const (
	whiteoutPrefix = ".wh."
	opaqueName     = ".wh..wh..opq"
	// aufsPrefix marks what the AUFS driver of old Docker versions kept for
	// itself at the top of a layer: to be ignored, but for files in plnk, which
	// hard links may name.
	aufsPrefix = ".wh..wh."
	aufsLinks  = ".wh..wh.plnk"
)

// clean turns a name of the tar into one relative to the root, "" being the
// root itself.
func clean(name string) (string, error) {
	if strings.IndexByte(name, 0) >= 0 {
		return "", fmt.Errorf("%w: the name holds a zero byte", ErrMalformed)
	}
	c := path.Clean(strings.TrimLeft(name, "/"))
	if c == ".." || strings.HasPrefix(c, "../") {
		return "", ErrEscape
	}
	if c == "." {
		return "", nil
	}
	if len(c) > maxPath {
		return "", unix.ENAMETOOLONG
	}
	return c, nil
}

// split parts a cleaned name other than "" into directory and last component.
func split(name string) (dir, base string) {
	i := strings.LastIndexByte(name, '/')
	if i < 0 {
		return "", name
	}
	return name[:i], name[i+1:]
}

// entry makes what one header describes.
func (x *extractor) entry(h *tar.Header) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil // defaults for later entries: nobody's layers use them, Docker ignores them too
	}
	name, err := clean(h.Name)
	if err != nil {
		return err
	}
	if x.tree.root.meta.mtime.IsZero() {
		x.tree.root.meta.mtime = h.ModTime
	}
	if name == "" {
		return x.rootEntry(h)
	}
	if strings.HasPrefix(name, aufsPrefix) && name != opaqueName && !strings.HasPrefix(name, aufsLinks+"/") {
		return nil
	}
	parent, base := split(name)
	if hidden, ok := strings.CutPrefix(base, whiteoutPrefix); ok {
		d, err := x.walk(parent, h.ModTime, false)
		if err == errInTheWay {
			// What this layer has there hides the lower directory anyway: umoci
			// up to 0.4 lists what was in a directory that became a file.
			return nil
		}
		if err != nil {
			return err
		}
		return x.whiteout(d, hidden)
	}
	d, err := x.resolve(parent, h.ModTime)
	if err != nil {
		return err
	}
	return x.namedEntry(h, d, base)
}

// namedEntry makes an entry called base in d.
func (x *extractor) namedEntry(h *tar.Header, d *dirNode, base string) error {
	switch h.Typeflag {
	case tar.TypeDir:
		return x.dirEntry(h, d, base)
	case tar.TypeReg, tar.TypeGNUSparse, tar.TypeCont:
		return x.regular(h, d, base)
	case tar.TypeLink:
		return x.link(h, d, base)
	case tar.TypeSymlink:
		return x.symlink(h, d, base)
	case tar.TypeChar:
		if h.Devmajor == 0 && h.Devminor == 0 {
			// To the kernel's overlay this device is a whiteout: it has no way
			// of showing it as a device.
			return x.whiteout(d, base)
		}
		return x.special(h, d, base, unix.S_IFCHR)
	case tar.TypeBlock:
		return x.special(h, d, base, unix.S_IFBLK)
	case tar.TypeFifo:
		return x.special(h, d, base, unix.S_IFIFO)
	default:
		return fmt.Errorf("%w: unknown kind of entry %q", ErrMalformed, h.Typeflag)
	}
}

// rootEntry sets the metadata of the root. Nothing else may be put in its place
// (CVE-2021-29136: a link as "/.").
func (x *extractor) rootEntry(h *tar.Header) error {
	if h.Typeflag != tar.TypeDir {
		return fmt.Errorf("%w: it would replace the root, which is a directory", ErrEscape)
	}
	return x.describe(x.tree.root, h)
}

// describe takes h as the description of d, to be applied by finish.
func (x *extractor) describe(d *dirNode, h *tar.Header) error {
	m, err := x.metadata(h)
	if err != nil {
		return err
	}
	for i, a := range m.xattrs {
		// A header may have a megabyte, which its strings are parts of.
		m.xattrs[i] = xattr{strings.Clone(a.name), strings.Clone(a.value)}
		if x.kept += int64(len(a.name) + len(a.value)); x.kept > maxKept {
			return fmt.Errorf("%w of %d bytes in the extended attributes of directories", ErrLimit, int64(maxKept))
		}
	}
	d.meta, d.explicit = m, true
	return nil
}

func (x *extractor) dirEntry(h *tar.Header, d *dirNode, base string) error {
	if child := d.children[base]; child != nil {
		return x.describe(child, h)
	}
	child, err := x.mkdir(d, base)
	if err == unix.EEXIST {
		if err = x.remove(d, base); err == nil {
			child, err = x.mkdir(d, base)
		}
	}
	if err != nil {
		return err
	}
	return x.describe(child, h)
}

// make calls f to make base in d, replacing what the layer had there before.
// f gets a descriptor of d and must fail with EEXIST if base exists.
func (x *extractor) make(d *dirNode, base string, f func(dirfd int) error) error {
	if err := x.count(); err != nil {
		return err
	}
	fd, err := x.tree.fd(d)
	if err != nil {
		return err
	}
	err = f(fd)
	if err != unix.EEXIST {
		return err
	}
	if err := x.remove(d, base); err != nil {
		return fmt.Errorf("replace the earlier entry: %w", err)
	}
	if fd, err = x.tree.fd(d); err != nil {
		return err
	}
	return f(fd)
}

func (x *extractor) symlink(h *tar.Header, d *dirNode, base string) error {
	if h.Linkname == "" {
		return fmt.Errorf("%w: a symbolic link without a target", ErrMalformed)
	}
	m, err := x.metadata(h)
	if err != nil {
		return err
	}
	return x.make(d, base, func(dirfd int) error {
		if err := unix.Symlinkat(h.Linkname, dirfd, base); err != nil {
			return err
		}
		return x.applyAt(dirfd, base, m, true)
	})
}

func (x *extractor) special(h *tar.Header, d *dirNode, base string, kind uint32) error {
	m, err := x.metadata(h)
	if err != nil {
		return err
	}
	var dev uint64
	if kind != unix.S_IFIFO {
		// Linux has 12 bits of major and 20 of minor number.
		if h.Devmajor < 0 || h.Devmajor >= 1<<12 || h.Devminor < 0 || h.Devminor >= 1<<20 {
			return fmt.Errorf("%w: no device has the number %d:%d", ErrMalformed, h.Devmajor, h.Devminor)
		}
		dev = unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))
	}
	return x.make(d, base, func(dirfd int) error {
		if err := unix.Mknodat(dirfd, base, kind|0o600, int(dev)); err != nil {
			return err
		}
		return x.applyAt(dirfd, base, m, false)
	})
}

// link makes a hard link. Its target must be an entry of the same layer: a layer
// is unpacked without its lower ones, here as in Docker.
func (x *extractor) link(h *tar.Header, d *dirNode, base string) error {
	target, err := clean(h.Linkname)
	if err != nil {
		return fmt.Errorf("hard link to %s: %w", printable(h.Linkname), err)
	}
	parent, targetBase := split(target)
	td, err := x.resolve(parent, h.ModTime)
	if err != nil {
		return fmt.Errorf("hard link to %s: %w", printable(h.Linkname), err)
	}
	// Before anything is replaced: the target may be the name itself, or in it.
	tfd, err := x.tree.fd(td)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if target == "" || td.children[targetBase] != nil {
		return fmt.Errorf("%w: hard link to %s, which is a directory", ErrMalformed, printable(h.Linkname))
	}
	if err := unix.Fstatat(tfd, targetBase, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("%w: hard link to %s, which is not in this layer", ErrMalformed, printable(h.Linkname))
	}
	if td == d && targetBase == base {
		return nil
	}
	if child := d.children[base]; child != nil && td.below(child) {
		return fmt.Errorf("%w: hard link to %s, which it would replace", ErrMalformed, printable(h.Linkname))
	}
	td.pins++
	defer func() { td.pins-- }()
	if tfd, err = x.tree.fd(td); err != nil {
		return err
	}
	// The metadata is that of the first name; some writers put nothing sensible
	// into the headers of further ones.
	return x.make(d, base, func(dirfd int) error {
		return unix.Linkat(tfd, targetBase, dirfd, base, 0)
	})
}

// whiteout notes that base of the lower layers is hidden in d. It is made at
// the end, when it is known whether the layer has a base of its own.
func (x *extractor) whiteout(d *dirNode, base string) error {
	if whiteoutPrefix+base == opaqueName {
		d.opaque = true
		return nil
	}
	if base == "" || base == "." || base == ".." {
		return fmt.Errorf("%w: a whiteout of nothing", ErrMalformed)
	}
	if _, ok := d.whiteouts[base]; ok {
		return nil
	}
	if err := x.count(); err != nil {
		return err
	}
	if d.whiteouts == nil {
		d.whiteouts = make(map[string]struct{})
	}
	d.whiteouts[strings.Clone(base)] = struct{}{} // base is a part of the whole header
	return nil
}
