package wire

import (
	"strings"

	"crunch-oci/imagestore"
	"crunch-oci/supervisor/config"
)

// OpenStore opens the site's image store with the site's budget. warn gets a
// line about each thing that is wrong with it.
func OpenStore(site config.Site, warn func(string)) (*imagestore.Store, error) {
	capacity, err := imagestore.Capacity(site.StoreDir)
	if err != nil {
		return nil, err
	}
	budget := imagestore.Amount{Bytes: site.StoreBudget.Of(capacity.Bytes), Inodes: site.StoreInodes.Of(capacity.Inodes)}
	// A size is what the site wants; a percentage says something about this node,
	// and an image that is too large for it may run on another.
	var limit imagestore.Amount
	if site.StoreBudget.Percent == 0 {
		limit.Bytes = budget.Bytes
	}
	if site.StoreInodes.Percent == 0 {
		limit.Inodes = budget.Inodes
	}
	return imagestore.Open(site.StoreDir, imagestore.Options{
		Budget: budget, MaxImage: limit,
		Warn: func(text string) {
			const prefix = "image store: "
			warn(prefix + strings.TrimPrefix(text, prefix))
		},
	})
}
