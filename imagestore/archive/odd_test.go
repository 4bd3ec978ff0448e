package archive_test

import (
	"bytes"
	"compress/gzip"
	"errors"
	"strings"
	"testing"

	"crunch-oci/imagestore/archive"
	"crunch-oci/imagestore/internal/imagetest"
	. "crunch-oci/imagestore/internal/tartest"
)

// Compressed data comes in members and frames, some of which hold nothing; what
// is no such thing is an error, and none asks for more memory than there is.
func TestOddCompression(t *testing.T) {
	m := sample(t)
	layer := m.Layers[1]
	half := len(layer) / 2
	gz := func(b []byte) []byte { return imagetest.Pack("gzip", b) }
	zs := func(b []byte) []byte { return imagetest.Pack("zstd", b) }
	named := func(b []byte) []byte {
		var out bytes.Buffer
		w := gzip.NewWriter(&out)
		w.Name, w.Comment, w.Extra = "layer.tar", "a comment", []byte("SG\x00\x00")
		if _, err := w.Write(b); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return out.Bytes()
	}
	skippable := []byte("\x5f\x2a\x4d\x18\x05\x00\x00\x00hello")
	first := []byte("\x50\x2a\x4d\x18\x00\x00\x00\x00")
	// RFC 8878, 3.1.1: magic number, frame header, one empty block.
	frame := func(header ...byte) []byte {
		return append(append([]byte("\x28\xb5\x2f\xfd"), header...), 1, 0, 0)
	}
	for _, tt := range []struct {
		name string
		data [][]byte
		err  error // nil: the layer
		says string
	}{
		{"gzip members", [][]byte{gz(layer[:half]), gz(nil), named(layer[half:]), gz(nil)}, nil, ""},
		{"gzip, zeros behind", [][]byte{gz(layer), make([]byte, 1024)}, archive.ErrCorrupt, "invalid header"},
		{"gzip, garbage behind", [][]byte{gz(layer), []byte("garbage of more than a header")}, archive.ErrCorrupt, "invalid header"},
		{"gzip, half a member behind", [][]byte{gz(layer), gz(layer)[:20]}, archive.ErrCorrupt, "cut off"},
		{"gzip of gzip", [][]byte{gz(gz(layer))}, archive.ErrCorrupt, "has the digest"},
		{"zstd frames", [][]byte{zs(layer[:half]), zs(layer[half:])}, nil, ""},
		{"zstd, skippable frames around", [][]byte{first, skippable, zs(layer[:half]), skippable, zs(layer[half:]), skippable}, nil, ""},
		{"zstd, only a skippable frame", [][]byte{first}, archive.ErrCorrupt, "has the digest"},
		{"zstd, a skippable frame of 4 GiB", [][]byte{zs(layer), []byte("\x50\x2a\x4d\x18\xff\xff\xff\xffhello")}, archive.ErrCorrupt, "cut off"},
		{"zstd, garbage behind", [][]byte{zs(layer), []byte("garbage")}, archive.ErrCorrupt, "zstd data"},
		{"zstd, window of 128 MiB", [][]byte{frame(0, 17<<3), zs(layer)}, nil, ""},
		{"zstd, window of 256 MiB", [][]byte{frame(0, 18<<3), zs(layer)}, archive.ErrUnsupported, "more than 128 MiB of memory"},
		{"zstd, window of 2 TiB", [][]byte{frame(0, 31<<3), zs(layer)}, archive.ErrUnsupported, "more than 128 MiB of memory"},
		{"zstd, with a dictionary", [][]byte{frame(1, 9<<3, 7), zs(layer)}, archive.ErrUnsupported, "dictionary"},
		{"zstd, a promise of exabytes", [][]byte{frame(0xe0, 0, 0, 0, 0, 0, 0, 0, 0x40)}, archive.ErrCorrupt, "zstd data"},
		{"beginnings", [][]byte{{0x1f, 0x8b}}, archive.ErrCorrupt, "cut off"},
	} {
		es := imagetest.Docker25(m)
		for i, e := range es {
			if bytes.Equal(e.Body, layer) {
				es[i].Body = bytes.Join(tt.data, nil)
				es[i].Header.Size = int64(len(es[i].Body))
			}
		}
		img, err := open(t, Tar(t, es...), archive.Options{WantID: m.ID()})
		if err != nil {
			t.Fatal(err)
		}
		layers, err := readAll(img)
		if tt.err == nil {
			if err != nil || !bytes.Equal(layers[1], layer) {
				t.Errorf("%s: %v, or another layer", tt.name, err)
			}
		} else if !errors.Is(err, tt.err) || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.says)
		}
	}
}
