package keep

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"time"
)

// RefreshSignatures takes over the signatures of manifest, the same collection's
// or any other's, where they expire later than those that the files have now.
//
// Signatures last for Collections.BlobSigningTTL, two weeks by default. Without
// this a file opened longer ago can no longer be read, and a collection that
// grows for so long no longer be saved. The API server signs anew the manifest
// of each collection record that it returns.
func (c *Collection) RefreshSignatures(manifest string) { c.refresh(signatures(manifest)) }

// signatures returns the blocks of a manifest by their hashes, each with the
// latest signature that is there.
func signatures(manifest string) map[string]Locator {
	fresh := make(map[string]Locator)
	for token := range strings.FieldsFuncSeq(manifest, func(r rune) bool { return r == ' ' || r == '\n' }) {
		if strings.IndexByte(token, ':') >= 0 {
			continue
		}
		loc, err := ParseLocator(token)
		if err == nil && laterSigned(loc, fresh[loc.Hash()]) {
			fresh[loc.Hash()] = loc
		}
	}
	return fresh
}

// refresh takes over the signatures in fresh, which is by hash.
func (c *Collection) refresh(fresh map[string]Locator) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.eachStored(func(b *placedBlock) { b.refresh(fresh) })
}

func (b *placedBlock) refresh(fresh map[string]Locator) {
	if loc := fresh[b.loc.Hash()]; loc.size == b.loc.size && laterSigned(loc, b.loc) {
		b.loc = loc.clone()
	}
}

// eachStored calls fn for the blocks of everything that is stored. The caller
// holds the lock.
func (c *Collection) eachStored(fn func(*placedBlock)) {
	seen := make(map[*source]bool)
	visit := func(s *source) {
		if s == nil || seen[s] {
			return
		}
		seen[s] = true
		for i := range s.blocks {
			fn(&s.blocks[i])
		}
	}
	c.root.eachSource(visit)
	for n := range c.orphans {
		n.eachSource(visit)
	}
	for _, zeros := range c.zeros {
		visit(zeros)
	}
}

func (n *node) eachSource(visit func(*source)) {
	for _, e := range n.extents {
		visit(e.src)
	}
	if n.dir != nil {
		for _, e := range n.dir.entries {
			e.eachSource(visit)
		}
	}
}

// Renew reads the blocks whose signatures end before until and stores them
// again, one after the other. That gives them new signatures, and new time
// stamps: a collection of which there is no record has nothing else to keep its
// blocks from being taken for garbage after BlobSigningTTL. The first error is
// returned; the blocks it does not concern are renewed all the same.
func (c *Collection) Renew(ctx context.Context, until time.Time) (err error) {
	if c.writer == nil {
		return ErrNoWriter
	}
	old := make(map[string]Locator)
	c.mu.RLock()
	opts := c.opts
	c.eachStored(func(b *placedBlock) {
		if end, ok := b.loc.SignedUntil(); ok && end.Before(until) {
			old[b.loc.Hash()] = b.loc
		}
	})
	c.mu.RUnlock()
	fresh := make(map[string]Locator, len(old))
	for hash, loc := range old {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		again, failed := c.storeAgain(ctx, loc, opts)
		if failed != nil {
			err = cmp.Or(err, fmt.Errorf("renew block %s: %w", loc.WithoutHints(), failed))
			continue
		}
		fresh[hash] = again
	}
	c.refresh(fresh)
	return err
}

func (c *Collection) storeAgain(ctx context.Context, loc Locator, opts WriteOptions) (Locator, error) {
	data, err := c.blocks.ReadBlock(ctx, loc)
	if err != nil {
		return Locator{}, err
	}
	return c.writer.WriteBlock(ctx, data, opts)
}

// laterSigned tells whether a is signed, and for longer than b if b is.
func laterSigned(a, b Locator) bool {
	untilA, signedA := a.SignedUntil()
	untilB, signedB := b.SignedUntil()
	return signedA && (!signedB || untilA.After(untilB))
}
