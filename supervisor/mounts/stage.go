package mounts

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"

	"golang.org/x/sys/unix"

	"crunch-oci/supervisor/mounts/hostdir"
)

// ErrLiveCollection says that the plan needs a new, live collection in the FUSE
// mount, which this version cannot provide.
var ErrLiveCollection = errors.New("collection mounts without portable_data_hash or uuid are not supported yet; use a mount of kind tmp")

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
	for _, b := range p.Binds {
		if b.Kind == BindCollection && filepath.Dir(b.Source) == p.KeepDir {
			return fmt.Errorf("mount %q: %w", b.Target, ErrLiveCollection)
		}
	}
	run, err := hostdir.Open(p.RunDir)
	if err != nil {
		return fmt.Errorf("open run directory: %w", err)
	}
	defer run.Close()
	dirs := []struct {
		name string
		mode uint32
	}{{p.KeepDir, privateDirMode}}
	if p.CacheDir != "" {
		dirs = append(dirs, dirs[0])
		dirs[1].name = p.CacheDir
	}
	for _, dir := range p.TmpDirs {
		dirs = append(dirs, struct {
			name string
			mode uint32
		}{dir, outputDirMode})
	}
	for _, dir := range dirs {
		if err := run.Mkdir(filepath.Base(dir.name), dir.mode); err != nil {
			return err
		}
	}
	for _, f := range p.Files {
		if err := run.Mkdir(filepath.Base(filepath.Dir(f.Path)), privateDirMode); err != nil {
			return err
		}
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
// there. Later entries replace files of earlier ones.
func (p *Plan) StageOutput(ctx context.Context, inputs Inputs) error {
	if len(p.Staged) == 0 {
		return nil
	}
	if p.OutputIsCollection {
		return fmt.Errorf("mount %q: %w", p.OutputPath, ErrLiveCollection)
	}
	out, err := hostdir.Open(p.OutputDir)
	if err != nil {
		return fmt.Errorf("open output directory: %w", err)
	}
	defer out.Close()
	for _, s := range p.Staged {
		if err := stageOne(ctx, out, s, inputs); err != nil {
			return fmt.Errorf("while staging writable file from %q to %q: %w", s.source, out.Path(s.Path), err)
		}
	}
	return nil
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

// OpenStreams creates or empties the files in the output directory that receive
// stdout and stderr; a file is nil if there is no such mount. If both mounts
// name the same file, the two returned share its offset.
func (p *Plan) OpenStreams() (stdout, stderr *os.File, err error) {
	if p.Stdout == nil && p.Stderr == nil {
		return nil, nil, nil
	}
	out, err := hostdir.Open(p.OutputDir)
	if err != nil {
		return nil, nil, fmt.Errorf("open output directory: %w", err)
	}
	defer out.Close()
	if stdout, err = openStream(out, p.Stdout); err != nil {
		return nil, nil, err
	}
	if p.Stdout != nil && p.Stderr != nil && *p.Stdout == *p.Stderr {
		stderr, err = duplicate(stdout)
	} else {
		stderr, err = openStream(out, p.Stderr)
	}
	if err != nil {
		if stdout != nil {
			stdout.Close()
		}
		return nil, nil, err
	}
	return stdout, stderr, nil
}

func openStream(out *hostdir.Dir, file *OutputFile) (*os.File, error) {
	if file == nil {
		return nil, nil
	}
	if dir := path.Dir(file.Path); dir != "." {
		if err := out.MkdirAll(dir, outputDirMode); err != nil {
			return nil, fmt.Errorf("While MkdirAll %q: %w", dir, err)
		}
	}
	f, err := out.OpenFile(file.Path, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC, 0o666)
	if err != nil {
		return nil, fmt.Errorf("While creating file %q: %w", file.Path, err)
	}
	return f, nil
}

func duplicate(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("duplicate %s: %w", f.Name(), err)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// RemoveRunDir removes the run directory with everything in it, but never
// enters a file system that is still mounted there; see hostdir.RemoveAll.
func RemoveRunDir(name string) error { return hostdir.RemoveAll(name) }
