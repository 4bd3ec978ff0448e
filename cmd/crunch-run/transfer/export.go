package transfer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"crunch-oci/keep"
)

// Open reads a collection, by UUID or portable data hash. It must be closed.
func (s *Session) Open(ctx context.Context, id string) (*keep.Collection, error) {
	record, err := s.API.GetCollection(ctx, id, "uuid", "manifest_text")
	if err != nil {
		return nil, fmt.Errorf("read collection %s: %w", id, err)
	}
	c, err := keep.NewCollection(record.ManifestText, s.Blocks)
	if err != nil {
		return nil, fmt.Errorf("read collection %s: %w", id, err)
	}
	return c, nil
}

// Export copies the directory sub of a collection into a new or empty directory.
func (s *Session) Export(ctx context.Context, uuid, sub, dir string) error {
	c, err := s.Open(ctx, uuid)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	// Names come from a container: Root keeps them inside.
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	err = c.Walk(sub, func(name string, info keep.FileInfo) error {
		dst := name
		if sub = path.Clean(sub); sub != "." {
			dst = strings.TrimPrefix(strings.TrimPrefix(name, sub), "/")
		}
		switch {
		case dst == "" || dst == ".": // Walk begins with sub itself
			return nil
		case info.IsDir():
			return root.MkdirAll(dst, 0o755)
		case path.Base(name) == ".keep" && info.Size() == 0:
			return nil // stands for the empty directory it is in
		}
		return exportFile(ctx, c, root, name, dst)
	})
	if err != nil {
		return fmt.Errorf("copy collection %s to %s: %w", uuid, dir, err)
	}
	return nil
}

func exportFile(ctx context.Context, c *keep.Collection, root *os.Root, name, dst string) (err error) {
	in, err := c.Open(name)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := root.OpenFile(dst, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in.WithContext(ctx))
	if err = errors.Join(err, out.Close()); err != nil {
		return errors.Join(err, root.Remove(dst)) // half a file is worse than none
	}
	return nil
}
