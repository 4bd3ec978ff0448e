package keepstore

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// index implements volume.
func (d *directory) index(ctx context.Context, prefix string, fn func(entry) error) error {
	return d.walk(ctx, prefix, func(dir, name string) error {
		if len(name) != 32 || !isHex(name) || !strings.HasPrefix(name, prefix) {
			return nil
		}
		fi, err := os.Lstat(filepath.Join(dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if !fi.Mode().IsRegular() {
			return nil
		}
		return fn(entry{name, fi.Size(), fi.ModTime()})
	})
}

// walk calls fn for each name in the directories that may hold blocks whose
// hash begins with prefix.
func (d *directory) walk(ctx context.Context, prefix string, fn func(dir, name string) error) error {
	dirs, err := os.ReadDir(d.root)
	if err != nil {
		return d.absent(err)
	}
	for _, e := range dirs {
		n := e.Name()
		if len(n) == 0 || !isHex(n) || !strings.HasPrefix(n, prefix[:min(len(n), len(prefix))]) {
			continue
		}
		dir := filepath.Join(d.root, n)
		if fi, err := os.Stat(dir); err != nil || !fi.IsDir() {
			continue
		}
		if err := walkDir(ctx, dir, fn); err != nil {
			return err
		}
	}
	return nil
}

func walkDir(ctx context.Context, dir string, fn func(dir, name string) error) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	for {
		names, err := f.Readdirnames(1000)
		for _, n := range names {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := fn(dir, n); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
