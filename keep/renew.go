package keep

import (
	"context"
	"errors"
	"time"
)

const (
	// expiresSoon is how long before its expiry a signature is no longer relied
	// upon.
	expiresSoon = time.Minute
	// renewPause is the least time between two attempts at newer signatures for
	// that reason, refusedPause for the reason that Keep has refused one.
	renewPause   = 15 * time.Second
	refusedPause = time.Second
)

// renewal gets newer signatures for the blocks of a collection.
type renewal struct {
	fetch func(context.Context) (manifest string, err error)
	lock  chan struct{} // a mutex that can be waited for with a context
	tried time.Time     // the latest attempt
}

// RenewWith makes files readable for longer than the signatures in the manifest
// last. When a block is wanted whose signature is at its end or is refused, fetch
// is called for a manifest of the collection that is signed anew; if it fails, the
// old signatures are used. It must be called before files are opened.
func (c *Collection) RenewWith(fetch func(context.Context) (manifest string, err error)) {
	c.renewal = &renewal{fetch: fetch, lock: make(chan struct{}, 1)}
}

// read reads a piece with a signature that is good, if there is one to be had.
func (f *File) read(ctx context.Context, p []byte, piece piece) error {
	c := f.coll()
	if c.renewal == nil {
		return f.fetch(ctx, p, piece)
	}
	if end, ok := piece.Locator.SignedUntil(); ok && time.Until(end) < expiresSoon {
		piece.Locator = f.newer(ctx, c, piece.Locator, renewPause)
	}
	err := f.fetch(ctx, p, piece)
	var re *ReadError
	if errors.As(err, &re) && re.Refused() {
		if newer := f.newer(ctx, c, piece.Locator, refusedPause); newer != piece.Locator {
			piece.Locator = newer
			return f.fetch(ctx, p, piece)
		}
	}
	return err
}

// newer returns the locator with the latest signature that can be had for c, in
// which the file is.
func (f *File) newer(ctx context.Context, c *Collection, old Locator, pause time.Duration) Locator {
	r := c.renewal
	select {
	case r.lock <- struct{}{}:
		defer func() { <-r.lock }()
	case <-ctx.Done():
		return old
	}
	if loc := f.latest(old); loc != old {
		return loc // somebody else was faster
	}
	if time.Since(r.tried) < pause {
		return old
	}
	r.tried = time.Now()
	manifest, err := r.fetch(ctx)
	if err != nil {
		return old // still worth a try, as clocks differ
	}
	fresh := signatures(manifest)
	c.refresh(fresh)
	f.c.mu.Lock() // f may have been removed from the tree
	f.n.eachSource(func(s *source) {
		for i := range s.blocks {
			s.blocks[i].refresh(fresh)
		}
	})
	f.c.mu.Unlock()
	return f.latest(old)
}

// latest returns the locator that the file has now for a block.
func (f *File) latest(old Locator) Locator {
	f.c.mu.RLock()
	defer f.c.mu.RUnlock()
	found := old
	f.n.eachSource(func(s *source) {
		for _, b := range s.blocks {
			if b.loc.Hash() == old.Hash() && laterSigned(b.loc, found) {
				found = b.loc
			}
		}
	})
	return found
}
