package imagestore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"crunch-oci/imagestore/archive"
	"crunch-oci/imagestore/layer"

	"github.com/docker/go-units"
	"golang.org/x/sys/unix"
)

// space is what the store's file system has left.
type space struct {
	bytes, reserve int64
	inodes         int64 // -1: the file system does not count them
}

func (s *Store) space() (space, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(s.root, &st); err != nil {
		return space{}, fmt.Errorf("image store: %w", &os.PathError{Op: "statfs", Path: s.root, Err: err})
	}
	sp := space{bytes: int64(st.Bavail) * st.Bsize, inodes: int64(st.Ffree)}
	// What an unpack leaves to the containers: 2 %, at most 64 MiB.
	sp.reserve = min(64<<20, int64(st.Blocks)*st.Bsize/50)
	if st.Files == 0 {
		sp.inodes = -1
	}
	return sp, nil
}

func (sp space) String() string {
	if sp.inodes < 0 {
		return units.HumanSize(float64(sp.bytes)) + " free"
	}
	return fmt.Sprintf("%s and %d inodes free", units.HumanSize(float64(sp.bytes)), sp.inodes)
}

// roomFor makes room for the layers that are missing, and fails if they cannot
// fit, before anything is written. What a compressed layer will need is not
// known: at least its size.
func (s *Store) roomFor(ctx context.Context, layers []archive.Layer, p *meter) error {
	var need int64
	for i, l := range layers {
		// At most one of several ids of the same bytes is right. A manifest that
		// names them a hundred times does not take a hundred times the room.
		if slices.ContainsFunc(layers[:i], l.SameData) {
			continue
		}
		if u, err := s.use(l.DiffID.Encoded()); err == nil {
			u.close()
			continue
		}
		need += l.Size
	}
	p.total(need)
	if need == 0 {
		return nil
	}
	if limit := s.o.MaxImage.Bytes; limit > 0 && need > limit {
		return fmt.Errorf("%w: an image of %s", s.tooLarge(), humanBytes(need))
	}
	if err := s.makeRoom(ctx, need); err != nil {
		return err
	}
	sp, err := s.space()
	if err != nil {
		return err
	}
	if need > sp.bytes-sp.reserve || sp.inodes == 0 {
		return fmt.Errorf("unpack an image of %s into %s (%s): %w", units.HumanSize(float64(need)), s.root, sp, unix.ENOSPC)
	}
	return nil
}

// tooLarge is an ErrLimit: the limit is the site's word on how large images may
// be, and no property of this node.
func (s *Store) tooLarge() error {
	return fmt.Errorf("%w: an image may take %s here (store-budget and store-inodes, see crunch-run check)", ErrLimit, s.o.MaxImage)
}

// affordable fails if an unpacked image takes more than the store may.
func (s *Store) affordable(uses []*use) error {
	var sum Amount
	for _, u := range uses {
		f, err := s.readFacts(u.id)
		if err != nil {
			return fmt.Errorf("image store: %w", err)
		}
		sum.add(f.size())
	}
	if sum.exceeds(s.o.MaxImage) {
		return fmt.Errorf("%w: this one takes %s", s.tooLarge(), sum)
	}
	return nil
}

// bounds gives the limits of one layer: what the options say, and not more bytes
// than fit. why, if not nil, is the error that a layer.SizeError stands for. The
// file system's free inodes are no bound: entries that replace one another take only
// one, and the kernel says when there are none left.
func (s *Store) bounds() (o layer.Options, why, err error) {
	o = s.o.Layer
	if n := s.o.MaxImage.Inodes; n > 0 {
		if o.MaxEntries == 0 {
			o.MaxEntries = layer.DefaultMaxEntries
		}
		o.MaxEntries = min(o.MaxEntries, n)
	}
	if n := s.o.MaxImage.Bytes; n > 0 && (o.MaxBytes == 0 || n < o.MaxBytes) {
		o.MaxBytes, why = n, s.tooLarge()
	}
	sp, err := s.space()
	if err != nil {
		return o, nil, err
	}
	// Only this limit is the disk's: the others are the same on every node.
	if room := max(sp.bytes-sp.reserve, 1); o.MaxBytes == 0 || room < o.MaxBytes {
		o.MaxBytes, why = room, unix.ENOSPC
	}
	return o, why, nil
}

// explain adds to a failure for want of space where that was, and what to do.
func (s *Store) explain(err error) error {
	if !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) {
		return err
	}
	sp, serr := s.space()
	if serr != nil {
		return err
	}
	return fmt.Errorf("%w (image store %s: %s after cleaning up; make room there, or put the store elsewhere)", err, s.root, sp)
}
