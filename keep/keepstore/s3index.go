package keepstore

import (
	"context"
	"iter"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
)

// index implements volume. Blocks and their time stamps come from two listings,
// both in the order of keys.
func (v *s3Volume) index(ctx context.Context, prefix string, fn func(entry) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	keys := prefix
	if n := v.PrefixLength; n > 0 && len(prefix) > n {
		keys = prefix[:n] + "/" + prefix
	}
	next, stop := iter.Pull(v.list(ctx, recentKey(keys)))
	defer stop()
	mark, more := next()
	for o := range v.list(ctx, keys) {
		if o.Err != nil {
			return v.failed("list", "", o.Err)
		}
		if o.Key > "g" {
			break // recent/ and trash/
		}
		hash, ok := v.hash(o.Key)
		if !ok || !strings.HasPrefix(hash, prefix) {
			continue
		}
		for more && mark.Err == nil && mark.Key < recentKey(o.Key) {
			mark, more = next()
		}
		if more && mark.Err != nil {
			return v.failed("list", "", mark.Err)
		}
		stamp := o.LastModified
		if more && mark.Key == recentKey(o.Key) {
			stamp = mark.LastModified
		}
		if err := fn(entry{hash, o.Size, stamp.Truncate(time.Second)}); err != nil {
			return err
		}
	}
	return ctx.Err()
}

func (v *s3Volume) list(ctx context.Context, prefix string) iter.Seq[minio.ObjectInfo] {
	return v.core.ListObjectsIter(ctx, v.Bucket, minio.ListObjectsOptions{Prefix: prefix, Recursive: true, MaxKeys: v.IndexPageSize})
}
