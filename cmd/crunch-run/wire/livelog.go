package wire

import (
	"io"
	"io/fs"

	"crunch-oci/keep"
)

// liveLog is the log collection while it grows, to be read only. What a reader
// sees is what will be saved: files are only ever appended to, messages without
// secrets in them.
type liveLog struct{ files *keep.Collection }

// Open implements fs.FS.
func (l liveLog) Open(name string) (fs.File, error) {
	if !fs.ValidPath(name) {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrInvalid}
	}
	info, err := l.files.Stat(name)
	if err != nil {
		return nil, err
	}
	if info.IsDir() {
		return &liveDir{files: l.files, name: name, info: info}, nil
	}
	f, err := l.files.Open(name)
	if err != nil {
		return nil, err
	}
	return liveFile{f}, nil
}

// Stat implements fs.StatFS.
func (l liveLog) Stat(name string) (fs.FileInfo, error) {
	if !fs.ValidPath(name) {
		return nil, &fs.PathError{Op: "stat", Path: name, Err: fs.ErrInvalid}
	}
	return l.files.Stat(name)
}

// liveFile is an open file, which may grow.
type liveFile struct{ *keep.File }

func (f liveFile) Stat() (fs.FileInfo, error) { return f.File.Stat() }

// liveDir is an open directory.
type liveDir struct {
	files *keep.Collection
	name  string
	info  fs.FileInfo
	rest  []fs.DirEntry // what ReadDir has not returned yet
	read  bool
}

func (d *liveDir) Stat() (fs.FileInfo, error) { return d.info, nil }
func (d *liveDir) Close() error               { return nil }

func (d *liveDir) Read([]byte) (int, error) {
	return 0, &fs.PathError{Op: "read", Path: d.name, Err: fs.ErrInvalid}
}

// ReadDir implements fs.ReadDirFile.
func (d *liveDir) ReadDir(n int) ([]fs.DirEntry, error) {
	if !d.read {
		list, err := d.files.ReadDir(d.name)
		if err != nil {
			return nil, err
		}
		for _, info := range list {
			d.rest = append(d.rest, fs.FileInfoToDirEntry(info))
		}
		d.read = true
	}
	list := d.rest
	if n > 0 {
		list = list[:min(n, len(list))]
		if len(list) == 0 {
			return nil, io.EOF
		}
	}
	d.rest = d.rest[len(list):]
	return list, nil
}
