package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/term"

	"crunch-oci/arvados"
	"crunch-oci/cmd/crunch-run/wire"
	"crunch-oci/internal/mountns"
	"crunch-oci/supervisor/config"
	"crunch-oci/supervisor/nodecheck"
)

const checkUsage = `Usage: crunch-run check [--json] [--timeout DURATION]

Tells whether this node can run containers, by trying what that needs, and what to
do about what is wrong. Shows the settings in force. Nothing is left behind. The
clock is compared with the cluster's if ARVADOS_API_HOST is known.

Options:
  --json              one JSON object instead of a table
  --timeout DURATION  how long to wait for what does not answer (default 1.6s)

Exit status: 0 if the node is fit (warnings do not count), 1 if it is not, 2 for a
wrong command line. As the cloud dispatcher's BootProbeCommand:

  sudo crunch-run check
`

// runCheck checks this node.
func runCheck(args []string, stdout, stderr io.Writer) int {
	fs := flag.NewFlagSet("crunch-run check", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	asJSON := fs.Bool("json", false, "")
	patience := fs.Duration("timeout", nodecheck.DefaultPatience, "")
	switch err := fs.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(stdout, checkUsage)
		return 0
	case err != nil:
		return fail(stderr, 2, "crunch-run check: %v (try -h)", err)
	case fs.NArg() > 0:
		return fail(stderr, 2, "crunch-run check: unexpected argument %q (try -h)", fs.Arg(0))
	case *patience <= 0:
		return fail(stderr, 2, "crunch-run check: --timeout %v: must be more than 0 (try -h)", *patience)
	}
	report := checkNode(*patience)
	var err error
	if *asJSON {
		err = report.WriteJSON(stdout)
	} else {
		err = report.WriteTable(stdout, wantsColour(stdout))
	}
	if err != nil {
		return fail(stderr, 1, "crunch-run check: %v", err)
	}
	if !report.Healthy {
		return 1
	}
	return 0
}

// checkNode checks this node in a mount namespace of its own.
func checkNode(patience time.Duration) *nodecheck.Report {
	if os.Geteuid() == 0 {
		if err := mountns.Enter(); err != nil {
			return nodecheck.Refuse(programVersion(), nodecheck.Finding{Area: "mounts", Level: nodecheck.Failure, Text: err.Error(), Advice: "this is what every start of crunch-run will meet"})
		}
	}
	site, err := config.Load(config.Sources{Lookup: os.LookupEnv, Environ: os.Environ()})
	options := nodecheck.Options{
		Version: programVersion(), Site: site, SiteErr: err, TempDir: config.TakeEnvironment().TempDir, Patience: patience,
	}
	// What is wrong with these settings is the supervisor's to say.
	if cluster, _ := arvados.ConfigFromEnv(os.LookupEnv); cluster.Host != "" {
		options.ClockOffset = func(ctx context.Context) (time.Duration, error) { return arvados.ClockOffset(ctx, cluster.Host) }
	}
	return wire.Check(context.Background(), options)
}

// wantsColour tells whether somebody reads the output on a terminal that shows
// colours, and has not asked for none (no-color.org).
func wantsColour(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd())) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
}
