package wire

import (
	"context"
	"fmt"
	"io/fs"
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
		known.Replication, known.SignatureTTL = discovery.DefaultCollectionReplication, time.Duration(discovery.BlobSignatureTTL)*time.Second
	}
	if cache, ok := services.(*keep.ServiceCache); ok && len(known.Services) > 0 {
		cache.Prime(known.Services)
	}
	config, err := cfg.TLS()
	if err != nil {
		return mount.Backend{}, err
	}
	client, err := keep.NewClient(paceKeep(keep.ClientConfig{
		Services: services, Order: keep.MountProbeOrder, Token: cfg.Token, Retries: opts.Retries, RetryDelay: keepDelay, TLS: config,
		DefaultReplication: known.Replication, StorageClasses: opts.StorageClasses,
	}))
	if err != nil {
		return mount.Backend{}, err
	}
	backend := mount.Backend{API: mountAPI{api}, SignatureTTL: known.SignatureTTL}
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

func (c *countingBlocks) WriteBlock(ctx context.Context, data []byte, opts keep.WriteOptions) (keep.Locator, error) {
	c.puts.Add(1)
	loc, err := c.Client.WriteBlock(ctx, data, opts)
	if err == nil {
		c.sent.Add(int64(len(data)))
	}
	return loc, err
}

// mountAPI reads and saves collection records for the mount.
type mountAPI struct{ api *arvados.Client }

// Collection implements mount.API.
func (m mountAPI) Collection(ctx context.Context, id string) (mount.Record, error) {
	c, err := m.api.GetCollection(ctx, id)
	if arvados.IsStatus(err, http.StatusNotFound, http.StatusForbidden, http.StatusUnauthorized) {
		return mount.Record{}, fmt.Errorf("%w: %w", fs.ErrNotExist, err)
	}
	if err != nil {
		return mount.Record{}, err
	}
	return mountRecord(c), nil
}

// SaveCollection implements mount.API.
func (m mountAPI) SaveCollection(ctx context.Context, uuid, manifest string, replace map[string]string) (mount.Record, error) {
	var c arvados.Collection
	var err error
	if replace == nil {
		c, err = m.api.UpdateCollection(ctx, uuid, map[string]any{"manifest_text": manifest})
	} else {
		c, err = m.api.ReplaceFiles(ctx, uuid, manifest, replace)
	}
	switch {
	case arvados.IsStatus(err, http.StatusForbidden):
		return mount.Record{}, fmt.Errorf("%w: %w", fs.ErrPermission, err)
	case replace != nil && arvados.IsStatus(err, http.StatusBadRequest, http.StatusNotFound, http.StatusUnprocessableEntity):
		return mount.Record{}, fmt.Errorf("%w: %w", mount.ErrNoReplace, err)
	case err != nil:
		return mount.Record{}, err
	}
	if c.ManifestText == "" {
		if c.PortableDataHash != keep.PortableDataHash(manifest) {
			return m.Collection(ctx, uuid)
		}
		c.ManifestText = manifest
	}
	return mountRecord(c), nil
}

func mountRecord(c arvados.Collection) mount.Record {
	record := mount.Record{PortableDataHash: c.PortableDataHash, ManifestText: c.ManifestText, StorageClasses: c.StorageClassesDesired}
	if c.ReplicationDesired != nil {
		record.Replication = *c.ReplicationDesired
	}
	if c.ModifiedAt != nil {
		record.ModifiedAt = *c.ModifiedAt
	}
	if c.UUID != "" {
		record.Fields = map[string]any{"uuid": c.UUID, "name": c.Name, "owner_uuid": c.OwnerUUID, "properties": c.Properties}
	}
	return record
}
