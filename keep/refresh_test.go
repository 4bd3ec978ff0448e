package keep_test

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"crunch-oci/keep"
)

// signingStore signs what is written, until expiry.
type signingStore struct {
	*memStore
	expiry time.Time
	refuse string // hash of a block that is not stored again
}

func (s *signingStore) WriteBlock(ctx context.Context, data []byte, opts keep.WriteOptions) (keep.Locator, error) {
	loc, err := s.memStore.WriteBlock(ctx, data, opts)
	if err == nil && loc.Hash() == s.refuse {
		err = errors.New("refused")
	}
	if err != nil {
		return keep.Locator{}, err
	}
	return keep.ParseLocator(signer.SignLocator(loc.String(), "token", s.expiry))
}

// Blocks are stored again before their signatures end, each once, and one that
// cannot be does not keep the others from it.
func TestRenew(t *testing.T) {
	store := &signingStore{memStore: newMemStore(), expiry: time.Unix(1000, 0)}
	c := newCollection(t, "", store, 64)
	c.SetWriteOptions(keep.WriteOptions{StorageClasses: []string{"archive"}})
	writeFile(t, c, "d/old", pattern("o", 64))
	writeFile(t, c, "sparse", []byte("x"))
	f, err := c.OpenFile("sparse", os.O_RDWR)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(200); err != nil {
		t.Fatal(err)
	}
	marshal(t, c)
	store.expiry = time.Unix(2000, 0)
	writeFile(t, c, "new", pattern("n", 50))
	text := marshal(t, c)
	if err := c.Splice("again", c, "d"); err != nil {
		t.Fatal(err)
	}
	_, before := store.count()
	store.expiry = time.Unix(3000, 0)
	if err := c.Renew(t.Context(), time.Unix(1500, 0)); err != nil {
		t.Fatal(err)
	}
	if _, n := store.count(); n != before+3 {
		t.Errorf("%d blocks stored again, want the three old ones", n-before)
	}
	if got := store.opts.StorageClasses; !slices.Equal(got, []string{"archive"}) {
		t.Error(got)
	}
	if err := c.RemoveAll("again"); err != nil {
		t.Fatal(err)
	}
	renewed := marshal(t, c)
	if keep.StripSignatures(renewed) != keep.StripSignatures(text) {
		t.Errorf("%q has become %q", text, renewed)
	}
	if strings.Contains(renewed, "@000003e8") || strings.Count(renewed, "@000007d0") != 1 {
		t.Error(renewed)
	}

	store.refuse = md5hex(pattern("n", 50))
	store.expiry = time.Unix(4000, 0)
	if err := c.Renew(t.Context(), time.Unix(3500, 0)); err == nil || !strings.Contains(err.Error(), store.refuse) {
		t.Error(err)
	}
	if renewed = marshal(t, c); strings.Contains(renewed, "@00000bb8") || strings.Count(renewed, "@000007d0") != 1 {
		t.Error(renewed)
	}
}
