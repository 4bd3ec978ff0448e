package imagestore

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"crunch-oci/imagestore/archive"
	"crunch-oci/imagestore/internal/imagetest"
	. "crunch-oci/imagestore/internal/tartest"

	"golang.org/x/sys/unix"
)

// A disk that is said to be full makes the node a broken one, and the container
// goes to the next. An image that no node can take must not be called that.
func TestBadImageIsNoFullDisk(t *testing.T) {
	claim := func(size int64) []byte {
		var buf bytes.Buffer
		if err := tar.NewWriter(&buf).WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "a", Size: size, Mode: 0o644}); err != nil {
			t.Fatal(err)
		}
		buf.WriteString(strings.Repeat("abc", 1000))
		return buf.Bytes()
	}
	sparse := func(size int64) []byte {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "big"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(filepath.Join(dir, "big"), size); err != nil {
			t.Skip(err)
		}
		b, err := exec.Command("tar", "-c", "-S", "--format=posix", "-C", dir, "big").Output()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	again := func(size, n int) imagetest.Image {
		m := imagetest.Image{Layers: [][]byte{Tar(t, File("a", strings.Repeat("x", size)))}}
		for i := range n {
			m.Layers = append(m.Layers, Tar(t, File(fmt.Sprint(i), "")))
		}
		return m
	}
	for _, tt := range []struct {
		name string
		m    imagetest.Image
		want error
		text string
	}{
		{"a file of 10^14 bytes that are not there", imagetest.Image{Layers: [][]byte{claim(99999999999999)}}, ErrMalformed, "a: malformed layer: it ends in the middle of a file"},
		{"the same compressed", imagetest.Image{Layers: [][]byte{claim(99999999999999)}, Compress: "gzip"}, ErrMalformed, "a: malformed layer: it ends in the middle of a file"},
		{"a sparse file of 2 TiB", imagetest.Image{Layers: [][]byte{sparse(2 << 40)}}, ErrLimit, "big: layer exceeds the limit of 1099511627776 bytes in sparse files"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root := smallFS(t, "size=16m")
			s := openStore(t, filepath.Join(root, "store"))
			b := Tar(t, imagetest.Docker25(tt.m)...)
			_, err := s.Unpack(t.Context(), Key{ID: tt.m.ID()}, opener(b, archive.Options{WantID: tt.m.ID()}), nil)
			if !errors.Is(err, tt.want) || errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), tt.text) || strings.Contains(err.Error(), "no space left") {
				t.Errorf("error %v\nwant %s", err, tt.text)
			}
			checkTidy(t, filepath.Join(root, "store"))
		})
	}
	t.Run("one layer under many ids", func(t *testing.T) {
		root := smallFS(t, "size=16m")
		s := openStore(t, filepath.Join(root, "store"))
		m := again(3<<20, 20)
		img, err := opener(Tar(t, imagetest.Docker25(m)...), archive.Options{WantID: m.ID()})(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer img.Close()
		for i, l := range img.Layers {
			id := l.DiffID
			img.Layers[i] = img.Layers[0]
			img.Layers[i].DiffID = id
		}
		if err := s.roomFor(t.Context(), img.Layers, &meter{}); err != nil {
			t.Error(err)
		}
	})
}

// Entries that replace one another need one inode, however many there are.
func TestReplacedEntriesNeedNoRoom(t *testing.T) {
	root := smallFS(t, "size=4m,nr_inodes=200")
	s := openStore(t, filepath.Join(root, "store"))
	var es []Entry
	for range 1000 {
		es = append(es, File("same", "x"))
	}
	unpack(t, s, imagetest.Image{Layers: [][]byte{Tar(t, es...)}})
}

// The store and the container's upper directory may lie on file systems of
// different kinds: what one holds in a directory's attributes, the other may not.
func TestMetadataThatTheOtherFileSystemCannotHold(t *testing.T) {
	src, dst := smallFS(t, "size=4m"), t.TempDir()
	var st unix.Statfs_t
	if err := unix.Statfs(dst, &st); err != nil || st.Type != unix.EXT4_SUPER_MAGIC {
		t.Skipf("the temporary directory is not on ext4 (%v)", err)
	}
	if err := unix.Lsetxattr(src, "trusted.big", make([]byte, 60_000), 0); err != nil {
		t.Skip(err)
	}
	err := copyMetadata(src, dst, 0)
	if err == nil {
		t.Skip("this ext4 keeps large attributes in inodes of their own")
	}
	if !errors.Is(err, ErrLimit) || errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "trusted.big (60000 bytes) does not fit") {
		t.Errorf("error %v", err)
	}
}
