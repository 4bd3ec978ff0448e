package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"crunch-oci/arvados"
	"crunch-oci/cmd/crunch-run/local"
	"crunch-oci/cmd/crunch-run/transfer"
	"crunch-oci/cmd/crunch-run/wire"
	"crunch-oci/localcluster"
	"crunch-oci/supervisor"
	"crunch-oci/supervisor/config"
)

// runLocal runs one container on this machine, with an embedded cluster.
func runLocal(args []string, stdout, stderr io.Writer) int {
	const failure = 125
	began := time.Now()
	if !local.WantsHelp(args) {
		if code := prepareProcess(stderr); code != 0 {
			return failure
		}
	}
	site, err := config.Load(config.Sources{Lookup: os.LookupEnv, Environ: os.Environ()})
	if err != nil {
		return fail(stderr, failure, "crunch-run local: %v", err)
	}
	// The cluster is in this process, and goes with it.
	site.FinalTimeout, site.UnfinishedDir = localPatience, ""
	environment := config.TakeEnvironment()
	ctx, stop, release := stopSignals(true)
	defer release()
	return local.Main(ctx, args, local.Env{
		Stdout: stdout, Stderr: stderr, Began: began, Stop: stop,
		StateDir: site.LocalDir, TempDir: environment.TempDir,
		NewScratch: func() (string, func() error, error) { return wire.NewScratch(stop, site, environment.TempDir) },
		HoldBridge: func() (string, func(context.Context) error, error) {
			held, err := wire.HoldBridge(stop, site)
			if err != nil {
				return "", nil, err
			}
			for _, n := range held.Notes {
				fmt.Fprintf(stderr, "crunch-run local: %s\n", n)
			}
			return held.Host, held.Close, nil
		},
		GPUStack: func() string { return string(wire.GPUNode(site).Stack()) },
		Connect: func(c *localcluster.Cluster, token string) (*transfer.Session, error) {
			return connect(ctx, clusterConfig(c, token), localKeepRetries)
		},
		Supervise: func(ctx, stop context.Context, c *localcluster.Cluster, j local.Job, obs supervisor.Observer, messages io.Writer) error {
			env := environment
			env.GatewayAuthSecret, env.GatewayAddress = c.GatewayAuthSecret(j.UUID), ""
			return wire.Run(ctx, stop, wire.Job{
				UUID: j.UUID, Version: programVersion(), Site: site, Env: env, KeepRetries: localKeepRetries,
				Flags: config.Flags{
					EnableMemoryLimit: true, CrunchstatInterval: 10 * time.Second,
					EnableNetworking: "always", NetworkMode: j.Network,
				},
				Cluster: clusterConfig(c, c.DispatcherToken()), ContainerAPIHost: j.APIHost, Stderr: messages, Observer: obs,
			})
		},
	})
}

func clusterConfig(c *localcluster.Cluster, token string) arvados.Config {
	return arvados.Config{Host: c.Host(), Token: token, CAFile: c.CAFile(), Budget: localPatience}
}

// The embedded cluster is in this process: what it cannot do now, because a disk
// is full, it will hardly do ten minutes later.
const (
	localPatience    = 20 * time.Second
	localKeepRetries = 2
)

// connect opens the API and Keep with one token.
func connect(ctx context.Context, cfg arvados.Config, keepRetries int) (*transfer.Session, error) {
	api, blocks, closer, err := wire.Connect(ctx, cfg, keepRetries)
	if err != nil {
		return nil, err
	}
	return &transfer.Session{API: api, Blocks: blocks, Close: closer}, nil
}
