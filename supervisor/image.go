package supervisor

import (
	"context"
	"fmt"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"crunch-oci/imagestore"
	"crunch-oci/imagestore/archive"
	"crunch-oci/keep"
)

// image is the container's image, unpacked and mounted.
type image struct {
	snapshot *imagestore.Snapshot
	rootfs   string // the mounted overlay
	waited   bool   // for another supervisor, and said so
}

// loadImage finds the image tarball in its collection, has it unpacked unless
// the node has it, and mounts a writable root on top of it (spec: lifecycle
// section 10).
func (r *run) loadImage(ctx context.Context) error {
	if err := r.tryLoadImage(ctx); err != nil {
		return fmt.Errorf("failed to load container image: %w", err)
	}
	return nil
}

func (r *run) tryLoadImage(ctx context.Context) error {
	pdh := r.record.ContainerImage
	r.Log.Printf("Fetching Docker image from collection '%s'", pdh)
	collection, err := r.account.OpenCollection(ctx, pdh)
	if err != nil {
		return fmt.Errorf("open image collection %s: %w", pdh, err)
	}
	name, err := findTarball(collection)
	if err != nil {
		return err
	}
	id := strings.TrimSuffix(name, ".tar")
	r.Log.Printf("Using Docker image id %q", id)
	r.Log.Printf("Loading Docker image from keep")

	key := imagestore.KeyFor(pdh, name)
	r.image.snapshot, err = r.Images.Unpack(ctx, key, func(ctx context.Context) (*archive.Image, error) {
		return r.openArchive(ctx, collection, name, key.ID)
	}, r.imageProgress)
	if err != nil {
		return err
	}
	snapshot := r.image.snapshot
	r.undo.Add("release image", func(context.Context) error { return snapshot.Close() })
	if key.ID == "" {
		r.Log.Printf("Image file name %q has no image id to check; image %s was checked against its own list of layers", name, snapshot.ID)
	}
	if a := snapshot.Config.Architecture; a != "" && a != runtime.GOARCH && !(a == "386" && runtime.GOARCH == "amd64") {
		r.Log.Printf("warning: the image says that it is for %s, and this node is %s", a, runtime.GOARCH)
	}
	r.syncImageLater()
	return r.mountRootfs()
}

// syncDelay leaves most of the writing of a new image to the kernel, which does
// it half a minute later.
const syncDelay = time.Minute

// syncImageLater has the image written to the disk when nobody waits for that,
// so that it need not be unpacked again after a reboot. The end of the run is
// the end of it, or of the waiting for it.
func (r *run) syncImageLater() {
	snapshot, due := r.image.snapshot, r.after(syncDelay)
	r.background.run(func(ctx context.Context) {
		select {
		case <-ctx.Done():
			return
		case <-due:
		}
		if err := snapshot.Sync(); err != nil {
			r.Log.Printf("warning: the image will be unpacked again after a reboot: %v", err)
		}
	})
}

// findTarball picks the one file at the top of an image collection that ends in
// ".tar"; other files do not matter.
func findTarball(c *keep.Collection) (string, error) {
	entries, err := c.ReadDir(".")
	if err != nil {
		return "", fmt.Errorf("list image collection: %w", err)
	}
	var tars []string
	for _, e := range entries {
		if !e.IsDir() && strings.HasSuffix(e.Name(), ".tar") {
			tars = append(tars, e.Name())
		}
	}
	switch len(tars) {
	case 0:
		return "", fmt.Errorf("image collection does not include a .tar image file")
	case 1:
		return tars[0], nil
	}
	return "", fmt.Errorf("cannot choose from multiple tar files in image collection: %v", tars)
}

// openArchive reads the tarball straight from Keep: no FUSE, no local copy.
func (r *run) openArchive(ctx context.Context, c *keep.Collection, name, wantID string) (*archive.Image, error) {
	f, err := c.Open(name)
	if err != nil {
		return nil, fmt.Errorf("open image file %s: %w", name, err)
	}
	return archive.Open(ctx, f.WithContext(ctx), f.Size(), archive.Options{WantID: wantID, Scratch: r.Scratch})
}

// imageProgress is called one at a time.
func (r *run) imageProgress(p imagestore.Progress) {
	if p.Waiting && !r.image.waited {
		r.image.waited = true
		r.Log.Printf("Waiting for another supervisor on this node, which is unpacking the same image")
	}
	if r.Observer != nil {
		r.Observer.ImageProgress(p)
	}
}

// mountRootfs mounts the overlay. Its upper directory, which holds what the
// container writes, is in the scratch directory and goes with it.
func (r *run) mountRootfs() error {
	dir := filepath.Join(r.Scratch, "rootfs")
	upper, work := filepath.Join(r.Scratch, "upper"), filepath.Join(r.Scratch, "work")
	r.image.snapshot.MountLabel = r.Limits.Confinement.SELinuxMountLabel
	var err error
	if ids := r.Limits.Confinement.IDs; ids.IsZero() {
		err = imagestore.MountRootfs(r.image.snapshot, dir, upper, work)
	} else {
		err = imagestore.MountMappedRootfs(r.image.snapshot, dir, upper, work, ids)
	}
	if err != nil {
		return err
	}
	r.undo.Add("unmount the container's root", func(context.Context) error { return imagestore.Unmount(dir) })
	r.image.rootfs = dir
	return nil
}
