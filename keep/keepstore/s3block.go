package keepstore

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"

	"github.com/minio/minio-go/v7"
	"golang.org/x/sync/errgroup"
)

const (
	s3ReadPiece = 6 << 20
	s3Readers   = 11
	// s3Part is the smallest part of a multipart upload that S3 takes.
	s3Part    = 5 << 20
	s3Writers = 5
	// pieceAttempts is how often a piece is asked for whose transfer breaks off.
	pieceAttempts = 3
)

// openVerified implements volume. The block is in memory, from the buffers.
func (v *s3Volume) openVerified(ctx context.Context, hash string) (io.ReadCloser, int64, error) {
	buf, err := v.buffers.get()
	if err != nil {
		return nil, 0, err
	}
	data, err := v.fetch(ctx, v.key(hash), hash, buf)
	if errors.Is(err, fs.ErrNotExist) {
		data, err = v.fetchRaced(ctx, hash, buf)
	}
	if err != nil {
		v.buffers.put(buf)
		return nil, 0, err
	}
	return &inMemory{Reader: bytes.NewReader(data), free: sync.OnceFunc(func() { v.buffers.put(buf) })}, int64(len(data)), nil
}

// inMemory is content that gives its buffer back.
type inMemory struct {
	*bytes.Reader
	free func()
}

func (m *inMemory) Close() error { m.free(); return nil }

// fetch reads an object into buf and verifies it.
func (v *s3Volume) fetch(ctx context.Context, key, hash string, buf []byte) ([]byte, error) {
	// Pieces are hashed in order, as early as the ones before are there.
	var size int64
	var arrived []chan struct{}
	g, ctx := errgroup.WithContext(ctx)
	known := make(chan struct{})
	g.Go(func() error {
		return v.pieces(ctx, key, func(n int64) error {
			size = n
			for range pieceCount(n) {
				arrived = append(arrived, make(chan struct{}))
			}
			close(known)
			return nil
		}, func(pos, n int64, r io.Reader) error {
			if _, err := io.ReadFull(r, buf[pos:pos+n]); err != nil {
				return err
			}
			close(arrived[pos/s3ReadPiece])
			return nil
		})
	})
	g.Go(func() error {
		select {
		case <-known:
		case <-ctx.Done():
			return ctx.Err()
		}
		sum := md5.New()
		for i, c := range arrived {
			select {
			case <-c:
			case <-ctx.Done():
				return ctx.Err()
			}
			pos := int64(i) * s3ReadPiece
			sum.Write(buf[pos:min(pos+s3ReadPiece, size)])
		}
		if hex.EncodeToString(sum.Sum(nil)) != hash {
			return errChecksum
		}
		return nil
	})
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return buf[:size], nil
}

func pieceCount(size int64) int64 { return (size + s3ReadPiece - 1) / s3ReadPiece }

// pieces reads an object in pieces, several at a time. It calls start with the
// size in bytes, and then piece for each: pos is a multiple of s3ReadPiece. A
// piece that returns an error of r's is called again.
func (v *s3Volume) pieces(ctx context.Context, key string, start func(size int64) error, piece func(pos, n int64, r io.Reader) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	first, size, err := v.openPiece(ctx, key, 0)
	if err != nil {
		return err
	}
	defer first.Close()
	if size > maxBlockSize {
		return errTooLarge
	}
	if err := start(size); err != nil || size == 0 {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(s3Readers)
	for pos := int64(0); pos < size; pos += s3ReadPiece {
		body := io.ReadCloser(nil)
		if pos == 0 {
			body = first
		}
		g.Go(func() error { return v.onePiece(ctx, key, pos, size, body, piece) })
	}
	return g.Wait()
}

// onePiece calls piece with what body, if there is one, or a new request gives.
func (v *s3Volume) onePiece(ctx context.Context, key string, pos, size int64, body io.ReadCloser, piece func(pos, n int64, r io.Reader) error) error {
	n := min(s3ReadPiece, size-pos)
	var err error
	for range pieceAttempts {
		if err := ctx.Err(); err != nil {
			return err
		}
		if body == nil {
			var now int64
			if body, now, err = v.openPiece(ctx, key, pos); err != nil {
				return err
			}
			if now != size {
				body.Close()
				return fmt.Errorf("%w: %s changed its size while it was read", errChecksum, key)
			}
		}
		r := &brokenReader{r: body}
		err = piece(pos, n, io.LimitReader(r, n))
		body.Close()
		body = nil
		if err == nil || !r.broke(err) {
			return err
		}
	}
	return v.failed("read", key, err)
}

// brokenReader remembers whether reading failed or ended.
type brokenReader struct {
	r   io.Reader
	err error
}

func (b *brokenReader) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	b.err = err
	return n, err
}

// broke tells whether err comes from reading.
func (b *brokenReader) broke(err error) bool {
	if b.err == io.EOF {
		return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
	}
	return b.err != nil
}

// openPiece asks for one piece and returns the object's whole size too.
func (v *s3Volume) openPiece(ctx context.Context, key string, pos int64) (io.ReadCloser, int64, error) {
	ctx, cancel := v.limited(ctx)
	var o minio.GetObjectOptions
	if err := o.SetRange(pos, pos+s3ReadPiece-1); err != nil {
		cancel()
		return nil, 0, err
	}
	body, info, header, err := v.core.GetObject(ctx, v.Bucket, key, o)
	if err != nil {
		cancel()
		if pos == 0 && minio.ToErrorResponse(err).Code == minio.InvalidRange {
			return io.NopCloser(bytes.NewReader(nil)), 0, nil // no range is in an empty object
		}
		return nil, 0, v.failed("read", key, err)
	}
	size := info.Size // of the reply
	if text := header.Get("Content-Range"); text != "" {
		var from, to int64
		if _, err := fmt.Sscanf(text, "bytes %d-%d/%d", &from, &to, &size); err != nil || from != pos {
			body.Close()
			cancel()
			return nil, 0, fmt.Errorf("S3 read %s: unexpected Content-Range %q", key, text)
		}
	} else if pos > 0 {
		body.Close()
		cancel()
		return nil, 0, fmt.Errorf("S3 read %s: server does not support ranges", key)
	}
	if size < 0 {
		body.Close()
		cancel()
		return nil, 0, fmt.Errorf("S3 read %s: reply does not tell the length", key)
	}
	return &limitedBody{body, cancel}, size, nil
}

type limitedBody struct {
	io.ReadCloser
	cancel context.CancelFunc
}

func (b *limitedBody) Close() error {
	err := b.ReadCloser.Close()
	b.cancel()
	return err
}

var errDiffers = errors.New("object differs")

// refresh implements volume.
func (v *s3Volume) refresh(ctx context.Context, hash string, data []byte) (bool, error) {
	same, err := v.equal(ctx, hash, data)
	if errors.Is(err, fs.ErrNotExist) {
		if err := v.restoreRaced(ctx, hash); errors.Is(err, fs.ErrNotExist) {
			return false, nil
		} else if err != nil {
			return false, err
		}
		same, err = v.equal(ctx, hash, data)
	}
	if errors.Is(err, errTooLarge) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if same {
		err := v.mark(ctx, hash)
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil // trashed in this moment
		}
		return err == nil, err
	}
	content, _, err := v.openVerified(ctx, hash)
	if err == nil {
		content.Close()
		return false, errCollision
	}
	if errors.Is(err, errChecksum) || errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return false, err
}

// equal compares a block with data without holding it.
func (v *s3Volume) equal(ctx context.Context, hash string, data []byte) (bool, error) {
	err := v.pieces(ctx, v.key(hash), func(size int64) error {
		if size != int64(len(data)) {
			return errDiffers
		}
		return nil
	}, func(pos, n int64, r io.Reader) error {
		bp := hashBuffers.Get().(*[]byte)
		defer hashBuffers.Put(bp)
		for n > 0 {
			m, err := io.ReadFull(r, (*bp)[:min(n, int64(len(*bp)))])
			if !bytes.Equal((*bp)[:m], data[pos:pos+int64(m)]) {
				return errDiffers
			}
			if err != nil {
				return err
			}
			pos, n = pos+int64(m), n-int64(m)
		}
		return nil
	})
	if errors.Is(err, errDiffers) {
		return false, nil
	}
	return err == nil, err
}

// write implements volume.
func (v *s3Volume) write(ctx context.Context, hash string, data []byte) (err error) {
	key := v.key(hash)
	if len(data) <= s3Part {
		err = v.put(ctx, key, data)
	} else {
		err = v.putParts(ctx, key, data)
	}
	if err != nil {
		return err
	}
	return v.put(ctx, recentKey(key), nil)
}

// put writes an object with one request. Its MD5 goes along, signed, so that the
// server takes nothing else; a SHA-256 in the signature would cost more than all
// the rest.
func (v *s3Volume) put(ctx context.Context, key string, data []byte) error {
	ctx, cancel := v.limited(ctx)
	defer cancel()
	body := lend(data)
	_, err := v.core.PutObject(ctx, v.Bucket, key, body, int64(len(data)), contentMD5(data), "",
		minio.PutObjectOptions{DisableContentSha256: true})
	if rest := body.end(); err == nil && rest > 0 {
		err = fmt.Errorf("the server answered before %d of %d bytes were sent", rest, len(data))
	}
	return v.failed("write", key, err)
}

func contentMD5(data []byte) string {
	sum := md5.Sum(data)
	return base64.StdEncoding.EncodeToString(sum[:])
}

// putParts writes an object with a multipart upload, which becomes one at its
// end or not at all.
func (v *s3Volume) putParts(ctx context.Context, key string, data []byte) error {
	id, err := v.core.NewMultipartUpload(ctx, v.Bucket, key, minio.PutObjectOptions{})
	if err != nil {
		return v.failed("write", key, err)
	}
	parts := make([]minio.CompletePart, (len(data)+s3Part-1)/s3Part)
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(s3Writers)
	for i := range parts {
		g.Go(func() error {
			if err := gctx.Err(); err != nil {
				return err
			}
			// Not gctx: a part that is given up half-way may bring the upload back
			// after it has been aborted, as S3's documentation warns.
			ctx, cancel := v.limited(ctx)
			defer cancel()
			piece := data[i*s3Part : min(len(data), (i+1)*s3Part)]
			body := lend(piece)
			defer body.end()
			p, err := v.core.PutObjectPart(ctx, v.Bucket, key, id, i+1, body, int64(len(piece)),
				minio.PutObjectPartOptions{Md5Base64: contentMD5(piece), DisableContentSha256: true})
			parts[i] = minio.CompletePart{PartNumber: i + 1, ETag: p.ETag}
			return err
		})
	}
	err = g.Wait()
	if err == nil {
		err = func() error {
			ctx, cancel := v.limited(ctx)
			defer cancel()
			_, err := v.core.CompleteMultipartUpload(ctx, v.Bucket, key, id, parts, minio.PutObjectOptions{})
			return err
		}()
	}
	if err != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s3Probe)
		defer cancel()
		_ = v.core.AbortMultipartUpload(ctx, v.Bucket, key, id) // else emptyTrash will
	}
	return v.failed("write", key, err)
}

// lent is data as a request's body. An HTTP transport may go on reading a body
// for a moment after it has given up on the request: then the buffer may already
// be somebody else's, or not be memory any more.
type lent struct {
	mu sync.Mutex
	r  *bytes.Reader // nil: over
}

func lend(data []byte) *lent { return &lent{r: bytes.NewReader(data)} }

func (l *lent) Read(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.r == nil {
		return 0, fs.ErrClosed
	}
	return l.r.Read(p)
}

// Seek allows requests to be repeated.
func (l *lent) Seek(offset int64, whence int) (int64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.r == nil {
		return 0, fs.ErrClosed
	}
	return l.r.Seek(offset, whence)
}

// end returns how many bytes have not been read.
func (l *lent) end() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	rest := l.r.Len()
	l.r = nil
	return rest
}
