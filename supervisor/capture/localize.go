package capture

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"sync"

	"golang.org/x/sync/errgroup"

	"crunch-oci/keep"
)

// remoteBlock matches a locator of a block that another cluster has.
var remoteBlock = regexp.MustCompile(` [0-9a-f]+\+\S*\+R\S*`)

// maxLocalize is how many blocks are asked for at once: for each, the Keep
// server fetches a block from the other cluster.
const maxLocalize = 8

var errNoLocalizer = errors.New("the output contains blocks of another cluster, which cannot be made local here")

// localize replaces remote locators in a manifest by local ones.
func localize(ctx context.Context, manifest string, blocks keep.Localizer, log Logger) (string, error) {
	found := remoteBlock.FindAllString(manifest, -1)
	if len(found) == 0 {
		return manifest, nil
	}
	if blocks == nil {
		return "", errNoLocalizer
	}
	log.Printf("Copying %d data blocks from remote input collections...", len(found))
	var mu sync.Mutex
	local := make(map[string]string)
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(maxLocalize)
	for _, text := range found {
		mu.Lock()
		_, seen := local[text]
		if !seen {
			local[text] = ""
		}
		mu.Unlock()
		if seen {
			continue
		}
		group.Go(func() error {
			loc, err := keep.ParseLocator(text[1:])
			if err != nil {
				return err
			}
			got, err := blocks.LocalLocator(ctx, loc)
			if err != nil {
				return fmt.Errorf("error copying block %s from remote cluster: %w", loc.WithoutHints(), err)
			}
			mu.Lock()
			defer mu.Unlock()
			local[text] = " " + got.String()
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return "", err
	}
	return remoteBlock.ReplaceAllStringFunc(manifest, func(text string) string { return local[text] }), nil
}
