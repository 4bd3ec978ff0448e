package archive_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"crunch-oci/imagestore/archive"
	"crunch-oci/imagestore/internal/imagetest"
	. "crunch-oci/imagestore/internal/tartest"
)

// However a tarball is cut off, that is noticed, and named.
func TestCutOff(t *testing.T) {
	m, dir := sample(t), t.TempDir()
	for name, b := range map[string][]byte{"docker": Tar(t, imagetest.DockerLegacy(m, false)...), "oci": Tar(t, imagetest.OCI(packed(m, "gzip"))...)} {
		for cut := 1; cut < len(b); cut += 1 + len(b)/300 {
			var layers [][]byte
			img, err := open(t, b[:cut], archive.Options{Scratch: dir})
			if err == nil {
				layers, err = readAll(img)
			}
			if err == nil && img.ID.String() == m.ID() && slices.EqualFunc(layers, m.Layers, bytes.Equal) {
				continue // only what nobody needs is missing
			}
			if !errors.Is(err, archive.ErrCorrupt) && !errors.Is(err, archive.ErrNoImage) {
				t.Errorf("%s cut after %d of %d bytes: %v", name, cut, len(b), err)
			}
		}
	}
}

// Whatever byte is changed, what comes out is either the image or an error.
func TestChangedBytes(t *testing.T) {
	m, dir := sample(t), t.TempDir()
	for name, b := range flavours(t, m) {
		rnd := rand.New(rand.NewPCG(5, 6))
		for range 150 {
			at := rnd.IntN(len(b))
			changed := bytes.Clone(b)
			changed[at] ^= 1 << rnd.IntN(8)
			img, err := open(t, changed, archive.Options{WantID: m.ID(), Scratch: dir})
			if err != nil {
				continue
			}
			layers, err := readAll(img)
			img.Close()
			if err != nil {
				continue
			}
			if !bytes.Equal(img.RawConfig, m.RawConfig()) || len(layers) != len(m.Layers) {
				t.Errorf("%s: a change at %d goes unnoticed", name, at)
			}
			for i := range layers {
				if !bytes.Equal(layers[i], m.Layers[i]) {
					t.Errorf("%s: a change at %d in layer %d goes unnoticed", name, at, i)
				}
			}
		}
	}
}

func TestLayerDigest(t *testing.T) {
	m := sample(t)
	for _, how := range []string{"", "gzip", "zstd"} {
		es := imagetest.Docker25(packed(m, how))
		for i, e := range es {
			if bytes.Equal(e.Body, imagetest.Pack(how, m.Layers[1])) {
				es[i].Body = imagetest.Pack(how, bytes.Replace(m.Layers[1], []byte("high"), []byte("hogh"), 1))
				es[i].Header.Size = int64(len(es[i].Body))
			}
		}
		img, err := open(t, Tar(t, es...), archive.Options{WantID: m.ID()})
		if err != nil {
			t.Fatal(err)
		}
		_, err = readAll(img)
		if !errors.Is(err, archive.ErrCorrupt) || !strings.Contains(err.Error(), "instead of "+m.DiffIDs()[1].String()) {
			t.Errorf("%q: %v", how, err)
		}
	}
}

// A tarball that cannot be read is not a damaged one.
func TestReadErrors(t *testing.T) {
	m := sample(t)
	ioErr := errors.New("keep: block not found")
	for name, b := range flavours(t, m) {
		for _, from := range []int64{0, 700, int64(len(b) / 2), int64(len(b) - 1500)} {
			r := failingAt{bytes.NewReader(b), from, ioErr}
			img, err := archive.Open(t.Context(), r, int64(len(b)), archive.Options{Scratch: t.TempDir()})
			if err == nil {
				_, err = readAll(img)
				img.Close()
			}
			if err != nil && !errors.Is(err, ioErr) || errors.Is(err, archive.ErrCorrupt) {
				t.Errorf("%s from %d: %v", name, from, err)
			}
		}
	}
}

type failingAt struct {
	r    io.ReaderAt
	from int64
	err  error
}

func (f failingAt) ReadAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > f.from {
		return 0, f.err
	}
	return f.r.ReadAt(p, off)
}

func TestStreamEndsWhereItIs(t *testing.T) {
	big := imagetest.Image{Layers: [][]byte{Tar(t, File("f", strings.Repeat("0123456789abcdef", 1<<20)))}}
	for _, how := range []string{"", "gzip", "zstd"} {
		img, err := open(t, Tar(t, imagetest.Docker25(packed(big, how))...), archive.Options{})
		if err != nil {
			t.Fatal(err)
		}
		// Goroutines that stay behind are found by goleak.
		s, err := img.Layers[0].Open(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(s, make([]byte, 1000)); err != nil {
			t.Fatal(err)
		}
		s.Close()
		s.Close()
		if _, err := s.Read(make([]byte, 1)); err == nil {
			t.Error("a closed stream can be read")
		}
		ctx, cancel := context.WithCancel(t.Context())
		s, err = img.Layers[0].Open(ctx, func(int) { cancel() })
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, s); !errors.Is(err, context.Canceled) {
			t.Errorf("%q, cancelled: %v", how, err)
		}
		s.Close()
	}
}
