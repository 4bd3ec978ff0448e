package imagestore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Amount is room in a file system. As a limit, 0 is none.
type Amount struct {
	Bytes  int64 `json:"bytes"`
	Inodes int64 `json:"inodes"`
}

func (a *Amount) add(b Amount) { a.Bytes += b.Bytes; a.Inodes += b.Inodes }

// exceeds tells whether a is more than limit in any respect that has a limit.
func (a Amount) exceeds(limit Amount) bool {
	return limit.Bytes > 0 && a.Bytes > limit.Bytes || limit.Inodes > 0 && a.Inodes > limit.Inodes
}

// entryCost stands for what a file needs beside its content, and for the unused
// rest of its last block. The sizes of layers are therefore upper bounds; the
// exact ones would take a look at every file.
const entryCost = 4096

// size is what a layer takes, from what is known about it.
func (f facts) size() Amount {
	return Amount{Bytes: f.Bytes + f.Entries*entryCost, Inodes: f.Entries}
}

// PruneOptions say what may go. What is in use never goes.
type PruneOptions struct {
	// To is what the store may take afterwards: the images that were used least
	// recently go until it does. The zero Amount is no limit.
	To Amount
	// UnusedFor, if not 0, takes the images that have not been used for so long,
	// also within the limit.
	UnusedFor time.Duration
	// All takes every image that is not in use.
	All bool
	// Only, if not nil, restricts what goes to these images (ImageInfo.Name).
	Only []string
	// DryRun removes nothing and tells what would be removed.
	DryRun bool
}

// Pruned tells what Prune has removed, and what is left.
type Pruned struct {
	Images []ImageInfo `json:"images"` // removed, the least recently used first
	Layers int         `json:"layers"` // removed, also those that belonged to no image
	Freed  Amount      `json:"freed"`
	Left   Amount      `json:"left"`
	// Over says that the store is larger than asked for, because of images that
	// are in use.
	Over bool `json:"over"`
}

// Prune removes images, the least recently used first, and layers that no image
// needs, and returns when their files are gone. Other processes may use the
// store meanwhile; an image that one of them wants and that goes at this moment
// is unpacked again.
func (s *Store) Prune(ctx context.Context, o PruneOptions) (Pruned, error) {
	inv, err := s.inventory(ctx)
	if err != nil {
		return Pruned{}, err
	}
	p := Pruned{Left: inv.total}
	var old []string
	defer func() {
		for _, path := range old {
			s.removeLeftover(path)
		}
	}()
	for _, name := range inv.damaged {
		if !o.DryRun {
			_ = os.Remove(s.recordPath(name)) // Lookup takes it for none
		}
	}
	// First what belongs to no image: a killed or failed unpack's.
	old = append(old, p.removeLayers(s, inv, inv.orphans(), o.DryRun)...)
	slices.SortStableFunc(inv.images, func(a, b ImageInfo) int { return a.LastUsed.Compare(b.LastUsed) })
	for _, img := range inv.images {
		if err := ctx.Err(); err != nil {
			return p, err
		}
		due := o.All || o.UnusedFor > 0 && time.Since(img.LastUsed) >= o.UnusedFor || p.Left.exceeds(o.To)
		if !due || img.InUse || o.Only != nil && !slices.Contains(o.Only, img.Name) {
			continue
		}
		// The record first: an image without all its layers is none.
		if !o.DryRun {
			if err := os.Remove(s.recordPath(img.Name)); err != nil && !errors.Is(err, os.ErrNotExist) {
				return p, fmt.Errorf("image store: %w", err)
			}
		}
		inv.forget(img)
		p.Images = append(p.Images, img)
		old = append(old, p.removeLayers(s, inv, inv.orphans(), o.DryRun)...)
	}
	p.Over = p.Left.exceeds(o.To)
	return p, nil
}

// removeLayers takes layers that no image needs out of the store, but for those
// that an unpack or a container uses. What it returns is to be removed.
func (p *Pruned) removeLayers(s *Store, inv *inventory, ids []string, dry bool) (old []string) {
	for _, id := range ids {
		size := inv.layers[id]
		var path string
		var err error
		if dry {
			if s.inUse(id) {
				err = unix.EWOULDBLOCK
			}
		} else {
			path, err = s.takeOut(id, false)
		}
		// A layer is looked at once only: what is in use now may be needed by
		// an image that is being unpacked.
		delete(inv.layers, id)
		if err != nil {
			if !errors.Is(err, unix.EWOULDBLOCK) {
				s.o.Warn("image store: remove layer: " + err.Error())
			}
			continue
		}
		if path != "" {
			old = append(old, path)
		}
		p.Layers++
		p.Freed.add(size)
		p.Left.add(Amount{-size.Bytes, -size.Inodes})
	}
	return old
}

// enforce keeps the store within its budget, in the background.
func (s *Store) enforce() {
	if s.o.Budget == (Amount{}) {
		return
	}
	s.background.tasks.Go(func() {
		p, err := s.Prune(s.background.ctx, PruneOptions{To: s.o.Budget})
		switch {
		case err != nil:
			if s.background.ctx.Err() == nil {
				s.o.Warn("image store: keep to the budget: " + err.Error())
			}
		case p.Over:
			s.o.Warn(fmt.Sprintf("the images in use take %s, more than the store's budget of %s", p.Left, s.o.Budget))
		}
	})
}

// makeRoom removes unused images, the least recently used first, until so many
// bytes are free, and waits until the files are gone.
func (s *Store) makeRoom(ctx context.Context, bytes int64) error {
	for {
		sp, err := s.space()
		if err != nil {
			return err
		}
		lack := bytes - (sp.bytes - sp.reserve)
		if lack <= 0 && sp.inodes != 0 {
			return nil
		}
		inv, err := s.inventory(ctx)
		if err != nil {
			return err
		}
		to := Amount{Bytes: max(inv.total.Bytes-max(lack, 1), 1)}
		p, err := s.Prune(ctx, PruneOptions{To: to})
		if err != nil {
			return err
		}
		if p.Layers == 0 {
			return nil // that was all; what comes next will say what is missing
		}
	}
}

func (a Amount) String() string {
	var parts []string
	if a.Bytes > 0 || a.Inodes <= 0 {
		parts = append(parts, humanBytes(a.Bytes))
	}
	if a.Inodes > 0 {
		parts = append(parts, fmt.Sprintf("%d files", a.Inodes))
	}
	return strings.Join(parts, " and ")
}

// inUse tells whether a container or an unpack uses a layer.
func (s *Store) inUse(id string) bool {
	dir, err := lockDir(s.layerPath(id), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		_ = dir.Close()
	}
	return errors.Is(err, unix.EWOULDBLOCK)
}

// touch notes that an image is being used now, or was until now.
func (s *Store) touch(name string) {
	now := time.Now()
	if err := os.Chtimes(s.recordPath(name), now, now); err != nil && !errors.Is(err, os.ErrNotExist) {
		s.o.Warn("image store: " + err.Error())
	}
}

// recordName is the name of the image whose record file is, if it is one.
func recordName(file string) (string, bool) {
	name, ok := strings.CutSuffix(filepath.Base(file), ".json")
	return name, ok && recordFile.MatchString(name)
}

// Discard removes one layer, named as in ImageInfo.LayerNames, so that images
// that need it are unpacked again. It tells whether it is gone: it stays if it is
// in use.
func (s *Store) Discard(layer string) (bool, error) {
	if !layerName.MatchString(layer) {
		return false, fmt.Errorf("image store: %q is not the name of a layer", layer)
	}
	err := s.discard(layer, false)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("image store: %w", err)
	}
	return true, nil
}
