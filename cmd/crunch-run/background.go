package main

import (
	"context"
	"fmt"
	"io"
	"os"

	"crunch-oci/cmd/crunch-run/wire"
	"crunch-oci/supervisor/config"
	"crunch-oci/supervisor/dispatch"
)

// detach starts a supervisor in the background (spec: cli-and-dispatch section 6).
func detach(flags config.Flags, stdin io.Reader, stdout, stderr io.Writer) int {
	site, err := loadSite(flags)
	if err != nil {
		return fail(stderr, 1, "%v", err)
	}
	program, err := os.Executable()
	if err != nil {
		return fail(stderr, 1, "%v", err)
	}
	if !flags.StdinConfig {
		stdin = nil // nobody would read it
	}
	return dispatch.Dir(site.LockDir).Detach(context.Background(), dispatch.Detached{
		UUID: flags.UUID, Program: program, Args: flags.Args, Stdin: stdin, Stdout: stdout, Stderr: stderr,
	})
}

// kill signals a supervisor in the background (section 7).
func kill(flags config.Flags, stderr io.Writer) int {
	site, err := loadSite(flags)
	if err != nil {
		fmt.Fprintln(stderr, err) // whatever else is wrong, a container must end when it is to
	}
	return dispatch.Dir(site.LockDir).Kill(context.Background(), flags.UUID, flags.KillSignal, stderr)
}

// list lists the supervisors in the background (section 8), and cleans up after
// the dead ones. Settings that cannot be read make the node one that cannot run
// containers; those that run are listed all the same.
func list(flags config.Flags, stdin io.Reader, stdout, stderr io.Writer) int {
	site, err := loadSite(flags)
	if err != nil {
		fmt.Fprintln(stderr, err)
	}
	dir := dispatch.Dir(site.LockDir)
	if flags.StdinPrices {
		if err := dir.SavePrices(stdin); err != nil {
			fmt.Fprintln(stderr, err)
		}
	}
	found := dispatch.Found{Broken: err != nil}
	if err == nil {
		found.Alive = wire.Clean(context.Background(), site, stderr)
	}
	dir.List(context.Background(), found, stdout, stderr)
	return 0
}
