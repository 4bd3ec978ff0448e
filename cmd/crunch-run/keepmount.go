package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"runtime/debug"

	"crunch-oci/arvados"
	"crunch-oci/cmd/crunch-run/wire"
	"crunch-oci/keep/mount"
)

// runKeepMount is the FUSE server, started by the supervisor as its child.
func runKeepMount(args []string, stdout, stderr io.Writer) int {
	debug.SetMemoryLimit(memoryLimit)
	_, stop, release := stopSignals(false)
	defer release()
	command := mount.Command{
		Program: "crunch-run keep-mount", Version: programVersion(),
		Connect: func(ctx context.Context, opts mount.Options) (mount.Backend, error) {
			cfg, warning := arvados.ConfigFromEnv(os.LookupEnv)
			if warning != nil {
				fmt.Fprintln(stderr, warning)
			}
			return wire.ConnectMount(ctx, opts, cfg)
		},
	}
	return command.Main(stop, args, os.Getenv, stdout, stderr)
}
