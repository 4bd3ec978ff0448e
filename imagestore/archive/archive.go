// Package archive reads every flavour of image tarball as an Image: what docker
// save (legacy directories, and the OCI hybrid since engine 25), podman save,
// skopeo, umoci, buildah, kaniko and bazel write, plain or compressed as a
// whole, layers plain or compressed.
//
// The tarball is an io.ReaderAt: it lies in Keep, where reading anywhere is
// cheap and nothing must be copied first. Open reads headers and documents
// only; layers are streams that prove their diff ID when they end.
//
// Nothing read from the tarball is trusted before its digest is: the image id
// is the digest of its configuration, the configuration lists the diff IDs, and
// each layer must have its own. Where the caller wants a particular id, it must
// be that of the configuration, or of a manifest or index in the tarball that
// leads to it.
package archive

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

var (
	// ErrCorrupt says that the tarball is damaged: cut off, or its contents do
	// not have the digest they are known by.
	ErrCorrupt = errors.New("image tarball is damaged")
	// ErrNoImage says that the file is no image tarball, or one without an image.
	ErrNoImage = errors.New("not an image")
	// ErrWrongID says that the tarball holds other images than the one wanted.
	ErrWrongID = errors.New("wrong image id")
	// ErrAmbiguous says that the tarball does not say which image is meant:
	// several without an id to choose by, or a document that can be read in two
	// ways (CVE-2021-41190).
	ErrAmbiguous = errors.New("ambiguous image")
	// ErrUnsupported says that the tarball is well formed and of a kind that is
	// not read here.
	ErrUnsupported = errors.New("unsupported image tarball")
)

// Options say what to look for. The zero value accepts the only image there is.
type Options struct {
	// WantID is the id that the image must have, "sha256:" and 64 hexadecimal
	// digits, or empty.
	WantID string
	// Scratch is the directory for the decompressed copy of a tarball that is
	// compressed as a whole: an unlinked file, gone with the Image. Empty means
	// os.TempDir.
	Scratch string
	// MaxScratch bounds that copy, in bytes. 0 means what is free on Scratch's
	// file system, less a reserve.
	MaxScratch int64
	// Progress, if not nil, is told how many bytes of a compressed tarball have
	// been read while it is decompressed.
	Progress func(done, total int64)
	// Architecture is the GOARCH to prefer where an index offers several; empty
	// means the program's own.
	Architecture string
}

// Image is one image of a tarball.
type Image struct {
	// ID is the digest of RawConfig: what docker calls the image id.
	ID digest.Digest
	// WantedID is the id of Options.WantID, which the image was shown to have:
	// ID itself, or that of a manifest or index that leads to it.
	WantedID string
	// Names are the tags that the tarball gives the image, as they stand there.
	Names []string
	// RawConfig is the configuration document, byte for byte.
	RawConfig []byte
	// Config is RawConfig parsed, without its history.
	Config ocispec.Image
	// Layers are the image's layers, the lowest first.
	Layers []Layer

	close func() error
}

// Close releases the decompressed copy of the tarball, if there is one. Layers
// cannot be opened any more.
func (img *Image) Close() error {
	if img.close == nil {
		return nil
	}
	c := img.close
	img.close = nil
	return c()
}

// Open finds the image in the tarball of size bytes that r gives, and verifies
// everything but the layers' contents. Errors wrap one of this package's, or
// are r's or the scratch file's.
func Open(ctx context.Context, r io.ReaderAt, size int64, o Options) (*Image, error) {
	if o.Architecture == "" {
		o.Architecture = runtime.GOARCH
	}
	if o.WantID != "" {
		if err := digest.Digest(o.WantID).Validate(); err != nil {
			return nil, fmt.Errorf("image id %q: %w", o.WantID, err)
		}
	}
	if size == 0 {
		return nil, fmt.Errorf("%w: the tarball is empty", ErrNoImage)
	}
	var closer func() error
	if c, err := sniffAt(r, size); err != nil {
		return nil, err
	} else if c != plain {
		spooled, n, err := spool(ctx, r, size, c, o)
		if err != nil {
			return nil, err
		}
		r, size, closer = spooled, n, spooled.Close
	}
	img, err := openPlain(ctx, r, size, o)
	if err != nil {
		if closer != nil {
			err = errors.Join(err, closer())
		}
		return nil, err
	}
	img.close = closer
	return img, nil
}

func openPlain(ctx context.Context, r io.ReaderAt, size int64, o Options) (*Image, error) {
	x, err := readIndex(ctx, r, size)
	if err != nil {
		return nil, err
	}
	c, err := x.choose(ctx, o)
	if err != nil {
		return nil, err
	}
	img, err := x.image(c)
	if err != nil {
		return nil, err
	}
	img.WantedID = o.WantID
	return img, nil
}
