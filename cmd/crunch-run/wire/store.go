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
	return imagestore.Open(site.StoreDir, imagestore.Options{
		Budget: imagestore.Amount{Bytes: site.StoreBudget.Of(capacity.Bytes), Inodes: site.StoreInodes.Of(capacity.Inodes)},
		Warn: func(text string) {
			const prefix = "image store: "
			warn(prefix + strings.TrimPrefix(text, prefix))
		},
	})
}
