package wire

import (
	"context"
	"crypto/tls"
	"time"

	"crunch-oci/arvados"
	"crunch-oci/gateway"
	"crunch-oci/gateway/console"
	"crunch-oci/gateway/sshd"
	"crunch-oci/internal/undo"
	"crunch-oci/keep"
	"crunch-oci/oci"
	"crunch-oci/supervisor"
	"crunch-oci/supervisor/joblog"
)

// gatewayEnd bounds what the end of a run gives to connections of the gateway:
// nobody waits for them.
const gatewayEnd = 5 * time.Second

// startGateway opens the door into the container, if the dispatcher wants one,
// and says in the log what came of it. A container runs as well without.
func (j Job) startGateway(ctx context.Context, api *arvados.Client, client *tls.Config, log *joblog.Log, files *keep.Collection, door *door, cleanup *undo.Stack) supervisor.Gateway {
	if j.Env.GatewayAuthSecret == "" {
		log.Printf("Not starting a gateway server (GatewayAuthSecret was not provided by dispatcher)")
		return nil
	}
	log.Hide(j.Env.GatewayAuthSecret)
	server, err := gateway.Start(ctx, gateway.Config{
		UUID: j.UUID, Secret: j.Env.GatewayAuthSecret, Address: j.Env.GatewayAddress,
		Target: door.target, Logs: liveLog{files}, SSH: door.ssh,
		Tunnel: gateway.Tunnel{Host: j.Cluster.Host, Token: j.Cluster.Token, TLS: client},
		OnAddress: func(ctx context.Context, addr string) error {
			return api.UpdateContainer(ctx, j.UUID, map[string]any{"gateway_address": addr})
		},
		Logf: log.Printf,
	})
	if err != nil {
		log.Printf("error starting gateway server: %v", err)
		return nil
	}
	// At the very end: logs can be read while the output is saved.
	cleanup.Add("close gateway", within(gatewayEnd, server.Close))
	return server
}

// door is what is behind the gateway: the container, as soon as there is one.
type door struct {
	target *gateway.Deferred
	ssh    gateway.SSHServer
}

// newDoor returns a door behind which there is nothing yet.
func newDoor(log *joblog.Log, cleanup *undo.Stack) (*door, error) {
	target := new(gateway.Deferred)
	shells, err := sshd.New(sshd.Config{Target: target, Logf: log.Printf})
	if err != nil {
		return nil, err
	}
	cleanup.Add("end detached shells", within(gatewayEnd, shells.Close))
	return &door{target: target, ssh: shells}, nil
}

// openConsole lets root of this node in, without network and secret. A container
// runs as well without.
func (d *door) openConsole(dir string, log *joblog.Log, cleanup *undo.Stack) {
	c, err := console.Listen(dir, d.ssh, log.Printf)
	if err != nil {
		log.Printf("crunch-run shell will not work: %v", err)
		return
	}
	cleanup.Add("close console", within(gatewayEnd, c.Close))
}

// within bounds a step of the clean-up.
func within(d time.Duration, step func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, d)
		defer cancel()
		return step(ctx)
	}
}

// open makes a container reachable. It may not have been started yet.
func (d *door) open(c *oci.Container) { d.target.Set(Inside(c)) }
