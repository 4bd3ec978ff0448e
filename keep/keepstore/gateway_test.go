package keepstore

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"crunch-oci/keep/keepstore/s3test"
)

// gateway is a real S3 server.
type gateway struct {
	*s3test.Server
	t testing.TB
}

func newGateway(t testing.TB) *gateway {
	t.Helper()
	return &gateway{s3test.Start(t, "../.."), t}
}

// volume is the configuration of a volume in the gateway's bucket.
func (g *gateway) volume(edit func(*S3Config)) VolumeConfig {
	c := &S3Config{Bucket: s3test.Bucket, Endpoint: g.URL, AccessKeyID: s3test.Key, SecretAccessKey: s3test.Secret}
	if edit != nil {
		edit(c)
	}
	return VolumeConfig{UUID: "zzzzz-nyw5e-000000000000000", S3: c}
}

// store starts a block server with such a volume.
func (g *gateway) store(edit func(*Config, *S3Config)) *cluster {
	g.t.Helper()
	return start(g.t, func(cfg *Config) {
		cfg.Volumes = []VolumeConfig{g.volume(nil)}
		cfg.BlobDeleteConcurrency = 0 // tests empty the trash themselves
		if edit != nil {
			edit(cfg, cfg.Volumes[0].S3)
		}
	})
}

// age makes an object older.
func (g *gateway) age(key string, by time.Duration) {
	g.t.Helper()
	at := time.Now().Add(-by)
	if err := os.Chtimes(filepath.Join(g.Dir, key), at, at); err != nil {
		g.t.Fatal(err)
	}
}
