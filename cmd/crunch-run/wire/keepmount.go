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
func ConnectMount(ctx context.Context, opts mount.Options, cfg arvados.Config) (mount.Backend, error) {
	api, err := arvados.NewClient(paceAPI(cfg))
	if err != nil {
		return mount.Backend{}, err
	}
	services, err := keepServices(api, cfg)
	if err != nil {
		return mount.Backend{}, err
	}
	known, ok := receive(os.Getenv(clusterVariable))
	if !ok {
		discovery, err := api.Discovery(ctx)
		if err != nil {
			return mount.Backend{}, fmt.Errorf("read discovery document: %w", err)
		}
		exported, err := api.ClusterConfig(ctx)
		// A server need not have it to be read from.
		if err != nil && !arvados.IsStatus(err, http.StatusNotFound, http.StatusForbidden, http.StatusUnauthorized) {
			return mount.Backend{}, fmt.Errorf("read cluster configuration: %w", err)
		}
		known.Replication, known.SignatureTTL = discovery.DefaultCollectionReplication, time.Duration(discovery.BlobSignatureTTL)*time.Second
		known.Classes, known.Slash = exported.DefaultStorageClasses(), exported.Collections.ForwardSlashNameSubstitution
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
	backend := mount.Backend{
		API: mountAPI{api}, Projects: mountAPI{api}, SlashSubstitute: known.Slash, SignatureTTL: known.SignatureTTL,
	}
	counted := &countingBlocks{Client: client}
	if opts.Cache == mount.DiskCache {
		cache := diskcache.Open(diskcache.Config{
			Source: counted, Dir: opts.CacheDir, Warn: opts.Warn,
			Limit: diskcache.Limit{Bytes: opts.CacheBytes, Percent: opts.CachePercent},
		})
		backend.Blocks = cache
		backend.Counters = func() mount.Counters {
			s := cache.Stats()
			return mount.Counters{Gets: s.Hits + s.Misses, Hits: s.Hits, Misses: s.Misses, Received: s.Fetched,
				Puts: counted.puts.Load(), Sent: counted.sent.Load()}
		}
		backend.Close = func() error {
			defer api.Close()
			defer client.Close()
			return cache.Close()
		}
		return backend, nil
	}
	size := opts.CacheBytes
	if size <= 0 {
		size = mountCacheSize
	}
	// With less than a block nothing would be held, and each read of a few KiB would
	// fetch its whole block, into memory all the same.
	size = max(size, keep.MaxBlockSize)
	cache := keep.NewCache(counted, size)
	backend.Blocks, backend.InMemory = cache, true
	backend.Counters = func() mount.Counters {
		s := cache.Stats()
		return mount.Counters{Gets: s.Hits + s.Misses, Hits: s.Hits, Misses: s.Misses, Received: counted.received.Load(),
			Puts: counted.puts.Load(), Sent: counted.sent.Load()}
	}
	backend.Close = func() error {
		defer api.Close()
		defer client.Close()
		return cache.Close()
	}
	return backend, nil
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
