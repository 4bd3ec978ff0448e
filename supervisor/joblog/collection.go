package joblog

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"

	"crunch-oci/keep"
)

// InCollection returns a Tree that keeps its files in c, in which there is nothing
// yet, and which its owner closes after the run. Full blocks go to Keep as they
// fill up; what cannot be stored stays in memory up to a limit, from which on
// writers wait.
func InCollection(c *keep.Collection) Tree {
	// One block is filled while one is stored: a program that writes as fast as
	// it can is slowed down rather than that its log fills the memory.
	c.LimitUploads(1)
	return &collectionTree{c: c, files: make(map[string]*keep.File)}
}

type collectionTree struct {
	c     *keep.Collection
	mu    sync.Mutex
	files map[string]*keep.File
}

func (t *collectionTree) Append(name string, p []byte) error {
	f, err := t.file(name)
	if err != nil {
		return err
	}
	_, err = f.Append(p)
	if err != nil && !errors.Is(err, fs.ErrClosed) {
		return fmt.Errorf("%w: %w", ErrFull, err)
	}
	return err
}

func (t *collectionTree) file(name string) (*keep.File, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if f := t.files[name]; f != nil {
		return f, nil
	}
	f, err := t.c.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_APPEND)
	if err == nil {
		t.files[name] = f
	}
	return f, err
}

func (t *collectionTree) Size() int64 { return t.c.Size() }

func (t *collectionTree) MarshalManifest(ctx context.Context) (string, error) {
	return t.c.MarshalManifest(ctx)
}
