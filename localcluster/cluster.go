// Package localcluster is a small Arvados in one process, for one machine: the
// API over HTTPS with its records in SQLite, and Keep over HTTP with its
// blocks in a directory. It is for trying, developing and testing without an
// installation, so it speaks the real protocols and refuses what the real
// servers refuse. It knows nothing of containers' insides: a dispatcher or a
// supervisor talks to it like to any cluster.
package localcluster

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"sync"
	"time"

	"crunch-oci/internal/undo"
	"crunch-oci/keep"
	"crunch-oci/keep/keepstore"
	"crunch-oci/localcluster/internal/api"
	"crunch-oci/localcluster/internal/controller"
	"crunch-oci/localcluster/internal/store"
)

// Options of Start.
type Options struct {
	// Dir is where everything is kept; made if missing, with mode 0700. One
	// process at a time may use it.
	Dir string
	// Listen is the address of the API. "" means 127.0.0.1:0. Port 0 means the
	// one of the last start in Dir, or else a free one.
	Listen string
	// AlsoListen are further host addresses, without ports, where the cluster
	// can be reached: a bridge's, for containers that use the API.
	AlsoListen []string
	// ClusterID is five characters of [a-z0-9]. "" means the one that Dir
	// already has, or "local". It cannot change later.
	ClusterID string
	// ShellAccess says who gets shells in running containers; nil: admins, and
	// users into those that all of whose requests are theirs.
	ShellAccess *ShellAccess
	// Log receives what operators want to know; nil discards it. It never
	// gets tokens.
	Log *slog.Logger
	// NoSync gives up surviving a power failure. Killing the process still
	// loses nothing.
	NoSync bool
}

// ShellAccess is the setting Containers.ShellAccess of a real cluster.
type ShellAccess = api.ShellAccess

// signatureTTL is how long block signatures are good, and how long unreferenced
// blocks are safe: the default of real clusters.
const signatureTTL = 336 * time.Hour

// sweepInterval is how often the trash is looked through (arvados-api.md
// section 12).
const sweepInterval = time.Minute

// shutdownTime is how long requests in progress may take to end after Close.
const shutdownTime = 10 * time.Second

// Cluster is a running cluster.
type Cluster struct {
	dir   string
	addrs []listenAddr
	ids   identity
	undo  undo.Stack
	grace time.Duration // see shutdownTime

	closeOnce sync.Once
	closeErr  error
}

var clusterIDPattern = regexp.MustCompile(`^[a-z0-9]{5}$`)

// Start starts the cluster in o.Dir and returns when it answers requests. It
// runs until Close; ctx bounds the start only. An error wrapping ErrInUse means
// that another process has the directory.
func Start(ctx context.Context, o Options) (*Cluster, error) {
	if o.Dir == "" {
		return nil, errors.New("local cluster: no directory given")
	}
	if o.ClusterID != "" && !clusterIDPattern.MatchString(o.ClusterID) {
		return nil, fmt.Errorf("local cluster: cluster id %q must be five characters of a-z and 0-9", o.ClusterID)
	}
	if o.Listen == "" {
		o.Listen = "127.0.0.1:0"
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return nil, fmt.Errorf("local cluster: %w", err)
	}
	c := &Cluster{dir: dir, grace: shutdownTime}
	if err := c.start(ctx, o); err != nil {
		return nil, errors.Join(fmt.Errorf("start local cluster in %s: %w", dir, err), c.undo.Run(ctx))
	}
	return c, nil
}

func (c *Cluster) start(ctx context.Context, o Options) error {
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return err
	}
	unlock, err := lockDir(c.dir)
	if err != nil {
		return err
	}
	c.undo.Add("unlock "+c.dir, unlock)

	if err := c.checkDatabase(); err != nil {
		return err
	}
	db, err := store.Open(filepath.Join(c.dir, "api.sqlite"), store.Options{NoSync: o.NoSync})
	if err != nil {
		return err
	}
	c.undo.Add("close database", func(context.Context) error { return db.Close() })
	if c.ids, err = loadIdentity(ctx, db, o.ClusterID); err != nil {
		return err
	}
	blocks, err := c.startKeep(o)
	if err != nil {
		return err
	}
	if err := c.listenAgain(ctx, o, db); err != nil {
		return err
	}
	certificate, err := c.certificate()
	if err != nil {
		return err
	}
	if err := c.writeConfig(); err != nil {
		return err
	}
	reader, err := c.blockReader()
	if err != nil {
		return err
	}
	gateways := controller.New(controller.Config{SystemRootToken: c.ids.SystemRootToken, InternalURL: "https://" + c.Host() + "/", Log: o.Log})
	if o.ShellAccess == nil {
		o.ShellAccess = &ShellAccess{Admin: true, User: true}
	}
	server := api.New(api.Config{
		Host: c.Host(), Gateways: gateways, ShellAccess: *o.ShellAccess,
		Store: db, ClusterID: c.ids.ClusterID, SystemRootToken: c.ids.SystemRootToken, ManagementToken: c.ids.ManagementToken,
		Signer: keep.Signer{Key: c.ids.BlobSigningKey, TTL: signatureTTL}, Blocks: reader, KeepAt: c.keepAt, Log: o.Log,
	})
	c.startSweep(server, o.Log)
	c.serve("api", server, o.Log, &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS12},
		func(a listenAddr) net.Listener { return a.api })
	// First of all: what hangs on gateways would be waited for in vain.
	c.undo.Add("cut connections to containers", func(context.Context) error { gateways.Close(); return nil })
	c.serve("keep", blocks, o.Log, nil, func(a listenAddr) net.Listener { return a.keep })
	return nil
}

// checkDatabase refuses an empty database file beside blocks: the records of
// those blocks were in it, and a new cluster in its place would hide the loss.
func (c *Cluster) checkDatabase() error {
	name := filepath.Join(c.dir, "api.sqlite")
	st, err := os.Stat(name)
	if err != nil || st.Size() > 0 {
		return nil // there is none yet, or whoever opens it says what is wrong
	}
	if wal, err := os.Stat(name + "-wal"); err == nil && wal.Size() > 0 {
		return nil
	}
	blocks, err := filepath.Glob(filepath.Join(c.dir, "keep", "???", "*"))
	if err != nil || len(blocks) == 0 {
		return err
	}
	return fmt.Errorf("%s is empty, but there are blocks in %s: put the database back from a backup, or remove it for a new cluster (which will not know what is in the blocks)",
		name, filepath.Join(c.dir, "keep"))
}

// startKeep makes the block server. Its volume is a Directory volume like any
// keepstore's.
func (c *Cluster) startKeep(o Options) (http.Handler, error) {
	root := filepath.Join(c.dir, "keep")
	if err := os.MkdirAll(root, 0o755); err != nil {
		return nil, err
	}
	blocks, err := keepstore.New(keepstore.Config{
		SystemRootToken: c.ids.SystemRootToken, ManagementToken: c.ids.ManagementToken,
		BlobSigning: true, BlobSigningKey: c.ids.BlobSigningKey, BlobSigningTTL: signatureTTL,
		Volumes:            []keepstore.VolumeConfig{{UUID: api.SystemUUID(c.ids.ClusterID, "nyw5e"), Root: root}},
		MaxKeepBlobBuffers: maxBlockBuffers, NoSync: o.NoSync, Logger: warnings(o.Log),
	})
	if err != nil {
		return nil, err
	}
	c.undo.Add("close block server", func(context.Context) error { return blocks.Close() })
	return blocks, nil
}

// blockReader reads the cluster's own blocks, for the logs that the API shows.
// What is polled again and again stays in memory.
func (c *Cluster) blockReader() (keep.BlockReader, error) {
	client, err := keep.NewClient(keep.ClientConfig{
		Services: keep.FixedServices{{UUID: "00000-bi6l4-000000000000000", URL: c.KeepURL(), Type: "disk"}}, Token: c.ids.SystemRootToken,
	})
	if err != nil {
		return nil, err
	}
	cache := keep.NewCache(client, logCache)
	c.undo.Add("close block reader", func(context.Context) error { return errors.Join(cache.Close(), client.Close()) })
	return cache, nil
}

// logCache is the memory, in bytes, for blocks of logs.
const logCache = 2 * keep.MaxBlockSize

// maxBlockBuffers bounds the memory of block requests: 64 MiB each.
const maxBlockBuffers = 8

// startSweep looks through the trash now and then.
func (c *Cluster) startSweep(server *api.Server, log *slog.Logger) {
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		ticker := time.NewTicker(sweepInterval)
		defer ticker.Stop()
		for {
			if err := server.Sweep(ctx); err != nil && ctx.Err() == nil {
				log.Error("cannot empty the trash of the local cluster", "error", err)
			}
			select {
			case <-ticker.C:
			case <-ctx.Done():
				return
			}
		}
	}()
	c.undo.Add("stop trash sweep", func(context.Context) error { stop(); <-done; return nil })
}

// Close stops the cluster: no more requests are taken, those in progress are
// waited for (10 s at most), and everything is on disk when it returns.
func (c *Cluster) Close() error {
	c.closeOnce.Do(func() {
		if err := c.undo.Run(context.Background()); err != nil {
			c.closeErr = fmt.Errorf("stop local cluster in %s: %w", c.dir, err)
		}
	})
	return c.closeErr
}

// Host is the address of the API, for ARVADOS_API_HOST.
func (c *Cluster) Host() string { return c.addrs[0].apiHost() }

// HostAt is the address of the API at one of Options.AlsoListen, "" for any
// other host.
func (c *Cluster) HostAt(host string) string {
	for _, a := range c.addrs {
		if a.host() == host {
			return a.apiHost()
		}
	}
	return ""
}

// KeepURL is the root of the block server, for ARVADOS_KEEP_SERVICES. Clients
// that ask the API find it themselves.
func (c *Cluster) KeepURL() string {
	return "http://" + net.JoinHostPort(c.addrs[0].host(), strconv.Itoa(c.addrs[0].keepPort()))
}

// CAFile is the file with the certificate that clients have to trust, for
// SSL_CERT_FILE.
func (c *Cluster) CAFile() string { return filepath.Join(c.dir, caCertFile) }

// SystemRootToken has all rights.
func (c *Cluster) SystemRootToken() string { return c.ids.SystemRootToken }

// ManagementToken is for health checks.
func (c *Cluster) ManagementToken() string { return c.ids.ManagementToken }

// UserToken is the token of an ordinary user, to submit work with.
func (c *Cluster) UserToken() string { return c.ids.UserToken }

// AdminToken is the token of a user with admin rights.
func (c *Cluster) AdminToken() string { return c.ids.AdminToken }

// DispatcherToken is the admin token that a dispatcher locks containers with
// and gives to the supervisor.
func (c *Cluster) DispatcherToken() string { return c.ids.DispatcherToken }

// OwnDispatcherToken is the admin token of a dispatcher that lives in the
// cluster's own process, and of no other: what it has locked when the cluster
// starts is left behind by one that died.
func (c *Cluster) OwnDispatcherToken() string { return c.ids.OwnDispatcherToken }

// GatewayAuthSecret is what the supervisor of a container gets, so that the
// cluster trusts its gateway.
func (c *Cluster) GatewayAuthSecret(container string) string {
	return controller.AuthSecret(c.ids.SystemRootToken, container)
}

// Env is the environment with which clients reach the cluster as its user.
func (c *Cluster) Env() []string {
	return []string{"ARVADOS_API_HOST=" + c.Host(), "ARVADOS_API_TOKEN=" + c.UserToken(), "SSL_CERT_FILE=" + c.CAFile()}
}

// warnings is a logger for what is worse than the course of events.
func warnings(l *slog.Logger) *slog.Logger { return slog.New(levelHandler{l.Handler()}) }

type levelHandler struct{ slog.Handler }

func (h levelHandler) Enabled(ctx context.Context, level slog.Level) bool {
	return level >= slog.LevelWarn && h.Handler.Enabled(ctx, level)
}

func (h levelHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return levelHandler{h.Handler.WithAttrs(attrs)}
}

func (h levelHandler) WithGroup(name string) slog.Handler {
	return levelHandler{h.Handler.WithGroup(name)}
}
