package local

import (
	"context"
	"fmt"

	"crunch-oci/arvados"
	"crunch-oci/cmd/crunch-run/transfer"
)

func storeImage(ctx context.Context, s *transfer.Session, img *transfer.Image, view *view) (arvados.Collection, error) {
	bar := view.progress("storing image", img.Size)
	defer bar.End()
	return s.PutImage(ctx, img, transfer.ImageOptions{Names: img.Names}, bar)
}

// storeInputs stores each directory as a collection and returns their portable
// data hashes by input name.
func storeInputs(ctx context.Context, s *transfer.Session, inputs []input, view *view) (map[string]string, error) {
	pdhs := make(map[string]string)
	for _, in := range inputs {
		bar := view.progress("storing input "+in.name, transfer.TreeSize(in.dir))
		saved, err := s.PutTree(ctx, []string{in.dir + "/"}, map[string]any{"name": "input " + in.name}, bar)
		bar.End()
		if err != nil {
			return nil, fmt.Errorf("store input %s from %s: %w", in.name, in.dir, err)
		}
		pdhs[in.name] = saved.PortableDataHash
	}
	return pdhs, nil
}
