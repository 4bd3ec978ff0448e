package imagestore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"crunch-oci/imagestore/archive"
	"crunch-oci/imagestore/layer"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Progress tells how far an Unpack is.
type Progress struct {
	// Waiting is true while another process unpacks the same thing.
	Waiting bool
	// Done of Total bytes of the tarball have been read. What the store had
	// already does not count.
	Done, Total int64
}

// Unpack gives the image of key, from the store if it is there. Otherwise it calls
// open for the tarball and unpacks the missing layers. open must use key.ID as the
// wanted id; Unpack closes what it returns. If another process is unpacking the
// same image, Unpack waits for it, and takes over if that one dies.
//
// progress may be nil; it is called from several goroutines, one at a time.
//
// A failure leaves nothing behind but the layers that were complete. It wraps
// one of this package's errors where the image is at fault, and unix.ENOSPC
// where the store's file system is full.
func (s *Store) Unpack(ctx context.Context, key Key, open func(context.Context) (*archive.Image, error), progress func(Progress)) (*Snapshot, error) {
	name, err := key.name()
	if err != nil {
		return nil, err
	}
	p := &meter{report: progress}
	snap, err := s.Lookup(key)
	if !errors.Is(err, ErrNotFound) {
		return snap, err
	}
	c, err := s.claim(ctx, "image-"+name, p.wait)
	if err != nil {
		return nil, err
	}
	// It may have been finished between the look and the claim.
	snap, err = s.Lookup(key)
	if errors.Is(err, ErrNotFound) {
		snap, err = s.make(ctx, c, key, name, open, p)
	}
	if err = errors.Join(err, c.abandon()); err != nil && snap != nil {
		snap.Close()
		snap = nil
	}
	return snap, err
}

// make unpacks what is missing of an image, and writes its record.
func (s *Store) make(ctx context.Context, c *claim, key Key, name string, open func(context.Context) (*archive.Image, error), p *meter) (_ *Snapshot, err error) {
	img, err := open(ctx)
	if err != nil {
		return nil, s.explain(err)
	}
	defer func() { err = errors.Join(err, img.Close()) }()
	if img.WantedID != key.ID {
		// The next one to ask for key would get this image unseen.
		return nil, fmt.Errorf("%w: the tarball was opened for the id %q and is to be kept as %q", ErrWrongID, img.WantedID, key.ID)
	}

	layers := distinct(img.Layers)
	if err := s.roomFor(ctx, layers, p); err != nil {
		return nil, err
	}
	uses, err := s.unpackLayers(ctx, layers, p)
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		// How large compressed layers are is not known beforehand.
		if pruned, perr := s.Prune(ctx, PruneOptions{All: true}); perr == nil && len(pruned.Images) > 0 {
			p.restart()
			uses, err = s.unpackLayers(ctx, layers, p)
		}
	}
	if err != nil {
		return nil, s.explain(err)
	}
	defer func() {
		if err != nil {
			closeAll(uses)
		}
	}()
	p.finish()
	st, err := s.stack(ctx, uses)
	if err != nil {
		return nil, s.explain(err)
	}
	uses = st.uses
	if err := s.affordable(uses); err != nil {
		return nil, err
	}
	r := record{
		Version: recordVersion, Key: key, ID: img.ID, Names: img.Names, Config: img.RawConfig,
		Lower: st.lower, Root: st.root,
	}
	for _, l := range img.Layers {
		r.Layers = append(r.Layers, l.DiffID.Encoded())
	}
	if err := s.writeRecord(c, name, r); err != nil {
		return nil, s.explain(fmt.Errorf("image store: %w", err))
	}
	defer s.enforce()
	return s.snapshot(r, uses)
}

// unpackLayers gives all the layers in use, in their order, or none.
func (s *Store) unpackLayers(ctx context.Context, layers []archive.Layer, p *meter) ([]*use, error) {
	uses := make([]*use, len(layers))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(s.o.Parallel)
	for i, l := range layers {
		g.Go(func() error {
			u, err := s.layer(gctx, l, p)
			if err != nil {
				return fmt.Errorf("layer %d of %d (%.19s): %w", i+1, len(layers), l.DiffID, err)
			}
			uses[i] = u
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		for _, u := range uses {
			if u != nil {
				u.close()
			}
		}
		return nil, err
	}
	return uses, nil
}

// distinct leaves out all but the topmost of layers that are the same: the
// overlay takes no directory twice, and whatever a layer says about a path, it
// says last where it is topmost.
func distinct(in []archive.Layer) []archive.Layer {
	var out []archive.Layer
	seen := make(map[string]bool)
	for i := len(in) - 1; i >= 0; i-- {
		if id := in[i].DiffID.Encoded(); !seen[id] {
			seen[id] = true
			out = append([]archive.Layer{in[i]}, out...)
		}
	}
	return out
}

// layer gives a layer in use, unpacking it if nobody has, or if it is not known
// any more how it fits with others.
func (s *Store) layer(ctx context.Context, l archive.Layer, p *meter) (*use, error) {
	fill := func(c *claim) error { return s.unpackLayer(ctx, c, l, p) }
	u, err := s.ensure(ctx, l.DiffID.Encoded(), p.wait, fill)
	if err != nil {
		return nil, err
	}
	_, damage := s.readFacts(u.id)
	if damage == nil {
		return u, nil
	}
	u.close()
	if err := s.discard(u.id, false); err != nil {
		return nil, fmt.Errorf("image store: the layer is damaged (%w) and in use; run crunch-run image verify --remove when no container has it: %w", damage, err)
	}
	return s.ensure(ctx, l.DiffID.Encoded(), p.wait, fill)
}

// ensure gives the layer directory id in use. If there is none, fill is called
// to fill the claimed directory, which is then published.
func (s *Store) ensure(ctx context.Context, id string, waiting func(), fill func(*claim) error) (*use, error) {
	for {
		u, err := s.use(id)
		if err == nil {
			return u, nil
		}
		if !errors.Is(err, errStale) && !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("image store: %w", err)
		}
		c, err := s.claim(ctx, id, waiting)
		if err != nil {
			return nil, err
		}
		u, err = s.fulfil(c, fill)
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return u, err
		}
		// Removed as soon as it was made, or stale and just being looked at.
		if err := pause(ctx); err != nil {
			return nil, err
		}
	}
}

// fulfil makes the layer that c claims, unless somebody else had made it by the time
// the claim was granted. The claim is over when it returns.
func (s *Store) fulfil(c *claim, fill func(*claim) error) (*use, error) {
	u, err := s.use(c.name)
	if err == nil {
		return u, c.abandon()
	}
	if errors.Is(err, errStale) {
		err = s.discard(c.name, true)
	} else if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	if err == nil {
		err = fill(c)
	}
	if err == nil {
		err = writeJSON(filepath.Join(c.path, "state.json"), state{Version: recordVersion, Boot: s.boot}, false)
	}
	if err != nil {
		return nil, errors.Join(err, c.abandon())
	}
	dir, err := c.publish(s.layerPath(c.name))
	if err != nil {
		return nil, err
	}
	return &use{id: c.name, dir: dir}, nil
}

// unpackLayer extracts l into the claimed directory.
func (s *Store) unpackLayer(ctx context.Context, c *claim, l archive.Layer, p *meter) error {
	fs := filepath.Join(c.path, "fs")
	if err := os.Mkdir(fs, 0o700); err != nil {
		return err
	}
	o, why, err := s.bounds()
	if err != nil {
		return err
	}
	stream, err := l.Open(ctx, p.add)
	if err != nil {
		return err
	}
	defer stream.Close()
	res, err := layer.Extract(ctx, stream, fs, o)
	if err != nil {
		var size *layer.SizeError
		if errors.As(err, &size) && why != nil {
			return fmt.Errorf("%w: %w", why, err)
		}
		return blame(ctx, io.LimitReader(stream, max(1<<30, 100*l.Size)), err)
	}
	f := facts{OpaqueRoot: res.OpaqueRoot, Entries: res.Entries, Bytes: res.Bytes}
	for _, d := range res.ImplicitDirs {
		if d == "" {
			f.ImplicitRoot = true
			continue
		}
		f.Implicit = append(f.Implicit, []byte(d))
	}
	for _, d := range res.WhiteoutDirs {
		if d != "" {
			f.Whiteouts = append(f.Whiteouts, []byte(d))
		}
	}
	return writeJSON(filepath.Join(c.path, "facts.json"), f, false)
}

// blame returns ErrCorrupt instead of err if a layer failed because its bytes are
// damaged: these can make a tar stream say anything. The rest of the stream is read
// to see whether the digest is right; the caller bounds it, since a compression
// bomb has no end.
func blame(ctx context.Context, stream io.Reader, err error) error {
	var entry *layer.EntryError
	if !errors.As(err, &entry) && !errors.Is(err, layer.ErrMalformed) ||
		errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.EIO) || ctx.Err() != nil {
		return err
	}
	if _, rerr := io.Copy(io.Discard, stream); errors.Is(rerr, ErrCorrupt) {
		return rerr
	}
	return err
}

// meter adds up progress from several goroutines.
type meter struct {
	mu     sync.Mutex
	p      Progress
	report func(Progress)
}

func (m *meter) update(f func(*Progress)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f(&m.p)
	if m.report != nil {
		m.report(m.p)
	}
}

func (m *meter) finish()       { m.update(func(p *Progress) { p.Waiting = false; p.Done = p.Total }) }
func (m *meter) wait()         { m.update(func(p *Progress) { p.Waiting = true }) }
func (m *meter) add(n int)     { m.update(func(p *Progress) { p.Waiting = false; p.Done += int64(n) }) }
func (m *meter) restart()      { m.update(func(p *Progress) { p.Waiting = false; p.Done = 0 }) }
func (m *meter) total(n int64) { m.update(func(p *Progress) { p.Waiting = false; p.Total = n }) }
