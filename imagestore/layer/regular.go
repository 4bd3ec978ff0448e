package layer

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"strings"

	"golang.org/x/sys/unix"
)

// regular makes a file with its content.
func (x *extractor) regular(h *tar.Header, d *dirNode, base string) error {
	m, err := x.metadata(h)
	if err != nil {
		return err
	}
	// Where the file can be made with its mode, one call less is needed. A change
	// of owner clears set-user-ID bits, which therefore come last.
	fd, mode := -1, m.mode
	if mode&^(0o777&^x.umask) != 0 {
		mode = 0o600
	}
	err = x.make(d, base, func(dirfd int) error {
		return retry(func() (err error) {
			fd, err = unix.Openat(dirfd, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, mode)
			return err
		})
	})
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if isSparse(h) {
		err = x.copySparse(fd, h.Size)
	} else {
		err = x.copyPlain(fd, h.Size)
	}
	if err != nil {
		return err
	}
	return x.apply(fd, mode, m)
}

// isSparse recognises GNU tar's old format and its three PAX formats. The
// standard library's reader understands them all but does not tell where the
// holes are.
func isSparse(h *tar.Header) bool {
	if h.Typeflag == tar.TypeGNUSparse {
		return true
	}
	for k := range h.PAXRecords {
		if strings.HasPrefix(k, "GNU.sparse.") {
			return true
		}
	}
	return false
}

// spend takes n bytes of file content from the budget.
func (x *extractor) spend(n int) error {
	x.res.Bytes += int64(n)
	if x.opt.MaxBytes > 0 && x.res.Bytes > x.opt.MaxBytes {
		return &SizeError{Max: x.opt.MaxBytes}
	}
	return nil
}

// tooLarge says why a file cannot be made that claims to be larger than what is
// left of MaxBytes. Nothing is written, but as much is read as would not fit: if
// the stream has less, the claim is false, and the limit is not what is wrong.
func (x *extractor) tooLarge() error {
	for left := x.opt.MaxBytes - x.res.Bytes; left >= 0; {
		n, err := x.tr.Read(x.buf)
		left -= int64(n)
		x.passed += int64(n)
		if err == io.EOF {
			break
		}
		if err != nil {
			return readError(err)
		}
		if err := x.ctx.Err(); err != nil {
			return err
		}
	}
	return &SizeError{Max: x.opt.MaxBytes}
}

func (x *extractor) copyPlain(fd int, size int64) error {
	if x.opt.MaxBytes > 0 && size > x.opt.MaxBytes-x.res.Bytes {
		return x.tooLarge()
	}
	for {
		n, err := x.tr.Read(x.buf)
		if n > 0 {
			if err := x.spend(n); err != nil {
				return err
			}
			if err := write(fd, x.buf[:n]); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return readError(err)
		}
		if err := x.ctx.Err(); err != nil {
			return err
		}
	}
}

// sparseBlock is the granularity at which zeros become holes: the block size of
// the usual file systems.
const sparseBlock = 4096

var zeros [sparseBlock]byte

func (x *extractor) copySparse(fd int, size int64) error {
	if x.sparse += size; x.sparse > x.opt.MaxSparse || x.sparse < 0 {
		return fmt.Errorf("%w of %d bytes in sparse files", ErrLimit, x.opt.MaxSparse)
	}
	for off := int64(0); ; {
		n, err := io.ReadFull(x.tr, x.buf)
		for b := x.buf[:n]; len(b) > 0; {
			k := min(sparseBlock, len(b))
			if !bytes.Equal(b[:k], zeros[:k]) {
				if err := x.spend(k); err != nil {
					return err
				}
				if err := pwrite(fd, b[:k], off); err != nil {
					return err
				}
			}
			b, off = b[k:], off+int64(k)
		}
		if err == io.EOF || err == io.ErrUnexpectedEOF && off == size {
			break
		}
		if err != nil {
			return readError(err)
		}
		if err := x.ctx.Err(); err != nil {
			return err
		}
	}
	return unix.Ftruncate(fd, size)
}

// readError words what the tar reader says about a body.
func readError(err error) error {
	if err == io.ErrUnexpectedEOF {
		return fmt.Errorf("%w: it ends in the middle of a file", ErrMalformed)
	}
	return err
}

func write(fd int, p []byte) error {
	for len(p) > 0 {
		var n int
		err := retry(func() (err error) { n, err = unix.Write(fd, p); return err })
		if err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

func pwrite(fd int, p []byte, off int64) error {
	for len(p) > 0 {
		var n int
		err := retry(func() (err error) { n, err = unix.Pwrite(fd, p, off); return err })
		if err != nil {
			return err
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}
