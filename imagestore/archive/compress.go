package archive

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"
)

// compression is how a tarball or a layer is packed, told by its first bytes:
// media types and file names are not to be relied on.
type compression int

const (
	plain compression = iota
	gzipped
	zstandard
	bzipped
	xzipped
)

func (c compression) String() string {
	return [...]string{"plain", "gzip", "zstd", "bzip2", "xz"}[c]
}

var magics = []struct {
	c     compression
	magic []byte
}{
	{gzipped, []byte{0x1f, 0x8b}},
	{zstandard, []byte{0x28, 0xb5, 0x2f, 0xfd}},
	{xzipped, []byte{0xfd, '7', 'z', 'X', 'Z', 0}},
}

// sniff looks at the first bytes of something that is a tar archive otherwise.
func sniff(head []byte) compression {
	for _, m := range magics {
		if bytes.HasPrefix(head, m.magic) {
			return m.c
		}
	}
	// Skippable frames, as in zstd:chunked, have 16 magic numbers (RFC 8878, 3.1.2).
	if len(head) > 4 && head[0]&0xf0 == 0x50 && bytes.HasPrefix(head[1:], []byte{0x2a, 0x4d, 0x18}) {
		return zstandard
	}
	// A tar may well begin with a name in BZh. Behind it are the block size in units
	// of 100 kB and what a block begins with, or the end of nothing.
	if len(head) > 4 && bytes.HasPrefix(head, []byte("BZh")) && '1' <= head[3] && head[3] <= '9' &&
		(bytes.HasPrefix(head[4:], []byte("1AY&SY")) || bytes.HasPrefix(head[4:], []byte{0x17, 0x72, 0x45, 0x38, 0x50, 0x90})) {
		return bzipped
	}
	return plain
}

func sniffAt(r io.ReaderAt, size int64) (compression, error) {
	head := make([]byte, min(size, 16))
	if n, err := r.ReadAt(head, 0); n < len(head) {
		return plain, fmt.Errorf("read image tarball: %w", err)
	}
	return sniff(head), nil
}

// maxWindow is the memory that a zstd stream may ask for: what the zstd program
// grants without being asked.
const maxWindow = 128 << 20

// decompress gives a reader of r's content, and what releases it.
func decompress(r io.Reader, c compression) (io.Reader, func(), error) {
	switch c {
	case plain:
		return r, func() {}, nil
	case gzipped:
		z, err := newGzipReader(r)
		if err != nil {
			return nil, nil, err
		}
		return z, func() { _ = z.z.Close() }, nil
	case zstandard:
		z, err := zstd.NewReader(r, zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderLowmem(true), zstd.WithDecoderConcurrency(2))
		if err != nil {
			return nil, nil, err
		}
		return z, z.Close, nil
	case bzipped:
		return bzip2.NewReader(r), func() {}, nil
	}
	return nil, nil, fmt.Errorf("%w: %s compression; use gzip or zstd", ErrUnsupported, c)
}

// gzipReader reads gzip members up to the end, or up to zeros that fill the rest:
// files that have been on tape or were written by the block end in them, and gzip,
// pigz (which Docker prefers) and tar -xz pass over them.
type gzipReader struct {
	in *bufio.Reader
	z  *gzip.Reader
}

func newGzipReader(r io.Reader) (*gzipReader, error) {
	in := bufio.NewReaderSize(r, 64<<10)
	z, err := gzip.NewReader(in)
	if err != nil {
		return nil, err
	}
	z.Multistream(false)
	return &gzipReader{in, z}, nil
}

// Read implements io.Reader.
func (g *gzipReader) Read(p []byte) (int, error) {
	for {
		n, err := g.z.Read(p)
		if err != io.EOF || n > 0 {
			if err == io.EOF {
				err = nil
			}
			return n, err
		}
		if err := g.next(); err != nil {
			return 0, err
		}
	}
}

// next goes to the next member. It returns io.EOF if there is none.
func (g *gzipReader) next() error {
	b, err := g.in.ReadByte()
	if err != nil {
		return err
	}
	if b == 0 {
		for b == 0 && err == nil {
			b, err = g.in.ReadByte()
		}
		if err == nil {
			err = gzip.ErrHeader
		}
		return err
	}
	if err := g.in.UnreadByte(); err != nil {
		return err
	}
	err = g.z.Reset(g.in)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	g.z.Multistream(false)
	return err
}

// readAtReader marks errors of the tarball's own reader, so that a failing
// Keep is not reported as a damaged tarball.
type readAtReader struct {
	*io.SectionReader
	progress func(n int)
	err      error
}

func (s *readAtReader) Read(p []byte) (int, error) {
	n, err := s.SectionReader.Read(p)
	if err != nil && err != io.EOF {
		s.err = err
	}
	if n > 0 && s.progress != nil {
		s.progress(n)
	}
	return n, err
}

// decodeError words what a decompressor says.
func decodeError(src *readAtReader, c compression, what string, err error) error {
	switch {
	case src.err != nil:
		return fmt.Errorf("read %s: %w", what, src.err)
	case errors.Is(err, ErrUnsupported):
		return err
	case errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("%w: the %s data of the %s is cut off", ErrCorrupt, c, what)
	case errors.Is(err, zstd.ErrWindowSizeExceeded):
		return fmt.Errorf("%w: decompressing the %s takes more than %d MiB of memory; compress it without zstd's --long", ErrUnsupported, what, maxWindow>>20)
	case errors.Is(err, zstd.ErrUnknownDictionary):
		return fmt.Errorf("%w: the %s is compressed with a zstd dictionary", ErrUnsupported, what)
	}
	return fmt.Errorf("%w: the %s data of the %s is invalid: %w", ErrCorrupt, c, what, err)
}

// reserve is what a copy leaves free on the scratch file system.
const reserve = 64 << 20

// spool decompresses a whole tarball into an unlinked file: what is inside must
// be read in another order than it comes.
func spool(ctx context.Context, r io.ReaderAt, size int64, c compression, o Options) (_ *os.File, n int64, err error) {
	if o.Scratch == "" {
		o.Scratch = os.TempDir()
	}
	f, err := unlinkedFile(o.Scratch)
	if err != nil {
		return nil, 0, fmt.Errorf("scratch file for the decompressed image tarball: %w", err)
	}
	defer func() {
		if err != nil {
			_ = f.Close() // nothing in it is wanted
		}
	}()
	limit, full, err := scratchLimit(o)
	if err != nil {
		return nil, 0, err
	}
	var done int64
	src := &readAtReader{SectionReader: io.NewSectionReader(r, 0, size)}
	src.progress = func(n int) {
		if done += int64(n); o.Progress != nil {
			o.Progress(done, size)
		}
	}
	z, release, err := decompress(io.Reader(src), c)
	if err != nil {
		return nil, 0, decodeError(src, c, "image tarball", err)
	}
	defer release()
	buf := make([]byte, 1<<20)
	for {
		if err := ctx.Err(); err != nil {
			return nil, 0, err
		}
		k, rerr := fillBuffer(z, buf)
		if n+int64(k) > limit {
			return nil, 0, full
		}
		if _, err := f.Write(buf[:k]); err != nil {
			return nil, 0, fmt.Errorf("decompress the image tarball into %s: %w", o.Scratch, err)
		}
		n += int64(k)
		if rerr == io.EOF {
			return f, n, nil
		}
		if rerr != nil {
			return nil, 0, decodeError(src, c, "image tarball", rerr)
		}
	}
}

// scratchLimit gives the bytes that the copy may have, and the error for one that
// would be larger.
func scratchLimit(o Options) (limit int64, full, err error) {
	if limit = o.MaxScratch; limit != 0 {
		full = fmt.Errorf("%w: larger than the limit of %d bytes", ErrUnsupported, limit)
	} else {
		if limit, err = free(o.Scratch); err != nil {
			return 0, nil, err
		}
		limit = max(0, limit-reserve)
		full = unix.ENOSPC
	}
	return limit, fmt.Errorf("decompress the image tarball into %s (%d bytes allowed there): %w", o.Scratch, limit, full), nil
}

// fillBuffer is io.ReadFull that leaves the reader's error as it is: io.EOF at
// the end also after a part, and io.ErrUnexpectedEOF only from the reader.
func fillBuffer(r io.Reader, p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		var k int
		k, err = r.Read(p[n:])
		n += k
	}
	return n, err
}

// unlinkedFile gives a file that has no name, so that it cannot be left behind.
func unlinkedFile(dir string) (*os.File, error) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err == nil {
		return os.NewFile(uintptr(fd), dir+"/(decompressed image tarball)"), nil
	}
	// Not every file system knows O_TMPFILE.
	f, err := os.CreateTemp(dir, ".image-*")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil && !errors.Is(err, os.ErrNotExist) {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// free gives the bytes that the file system of dir has left.
func free(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	return int64(st.Bavail) * st.Bsize, nil
}
