package archive

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"sync"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
)

// Layer is one layer of an Image.
type Layer struct {
	// DiffID is the digest of the layer's tar stream, uncompressed.
	DiffID digest.Digest
	// Size is the number of bytes the layer takes in the tarball: as many as its
	// tar stream has, unless it is compressed.
	Size int64

	r   io.ReaderAt
	off int64
}

// emptyLayer is an archive of nothing.
func emptyLayer() Layer {
	end := make([]byte, 1024)
	return Layer{DiffID: digest.FromBytes(end), Size: int64(len(end)), r: bytes.NewReader(end)}
}

// SameData tells whether both are the same bytes of one tarball.
func (l Layer) SameData(m Layer) bool { return l.r == m.r && l.off == m.off && l.Size == m.Size }

// Depth and size of the buffers between the tarball and the consumer. A stream
// holds at most streamBuffers × chunkSize bytes, and as much again when it is
// compressed.
const (
	chunkSize     = 512 << 10
	streamBuffers = 6
)

// Stream is the tar stream of a layer. Reading ahead, decompressing and hashing
// run in goroutines of their own, which end with Close.
type Stream struct {
	want digest.Digest // empty: nobody knows yet
	sum  digest.Digest // at the end

	cancel context.CancelFunc
	wg     sync.WaitGroup
	ctx    context.Context

	chunks chan *chunk // to Read
	free   chan *chunk // back to the filler
	hashed chan digest.Digest
	fail   error // set before chunks is closed

	cur  *chunk
	rest []byte
	err  error // sticky
}

// chunk goes from the filler both to the hash and to the reader, and back when
// both are done with it.
type chunk struct {
	buf  [chunkSize]byte
	n    int
	refs atomic.Int32
}

// pool keeps chunks from one layer to the next.
var pool = sync.Pool{New: func() any { return new(chunk) }}

// Open starts reading the layer. Read gives its tar stream, decompressed, and
// io.EOF only if all of it had the layer's diff ID: otherwise the last error is
// an ErrCorrupt. onRead, if not nil, is called from another goroutine with the
// numbers of bytes read from the tarball.
func (l Layer) Open(ctx context.Context, onRead func(n int)) (*Stream, error) {
	c, err := plain, error(nil)
	if l.Size > 0 {
		if c, err = sniffAt(io.NewSectionReader(l.r, l.off, l.Size), l.Size); err != nil {
			return nil, err
		}
	}
	if c == xzipped {
		return nil, fmt.Errorf("%w: layer %s: xz compression; use gzip or zstd", ErrUnsupported, l.DiffID)
	}
	ctx, cancel := context.WithCancel(ctx)
	s := &Stream{
		want: l.DiffID, ctx: ctx, cancel: cancel,
		chunks: make(chan *chunk, streamBuffers),
		free:   make(chan *chunk, streamBuffers),
		hashed: make(chan digest.Digest, 1),
	}
	for range streamBuffers {
		s.free <- pool.Get().(*chunk)
	}
	toHash := make(chan *chunk, streamBuffers)
	s.wg.Add(2)
	go func() {
		defer s.wg.Done()
		s.hash(sha256.New(), toHash)
	}()
	go func() {
		defer s.wg.Done()
		defer close(s.chunks)
		defer close(toHash)
		src := &readAtReader{SectionReader: io.NewSectionReader(l.r, l.off, l.Size), progress: onRead}
		if err := s.fill(src, c, toHash); err != nil {
			s.fail = decodeError(src, c, "layer", err)
			if ctx.Err() != nil {
				s.fail = ctx.Err()
			}
		}
	}()
	return s, nil
}

// fill reads the tarball, decompresses, and hands out chunks until the layer
// ends.
func (s *Stream) fill(src *readAtReader, c compression, toHash chan<- *chunk) error {
	var in io.Reader = src
	if c != plain {
		ahead := newReadAhead(s.ctx, src)
		defer ahead.close()
		in = ahead
	}
	z, release, err := decompress(in, c)
	if err != nil {
		return err
	}
	defer release()
	for {
		var b *chunk
		select {
		case b = <-s.free:
		case <-s.ctx.Done():
			return s.ctx.Err()
		}
		if c == plain {
			b.n, err = z.Read(b.buf[:]) // what is there now is better than a full buffer later
		} else {
			b.n, err = fillBuffer(z, b.buf[:])
		}
		if b.n > 0 {
			b.refs.Store(2)
			toHash <- b   // both have room for
			s.chunks <- b // every chunk there is
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (s *Stream) hash(h hash.Hash, in <-chan *chunk) {
	for b := range in {
		h.Write(b.buf[:b.n])
		s.release(b)
	}
	s.hashed <- digest.NewDigest(digest.SHA256, h)
}

func (s *Stream) release(b *chunk) {
	if b.refs.Add(-1) == 0 {
		s.free <- b
	}
}

// Read implements io.Reader.
func (s *Stream) Read(p []byte) (int, error) {
	for len(s.rest) == 0 {
		if s.err != nil {
			return 0, s.err
		}
		if s.cur != nil {
			s.release(s.cur)
			s.cur = nil
		}
		b, ok := <-s.chunks
		if !ok {
			s.err = s.end()
			continue
		}
		s.cur, s.rest = b, b.buf[:b.n]
	}
	n := copy(p, s.rest)
	s.rest = s.rest[n:]
	return n, nil
}

// end gives the last error of the stream.
func (s *Stream) end() error {
	if s.fail != nil {
		return s.fail
	}
	s.sum = <-s.hashed
	if s.want != "" && s.sum != s.want {
		return fmt.Errorf("%w: the layer's content has the digest %s instead of %s", ErrCorrupt, s.sum, s.want)
	}
	return io.EOF
}

// Close ends the stream wherever it is, and waits for its goroutines. It may be
// called several times.
func (s *Stream) Close() error {
	s.cancel()
	s.wg.Wait()
	if s.err == nil {
		s.err = io.ErrClosedPipe
	}
	s.rest = nil
	// The filler is gone and the hash is done with every chunk.
	if s.cur != nil {
		s.release(s.cur)
		s.cur = nil
	}
	for b := range s.chunks {
		s.release(b)
	}
	for {
		select {
		case b := <-s.free:
			pool.Put(b)
		default:
			return nil
		}
	}
}

// readAhead reads compressed data while what came before is being decompressed.
type readAhead struct {
	full, free chan []byte
	err        error // set before full is closed
	cancel     context.CancelFunc
	done       chan struct{}

	cur, rest []byte
}

func newReadAhead(ctx context.Context, r io.Reader) *readAhead {
	ctx, cancel := context.WithCancel(ctx)
	a := &readAhead{
		full: make(chan []byte, streamBuffers), free: make(chan []byte, streamBuffers),
		cancel: cancel, done: make(chan struct{}),
	}
	for range streamBuffers {
		a.free <- make([]byte, chunkSize)
	}
	go func() {
		defer close(a.done)
		defer close(a.full)
		for {
			var b []byte
			select {
			case b = <-a.free:
			case <-ctx.Done():
				a.err = ctx.Err()
				return
			}
			n, err := r.Read(b[:chunkSize])
			if n > 0 {
				a.full <- b[:n]
			} else {
				a.free <- b
			}
			if err != nil {
				a.err = err
				return
			}
		}
	}()
	return a
}

func (a *readAhead) Read(p []byte) (int, error) {
	for len(a.rest) == 0 {
		if a.cur != nil {
			a.free <- a.cur
			a.cur = nil
		}
		b, ok := <-a.full
		if !ok {
			return 0, a.err
		}
		a.cur, a.rest = b, b
	}
	n := copy(p, a.rest)
	a.rest = a.rest[n:]
	return n, nil
}

func (a *readAhead) close() {
	a.cancel()
	<-a.done
}
