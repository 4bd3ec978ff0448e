package wire

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"crunch-oci/arvados"
	"crunch-oci/keep"
	"crunch-oci/supervisor/joblog"
)

// cacheSize bounds the blocks an account keeps in memory while it reads, in
// bytes: enough for the tar index of an image and for reading ahead.
const cacheSize = 4 * keep.MaxBlockSize

// logCacheSize is that of the dispatcher's account, with which nothing is read
// but the stored part of the log, by those who follow it.
const logCacheSize = 2 * keep.MaxBlockSize

// KeepRetries is the number of rounds over the Keep services after the first
// (spec: keep section 9).
const KeepRetries = 10

// keepDelay is the wait before a further round over the Keep services, the first
// one being 1: between a half and the whole of 2, 4, 8, 16, 32, then 40 s. With
// KeepRetries the rounds go on for 131 s at least, and 262 s at most, and so
// outlast a Keep that is away for two minutes, whatever chance says; with the
// library's waits, below those, they may be over after a few seconds.
func keepDelay(round int) time.Duration {
	limit := min(2*time.Second<<min(round-1, 10), 40*time.Second)
	return limit/2 + rand.N(limit/2)
}

// clusterFacts are what the cluster says of itself, read once.
type clusterFacts struct {
	services    keep.ServiceLister
	replication int
	classes     []string
	slash       string // ForwardSlashNameSubstitution
	retries     int    // rounds over the Keep services after the first
	// signatureTTL is how long block signatures last; 0: unknown, or for ever.
	signatureTTL time.Duration
	tls          *tls.Config
	// logPeriod and logGrowth say how often a growing log is saved; 0: unknown.
	logPeriod time.Duration
	logGrowth int64
}

// learn reads what Keep clients need to know. All accounts share the answers.
func learn(ctx context.Context, api *arvados.Client, cfg arvados.Config, retries int) (*clusterFacts, error) {
	discovery, err := api.Discovery(ctx)
	if err != nil {
		return nil, fmt.Errorf("read discovery document: %w", err)
	}
	exported, err := api.ClusterConfig(ctx)
	if err != nil {
		return nil, fmt.Errorf("read cluster configuration: %w", err)
	}
	config, err := cfg.TLS()
	if err != nil {
		return nil, err
	}
	f := &clusterFacts{
		tls:         config,
		retries:     retries,
		replication: discovery.DefaultCollectionReplication,
		classes:     exported.DefaultStorageClasses(),
		slash:       exported.Collections.ForwardSlashNameSubstitution,
		logPeriod:   time.Duration(discovery.CrunchLogUpdatePeriod) * time.Second,
		logGrowth:   discovery.CrunchLogUpdateSize,

		signatureTTL: time.Duration(discovery.BlobSignatureTTL) * time.Second,
	}
	f.services, err = keepServices(api, cfg)
	return f, err
}

// keepServices lists the Keep services: those configured, else the cluster's.
func keepServices(api *arvados.Client, cfg arvados.Config) (keep.ServiceLister, error) {
	if len(cfg.KeepServices) > 0 {
		services, bad := keep.ParseServices(strings.Join(cfg.KeepServices, " "))
		if len(bad) > 0 {
			return nil, fmt.Errorf("ARVADOS_KEEP_SERVICES: %q is no absolute URL", bad)
		}
		return services, nil
	}
	return keep.NewServiceCache(keep.ServiceListerFunc(func(ctx context.Context) ([]keep.Service, error) {
		listed, err := api.KeepServices(ctx)
		if err != nil {
			return nil, err
		}
		services := make([]keep.Service, 0, len(listed))
		for _, s := range listed {
			services = append(services, keep.Service{UUID: s.UUID, URL: s.URL(), Type: s.ServiceType, ReadOnly: s.ReadOnly})
		}
		return services, nil
	})), nil
}

// account is the API and Keep with one token.
type account struct {
	api    *arvados.Client
	client *keep.Client
	blocks *keep.Cache
}

// newAccount makes an account with a token, and a cache of so many bytes. New
// blocks get the storage classes, or the cluster's default ones.
func (f *clusterFacts) newAccount(api *arvados.Client, token string, classes []string, cache int64) (*account, error) {
	client, err := keep.NewClient(paceKeep(keep.ClientConfig{
		Services: f.services, Token: token, Retries: f.retries, RetryDelay: keepDelay, TLS: f.tls,
		DefaultReplication: f.replication, StorageClasses: classes, DefaultStorageClasses: f.classes,
	}))
	if err != nil {
		return nil, err
	}
	return &account{api: api.WithToken(token), client: client, blocks: keep.NewCache(client, cache)}, nil
}

func (a *account) close() error { return errors.Join(a.blocks.Close(), a.client.Close()) }

// SecretMounts implements supervisor.Account.
func (a *account) SecretMounts(ctx context.Context, uuid string) (map[string]arvados.Mount, error) {
	return a.api.SecretMounts(ctx, uuid)
}

// OpenCollection implements supervisor.Account.
func (a *account) OpenCollection(ctx context.Context, id string) (*keep.Collection, error) {
	record, err := a.api.GetCollection(ctx, id, "uuid", "portable_data_hash", "manifest_text")
	if err != nil {
		return nil, err
	}
	coll, err := keep.NewCollection(record.ManifestText, a.blocks)
	if err != nil {
		return nil, err
	}
	coll.RenewWith(func(ctx context.Context) (string, error) {
		again, err := a.api.GetCollection(ctx, id, "uuid", "portable_data_hash", "manifest_text")
		if err != nil || again.PortableDataHash != record.PortableDataHash {
			// The record has got another content since, or is gone: the old
			// content can be asked for by its hash.
			again, err = a.api.GetCollection(ctx, record.PortableDataHash, "portable_data_hash", "manifest_text")
		}
		return again.ManifestText, err
	})
	return coll, nil
}

// NewCollection implements supervisor.Account.
func (a *account) NewCollection() (*keep.Collection, error) { return keep.NewCollection("", a.blocks) }

// Localizer implements supervisor.Account.
func (a *account) Localizer() keep.Localizer { return a.client }

// SaveCollection implements supervisor.Account.
func (a *account) SaveCollection(ctx context.Context, name, manifest string) (string, error) {
	saved, err := a.api.CreateCollection(ctx, map[string]any{
		"is_trashed": true, "name": name, "manifest_text": manifest,
	}, true, "portable_data_hash")
	return saved.PortableDataHash, err
}

// saver sends the log collection's requests with the dispatcher's token.
type saver struct {
	api    *arvados.Client
	uuid   string // of the container
	files  *keep.Collection
	ttl    time.Duration // of block signatures; 0: for ever
	signed time.Time     // when no signature was older
}

// CreateCollection implements joblog.Saver.
func (s *saver) CreateCollection(ctx context.Context, r joblog.Request) (uuid, pdh string, err error) {
	saved, err := s.api.CreateCollection(ctx, attributes(r.Collection), r.EnsureUniqueName, r.Select...)
	return saved.UUID, saved.PortableDataHash, err
}

// UpdateCollection implements joblog.Saver.
func (s *saver) UpdateCollection(ctx context.Context, uuid string, r joblog.Request) (string, error) {
	saved, err := s.api.UpdateCollection(ctx, uuid, attributes(r.Collection), r.Select...)
	if arvados.IsStatus(err, 404) {
		err = fmt.Errorf("%w: %w", joblog.ErrCollectionGone, err)
	}
	if err == nil && !r.Collection.IsTrashed {
		s.signAgain(ctx, uuid)
	}
	return saved.PortableDataHash, err
}

// signAgain gives the log's blocks new signatures in good time: a job may run
// for longer than they last, and a manifest with an old one is refused. If it
// fails the next save tries again.
func (s *saver) signAgain(ctx context.Context, uuid string) {
	began := time.Now()
	if s.ttl == 0 || began.Sub(s.signed) < s.ttl/2 {
		return
	}
	saved, err := s.api.GetCollection(ctx, uuid, "uuid", "manifest_text")
	if err == nil {
		s.files.RefreshSignatures(saved.ManifestText)
		s.signed = began
	}
}

// SetContainerLog implements joblog.Saver.
func (s *saver) SetContainerLog(ctx context.Context, pdh string) error {
	return s.api.UpdateContainer(ctx, s.uuid, map[string]any{"log": pdh})
}

func attributes(c joblog.Collection) map[string]any {
	attrs := map[string]any{"name": c.Name}
	if c.ManifestText != nil {
		attrs["manifest_text"] = *c.ManifestText
	}
	if c.TrashAt != nil {
		attrs["trash_at"] = *c.TrashAt
	}
	if c.DeleteAt != nil {
		attrs["delete_at"] = *c.DeleteAt
	}
	if c.IsTrashed {
		attrs["is_trashed"] = true
	}
	return attrs
}
