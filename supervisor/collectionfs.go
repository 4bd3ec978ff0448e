package supervisor

import (
	"context"
	"io/fs"

	"crunch-oci/keep"
)

// collectionFS shows a collection as an fs.FS whose reads end with a context.
// Names are not checked: fs.ValidPath wants UTF-8, collections hold bytes.
type collectionFS struct {
	ctx context.Context
	c   *keep.Collection
}

func (f collectionFS) Open(name string) (fs.File, error) {
	file, err := f.c.Open(name)
	if err != nil {
		return nil, err
	}
	return collectionFile{file.WithContext(f.ctx)}, nil
}

func (f collectionFS) Stat(name string) (fs.FileInfo, error) { return f.c.Stat(name) }

func (f collectionFS) ReadDir(name string) ([]fs.DirEntry, error) {
	infos, err := f.c.ReadDir(name)
	if err != nil {
		return nil, err
	}
	entries := make([]fs.DirEntry, len(infos))
	for i, info := range infos {
		entries[i] = fs.FileInfoToDirEntry(info)
	}
	return entries, nil
}

type collectionFile struct{ *keep.File }

func (f collectionFile) Stat() (fs.FileInfo, error) { return f.File.Stat() }
