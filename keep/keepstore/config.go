package keepstore

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"crunch-oci/keep"
)

// Config is everything a Server needs to know. Its fields carry the names and
// meanings of the cluster configuration (spec keep.md section 11).
type Config struct {
	// SystemRootToken is the token of administrative requests. Empty: nobody
	// is an administrator.
	SystemRootToken string
	// ManagementToken opens /_health/ping (empty: the check is disabled) and
	// /metrics (empty: open to everybody).
	ManagementToken string

	// BlobSigningKey signs the locators of stored blocks. BlobSigning makes a
	// valid signature a condition of reading; it needs the key.
	BlobSigningKey string
	BlobSigning    bool
	// BlobSigningTTL is how long a signature is good, and how young a block
	// is safe from being trashed. 0 means 336h.
	BlobSigningTTL time.Duration

	// BlobTrash allows DELETE and PUT /trash. A trashed block can be brought
	// back during BlobTrashLifetime (0: it is removed at once). Expired trash
	// is removed every BlobTrashCheckInterval (0 means 24h).
	BlobTrash              bool
	BlobTrashLifetime      time.Duration
	BlobTrashCheckInterval time.Duration
	// BlobTrashConcurrency and BlobReplicateConcurrency are the numbers of
	// workers for the trash list and the pull list. 0: lists are accepted and
	// not worked on.
	BlobTrashConcurrency     int
	BlobReplicateConcurrency int
	// BlobDeleteConcurrency is how many objects of a volume's expired trash are
	// deleted at a time; 0 means that trash is not emptied at all.
	BlobDeleteConcurrency int

	// RemoteClusters are those whose blocks are fetched for clients, by cluster
	// id of five characters.
	RemoteClusters map[string]RemoteCluster

	// Volumes is where blocks are; at least one.
	Volumes []VolumeConfig
	// StorageClassPriority orders volumes: the one whose classes have the
	// highest priority is tried first. Classes without an entry have 0.
	StorageClassPriority map[string]int

	// MaxKeepBlobBuffers caps the block requests worked on at a time; more
	// wait. Each PUT needs up to 64 MiB of memory. It must be positive.
	MaxKeepBlobBuffers int
	// MaxConcurrentRequests and MaxQueuedRequests cap the requests in work
	// and waiting; more are answered 503. 0 means 64 and 128.
	MaxConcurrentRequests int
	MaxQueuedRequests     int
	// RequestTimeout ends a request that takes longer. 0 means 5m.
	RequestTimeout time.Duration
	bodySilence    time.Duration // other than the usual one, for tests

	// NoSync leaves out every fsync: for clusters that are thrown away, where
	// losing blocks in a crash of the machine does not matter.
	NoSync bool

	// Logger gets a line "request" and a line "response" for each block and
	// administrative request, and what went wrong with volumes. Locators in
	// it carry no signatures. nil: no log.
	Logger *slog.Logger
}

// VolumeConfig is one volume, with access rights of this host (AccessViaHosts)
// already taken into account.
type VolumeConfig struct {
	UUID string
	// Root is the absolute path of an existing directory: a Directory volume.
	Root string
	// Serialize allows one block operation at a time on a Directory volume.
	Serialize bool
	// S3 makes this an S3 volume.
	S3 *S3Config

	ReadOnly               bool
	AllowTrashWhenReadOnly bool
	// Replication is the number of copies one write makes; 0 means 1.
	Replication int
	// StorageClasses the volume offers; none means "default".
	StorageClasses []string
}

const maxBlockSize = keep.MaxBlockSize

func (c *Config) setDefaults() {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&c.BlobSigningTTL, 336*time.Hour)
	def(&c.BlobTrashCheckInterval, 24*time.Hour)
	def(&c.RequestTimeout, 5*time.Minute)
	def(&c.bodySilence, bodySilence)
	if c.MaxConcurrentRequests == 0 {
		c.MaxConcurrentRequests = 64
	}
	if c.MaxQueuedRequests == 0 {
		c.MaxQueuedRequests = 128
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
}

func (c *Config) check() error {
	switch {
	case c.BlobSigning && c.BlobSigningKey == "":
		return errors.New("keepstore: Collections.BlobSigning is true but Collections.BlobSigningKey is empty: set the key of the cluster, or turn signing off")
	case c.MaxKeepBlobBuffers <= 0:
		return fmt.Errorf("keepstore: API.MaxKeepBlobBuffers is %d, must be at least 1", c.MaxKeepBlobBuffers)
	case len(c.Volumes) == 0:
		return errors.New("keepstore: no volume is configured for this host")
	case c.BlobSigningTTL < time.Second:
		return fmt.Errorf("keepstore: Collections.BlobSigningTTL is %v, must be at least 1s", c.BlobSigningTTL)
	}
	seen := make(map[string]bool)
	for _, v := range c.Volumes {
		if v.UUID == "" || seen[v.UUID] {
			return fmt.Errorf("keepstore: volume UUID %q is empty or used twice", v.UUID)
		}
		seen[v.UUID] = true
	}
	return nil
}
