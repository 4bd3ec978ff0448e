package mounts

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"syscall"
)

// Inputs reads collections with the container's token.
type Inputs interface {
	// Collection returns the content of the collection with the given
	// portable data hash or UUID. An error that wraps fs.ErrNotExist says
	// that there is none.
	Collection(ctx context.Context, id string) (fs.FS, error)
}

// CheckInputs asks whether everything that is mounted or staged exists. Its
// error names the path below the FUSE mount point, as users know it.
func (p *Plan) CheckInputs(ctx context.Context, inputs Inputs) error {
	for _, in := range p.inputs {
		fi, err := stat(ctx, inputs, in.Collection)
		if err == nil && in.isFile && fi.IsDir() {
			err = errors.New("is a directory")
		}
		if err != nil {
			return fmt.Errorf("while checking that input files exist: %w", &fs.PathError{Op: "stat", Path: in.source, Err: cause(err)})
		}
	}
	return nil
}

func stat(ctx context.Context, inputs Inputs, c Collection) (fs.FileInfo, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	fsys, err := inputs.Collection(ctx, c.ID)
	if err != nil {
		return nil, err
	}
	return fs.Stat(fsys, c.Path)
}

// cause says "no such file or directory" where that is all there is to say.
func cause(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return syscall.ENOENT
	}
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

// OpenStdin opens what the process shall read, or returns nil if that is
// nothing.
func (p *Plan) OpenStdin(ctx context.Context, inputs Inputs) (io.ReadCloser, error) {
	switch s := p.Stdin; {
	case s.Collection != nil:
		fsys, err := inputs.Collection(ctx, s.Collection.ID)
		if err != nil {
			return nil, fmt.Errorf("open stdin %s: %w", s.Collection, err)
		}
		f, err := fsys.Open(s.Collection.Path)
		if err != nil {
			return nil, fmt.Errorf("open stdin %s: %w", s.Collection, err)
		}
		return f, nil
	case s.Content != nil:
		return io.NopCloser(bytes.NewReader(s.Content)), nil
	}
	return nil, nil
}
