package keepstore

import (
	"context"
	"errors"
	"io/fs"
	"net/http"
	"time"

	"github.com/minio/minio-go/v7"
	"golang.org/x/sync/errgroup"
)

// staleUpload is the age at which an unfinished upload has lost its writer.
const staleUpload = 24 * time.Hour

var errTrashDisabled = &statusError{http.StatusMethodNotAllowed,
	"trash is disabled: Collections.BlobTrashLifetime is 0 and DriverParameters.UnsafeDelete is false"}

// stat returns when an object was written, in whole seconds: a listing and a
// HEAD of the same object differ in what comes after.
func (v *s3Volume) stat(ctx context.Context, key string) (time.Time, error) {
	ctx, cancel := v.limited(ctx)
	defer cancel()
	info, err := v.core.StatObject(ctx, v.Bucket, key, minio.StatObjectOptions{})
	if err != nil {
		return time.Time{}, v.failed("stat", key, err)
	}
	return info.LastModified.Truncate(time.Second), nil
}

func (v *s3Volume) copy(ctx context.Context, from, to string) error {
	ctx, cancel := v.limited(ctx)
	defer cancel()
	_, err := v.core.CopyObject(ctx, v.Bucket, from, v.Bucket, to, nil, minio.CopySrcOptions{}, minio.PutObjectOptions{})
	return v.failed("copy", from, err)
}

func (v *s3Volume) remove(ctx context.Context, key string) error {
	ctx, cancel := v.limited(ctx)
	defer cancel()
	err := v.failed("delete", key, v.core.RemoveObject(ctx, v.Bucket, key, minio.RemoveObjectOptions{}))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// stamp is the time stamp of a block that is there. One without its recent/ has
// that of its content: it is being written, or somebody else put it there.
func (v *s3Volume) stamp(ctx context.Context, key string) (time.Time, error) {
	written, err := v.stat(ctx, key)
	if err != nil {
		return written, err
	}
	marked, err := v.stat(ctx, recentKey(key))
	if errors.Is(err, fs.ErrNotExist) {
		return written, nil
	}
	return marked, err
}

// raced tells whether a block that is not there was trashed while somebody wrote
// or touched it: when its content went, the promise that it stays was younger
// than the signature TTL.
func (v *s3Volume) raced(ctx context.Context, hash string) error {
	key := v.key(hash)
	trashed, err := v.stat(ctx, trashKey(key))
	if err != nil {
		return err
	}
	marked, err := v.stat(ctx, recentKey(key))
	if err != nil {
		return err
	}
	if trashed.Sub(marked) >= v.ttl {
		return fs.ErrNotExist
	}
	return nil
}

// restoreRaced brings a block back that should not have been trashed.
func (v *s3Volume) restoreRaced(ctx context.Context, hash string) error {
	if err := v.raced(ctx, hash); err != nil {
		return err
	}
	return v.copy(ctx, trashKey(v.key(hash)), v.key(hash))
}

// fetchRaced is fetch for a block that should not have been trashed.
func (v *s3Volume) fetchRaced(ctx context.Context, hash string, buf []byte) ([]byte, error) {
	if v.readOnly {
		if err := v.raced(ctx, hash); err != nil {
			return nil, err
		}
		return v.fetch(ctx, trashKey(v.key(hash)), hash, buf)
	}
	if err := v.restoreRaced(ctx, hash); err != nil {
		return nil, err
	}
	return v.fetch(ctx, v.key(hash), hash, buf)
}

// touch implements volume.
func (v *s3Volume) touch(ctx context.Context, hash string) error {
	_, err := v.stat(ctx, v.key(hash))
	if errors.Is(err, fs.ErrNotExist) {
		err = v.restoreRaced(ctx, hash)
	}
	if err != nil {
		return err
	}
	return v.mark(ctx, hash)
}

// mark makes the time stamp of a block that was there a moment ago now. The
// block is there afterwards, or the error is fs.ErrNotExist.
func (v *s3Volume) mark(ctx context.Context, hash string) error {
	key := v.key(hash)
	if err := v.put(ctx, recentKey(key), nil); err != nil {
		return err
	}
	_, err := v.stat(ctx, key)
	if errors.Is(err, fs.ErrNotExist) {
		return v.restoreRaced(ctx, hash)
	}
	return err
}

// trash implements volume.
func (v *s3Volume) trash(ctx context.Context, hash string, mtimeNS int64) error {
	if v.lifetime == 0 && !v.UnsafeDelete {
		return errTrashDisabled
	}
	key := v.key(hash)
	stamp, err := v.stamp(ctx, key)
	if err != nil {
		return err
	}
	if mtimeNS != 0 && stamp.UnixNano() != mtimeNS || v.now().Sub(stamp) < v.ttl {
		return nil
	}
	if v.lifetime == 0 {
		if err := v.remove(ctx, key); err != nil {
			return err
		}
		return v.remove(ctx, recentKey(key))
	}
	if err := v.copy(ctx, key, trashKey(key)); err != nil {
		return err
	}
	if now, err := v.stamp(ctx, key); err != nil || !now.Equal(stamp) {
		return err // somebody else wants it: it stays, and its copy too for a while
	}
	return v.remove(ctx, key)
}

// untrash implements volume. The copy in the trash stays until its time is over:
// if somebody trashes the block in this moment, it is all that is left.
func (v *s3Volume) untrash(ctx context.Context, hash string) error {
	key := v.key(hash)
	if err := v.copy(ctx, trashKey(key), key); err != nil {
		return err
	}
	return v.put(ctx, recentKey(key), nil)
}

// emptyTrash implements volume.
func (v *s3Volume) emptyTrash(ctx context.Context) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(v.deleters)
	for o := range v.core.ListObjectsIter(gctx, v.Bucket, minio.ListObjectsOptions{Prefix: "trash/", Recursive: true, MaxKeys: v.IndexPageSize}) {
		if o.Err != nil {
			_ = g.Wait()
			return v.failed("list", "trash/", o.Err)
		}
		if hash, ok := v.hash(o.Key[len("trash/"):]); ok {
			g.Go(func() error { return v.dispose(gctx, hash, o.LastModified.Truncate(time.Second)) })
		}
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for u := range v.core.ListIncompleteUploads(ctx, v.Bucket, "", true) {
		if u.Err != nil {
			return v.failed("list uploads", "", u.Err)
		}
		if _, ok := v.hash(u.Key); ok && v.now().Sub(u.Initiated) > staleUpload {
			_ = v.core.AbortMultipartUpload(ctx, v.Bucket, u.Key, u.UploadID)
		}
	}
	return ctx.Err()
}

// dispose deletes a block's trash if its time has come.
func (v *s3Volume) dispose(ctx context.Context, hash string, trashed time.Time) error {
	key := v.key(hash)
	_, err := v.stat(ctx, key)
	gone := errors.Is(err, fs.ErrNotExist)
	if err != nil && !gone {
		return err
	}
	if gone {
		// Here the trash may be the only copy of a block that is wanted.
		err := v.restoreRaced(ctx, hash)
		if err == nil || !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if v.now().Sub(trashed) < max(v.lifetime, v.RaceWindow) {
		return nil
	}
	// Since the listing the block may have been trashed again.
	if now, err := v.stat(ctx, trashKey(key)); err != nil || !now.Equal(trashed) {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	if err := v.remove(ctx, trashKey(key)); err != nil || !gone {
		return err
	}
	// Whoever has written the block since finds its content's own time stamp,
	// which is young too.
	return v.remove(ctx, recentKey(key))
}
