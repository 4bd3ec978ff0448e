package main

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"crunch-oci/cmd/crunch-run/nodeimages"
	"crunch-oci/cmd/crunch-run/wire"
	"crunch-oci/imagestore"
	"crunch-oci/supervisor/config"
)

// runImage is "crunch-run image": of the cluster that the environment names, or
// of this node. args begin with "image".
func runImage(args []string, stdout, stderr io.Writer) int {
	verb := ""
	if len(args) > 1 {
		verb = args[1]
	}
	if slices.Contains([]string{"-h", "-help", "--help", "help"}, verb) {
		status := runClient(args, stdout, stderr)
		fmt.Fprint(stdout, "\n"+nodeimages.Usage())
		return status
	}
	onNode := nodeimages.Knows(verb)
	if !onNode && verb != "put" {
		return fail(stderr, 2, "crunch-run image: what shall be done? One of: put, list, inspect, prune, verify (try -h)")
	}
	if verb == "list" {
		// There are two: the cluster's, if one is named.
		asked := slices.ContainsFunc(args, func(a string) bool { return strings.TrimLeft(a, "-") == "node" && a != "node" })
		onNode = asked || os.Getenv("ARVADOS_API_HOST") == ""
	}
	if !onNode {
		return runClient(args, stdout, stderr)
	}
	_, stop, release := stopSignals(true)
	defer release()
	return nodeimages.Main(stop, verb, args[2:], nodeimages.Env{
		Stdout: stdout, Stderr: stderr,
		Open: func(warn func(string)) (*imagestore.Store, error) {
			site, err := config.Load(config.Sources{Lookup: os.LookupEnv, Environ: os.Environ()})
			if err != nil {
				return nil, err
			}
			if os.Geteuid() != 0 {
				return nil, fmt.Errorf("the image store %s belongs to root; run this as root", site.StoreDir)
			}
			return wire.OpenStore(site, warn)
		},
	})
}
