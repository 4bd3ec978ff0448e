// Package transfer moves files between this machine's disk and a cluster's Keep,
// with the records that go with them: images, inputs, outputs. It is what the
// roles of the program that act for a user have in common.
package transfer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"crunch-oci/arvados"
	"crunch-oci/keep"
)

// Session is access to the cluster with one token.
type Session struct {
	API    *arvados.Client
	Blocks keep.BlockStore
	Close  func() error
}

// PutTree stores files and directories as one collection with the given
// attributes. A directory appears under its last name, or, if its path ends in
// a slash, with its content only.
func (s *Session) PutTree(ctx context.Context, paths []string, attrs map[string]any, bar *Bar) (arvados.Collection, error) {
	c, err := keep.NewCollection("", s.Blocks)
	if err != nil {
		return arvados.Collection{}, err
	}
	defer c.Close()
	for _, path := range paths {
		if err := putPath(ctx, c, path, bar); err != nil {
			return arvados.Collection{}, err
		}
	}
	return s.save(ctx, c, attrs)
}

func putPath(ctx context.Context, c *keep.Collection, path string, bar *Bar) error {
	fi, err := os.Stat(path)
	if err != nil {
		return err
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	name := filepath.Base(abs)
	contentOnly := strings.HasSuffix(path, "/") || name == "/" || path == "."
	switch {
	case fi.Mode().IsRegular():
		if _, err := c.Stat(name); err == nil {
			return fmt.Errorf("%s: there would be two files %q", path, name)
		}
		return CopyFile(ctx, c, path, name, bar)
	case !fi.IsDir():
		return fmt.Errorf("%s: %w", path, errSpecialFile)
	case contentOnly:
		return CopyTree(ctx, c, ".", path, bar)
	}
	if _, err := c.Stat(name); err == nil {
		return fmt.Errorf("%s: there would be two directories %q", path, name)
	}
	if err := c.Mkdir(name); err != nil {
		return err
	}
	return CopyTree(ctx, c, name, path, bar)
}

// save makes a collection record of c.
func (s *Session) save(ctx context.Context, c *keep.Collection, attrs map[string]any) (arvados.Collection, error) {
	manifest, err := c.MarshalManifest(ctx)
	if err != nil {
		return arvados.Collection{}, err
	}
	all := map[string]any{"manifest_text": manifest}
	for k, v := range attrs {
		all[k] = v
	}
	return s.API.CreateCollection(ctx, all, true, "uuid", "portable_data_hash", "name")
}

// putFile stores one open file as the collection's only one.
func (s *Session) putFile(ctx context.Context, src io.Reader, name string, attrs map[string]any, bar *Bar) (arvados.Collection, error) {
	c, err := keep.NewCollection("", s.Blocks)
	if err != nil {
		return arvados.Collection{}, err
	}
	defer c.Close()
	dst, err := c.Create(name)
	if err != nil {
		return arvados.Collection{}, err
	}
	if _, err := io.Copy(dst, &countingReader{ctx: ctx, r: src, count: bar.Add}); err != nil {
		return arvados.Collection{}, errors.Join(err, dst.Close())
	}
	if err := dst.Close(); err != nil {
		return arvados.Collection{}, err
	}
	return s.save(ctx, c, attrs)
}
