package local

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"crunch-oci/arvados"
	"crunch-oci/imagestore/archive"
	"crunch-oci/keep"
)

// Session is access to the cluster with one token.
type Session struct {
	API    *arvados.Client
	Blocks keep.BlockStore
	Close  func() error
}

// tarball is an image file that has been looked into.
type tarball struct {
	path string
	size int64
	id   string // "sha256:<64 hex>", the digest of the image's config
	tags []string
	pdh  string // of the collection it is stored in, once it is
}

// examine reads enough of an image tarball to know its id, so that a file that
// is no image is refused before anything is stored.
func examine(ctx context.Context, path, scratch string) (*tarball, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	img, err := archive.Open(ctx, f, fi.Size(), archive.Options{Scratch: scratch})
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", path, err)
	}
	defer img.Close()
	return &tarball{path: path, size: fi.Size(), id: img.ID.String(), tags: img.Names}, nil
}

// storeImage stores the tarball as arv-keepdocker does: a collection with one
// file named after the image id, and links by which the image is found.
func (s *Session) storeImage(ctx context.Context, img *tarball, view *view) error {
	f, err := os.Open(img.path)
	if err != nil {
		return err
	}
	defer f.Close()
	bar := view.progress("storing image", img.size)
	defer bar.end()
	c, err := keep.NewCollection("", s.Blocks)
	if err != nil {
		return err
	}
	defer c.Close()
	dst, err := c.Create(img.id + ".tar")
	if err != nil {
		return err
	}
	if _, err := io.Copy(dst, &countingReader{ctx: ctx, r: f, count: bar.add}); err != nil {
		return errors.Join(err, dst.Close())
	}
	if err := dst.Close(); err != nil {
		return err
	}
	saved, err := s.save(ctx, c, fmt.Sprintf("Docker image %s", img.id))
	if err != nil {
		return err
	}
	img.pdh = saved.PortableDataHash
	links := map[string]string{"docker_image_hash": img.id}
	for _, tag := range img.tags {
		links["docker_image_repo+tag"] = tag
	}
	for class, name := range links {
		if _, err := s.API.CreateLink(ctx, map[string]any{"link_class": class, "name": name, "head_uuid": saved.UUID}); err != nil {
			return fmt.Errorf("link the image: %w", err)
		}
	}
	return nil
}

// storeInputs stores each directory as a collection and returns their portable
// data hashes by input name.
func (s *Session) storeInputs(ctx context.Context, inputs []input, view *view) (map[string]string, error) {
	pdhs := make(map[string]string)
	for _, in := range inputs {
		bar := view.progress("storing input "+in.name, treeSize(in.dir))
		saved, err := s.storeTree(ctx, in, bar)
		bar.end()
		if err != nil {
			return nil, fmt.Errorf("store input %s from %s: %w", in.name, in.dir, err)
		}
		pdhs[in.name] = saved.PortableDataHash
	}
	return pdhs, nil
}

func (s *Session) storeTree(ctx context.Context, in input, bar *bar) (arvados.Collection, error) {
	c, err := keep.NewCollection("", s.Blocks)
	if err != nil {
		return arvados.Collection{}, err
	}
	defer c.Close()
	if err := copyTree(ctx, c, in.dir, bar); err != nil {
		return arvados.Collection{}, err
	}
	return s.save(ctx, c, "input "+in.name)
}

// save makes a collection record of c.
func (s *Session) save(ctx context.Context, c *keep.Collection, name string) (arvados.Collection, error) {
	manifest, err := c.MarshalManifest(ctx)
	if err != nil {
		return arvados.Collection{}, err
	}
	return s.API.CreateCollection(ctx, map[string]any{"name": name, "manifest_text": manifest}, true, "uuid", "portable_data_hash")
}
