package transfer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"

	"golang.org/x/sys/unix"

	"crunch-oci/keep"
)

// maxDepth bounds how deep an input may be nested; only a link that leads back
// up makes a tree so deep.
const maxDepth = 64

// errSpecialFile says that an input holds what Keep cannot.
var errSpecialFile = errors.New("is neither a file nor a directory, which is all that a collection can hold")

// CopyTree stores the tree below dir in c, below the directory dst. Keep has no
// links, so what a link leads to is stored in its place.
func CopyTree(ctx context.Context, c *keep.Collection, dst, dir string, bar *Bar) error {
	return walk(dir, dst, 0, func(src, dst string, fi fs.FileInfo) error {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if fi.IsDir() {
			return c.Mkdir(dst)
		}
		return CopyFile(ctx, c, src, dst, bar)
	})
}

// TreeSize is the number of bytes CopyTree will store, as far as can be told.
func TreeSize(dir string) (total int64) {
	// What is wrong with the tree is said by CopyTree.
	_ = walk(dir, ".", 0, func(_, _ string, fi fs.FileInfo) error {
		if !fi.IsDir() {
			total += fi.Size()
		}
		return nil
	})
	return total
}

// walk calls fn for every file and directory below dir, parents first, with its
// path on the host and in the collection.
func walk(dir, rel string, depth int, fn func(src, dst string, fi fs.FileInfo) error) error {
	if depth > maxDepth {
		return fmt.Errorf("%s: more than %d directories deep; does a link lead back up?", dir, maxDepth)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return followed(err)
	}
	for _, e := range entries {
		src, dst := filepath.Join(dir, e.Name()), path.Join(rel, e.Name())
		fi, err := os.Stat(src) // follows links
		if err != nil {
			return followed(err)
		}
		if !fi.IsDir() && !fi.Mode().IsRegular() {
			return fmt.Errorf("%s: %w", src, errSpecialFile)
		}
		if err := fn(src, dst, fi); err != nil {
			return err
		}
		if fi.IsDir() {
			if err := walk(src, dst, depth+1, fn); err != nil {
				return err
			}
		}
	}
	return nil
}

// followed explains an error of following links. The kernel follows 40 in a path
// (path_resolution(7)), and fewer when it has to start over halfway, so that it
// may give up before walk does.
func followed(err error) error {
	if errors.Is(err, unix.ELOOP) {
		return fmt.Errorf("%w; does a link lead back up?", err)
	}
	return err
}

// CopyFile stores one file of the host in c.
func CopyFile(ctx context.Context, c *keep.Collection, src, dst string, bar *Bar) (err error) {
	in, err := os.Open(src)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := c.Create(dst)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	_, err = io.Copy(out, &countingReader{ctx: ctx, r: in, count: bar.Add})
	return err
}

// countingReader tells count how much has been read, and ends with ctx.
type countingReader struct {
	ctx   context.Context
	r     io.Reader
	count func(n int)
}

func (c *countingReader) Read(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	n, err := c.r.Read(p)
	c.count(n)
	return n, err
}
