package layer_test

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	. "crunch-oci/imagestore/internal/tartest"
	"crunch-oci/imagestore/internal/treetest"
	"crunch-oci/imagestore/layer"
)

// rawHeader is a header of POSIX.1-1988 that no writer checks.
func rawHeader(kind byte, name string, size int) []byte {
	b := make([]byte, 512)
	copy(b, name)
	copy(b[100:], "0000644\x000000000\x000000000\x00")
	copy(b[124:], fmt.Sprintf("%011o\x00%011o\x00        ", size, Epoch.Unix()))
	b[156] = kind
	copy(b[257:], "ustar\x0000")
	sum := 0
	for _, c := range b {
		sum += int(c)
	}
	copy(b[148:], fmt.Sprintf("%06o\x00 ", sum))
	return b
}

// extended is a file f of four bytes with an extension header of the given kind.
func extended(kind byte, data string) []Entry {
	block := func(s string) []byte { return append([]byte(s), make([]byte, (512-len(s)%512)%512)...) }
	return []Entry{Raw(slices.Concat(rawHeader(kind, "extension", len(data)), block(data), rawHeader('0', "f", 4), block("body")))}
}

// records are PAX records: the length of each, itself included, comes first.
func records(all ...string) (data string) {
	for _, r := range all {
		n := len(r) + 2
		for n != len(r)+2+len(fmt.Sprint(n)) {
			n++
		}
		data += fmt.Sprintf("%d %s\n", n, r)
	}
	return data
}

// What extension headers say counts, and is trusted no more than the header
// itself. Some of it no writer would write.
func TestExtensionHeaders(t *testing.T) {
	sparse := []string{"GNU.sparse.size=100", "GNU.sparse.numblocks=1", "GNU.sparse.map=50,4"}
	for _, tt := range []struct {
		name string
		es   []Entry
		want string // kind, owner, time, size of the only file; or
		err  error
	}{
		{"name", extended('x', records("path=first", "path=second")), "second 0:0 " + fmt.Sprint(Epoch.Unix()) + ".000000000 4", nil},
		{"name above the root", extended('x', records("path=../x")), "", layer.ErrEscape},
		{"long name above the root", extended('L', "a/../../x\x00"), "", layer.ErrEscape},
		{"name of a sparse file above the root", extended('x', records(append(sparse, "GNU.sparse.name=../../x")...)), "", layer.ErrEscape},
		{"name with a zero byte", extended('x', records("path=a\x00b")), "", layer.ErrMalformed},
		{"a global name is nobody's", extended('g', records("path=global")), "f 0:0 " + fmt.Sprint(Epoch.Unix()) + ".000000000 4", nil},
		{"time before 1970", extended('x', records("mtime=-1.25")), "f 0:0 -2.750000000 4", nil}, // as the kernel keeps it: -2 s + 0.75 s
		{"time with more digits than the kernel has", extended('x', records("mtime=1.1234567891")), "f 0:0 1.123456789 4", nil},
		{"time beyond all times", extended('x', records("mtime=99999999999999999999")), "", layer.ErrMalformed},
		{"large group", extended('x', records("gid=2147483648")), "f 0:2147483648 " + fmt.Sprint(Epoch.Unix()) + ".000000000 4", nil},
		{"negative owner", extended('x', records("uid=-1")), "", layer.ErrMalformed},
		{"owner beyond Linux", extended('x', records("uid=4294967296")), "", layer.ErrMalformed},
		{"negative size", extended('x', records("size=-1")), "", layer.ErrMalformed},
		{"size beyond the stream", extended('x', records("size=9223372036854775807")), "", layer.ErrMalformed},
		{"sparse", extended('x', records(sparse...)), "f 0:0 " + fmt.Sprint(Epoch.Unix()) + ".000000000 100", nil},
		{"sparse, pieces beyond the end", extended('x', records("GNU.sparse.size=3", "GNU.sparse.numblocks=1", "GNU.sparse.map=0,4")), "", layer.ErrMalformed},
		{"sparse, pieces that overlap", extended('x', records("GNU.sparse.size=100", "GNU.sparse.numblocks=2", "GNU.sparse.map=0,2,1,2")), "", layer.ErrMalformed},
		{"sparse, without its map", extended('x', records("GNU.sparse.major=1", "GNU.sparse.minor=0", "GNU.sparse.realsize=100", "GNU.sparse.name=s")), "", layer.ErrMalformed},
		{"sparse, exabytes", extended('x', records("GNU.sparse.size=9223372036854775807", "GNU.sparse.numblocks=1", "GNU.sparse.map=0,4")), "", layer.ErrLimit},
		{"attribute with a zero byte in its name", extended('x', records("SCHILY.xattr.trusted.overlay.opaque\x00=y")), "", layer.ErrMalformed},
		{"record of no length", extended('x', "0 path=a\n"), "", layer.ErrMalformed},
		{"record of negative length", extended('x', "-9 path=a\n"), "", layer.ErrMalformed},
		{"record without its end", extended('x', "10 path=ab"), "", layer.ErrMalformed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			_, err := layer.Extract(t.Context(), bytes.NewReader(Tar(t, tt.es...)), dir, layer.Options{})
			if tt.err != nil || err != nil {
				if tt.err == nil || !errors.Is(err, tt.err) {
					t.Errorf("%v, want %v", err, tt.err)
				}
				return
			}
			tree, err := treetest.List(dir, treetest.Options{})
			if err != nil {
				t.Fatal(err)
			}
			delete(tree, ".")
			for name, text := range tree {
				f := strings.Fields(text) // file, mode, owner, time, size, hash
				if got := strings.Join(append([]string{name}, f[2:5]...), " "); got != tt.want || len(tree) != 1 {
					t.Errorf("%q of %q, want %q", got, tree, tt.want)
				}
			}
		})
	}
}
