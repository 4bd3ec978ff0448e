package imagestore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/docker/go-units"
	"github.com/opencontainers/go-digest"
)

// ImageInfo describes an image in the store.
type ImageInfo struct {
	// Name is the image's own name in the store, unique there.
	Name string `json:"name"`
	// ID is the digest of the image's configuration.
	ID digest.Digest `json:"id"`
	// Tags are the names in the tarball it came from.
	Tags []string `json:"tags"`
	// Promised is the id that its tarball's name promised, Source what
	// identifies a tarball that promised none.
	Promised string `json:"promised_id,omitempty"`
	Source   string `json:"source,omitempty"`
	// Layers are the diff IDs, the lowest first; Lower the directories of an
	// overlay mount, the topmost first.
	Layers []string `json:"layers"`
	Lower  []string `json:"lowerdirs"`
	// Size is what its layers take, also those it shares with other images; at
	// most: see Amount.
	Size Amount `json:"size"`
	// LastUsed is when a container with it was started or ended last.
	LastUsed time.Time `json:"last_used"`
	InUse    bool      `json:"in_use"`
	// Complete is false if it would be unpacked again: a layer is missing, or may
	// not have survived the last reboot.
	Complete bool `json:"complete"`
	// RawConfig is the configuration, as in the tarball.
	RawConfig []byte `json:"-"`

	lower []string // below layers/
}

// Contents is what the store holds.
type Contents struct {
	Images []ImageInfo `json:"images"` // the most recently used first
	// Size is what all layers take, each counted once.
	Size Amount `json:"size"`
	// Budget is what the store may take, Free what its file system has left
	// (Inodes: -1 if it does not count them).
	Budget Amount `json:"budget"`
	Free   Amount `json:"free"`
	// Foreign are the names, below the store's root, of what is not the store's
	// and left alone; some, if there are many.
	Foreign []string `json:"foreign,omitempty"`
}

// maxForeign is how many strange names are told.
const maxForeign = 20

// Contents looks at everything in the store.
func (s *Store) Contents(ctx context.Context) (Contents, error) {
	inv, err := s.inventory(ctx)
	if err != nil {
		return Contents{}, err
	}
	sp, err := s.space()
	if err != nil {
		return Contents{}, err
	}
	slices.SortStableFunc(inv.images, func(a, b ImageInfo) int { return b.LastUsed.Compare(a.LastUsed) })
	return Contents{Images: inv.images, Size: inv.total, Budget: s.o.Budget, Free: Amount{sp.bytes, sp.inodes}, Foreign: inv.foreign}, nil
}

// inventory is what lay in the store at one moment, more or less: others change
// it all the time.
type inventory struct {
	images  []ImageInfo
	damaged []string          // names of records that say nothing
	layers  map[string]Amount // and covers
	needed  map[string]int    // layers, by the number of images
	total   Amount
	foreign []string
}

// strange notes something that is not the store's.
func (inv *inventory) strange(dir, name string) {
	if len(inv.foreign) < maxForeign {
		inv.foreign = append(inv.foreign, dir+"/"+name)
	}
}

func (s *Store) inventory(ctx context.Context) (*inventory, error) {
	inv := &inventory{layers: make(map[string]Amount), needed: make(map[string]int)}
	// The layers first: an image that is finished meanwhile has layers that do
	// not count as orphans then.
	ids, err := readNames(filepath.Join(s.root, "layers"))
	if err != nil {
		return nil, fmt.Errorf("image store: %w", err)
	}
	for _, id := range ids {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if !layerName.MatchString(id) {
			inv.strange("layers", id)
			continue
		}
		f, _ := s.readFacts(id) // damaged or just removed: of no known size
		inv.layers[id] = f.size()
		inv.total.add(f.size())
	}
	files, err := readNames(filepath.Join(s.root, "images"))
	if err != nil {
		return nil, fmt.Errorf("image store: %w", err)
	}
	for _, file := range files {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		name, ok := recordName(file)
		if !ok {
			inv.strange("images", file)
			continue
		}
		img, err := s.info(name, inv.layers)
		switch {
		case err == nil:
			inv.images = append(inv.images, img)
			for _, id := range img.lower {
				inv.needed[id]++
			}
		case errors.Is(err, ErrNotFound):
			if _, err := os.Lstat(s.recordPath(name)); err == nil {
				inv.damaged = append(inv.damaged, name)
			}
		default:
			return nil, err
		}
	}
	return inv, nil
}

// info reads one record and what it names.
func (s *Store) info(name string, sizes map[string]Amount) (ImageInfo, error) {
	r, err := s.loadRecord(name)
	if err != nil {
		return ImageInfo{}, err
	}
	st, err := os.Lstat(s.recordPath(name))
	if errors.Is(err, os.ErrNotExist) {
		return ImageInfo{}, ErrNotFound
	}
	if err != nil {
		return ImageInfo{}, fmt.Errorf("image store: %w", err)
	}
	img := ImageInfo{
		Name: name, ID: r.ID, Tags: r.Names, Promised: r.Key.ID, Source: r.Key.Source, Layers: r.Layers,
		LastUsed: st.ModTime(), InUse: true, Complete: true, RawConfig: r.Config, lower: r.Lower,
	}
	for _, id := range r.Lower {
		img.Lower = append(img.Lower, filepath.Join(s.layerPath(id), "fs"))
		img.Size.add(sizes[id])
		img.Complete = img.Complete && s.believed(id)
		// A user of the image holds all of them. Other images may hold some.
		img.InUse = img.InUse && s.inUse(id)
	}
	return img, nil
}

// orphans gives the layers that no image needs.
func (inv *inventory) orphans() []string {
	var out []string
	for id := range inv.layers {
		if inv.needed[id] == 0 {
			out = append(out, id)
		}
	}
	slices.Sort(out)
	return out
}

func (inv *inventory) forget(img ImageInfo) {
	for _, id := range img.lower {
		inv.needed[id]--
	}
}

// readNames is what is in a directory now.
func readNames(dir string) ([]string, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Readdirnames(-1)
}

func humanBytes(n int64) string { return units.BytesSize(float64(n)) }

// LayerNames are the store's own names of everything that Lower lists, for Verify
// and Discard.
func (i ImageInfo) LayerNames() []string { return slices.Clone(i.lower) }
