package keep

import (
	"context"
	"fmt"

	"golang.org/x/sync/errgroup"
)

// maxLocalize is how many remote blocks are copied at once. The work is the
// servers'.
const maxLocalize = 8

// RemoteBlocks returns the number of different blocks in use that belong to
// another cluster. MarshalManifest has them copied, which can take long.
func (c *Collection) RemoteBlocks() int {
	c.mu.RLock()
	defer c.mu.RUnlock()
	hashes := make(map[string]bool)
	for _, use := range remoteUses(freeze(nil, c.root, []byte("."))) {
		hashes[use.loc.Hash()] = true
	}
	return len(hashes)
}

// remoteUse is a place where a remote locator stands.
type remoteUse struct {
	src   *source
	index int
	loc   Locator
}

// remoteUses lists the remote blocks that the extents of the snapshot touch.
func remoteUses(snapshot []frozenDir) (uses []remoteUse) {
	seen := make(map[*source]map[int]bool)
	for _, dir := range snapshot {
		for _, f := range dir.files {
			for _, e := range f.extents {
				if e.src.data != nil {
					continue
				}
				for i := e.src.block(e.pos); i < len(e.src.blocks) && e.src.blocks[i].start < e.pos+e.len; i++ {
					loc := e.src.blocks[i].loc
					if !loc.IsRemote() || seen[e.src][i] {
						continue
					}
					if seen[e.src] == nil {
						seen[e.src] = make(map[int]bool)
					}
					seen[e.src][i] = true
					uses = append(uses, remoteUse{e.src, i, loc})
				}
			}
		}
	}
	return uses
}

// localize replaces the remote locators of the snapshot by local ones, if the
// store can do that. Otherwise they stay, and whoever saves the manifest will
// hear from the API server.
func (c *Collection) localize(ctx context.Context, snapshot []frozenDir) error {
	store, ok := c.blocks.(Localizer)
	if !ok {
		return nil
	}
	c.mu.RLock()
	uses := remoteUses(snapshot)
	c.mu.RUnlock()
	byHash := make(map[string][]remoteUse)
	for _, use := range uses {
		byHash[use.loc.Hash()] = append(byHash[use.loc.Hash()], use)
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(maxLocalize)
	for _, same := range byHash {
		group.Go(func() error {
			loc, err := store.LocalLocator(ctx, same[0].loc)
			if err != nil {
				return err
			}
			c.mu.Lock()
			defer c.mu.Unlock()
			for _, use := range same {
				if loc.Size() != use.loc.Size() {
					return fmt.Errorf("copied block %s has another size than %s", loc.WithoutHints(), use.loc.WithoutHints())
				}
				use.src.blocks[use.index].loc = loc
			}
			return nil
		})
	}
	return group.Wait()
}
