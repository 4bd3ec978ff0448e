package edit

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	pathrs "github.com/cyphar/filepath-securejoin/pathrs-lite"
	"golang.org/x/sys/unix"

	"crunch-oci/gpu/device"
	"crunch-oci/gpu/ldcache"
)

const (
	cachePath = "/etc/ld.so.cache"
	// confPath is read by an ldconfig that is run in the container; its name
	// makes it the first.
	confPath = "/etc/ld.so.conf.d/00-crunch-run-gpu.conf"
)

func fileMode(bits uint32) os.FileMode { return os.FileMode(bits & 0o777) }

// PrepareRoot makes links and the loader's cache in the container's root
// directory, which must be writable, and not yet have a process in it. What it
// has to say about the image is for the log.
func (e *Edits) PrepareRoot(root string) (notes []string, err error) {
	dir, err := os.OpenFile(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("GPU driver files: %w", err)
	}
	defer dir.Close()
	for _, m := range e.Mounts {
		if err := m.makeRoom(dir); err != nil {
			return nil, fmt.Errorf("GPU driver files: %w", err)
		}
	}
	for _, l := range e.Links {
		if err := replace(dir, l.Path, func(parent int, name string) error { return unix.Symlinkat(l.Target, parent, name) }); err != nil {
			return nil, fmt.Errorf("GPU driver files: link %s in the image: %w", l.Path, err)
		}
	}
	if len(e.Folders) > 0 {
		text := "# GPU driver of the node, given to this container by crunch-run\n" + strings.Join(e.Folders, "\n") + "\n"
		if err := writeFile(dir, confPath, []byte(text)); err != nil {
			return nil, fmt.Errorf("GPU driver files: %w", err)
		}
	}
	if len(e.Libraries) == 0 {
		return nil, nil
	}
	cache, err := readCache(dir)
	if err != nil {
		notes = append(notes, fmt.Sprintf("the image's %s is replaced, it cannot be read: %v", cachePath, err))
		cache = new(ldcache.Cache)
	}
	var entries []ldcache.Entry
	for _, l := range e.Libraries {
		entries = append(entries, ldcache.Entry{Name: l.Name, Path: l.Path, Flags: ldcache.FlagX86_64})
	}
	cache.Add(entries...)
	if err := writeFile(dir, cachePath, cache.Bytes()); err != nil {
		return nil, fmt.Errorf("GPU driver files: %w", err)
	}
	return notes, nil
}

// OpenInRoot opens a regular file of an image for reading, as a process in the
// container would find it.
func OpenInRoot(dir *os.File, name string) (*os.File, error) {
	handle, err := pathrs.OpenatInRoot(dir, name)
	if err != nil {
		return nil, err
	}
	defer handle.Close()
	info, err := handle.Stat()
	if err != nil {
		return nil, err
	}
	// Looked at before it is opened for reading: a named pipe would block.
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s in the image is not a regular file", name)
	}
	return pathrs.Reopen(handle, unix.O_RDONLY|unix.O_CLOEXEC)
}

// readCache reads the image's cache; an image without one has an empty one.
func readCache(dir *os.File) (*ldcache.Cache, error) {
	f, err := OpenInRoot(dir, cachePath)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return new(ldcache.Cache), nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, ldcache.MaxSize+1))
	if err != nil {
		return nil, err
	}
	return ldcache.Parse(data)
}

// makeRoom puts an empty file where a file will be mounted. What the image has
// there would be hidden anyway, but a link, as images with a driver of their own
// have, may lead to where nothing can be mounted. The runtime makes the directory
// if that is what is missing.
func (m Mount) makeRoom(root *os.File) error {
	if fi, err := os.Stat(m.Source); m.Socket || err != nil || !fi.Mode().IsRegular() {
		return nil
	}
	err := writeFile(root, m.Target, nil)
	if errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	return err
}

// imageFaults are errors that an image causes, on every node.
var imageFaults = []error{unix.ENOTDIR, unix.EISDIR, unix.ELOOP, unix.EEXIST, unix.ENAMETOOLONG}

// replace makes name in the root, whose parent directories are made if they are
// missing; what was there and is no directory goes.
//
// The request is at fault (device.ErrRequest) if its image has something there
// that cannot be replaced.
func replace(dir *os.File, name string, make func(parent int, name string) error) (err error) {
	defer func() {
		for _, fault := range imageFaults {
			if errors.Is(err, fault) {
				err = fmt.Errorf("%w: %w", device.ErrRequest, err)
				return
			}
		}
	}()
	parent, err := pathrs.MkdirAllHandle(dir, path.Dir(name), 0o755)
	if err != nil {
		return err
	}
	defer parent.Close()
	fd, base := int(parent.Fd()), path.Base(name)
	err = make(fd, base)
	if errors.Is(err, unix.EEXIST) {
		if err := unix.Unlinkat(fd, base, 0); err != nil {
			return err
		}
		err = make(fd, base)
	}
	return err
}

// writeFile makes a new file in the root, in the place of what was there.
func writeFile(dir *os.File, name string, data []byte) error {
	err := replace(dir, name, func(parent int, base string) error {
		fd, err := unix.Openat(parent, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o644)
		if err != nil {
			return err
		}
		f := os.NewFile(uintptr(fd), base)
		_, err = f.Write(data)
		return errors.Join(err, f.Close())
	})
	if err != nil {
		return fmt.Errorf("write %s in the image: %w", name, err)
	}
	return nil
}
