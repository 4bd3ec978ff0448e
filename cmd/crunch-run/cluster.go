package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"slices"
	"strings"

	"crunch-oci/arvados"
	"crunch-oci/cmd/crunch-run/wire"
	"crunch-oci/localcluster"
	"crunch-oci/localcluster/dispatcher"
	"crunch-oci/supervisor/config"
)

const clusterUsage = `Usage: crunch-run cluster --dir DIR [--listen HOST:PORT] [--dispatch N]

Keeps an embedded Arvados cluster (API and Keep) running for other clients on
this machine, until it is interrupted. Its state is in DIR. Prints the variables
that clients need:

  crunch-run cluster --dir /srv/arvados --dispatch 4 > env.sh &
  . ./env.sh
  crunch-run image put debian.tar
  crunch-run submit --image debian:12 --wait -- cat /etc/os-release

ARVADOS_API_TOKEN is an ordinary user's, who stores collections and submits
container requests. ARVADOS_DISPATCHER_TOKEN is for a dispatcher: with it in the
place of the other, containers are locked and supervisors run. DIR/config.yml is
for programs that want a cluster configuration file, such as crunch-dispatch-local;
it holds the system root token.

Options:
  --dir DIR           where everything is kept; made if missing (required)
  --listen HOST:PORT  address of the API (default 127.0.0.1:0). Port 0 is the one
                      of the last start, if it is free, or else any free one
  --dispatch N        run queued containers on this machine, N at a time, those
                      of highest priority first (default 0: leave them to other
                      dispatchers). Needs root. A container that waits for its
                      own child requests takes none of the N places. Supervisors
                      get the settings of this process (CRUNCH_RUN_* variables)
  --shell-access WHO  who gets shells in running containers: user (default; in
                      those that all of whose requests are the user's), admin
                      (administrators only), none

The first Ctrl-C stops running containers and saves what there is; containers
that have not begun go back to the queue. The second gives up.
`

// runCluster keeps an embedded cluster running.
func runCluster(args []string, stdout, stderr io.Writer) int {
	fs := flag.NewFlagSet("crunch-run cluster", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	dir := fs.String("dir", "", "")
	listen := fs.String("listen", "127.0.0.1:0", "")
	slots := fs.Int("dispatch", 0, "")
	who := fs.String("shell-access", "user", "")
	switch err := fs.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(stdout, clusterUsage)
		return 0
	case err != nil:
		return fail(stderr, 2, "crunch-run cluster: %v (try -h)", err)
	case *dir == "" || fs.NArg() > 0:
		return fail(stderr, 2, "crunch-run cluster: --dir DIR is needed, and no other argument (try -h)")
	case !slices.Contains([]string{"user", "admin", "none"}, *who):
		return fail(stderr, 2, "crunch-run cluster: --shell-access %q must be user, admin or none (try -h)", *who)
	case *slots < 0:
		return fail(stderr, 2, "crunch-run cluster: --dispatch %d: how many containers at a time? (try -h)", *slots)
	case *slots > 0 && os.Geteuid() != 0:
		return fail(stderr, 1, "crunch-run cluster: --dispatch needs root: supervisors mount file systems and make cgroups and namespaces")
	}
	ctx, stop, release := stopSignals(true)
	defer release()
	log := slog.New(slog.NewTextHandler(stderr, nil))
	held, err := holdBridge(stop, *slots, log)
	if err != nil {
		return fail(stderr, 1, "crunch-run cluster: %v", err)
	}
	defer func() {
		if err := held.Close(ctx); err != nil {
			log.Error("cannot release the bridge", "error", err)
		}
	}()
	o := localcluster.Options{Dir: *dir, Listen: *listen, Log: log, ShellAccess: &localcluster.ShellAccess{Admin: *who != "none", User: *who == "user"}}
	if held.Host != "" {
		o.AlsoListen = []string{held.Host}
	}
	cluster, err := localcluster.Start(ctx, o)
	if err != nil {
		return fail(stderr, 1, "crunch-run cluster: %v", err)
	}
	env := append(cluster.Env(), "ARVADOS_DISPATCHER_TOKEN="+cluster.DispatcherToken())
	for _, kv := range env {
		k, v, _ := strings.Cut(kv, "=")
		fmt.Fprintf(stdout, "export %s='%s'\n", k, strings.ReplaceAll(v, "'", `'\''`))
	}
	apiHost := cluster.Host()
	if held.Host != "" {
		apiHost = cluster.HostAt(held.Host)
	}
	log.Info("the cluster is ready; Ctrl-C stops it", "api", "https://"+cluster.Host()+"/", "dir", *dir, "dispatch", *slots)
	err = errors.Join(runQueue(ctx, stop, cluster, apiHost, *slots, stderr), cluster.Close())
	if err != nil {
		return fail(stderr, 1, "crunch-run cluster: %v", err)
	}
	return 0
}

// holdBridge makes the bridge, if containers that are run here get it as their
// network: the API then listens on this machine's address there as well. Without
// it containers run nevertheless, and those with API access say what is missing.
func holdBridge(stop context.Context, slots int, log *slog.Logger) (*wire.Held, error) {
	none := &wire.Held{}
	if slots == 0 {
		return none, nil
	}
	site, err := config.Load(config.Sources{Lookup: os.LookupEnv, Environ: os.Environ()})
	if err != nil || site.Network != config.NetworkBridge {
		return none, err
	}
	held, err := wire.HoldBridge(stop, site)
	if err != nil {
		log.Warn("containers will not reach the API, unless the network is host", "error", err)
		return none, nil
	}
	for _, n := range held.Notes {
		log.Info(n)
	}
	return held, nil
}

// runQueue runs the cluster's own dispatcher until stop is done. It sees to what
// an earlier one left behind also when there are no slots.
func runQueue(ctx, stop context.Context, cluster *localcluster.Cluster, apiHost string, slots int, stderr io.Writer) error {
	api, err := arvados.NewClient(clusterConfig(cluster, cluster.OwnDispatcherToken()))
	if err != nil {
		return err
	}
	defer api.Close()
	d, err := dispatcher.New(ctx, dispatcher.Config{
		API: api, Slots: slots, Log: slog.New(slog.NewTextHandler(stderr, nil)),
		Command: func(uuid string) *exec.Cmd { return supervisorCommand(cluster, apiHost, uuid, stderr) },
	})
	if err != nil {
		return err
	}
	if err := d.Recover(ctx); err != nil {
		return err
	}
	if slots == 0 {
		<-stop.Done()
		return nil
	}
	d.Run(ctx, stop)
	return nil
}

// supervisorCommand is this program as the supervisor of one container, with the
// command line and the environment that crunch-dispatch-local gives it (spec:
// cli-and-dispatch section 15.4). On top of that come what names the cluster's
// own certificate, and the settings of the site.
func supervisorCommand(cluster *localcluster.Cluster, apiHost, uuid string, stderr io.Writer) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", "--runtime-engine=docker", uuid)
	cmd.Args[0] = os.Args[0]
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "TMPDIR=" + os.Getenv("TMPDIR"),
		"ARVADOS_API_HOST=" + apiHost, "ARVADOS_API_HOST_INSECURE=", "ARVADOS_API_TOKEN=" + cluster.OwnDispatcherToken(),
		"GatewayAuthSecret=" + cluster.GatewayAuthSecret(uuid),
		"SSL_CERT_FILE=" + cluster.CAFile(),
	}
	for _, kv := range os.Environ() {
		if strings.HasPrefix(kv, "CRUNCH_RUN_") {
			cmd.Env = append(cmd.Env, kv)
		}
	}
	cmd.Stdout, cmd.Stderr = stderr, stderr
	return cmd
}
