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
	into := descent{top: root}
	defer into.close()
	err = c.Walk(sub, func(name string, info keep.FileInfo) error {
		dst := name
		if sub = path.Clean(sub); sub != "." {
			dst = strings.TrimPrefix(strings.TrimPrefix(name, sub), "/")
		}
		switch {
		case dst == "" || dst == ".": // Walk begins with sub itself
			return nil
		case info.IsDir():
			return into.mkdir(dst)
		case path.Base(name) == ".keep" && info.Size() == 0:
			return nil // stands for the empty directory it is in
		}
		in, rel := into.nearest(dst)
		return exportFile(ctx, c, in, name, rel)
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

// descent makes directories in the order of a walk. It keeps some of those that
// lead to the current one open: Root looks at every component of a name, which
// in a tree of thousands of levels is all the work there is.
type descent struct {
	top  *os.Root
	open []openDir // each within the one before
}

type openDir struct {
	name string // below top
	root *os.Root
}

// maxOpen bounds the descriptors of a descent.
const maxOpen = 16

// nearest gives an open directory above name, and name relative to it. What is
// not above name is closed.
func (d *descent) nearest(name string) (*os.Root, string) {
	for len(d.open) > 0 {
		last := d.open[len(d.open)-1]
		if rest, ok := strings.CutPrefix(name, last.name+"/"); ok {
			return last.root, rest
		}
		_ = last.root.Close()
		d.open = d.open[:len(d.open)-1]
	}
	return d.top, name
}

func (d *descent) mkdir(name string) error {
	in, rel := d.nearest(name)
	if err := in.MkdirAll(rel, 0o755); err != nil {
		return err
	}
	r, err := in.OpenRoot(rel)
	if err != nil {
		return err
	}
	if len(d.open) == maxOpen {
		_ = d.open[0].root.Close()
		d.open = d.open[1:]
	}
	d.open = append(d.open, openDir{name, r})
	return nil
}

func (d *descent) close() {
	for _, o := range d.open {
		_ = o.root.Close()
	}
	_ = d.top.Close()
}
