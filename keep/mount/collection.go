package mount

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"crunch-oci/keep"
)

const (
	// defaultTTL is used when the API server does not say how long
	// signatures are good.
	defaultTTL = 336 * time.Hour
	// expiresSoon is how long before its expiry a signature is no longer
	// relied upon.
	expiresSoon = time.Minute
	// refreshPause is the least time between two attempts to read the record
	// of one collection, so that an API server in trouble is not asked anew
	// by each read of each file.
	refreshPause = 15 * time.Second
)

// collection is a directory below by_id. What it shows is a snapshot: for a
// collection named by portable data hash always the same one, for one named by
// UUID the one fetched last.
type collection struct {
	id   string
	pdh  bool   // id is a portable data hash
	node uint64 // node of the top directory
	ino  uint64 // its inode number
	// live or proj is set if it can be written to, or is no collection but a
	// project; then nothing of the following is used.
	live *live
	proj *project

	current atomic.Pointer[snapshot]

	// lock is a mutex that can be waited for with a context. It is held while
	// the record is read; others wait for the result.
	lock    chan struct{}
	fetched atomic.Int64 // Unix nanoseconds of when the record was read
	tried   atomic.Int64 // and of the latest attempt to read it again
}

// snapshot is one content of a collection.
type snapshot struct {
	coll *collection
	tree *tree
	// mtime is shown for everything in it.
	mtime time.Time
	base  uint64 // node of its entry 0
	ino   uint64 // inode number of its entry 0
	// files has the same tree with locators in it. It is replaced by one with
	// newer signatures when those grow old.
	files      atomic.Pointer[signed]
	tried      atomic.Int64 // Unix nanoseconds of the latest attempt at that by hash
	neighbours neighbours
	// refs counts who may still ask for it: the collection that shows it, the
	// kernel once for each time it was given a node number, open handles and
	// requests in work. At 0 it is gone for good.
	refs atomic.Int64
}

// signed is a manifest with signatures of one time.
type signed struct {
	record Record
	files  *keep.Collection
	// expiry is when its signatures end; zero if it has none.
	expiry time.Time
}

// fetch reads a record and checks that it is what was asked for.
func (s *server) fetch(ctx context.Context, id string, pdh bool) (*signed, error) {
	rec, err := s.backend.API.Collection(ctx, id)
	if err != nil {
		return nil, err
	}
	if pdh {
		if got := keep.PortableDataHash(rec.ManifestText); got != id {
			return nil, fmt.Errorf("the API server sent a manifest whose portable data hash is %s", got)
		}
		rec.PortableDataHash, rec.ModifiedAt = id, time.Unix(0, 0)
	}
	files, err := keep.NewCollection(rec.ManifestText, nil)
	if err != nil {
		return nil, err
	}
	return &signed{rec, files, signatureExpiry(rec.ManifestText)}, nil
}

// signatureExpiry finds the first signature of a manifest. The API server, be it
// ours or another cluster's, signs all blocks at once.
func signatureExpiry(manifest string) time.Time {
	for {
		i := strings.IndexByte(manifest, '+')
		if i < 0 {
			return time.Time{}
		}
		manifest = manifest[i+1:]
		switch {
		case strings.HasPrefix(manifest, "A"):
			manifest = manifest[1:]
		case strings.HasPrefix(manifest, "R") && len(manifest) > 7 && manifest[6] == '-':
			manifest = manifest[7:] // of another cluster, whose id comes first
		default:
			continue
		}
		const sig = 40
		if len(manifest) < sig+9 || manifest[sig] != '@' {
			continue // part of a file's name
		}
		if at, err := strconv.ParseInt(manifest[sig+1:sig+9], 16, 64); err == nil {
			return time.Unix(at, 0)
		}
	}
}

// load makes a collection for d. It takes as long as the API client
// retries.
func (s *server) load(ctx context.Context, d *byID, id string, pdh bool) (*collection, error) {
	if isProject(id) {
		return s.loadProject(ctx, d, id)
	}
	if !pdh && s.opts.ReadWrite {
		return s.loadLive(ctx, id)
	}
	data, err := s.fetch(ctx, id, pdh)
	if err != nil {
		return nil, err
	}
	t, err := newTree(data.files)
	if err != nil {
		return nil, err
	}
	c := &collection{id: id, pdh: pdh, ino: s.inodes(1), lock: make(chan struct{}, 1)}
	c.fetched.Store(time.Now().UnixNano())
	c.node = s.nodes.add(region{coll: c})
	s.show(c, data, t)
	return c, nil
}

// show makes data the content of c.
func (s *server) show(c *collection, data *signed, t *tree) {
	snap := &snapshot{coll: c, tree: t, mtime: data.record.ModifiedAt, ino: s.inodes(len(t.entries) + 1)}
	snap.files.Store(data)
	snap.refs.Store(1)
	snap.base = s.nodes.add(region{snap: snap})
	if old := c.current.Swap(snap); old != nil {
		s.unref(old, 1)
	}
}

// acquire returns what c shows, with a reference for the caller.
func (c *collection) acquire() *snapshot {
	for {
		snap := c.current.Load()
		if snap.acquire() {
			return snap
		}
		// It was replaced just now.
	}
}

// acquire takes a reference unless the snapshot is gone.
func (snap *snapshot) acquire() bool {
	for {
		n := snap.refs.Load()
		if n == 0 {
			return false
		}
		if snap.refs.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

func (s *server) unref(snap *snapshot, n int64) {
	if snap.refs.Add(-n) == 0 {
		s.nodes.remove(snap.base)
	}
}

func since(unixNano *atomic.Int64) time.Duration {
	return time.Since(time.Unix(0, unixNano.Load()))
}

// freshen makes sure that what c shows is not too old. A collection named by
// UUID is read again when RefreshTime has passed; if that fails, what was there
// stays. For one named by portable data hash only signatures grow old, and they
// are replaced in the background while the old ones still work.
func (s *server) freshen(ctx context.Context, c *collection) {
	switch {
	case !c.pdh:
		if old := func() bool { return since(&c.fetched) > s.opts.RefreshTime }; old() {
			_ = s.refresh(ctx, c, min(s.pause(), s.opts.RefreshTime), old)
		}
	default:
		old := func() bool { return since(&c.fetched) > s.ttl/2 }
		if old() && since(&c.tried) > s.pause() {
			s.background(func(ctx context.Context) { _ = s.refresh(ctx, c, s.pause(), old) })
		}
	}
}

// locators returns the manifest to read blocks with. If its signatures are at
// their end, the caller waits for newer ones; without success the old ones are
// still worth a try, because clocks differ.
func (s *server) locators(ctx context.Context, snap *snapshot) *signed {
	data := snap.files.Load()
	if !data.expiry.IsZero() && time.Until(data.expiry) < expiresSoon {
		_ = s.renew(ctx, snap, data)
	}
	return snap.files.Load()
}

// renew makes sure that old is not what snap's blocks are read with any more.
func (s *server) renew(ctx context.Context, snap *snapshot, old *signed) error {
	c := snap.coll
	needed := func() bool { return snap.files.Load() == old }
	if c.pdh || c.current.Load() == snap {
		err := s.refresh(ctx, c, s.pause(), needed)
		if c.pdh || !needed() {
			return err
		}
	}
	// The record has another content by now, or is gone. The old one, in which a
	// file is open, can be asked for by its hash.
	return s.once(ctx, c, &snap.tried, s.pause(), needed, func() error {
		data, err := s.fetch(ctx, old.record.PortableDataHash, true)
		if err != nil {
			return err
		}
		manifest := data.record.ManifestText
		data.record = old.record
		data.record.ManifestText = manifest
		snap.files.Store(data)
		return nil
	})
}

// pause is the least time between two attempts to read a record again.
func (s *server) pause() time.Duration { return min(refreshPause, s.ttl/4) }

var errPause = errors.New("the collection record was read a moment ago")

// refresh reads the record again if that is needed and was not tried within the
// last pause.
func (s *server) refresh(ctx context.Context, c *collection, pause time.Duration, needed func() bool) error {
	return s.once(ctx, c, &c.tried, pause, needed, func() error { return s.reread(ctx, c) })
}

// once calls do, one call at a time, if that is needed and was not tried within
// the last pause.
func (s *server) once(ctx context.Context, c *collection, tried *atomic.Int64, pause time.Duration, needed func() bool, do func() error) error {
	select {
	case c.lock <- struct{}{}:
		defer func() { <-c.lock }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if !needed() {
		return nil // somebody else was faster
	}
	if since(tried) < pause {
		return errPause
	}
	tried.Store(time.Now().UnixNano())
	return do()
}

// reread reads the record again and shows what is in it.
func (s *server) reread(ctx context.Context, c *collection) error {
	data, err := s.fetch(ctx, c.id, c.pdh)
	if err != nil {
		if ctx.Err() == nil {
			s.log.warningf("collection %s cannot be read again, using what was read before: %v", c.id, err)
		}
		return err
	}
	c.fetched.Store(time.Now().UnixNano())
	snap := c.current.Load()
	if data.record.PortableDataHash == snap.files.Load().record.PortableDataHash {
		snap.files.Store(data) // same content, newer signatures
		return nil
	}
	t, err := newTree(data.files)
	if err != nil {
		return err
	}
	s.show(c, data, t)
	return nil
}

// isAbsent tells whether the API server said that there is no such record.
func isAbsent(err error) bool { return errors.Is(err, fs.ErrNotExist) }
