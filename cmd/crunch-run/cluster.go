package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"strings"

	"crunch-oci/localcluster"
)

const clusterUsage = `Usage: crunch-run cluster --dir DIR [--listen HOST:PORT]

Keeps an embedded Arvados cluster (API and Keep) running for other clients on
this machine, until it is interrupted. Its state is in DIR. Prints the variables
that clients need:

  crunch-run cluster --dir /srv/arvados > env.sh &
  . ./env.sh

ARVADOS_API_TOKEN is an ordinary user's, who stores collections and submits
container requests. ARVADOS_DISPATCHER_TOKEN is for a dispatcher: with it in the
place of the other, containers are locked and supervisors run.
`

// runCluster keeps an embedded cluster running.
func runCluster(args []string, stdout, stderr io.Writer) int {
	fs := flag.NewFlagSet("crunch-run cluster", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	dir := fs.String("dir", "", "")
	listen := fs.String("listen", "127.0.0.1:0", "")
	switch err := fs.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(stdout, clusterUsage)
		return 0
	case err != nil:
		return fail(stderr, 2, "crunch-run cluster: %v (try -h)", err)
	case *dir == "" || fs.NArg() > 0:
		return fail(stderr, 2, "crunch-run cluster: --dir DIR is needed, and no other argument (try -h)")
	}
	ctx, stop, release := stopSignals(true)
	defer release()
	cluster, err := localcluster.Start(ctx, localcluster.Options{Dir: *dir, Listen: *listen})
	if err != nil {
		return fail(stderr, 1, "crunch-run cluster: %v", err)
	}
	env := append(cluster.Env(), "ARVADOS_DISPATCHER_TOKEN="+cluster.DispatcherToken())
	for _, kv := range env {
		k, v, _ := strings.Cut(kv, "=")
		fmt.Fprintf(stdout, "export %s='%s'\n", k, strings.ReplaceAll(v, "'", `'\''`))
	}
	<-stop.Done()
	if err := cluster.Close(); err != nil {
		return fail(stderr, 1, "crunch-run cluster: %v", err)
	}
	return 0
}
