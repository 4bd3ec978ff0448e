package keepstore

import (
	"context"
	"iter"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
)

// index implements volume. Blocks, their time stamps and the trash come from
// three listings, all in the order of keys. What is in the trash although it was
// written or touched in the moment before is there: who reads it finds it.
func (v *s3Volume) index(ctx context.Context, prefix string, fn func(entry) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	keys := prefix
	if n := v.PrefixLength; n > 0 && len(prefix) > n {
		keys = prefix[:n] + "/" + prefix
	}
	blocks, marks, trash := v.list(ctx, "", keys), v.list(ctx, recentKey(""), keys), v.list(ctx, trashKey(""), keys)
	for _, l := range []*listing{blocks, marks, trash} {
		defer l.stop()
	}
	for {
		block, inPlace, err := blocks.peek()
		if err != nil {
			return v.failed("list", "", err)
		}
		trashed, inTrash, err := trash.peek()
		if err != nil {
			return v.failed("list", "trash/", err)
		}
		if !inPlace && !inTrash {
			return ctx.Err()
		}
		o := block
		if inTrash && (!inPlace || trashed.Key <= block.Key) {
			trash.next()
			if inPlace && trashed.Key == block.Key {
				continue
			}
			o, inPlace = trashed, false
		} else {
			blocks.next()
		}
		hash, ok := v.hash(o.Key)
		if !ok || !strings.HasPrefix(hash, prefix) {
			continue
		}
		mark, marked, err := marks.find(o.Key)
		if err != nil {
			return v.failed("list", "recent/", err)
		}
		stamp := o.LastModified.Truncate(time.Second)
		if marked {
			stamp = mark.LastModified.Truncate(time.Second)
		}
		if !inPlace && (!marked || o.LastModified.Truncate(time.Second).Sub(stamp) >= v.ttl) {
			continue
		}
		if err := fn(entry{hash, o.Size, stamp}); err != nil {
			return err
		}
	}
}

// listing is what a bucket has below a directory, in the order of keys, which are
// those without the directory.
type listing struct {
	dir  string
	pull func() (minio.ObjectInfo, bool)
	stop func()

	now  minio.ObjectInfo
	more bool
}

// list lists the keys of blocks that begin with keys.
func (v *s3Volume) list(ctx context.Context, dir, keys string) *listing {
	l := &listing{dir: dir}
	l.pull, l.stop = iter.Pull(v.core.ListObjectsIter(ctx, v.Bucket,
		minio.ListObjectsOptions{Prefix: dir + keys, Recursive: true, MaxKeys: v.IndexPageSize}))
	l.next()
	return l
}

func (l *listing) next() {
	l.now, l.more = l.pull()
	l.now.Key = strings.TrimPrefix(l.now.Key, l.dir)
	if l.now.Err == nil && l.now.Key > "g" {
		l.more = false // recent/ and trash/
	}
}

func (l *listing) peek() (o minio.ObjectInfo, ok bool, err error) {
	if l.more && l.now.Err != nil {
		return o, false, l.now.Err
	}
	return l.now, l.more, nil
}

// find goes on to key.
func (l *listing) find(key string) (o minio.ObjectInfo, ok bool, err error) {
	for l.more && l.now.Err == nil && l.now.Key < key {
		l.next()
	}
	o, ok, err = l.peek()
	return o, ok && o.Key == key, err
}
