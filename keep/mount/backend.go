package mount

import (
	"context"
	"errors"
	"time"

	"crunch-oci/keep"
)

// API is what the mount asks of an Arvados API client.
type API interface {
	// Collection reads a collection record by portable data hash or UUID, its
	// manifest signed for the token with which blocks are read. An error that
	// is fs.ErrNotExist says that the record does not exist or may not be
	// seen; any other is taken for temporary.
	Collection(ctx context.Context, id string) (Record, error)
	// SaveCollection gives the collection with that UUID another content and
	// returns its record, as Collection does. If replace is not nil, only what it
	// names is taken over from manifest, in one step, so that what others save at
	// the same time stays (keep.Replacements); where the server cannot do this, it
	// takes the whole manifest, or nothing, or the error is ErrNoReplace. One that is
	// fs.ErrPermission says that the token may only read it.
	SaveCollection(ctx context.Context, uuid, manifest string, replace map[string]string) (Record, error)
}

// ErrNoReplace says that the API server refused to replace single files.
var ErrNoReplace = errors.New("single files cannot be replaced")

// Record is a collection record.
type Record struct {
	PortableDataHash string
	ManifestText     string
	// ModifiedAt is the modification time of everything in the collection.
	// The mount shows 1970 for collections named by portable data hash.
	ModifiedAt time.Time
	// Replication and StorageClasses are how new blocks of it are to be stored;
	// 0 and none leave it to the cluster.
	Replication    int
	StorageClasses []string
	// Fields is the whole record, as values that encoding/json can encode. It
	// becomes the file .arvados#collection, together with the three fields
	// above, which need not be repeated in it.
	Fields map[string]any
}

// Backend is where the content of a mount comes from.
type Backend struct {
	API API
	// Projects lists projects; nil means that there are none to be seen.
	Projects Projects
	// SlashSubstitute stands for slashes in the names of collections and
	// projects; "" means "_".
	SlashSubstitute string
	// Blocks reads the content of files. It is best a cache that is also a
	// keep.BlockRangeReader and a keep.Prefetcher.
	Blocks keep.BlockReader
	// InMemory says that Blocks holds what it has read in memory, as
	// keep.Cache does. Then less is fetched ahead.
	InMemory bool
	// SignatureTTL is how long the signatures in a manifest are good,
	// blobSignatureTtl of the discovery document. Manifests are fetched again
	// when half of it has passed. 0 means 336h.
	SignatureTTL time.Duration
	// Counters returns totals for the statistics; nil means all zero.
	Counters func() Counters
	// Idle, if set, is called when the mount has had nothing to do for a
	// while, so that memory can be given back.
	Idle func()
	// Close, if set, is called when the mount is gone.
	Close func() error
}

// Counters are totals since the start.
type Counters struct {
	// Gets and Puts are the blocks asked for and the blocks written.
	Gets, Puts int64
	// Sent and Received are bytes of blocks exchanged with Keep services.
	Sent, Received int64
	// Hits and Misses are block reads served from the cache and not.
	Hits, Misses int64
}
