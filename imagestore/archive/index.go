package archive

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
)

// Bounds on what a tarball may make us remember.
const (
	maxEntries  = 200_000   // members of the tarball (not files of the image)
	maxNames    = 32 << 20  // bytes of all their names
	maxDocument = 8 << 20   // bytes of one JSON document; other programs take 4 MiB
	maxValues   = 100_000   // of one JSON document; each may take many times its bytes
	maxRead     = 256 << 20 // bytes of all documents, read again or not
	maxHops     = 16        // links from a name to the member that holds the data
	maxLayers   = 500       // what an overlay mount takes (OVL_MAX_STACK)
)

// member is where the data of a name lies in the tarball.
type member struct {
	off, size int64
	link      string // where it is, if not here: relative to the top
	sparse    bool
}

// index knows every member of one uncompressed tarball.
type index struct {
	r       io.ReaderAt
	size    int64
	members map[string]member
	read    int64 // bytes of documents so far
	ended   bool  // with the mark that ends an archive
}

// readIndex goes over the headers, skipping the bodies.
func readIndex(ctx context.Context, r io.ReaderAt, size int64) (*index, error) {
	x := &index{r: r, size: size, members: make(map[string]member)}
	sr := &headerReader{SectionReader: io.NewSectionReader(r, 0, size)}
	tr := tar.NewReader(sr)
	names := 0
	for n := 0; ; n++ {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		h, err := tr.Next()
		if err == io.EOF {
			x.ended = sr.zeros >= 2
			return x, nil
		}
		if err != nil && !(errors.Is(err, tar.ErrInsecurePath) && h != nil) {
			return nil, indexError(err, n, sr.SectionReader, size)
		}
		if n >= maxEntries {
			return nil, fmt.Errorf("%w: more than %d members", ErrUnsupported, maxEntries)
		}
		if names += len(h.Name) + len(h.Linkname); names > maxNames {
			return nil, fmt.Errorf("%w: more than %d bytes in the names of its members", ErrUnsupported, maxNames)
		}
		m := member{size: h.Size}
		if m.off, err = sr.Seek(0, io.SeekCurrent); err != nil {
			return nil, err
		}
		name := inside(h.Name)
		switch h.Typeflag {
		case tar.TypeReg:
			for k := range h.PAXRecords {
				m.sparse = m.sparse || strings.HasPrefix(k, "GNU.sparse.")
			}
		case tar.TypeGNUSparse:
			m.sparse = true
		case tar.TypeLink:
			m.link = inside(h.Linkname)
		case tar.TypeSymlink:
			if m.link = inside(h.Linkname); !path.IsAbs(h.Linkname) {
				m.link = inside(path.Join(path.Dir("/"+name), h.Linkname))
			}
		default:
			continue
		}
		if h.Typeflag == tar.TypeReg && !m.sparse && m.size > size-m.off {
			return nil, fmt.Errorf("%w: it ends after %d bytes, in the middle of %s", ErrCorrupt, size, short(name))
		}
		// A name that comes twice means the later one, as to tar.
		x.members[name] = m
	}
}

// headerReader counts the blocks of zeros read last, of which two end an
// archive. The bodies, which often end in zeros too, are not read but skipped,
// all but a byte: only headers are read by the block.
type headerReader struct {
	*io.SectionReader
	zeros int
}

func (r *headerReader) Read(p []byte) (int, error) {
	n, err := r.SectionReader.Read(p)
	switch {
	case n == 512 && bytes.Count(p[:n], []byte{0}) == n:
		r.zeros++
	case n > 0:
		r.zeros = 0
	}
	return n, err
}

// indexError words a failure after n members.
func indexError(err error, n int, sr *io.SectionReader, size int64) error {
	at, _ := sr.Seek(0, io.SeekCurrent)
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF) && n > 0:
		return fmt.Errorf("%w: it ends after %d bytes, in the middle of a member", ErrCorrupt, size)
	case n == 0 && (errors.Is(err, tar.ErrHeader) || errors.Is(err, io.ErrUnexpectedEOF)):
		return fmt.Errorf("%w: the file is not a tar archive", ErrNoImage)
	case errors.Is(err, tar.ErrHeader), errors.Is(err, tar.ErrFieldTooLong):
		return fmt.Errorf("%w: no tar header at byte %d", ErrCorrupt, at)
	}
	return fmt.Errorf("read image tarball: %w", err)
}

// inside turns a name into one below the top of the tarball, whatever it says. It
// is a new string, and no part of a header that may have a megabyte.
func inside(name string) string { return path.Clean("/" + name)[1:] }

// short keeps a name of the tarball fit for an error line.
func short(name string) string {
	if len(name) > 200 {
		name = name[:200] + "…"
	}
	for _, r := range name {
		if r < ' ' || r == 0x7f || r == '\uFFFD' {
			return fmt.Sprintf("%q", name)
		}
	}
	return name
}

// find follows links to the member that holds name's data.
func (x *index) find(name string) (member, bool, error) {
	at := inside(name)
	for range maxHops {
		m, ok := x.members[at]
		if !ok {
			return member{}, false, nil
		}
		if m.link == "" {
			if m.sparse {
				return member{}, false, fmt.Errorf("%w: %s is stored as a sparse file; write the tarball without --sparse", ErrUnsupported, short(name))
			}
			return m, true, nil
		}
		at = m.link
	}
	return member{}, false, fmt.Errorf("%w: too many links from %s", ErrCorrupt, short(name))
}

func (x *index) has(name string) bool {
	_, ok, err := x.find(name)
	return ok && err == nil
}

// document reads a whole member, which must be there.
func (x *index) document(name string) ([]byte, error) {
	m, ok, err := x.find(name)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, fmt.Errorf("%w: %s is missing", ErrCorrupt, short(name))
	}
	if m.size > maxDocument {
		return nil, fmt.Errorf("%w: %s has %d bytes; documents have at most %d", ErrUnsupported, short(name), m.size, maxDocument)
	}
	if x.read += m.size; x.read > maxRead {
		return nil, fmt.Errorf("%w: its documents have more than %d bytes", ErrUnsupported, maxRead)
	}
	b := make([]byte, m.size)
	if _, err := io.ReadFull(io.NewSectionReader(x.r, m.off, m.size), b); err != nil {
		return nil, fmt.Errorf("read %s of image tarball: %w", short(name), err)
	}
	if countValues(b) > maxValues {
		return nil, fmt.Errorf("%w: %s has more than %d values", ErrUnsupported, short(name), maxValues)
	}
	return b, nil
}

// countValues gives about the number of values in a JSON document: what can be
// told from its punctuation.
func countValues(doc []byte) (n int) {
	inString, escaped := false, false
	for _, c := range doc {
		switch {
		case escaped:
			escaped = false
		case inString && c == '\\':
			escaped = true
		case c == '"':
			inString = !inString
		case !inString && (c == ',' || c == '[' || c == '{'):
			n++
		}
	}
	return n
}
