package wire

import (
	"context"

	"crunch-oci/arvados"
	"crunch-oci/keep"
)

// Connect opens the API and Keep with the token in cfg, for the roles that are
// no supervisor; keepRetries as in Job.
func Connect(ctx context.Context, cfg arvados.Config, keepRetries int) (*arvados.Client, keep.BlockStore, func() error, error) {
	api, err := arvados.NewClient(paceAPI(cfg))
	if err != nil {
		return nil, nil, nil, err
	}
	facts, err := learn(ctx, api, cfg, keepRetries)
	if err != nil {
		api.Close()
		return nil, nil, nil, err
	}
	a, err := facts.newAccount(api, cfg.Token, nil, cacheSize)
	if err != nil {
		api.Close()
		return nil, nil, nil, err
	}
	return a.api, a.blocks, func() error {
		defer api.Close()
		return a.close()
	}, nil
}
