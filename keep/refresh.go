package keep

import "strings"

// RefreshSignatures takes over the signatures of manifest, the same collection's
// or any other's, where they expire later than those that the files have now.
//
// Signatures last for Collections.BlobSigningTTL, two weeks by default. Without
// this a file opened longer ago can no longer be read, and a collection that
// grows for so long no longer be saved. The API server signs anew the manifest
// of each collection record that it returns.
func (c *Collection) RefreshSignatures(manifest string) {
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
	c.mu.Lock()
	defer c.mu.Unlock()
	c.root.refresh(fresh, make(map[*source]bool))
}

func (n *node) refresh(fresh map[string]Locator, seen map[*source]bool) {
	for _, e := range n.extents {
		if seen[e.src] {
			continue
		}
		seen[e.src] = true
		for i, b := range e.src.blocks {
			loc := fresh[b.loc.Hash()]
			if loc.size == b.loc.size && laterSigned(loc, b.loc) {
				e.src.blocks[i].loc = loc.clone()
			}
		}
	}
	if n.dir != nil {
		for _, e := range n.dir.entries {
			e.refresh(fresh, seen)
		}
	}
}

// laterSigned tells whether a is signed, and for longer than b if b is.
func laterSigned(a, b Locator) bool {
	untilA, signedA := a.SignedUntil()
	untilB, signedB := b.SignedUntil()
	return signedA && (!signedB || untilA.After(untilB))
}
