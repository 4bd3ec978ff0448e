package wire

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"sync/atomic"
	"time"

	"crunch-oci/arvados"
	"crunch-oci/keep"
	"crunch-oci/keep/diskcache"
	"crunch-oci/keep/mount"
)

// mountCacheSize bounds the blocks that the FUSE server keeps in memory unless
// its command line says otherwise, in bytes.
const mountCacheSize = 4 * keep.MaxBlockSize

// readRetries is the number of rounds over the Keep services after the first when
// a program reads a file, whatever --retries says (spec keep.md section 12).
const readRetries = 4

// readDelay is the wait before each of them, from 2, 8, 32 and 80 s to half as
// much again: four rounds that outlast a Keep that is away for two minutes, as
// those of keepDelay do.
func readDelay(round int) time.Duration {
	wait := [readRetries]time.Duration{2 * time.Second, 8 * time.Second, 32 * time.Second, 80 * time.Second}[min(round, readRetries)-1]
	return wait + rand.N(wait/2)
}

// ConnectMount opens the API and Keep for the FUSE server, with the token in
// its environment, which is the container's.
func ConnectMount(ctx context.Context, opts mount.Options, cfg arvados.Config) (_ mount.Backend, err error) {
	api, err := arvados.NewClient(paceAPI(cfg))
	if err != nil {
		return mount.Backend{}, err
	}
	defer func() {
		if err != nil {
			api.Close()
		}
	}()
	services, err := keepServices(api, cfg)
	if err != nil {
		return mount.Backend{}, err
	}
	known, err := askOrReceive(ctx, api)
	if err != nil {
		return mount.Backend{}, err
	}
	if cache, ok := services.(*keep.ServiceCache); ok && len(known.Services) > 0 {
		cache.Prime(known.Services)
	}
	retries := opts.Retries
	if retries == 0 {
		retries = -1 // for the client 0 is the default
	}
	config, err := cfg.TLS()
	if err != nil {
		return mount.Backend{}, err
	}
	client, err := keep.NewClient(paceKeep(keep.ClientConfig{
		Services: services, Order: keep.MountProbeOrder, Token: cfg.Token, Retries: retries, RetryDelay: keepDelay, TLS: config,
		ReadRetries: readRetries, ReadRetryDelay: readDelay,
		DefaultReplication: known.Replication, StorageClasses: opts.StorageClasses, DefaultStorageClasses: known.Classes,
	}))
	if err != nil {
		return mount.Backend{}, err
	}
	counted := &countingBlocks{Client: client}
	cache, lookups := mountCache(opts, counted)
	return mount.Backend{
		API: mountAPI{api}, Projects: mountAPI{api}, SlashSubstitute: known.Slash, SignatureTTL: known.SignatureTTL,
		Blocks: cache, InMemory: opts.Cache != mount.DiskCache,
		Counters: func() mount.Counters {
			hits, misses := lookups()
			return mount.Counters{Gets: hits + misses, Hits: hits, Misses: misses,
				Received: counted.received.Load(), Puts: counted.puts.Load(), Sent: counted.sent.Load()}
		},
		Close: func() error {
			defer api.Close()
			defer client.Close()
			return cache.Close()
		},
	}, nil
}

// askOrReceive is what a FUSE server has to know of the cluster: from its
// supervisor, or else from the API.
func askOrReceive(ctx context.Context, api *arvados.Client) (handedOver, error) {
	if known, ok := receive(os.Getenv(clusterVariable)); ok {
		return known, nil
	}
	discovery, err := api.Discovery(ctx)
	if err != nil {
		return handedOver{}, fmt.Errorf("read discovery document: %w", err)
	}
	exported, err := api.ClusterConfig(ctx)
	// A server need not have it to be read from.
	if err != nil && !arvados.IsStatus(err, http.StatusNotFound, http.StatusForbidden, http.StatusUnauthorized) {
		return handedOver{}, fmt.Errorf("read cluster configuration: %w", err)
	}
	return handedOver{
		Replication: discovery.DefaultCollectionReplication, SignatureTTL: time.Duration(discovery.BlobSignatureTTL) * time.Second,
		Classes: exported.DefaultStorageClasses(), Slash: exported.Collections.ForwardSlashNameSubstitution,
	}, nil
}

type closingStore interface {
	keep.BlockStore
	io.Closer
}

// mountCache is the cache that was asked for. lookups counts the blocks that were
// found in it, and the others.
func mountCache(opts mount.Options, source *countingBlocks) (cache closingStore, lookups func() (hits, misses int64)) {
	if opts.Cache == mount.DiskCache {
		disk := diskcache.Open(diskcache.Config{
			Source: source, Dir: opts.CacheDir, Warn: opts.Warn,
			Limit: diskcache.Limit{Bytes: opts.CacheBytes, Percent: opts.CachePercent},
		})
		return disk, func() (int64, int64) { s := disk.Stats(); return s.Hits, s.Misses }
	}
	size := opts.CacheBytes
	if size <= 0 {
		size = mountCacheSize
	}
	// With less than a block nothing would be held, and each read of a few KiB would
	// fetch its whole block, into memory all the same.
	memory := keep.NewCache(source, max(size, keep.MaxBlockSize))
	return memory, func() (int64, int64) { s := memory.Stats(); return s.Hits, s.Misses }
}

// countingBlocks counts what is exchanged with Keep services, in bytes, and the
// blocks written.
type countingBlocks struct {
	*keep.Client
	received, sent, puts atomic.Int64
}

func (c *countingBlocks) ReadBlock(ctx context.Context, loc keep.Locator) ([]byte, error) {
	data, err := c.Client.ReadBlock(ctx, loc)
	c.received.Add(int64(len(data)))
	return data, err
}

func (c *countingBlocks) CopyBlock(ctx context.Context, loc keep.Locator, w io.WriterAt) error {
	err := c.Client.CopyBlock(ctx, loc, w)
	if err == nil {
		c.received.Add(loc.Size())
	}
	return err
}

func (c *countingBlocks) WriteBlock(ctx context.Context, data []byte, opts keep.WriteOptions) (keep.Locator, error) {
	c.puts.Add(1)
	loc, err := c.Client.WriteBlock(ctx, data, opts)
	if err == nil {
		c.sent.Add(int64(len(data)))
	}
	return loc, err
}
