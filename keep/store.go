package keep

import (
	"context"
	"errors"
)

// BlockReader fetches whole blocks.
type BlockReader interface {
	// ReadBlock returns the content of the block, verified against the
	// locator's hash and size. Several callers may be given the same slice:
	// nobody may write to it.
	ReadBlock(ctx context.Context, loc Locator) ([]byte, error)
}

// BlockWriter stores whole blocks.
type BlockWriter interface {
	// WriteBlock stores data, at most MaxBlockSize bytes, and returns the
	// locator under which the token it used may read it again. It does not
	// touch data after it has returned.
	WriteBlock(ctx context.Context, data []byte, opts WriteOptions) (Locator, error)
}

// PartWriter is implemented by a BlockWriter that can store a part of a file
// without having it in memory.
type PartWriter interface {
	// WritePart stores what is in part, whose MD5 must be hash.
	WritePart(ctx context.Context, hash string, part FilePart, opts WriteOptions) (Locator, error)
}

// BlockStore is both.
type BlockStore interface {
	BlockReader
	BlockWriter
}

// BlockRangeReader is implemented by a BlockReader that can serve a part of a
// block without handing out the whole: reading a file prefers it.
type BlockRangeReader interface {
	// ReadBlockAt fills p with the bytes of the block from off on. It returns
	// len(p), nil or an error; a range beyond the block's size is an error.
	ReadBlockAt(ctx context.Context, loc Locator, p []byte, off int64) (int, error)
}

// Prefetcher is implemented by a BlockReader that can fetch a block before it is
// asked for. Prefetch returns at once; whether anything is fetched, and whether
// that fails, is not reported.
type Prefetcher interface {
	Prefetch(loc Locator)
}

// Localizer is implemented by a BlockStore that can copy a block of another
// cluster to its own.
type Localizer interface {
	// LocalLocator returns a locator that is valid in the local cluster for
	// the block of loc. A locator that is not remote is returned unchanged.
	LocalLocator(ctx context.Context, loc Locator) (Locator, error)
}

// WriteOptions says how a block is to be stored. The zero value leaves it to
// the store.
type WriteOptions struct {
	// Replication is the number of copies wanted; 0 means the store's default.
	Replication int
	// StorageClasses each hold that many copies; none means the store's default.
	StorageClasses []string
}

var (
	// ErrNotFound says that every Keep service answered, and none has the block.
	ErrNotFound = errors.New("block not found")
	// ErrBlockTooBig says that a block is larger than MaxBlockSize.
	ErrBlockTooBig = errors.New("exceeded maximum block size (67108864)")
	// ErrChecksum says that a block's data does not have the locator's MD5 or size.
	ErrChecksum = errors.New("block data does not match its locator")
	// ErrNoWriter says that a collection was opened on a store that cannot write.
	ErrNoWriter = errors.New("block store is read-only")
)
