package mounts

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"path/filepath"
	"strings"

	"crunch-oci/internal/hostdir"
)

// Modes of mounts-and-output.md section 5, set exactly, whatever the umask.
// With a user other than root in the container they are what makes writing
// possible; the run directory around them is private.
const (
	privateDirMode  = 0o700
	privateFileMode = 0o444
	outputDirMode   = 0o2777
	outputFileMode  = 0o777
)

// Prepare makes the directories and private files of the plan in the run
// directory, which must exist. Whoever made the run directory removes what is
// in it, also after an error.
func (p *Plan) Prepare() error {
	run, err := hostdir.Open(p.RunDir)
	if err != nil {
		return fmt.Errorf("open run directory: %w", err)
	}
	defer run.Close()
	private := []string{p.KeepDir}
	if filepath.Dir(p.CacheDir) == p.RunDir {
		private = append(private, p.CacheDir)
	}
	for _, f := range p.Files {
		private = append(private, filepath.Dir(f.Path))
	}
	for _, dir := range private {
		if err := run.Mkdir(filepath.Base(dir), privateDirMode); err != nil {
			return err
		}
	}
	for _, dir := range p.TmpDirs {
		if err := run.Mkdir(filepath.Base(dir), outputDirMode); err != nil {
			return err
		}
	}
	for _, f := range p.Files {
		name, err := filepath.Rel(p.RunDir, f.Path)
		if err != nil {
			return err
		}
		if err := writeFile(run, name, privateFileMode, bytes.NewReader(f.Content)); err != nil {
			return err
		}
	}
	return nil
}

// StageOutput copies into the output directory what the container may change
// there. Later entries replace files of earlier ones. If the output is a new
// collection, the FUSE mount must be there.
func (p *Plan) StageOutput(ctx context.Context, inputs Inputs) error {
	parents := p.mountPointParents()
	if len(p.Staged) == 0 && len(parents) == 0 {
		return nil
	}
	out, err := hostdir.Open(p.OutputDir)
	if err != nil {
		return fmt.Errorf("open output directory: %w", err)
	}
	defer out.Close()
	for _, dir := range parents {
		if err := out.MkdirAll(dir, outputDirMode); err != nil {
			return err
		}
	}
	for _, s := range p.Staged {
		if err := stageOne(ctx, out, s, inputs); err != nil {
			return fmt.Errorf("while staging writable file from %q to %q: %w", s.source, out.Path(s.Path), err)
		}
	}
	return nil
}

// mountPointParents are the directories in the output directory that hold mount
// points. The container engine would make them too, but so that only root could
// write beside the mount points.
func (p *Plan) mountPointParents() (dirs []string) {
	covered := "" // by the latest bind in the output, relative
	for _, b := range p.Binds {
		rel, ok := below(b.Target, p.OutputPath)
		if !ok || covered != "" && strings.HasPrefix(rel, covered+"/") {
			continue
		}
		covered = rel
		if dir := path.Dir(rel); dir != "." {
			dirs = append(dirs, dir)
		}
	}
	return dirs
}

func stageOne(ctx context.Context, out *hostdir.Dir, s Staged, inputs Inputs) error {
	if s.IsFile {
		return stageFile(out, s.Path, bytes.NewReader(s.Content))
	}
	if s.Collection.ID == "" {
		return out.MkdirAll(s.Path, outputDirMode)
	}
	fsys, err := inputs.Collection(ctx, s.Collection.ID)
	if err != nil {
		return err
	}
	return fs.WalkDir(fsys, s.Collection.Path, func(name string, d fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
		// WalkDir makes names by joining, so this is s.Path for the root.
		dst := path.Join(s.Path, relative(name, s.Collection.Path))
		switch {
		case d.IsDir():
			return out.MkdirAll(dst, outputDirMode)
		case !d.Type().IsRegular():
			return fmt.Errorf("%q is neither a directory nor a regular file", name)
		}
		f, err := fsys.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		return stageFile(out, dst, readerWithContext{ctx, f})
	})
}

func relative(name, root string) string {
	if root == "." {
		return name
	}
	return name[len(root):]
}

// stageFile writes a file of the output directory, in place of an earlier one.
func stageFile(out *hostdir.Dir, name string, content io.Reader) error {
	if err := out.MkdirAll(path.Dir(name), outputDirMode); err != nil {
		return err
	}
	if err := out.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return writeFile(out, name, outputFileMode, content)
}

func writeFile(dir *hostdir.Dir, name string, mode uint32, content io.Reader) error {
	f, err := dir.Create(name, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, content)
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	return err
}

// readerWithContext ends a long copy soon after its context.
type readerWithContext struct {
	ctx context.Context
	r   io.Reader
}

func (r readerWithContext) Read(buf []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(buf)
}
