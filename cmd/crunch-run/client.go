package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"crunch-oci/arvados"
	"crunch-oci/cmd/crunch-run/client"
	"crunch-oci/cmd/crunch-run/transfer"
	"crunch-oci/cmd/crunch-run/wire"
	"crunch-oci/supervisor/config"
	"crunch-oci/supervisor/unfinished"
)

// clientBudget is how long a call of a client tries to succeed: somebody waits at
// a terminal.
const clientBudget = time.Minute

// runClient acts for a user of the cluster that the environment names.
func runClient(args []string, stdout, stderr io.Writer) int {
	_, stop, release := stopSignals(true)
	defer release()
	return client.Main(stop, args, client.Env{
		Stdout: stdout, Stderr: stderr, TempDir: os.TempDir(),
		Connect: func(ctx context.Context) (*transfer.Session, error) {
			cfg, warning := arvados.ConfigFromEnv(os.LookupEnv)
			if warning != nil {
				fmt.Fprintln(stderr, warning)
			}
			cfg.Budget = clientBudget
			return connect(ctx, cfg, wire.KeepRetries)
		},
		Unfinished: func() (unfinished.Dir, error) {
			site, err := config.Load(config.Sources{Lookup: os.LookupEnv, Environ: os.Environ()})
			return unfinished.Dir(site.UnfinishedDir), err
		},
	})
}
