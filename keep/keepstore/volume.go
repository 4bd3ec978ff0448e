package keepstore

import (
	"context"
	"io"
	"time"
)

// volume is a place for blocks. Its methods may be called at the same time, also
// for one block, and by other processes that use the same place. A block that is
// not there is fs.ErrNotExist; so is nothing else.
type volume interface {
	// openVerified returns the content of a block whose MD5 has been found to be
	// hash, and its size in bytes: errChecksum if the MD5 is another one,
	// errTooLarge if the copy is too large for a block.
	openVerified(ctx context.Context, hash string) (io.ReadCloser, int64, error)
	// refresh makes an existing copy that equals data as new as one just
	// written, and says whether there is such a copy. A copy with other content
	// whose MD5 is hash all the same is errCollision; any other content is
	// damage, to be replaced by a write.
	refresh(ctx context.Context, hash string, data []byte) (bool, error)
	// write stores a block, durably when it returns nil. errFull: no space.
	write(ctx context.Context, hash string, data []byte) error
	// touch sets the time stamp of a block to now.
	touch(ctx context.Context, hash string) error
	// trash moves a block out of sight, unless it is younger than the signature
	// TTL, or mtimeNS is neither 0 nor its time stamp: then nothing is done.
	trash(ctx context.Context, hash string, mtimeNS int64) error
	// untrash brings a trashed block back.
	untrash(ctx context.Context, hash string) error
	// emptyTrash removes trash past its lifetime and what writers that died
	// have left.
	emptyTrash(ctx context.Context) error
	// index calls fn for each block whose hash begins with prefix.
	index(ctx context.Context, prefix string, fn func(entry) error) error
	// deviceID is the same for volumes on the same storage.
	deviceID() string
	close()
}

// entry is a block as the index shows it.
type entry struct {
	hash  string
	size  int64
	mtime time.Time
}
