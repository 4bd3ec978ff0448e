package webdav

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"mime"
	"os"
	"path"
	"strings"
	"time"

	dav "golang.org/x/net/webdav"
)

// readOnly is a tree as the library wants it.
type readOnly struct{ tree fs.FS }

// Mkdir fails.
func (readOnly) Mkdir(context.Context, string, os.FileMode) error { return fs.ErrPermission }

// RemoveAll fails.
func (readOnly) RemoveAll(context.Context, string) error { return fs.ErrPermission }

// Rename fails.
func (readOnly) Rename(context.Context, string, string) error { return fs.ErrPermission }

// local is the name of a URL path in the tree.
func local(op, name string) (string, error) {
	clean := strings.TrimPrefix(path.Clean("/"+name), "/")
	if clean == "" {
		clean = "."
	}
	if !fs.ValidPath(clean) {
		return "", &fs.PathError{Op: op, Path: name, Err: fs.ErrNotExist}
	}
	return clean, nil
}

// Stat describes a file or directory.
func (t readOnly) Stat(_ context.Context, name string) (os.FileInfo, error) {
	name, err := local("stat", name)
	if err != nil {
		return nil, err
	}
	i, err := fs.Stat(t.tree, name)
	if err != nil {
		return nil, err
	}
	return info{i}, nil
}

// OpenFile opens for reading. What the file is, and how long, is settled here.
func (t readOnly) OpenFile(_ context.Context, name string, flag int, _ os.FileMode) (dav.File, error) {
	if flag != os.O_RDONLY {
		return nil, fs.ErrPermission
	}
	name, err := local("open", name)
	if err != nil {
		return nil, err
	}
	f, err := t.tree.Open(name)
	if err != nil {
		return nil, err
	}
	i, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, err
	}
	opened := &file{File: f, tree: t.tree, name: name, info: info{i}}
	if i.IsDir() {
		return opened, nil
	}
	var at io.ReaderAt
	switch f := f.(type) {
	case io.ReaderAt:
		at = f
	case io.ReadSeeker:
		at = seekerAt{f}
	default:
		opened.File.Close()
		return nil, fmt.Errorf("%s: cannot be read from the middle", name)
	}
	opened.content = io.NewSectionReader(at, 0, i.Size())
	return opened, nil
}

// seekerAt reads at an offset by going there. One reader at a time.
type seekerAt struct{ io.ReadSeeker }

func (s seekerAt) ReadAt(p []byte, offset int64) (int, error) {
	if _, err := s.Seek(offset, io.SeekStart); err != nil {
		return 0, err
	}
	n, err := io.ReadFull(s.ReadSeeker, p)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		err = io.EOF
	}
	return n, err
}

// file is an open one, as long as it was when it was opened.
type file struct {
	fs.File
	tree    fs.FS
	name    string
	info    info
	content *io.SectionReader // nil: a directory
}

var errDirectory = errors.New("is a directory")

func (f *file) Read(p []byte) (int, error) {
	if f.content == nil {
		return 0, errDirectory
	}
	return f.content.Read(p)
}

func (f *file) Seek(offset int64, whence int) (int64, error) {
	if f.content == nil {
		return 0, errDirectory
	}
	return f.content.Seek(offset, whence)
}

func (f *file) Stat() (os.FileInfo, error) { return f.info, nil }

// Write fails.
func (f *file) Write([]byte) (int, error) { return 0, fs.ErrPermission }

// Readdir describes what is in a directory, whatever the count.
func (f *file) Readdir(int) ([]os.FileInfo, error) {
	entries, err := fs.ReadDir(f.tree, f.name)
	if err != nil {
		return nil, err
	}
	infos := make([]os.FileInfo, 0, len(entries))
	for _, e := range entries {
		i, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		infos = append(infos, info{i})
	}
	return infos, nil
}

// info tells type and version of a file without a look into it.
type info struct{ os.FileInfo }

// ContentType implements dav.ContentTyper.
func (i info) ContentType(context.Context) (string, error) { return contentType(i.Name()), nil }

// ETag implements dav.ETager. A file that has grown has another one.
func (i info) ETag(context.Context) (string, error) {
	return fmt.Sprintf(`"%x%x"`, i.ModTime().UnixNano(), i.Size()), nil
}

// types of what is in log collections, the same on every node: the mime
// package reads the node's own tables first.
var types = map[string]string{
	".html": "text/html; charset=utf-8",
	".json": "application/json",
	".log":  "text/plain; charset=utf-8",
	".txt":  "text/plain; charset=utf-8",
}

func contentType(name string) string {
	extension := path.Ext(name)
	if t := types[extension]; t != "" {
		return t
	}
	if t := mime.TypeByExtension(extension); t != "" {
		return t
	}
	return "application/octet-stream"
}

// noLocks is a lock system without any: they are for writers.
type noLocks struct{}

func (noLocks) Confirm(time.Time, string, string, ...dav.Condition) (func(), error) {
	return nil, dav.ErrConfirmationFailed
}

func (noLocks) Create(time.Time, dav.LockDetails) (string, error) { return "", dav.ErrLocked }

func (noLocks) Refresh(time.Time, string, time.Duration) (dav.LockDetails, error) {
	return dav.LockDetails{}, dav.ErrNoSuchLock
}

func (noLocks) Unlock(time.Time, string) error { return dav.ErrNoSuchLock }
