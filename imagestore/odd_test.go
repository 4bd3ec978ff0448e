package imagestore

import (
	"os"
	"path/filepath"
	"testing"

	"crunch-oci/imagestore/internal/imagetest"
	. "crunch-oci/imagestore/internal/tartest"
	"crunch-oci/imagestore/internal/treetest"
)

// Layers that take back, hide again and change the kind of what lower ones have,
// compared with what umoci and the kernel make of them.
func TestLayersOverLayers(t *testing.T) {
	wh := func(name string) Entry { return File(name, "") }
	base := Tar(t,
		Dir("./"), Dir("d").Owner(1, 1), File("d/x", "1"), Dir("d/sub").Mode(0o700), File("d/sub/y", "1"),
		File("e", "a file"), Symlink("l", "d"), File("h1", "linked"), Link("h2", "h1"), Link("d/h3", "h1"),
		Dir("k"), File("k/keep", "1"), Dir("o"), File("o/low", "1"), Dir("o/low.d"), File("o/low.d/f", "1"), Fifo("p"), Dir("q"), Dir("q/r"), Dir("q/r/s"), Dir("q/r/s/t"), File("q/r/s/t/u", "1"),
	)
	// GNU tar has no way to hide and make the same name, nor for no archive at all.
	const sameLayer, nothing = "a directory comes back in the same layer", "nothing, between and above"
	for name, layers := range map[string][][]byte{
		"a directory comes back": {
			Tar(t, wh(".wh.d")), Tar(t, Dir("d").Owner(2, 2), File("d/z", "2")), Tar(t, wh("d/.wh.z")), Tar(t, wh(".wh.d")), Tar(t, Dir("d"), Dir("d/sub"), File("d/sub/new", "3")),
		},
		sameLayer:                                          {Tar(t, wh(".wh.d"), Dir("d").Owner(2, 2), File("d/z", "2")), Tar(t, Dir("d").Owner(3, 3), File("d/a", "2"))},
		"opaque before and after what is in it":            {Tar(t, Dir("o"), wh("o/.wh..wh..opq"), File("o/new", "1")), Tar(t, Dir("o"), File("o/newer", "1"), wh("o/.wh..wh..opq"))},
		"opaque, then a directory below comes back":        {Tar(t, Dir("o"), wh("o/.wh..wh..opq")), Tar(t, Dir("o"), Dir("o/low.d"), File("o/low.d/g", "1"))},
		"opaque below opaque":                              {Tar(t, Dir("q"), Dir("q/r"), wh("q/r/.wh..wh..opq"), Dir("q/r/s"), wh("q/r/s/.wh..wh..opq"), File("q/r/s/n", "1"))},
		"one name of a linked file is hidden":              {Tar(t, wh(".wh.h1")), Tar(t, File("h1", "another"))},
		"kinds change":                                     {Tar(t, Dir("e"), File("e/in", "1")), Tar(t, File("e", "again")), Tar(t, Symlink("e", "d")), Tar(t, Fifo("e")), Tar(t, Dir("e"), Dir("e/deep"), File("e/deep/er", "1"))},
		"a file in place of a directory, and back":         {Tar(t, File("k", "1")), Tar(t, Dir("k"), File("k/other", "1"))},
		"what is not there is hidden":                      {Tar(t, wh(".wh.nothing"), Dir("d"), wh("d/.wh.nothing"), wh("d/.wh.sub"))},
		"hidden deep down, and nothing else said":          {Tar(t, Dir("q"), Dir("q/r"), Dir("q/r/s"), Dir("q/r/s/t"), wh("q/r/s/t/.wh.u"))},
		"hidden, hidden again":                             {Tar(t, wh(".wh.q")), Tar(t, wh(".wh.q")), Tar(t, Dir("q"))},
		"only modes and owners":                            {Tar(t, Dir("d").Mode(0o1700).Owner(9, 9)), Tar(t, Dir("d").Mode(0o1700).Owner(9, 9), Dir("d/sub").Mode(0o2750))},
		nothing:                                            {nil, Tar(t), make([]byte, 512), make([]byte, 10240), nil, Tar(t, File("new", "1")), nil},
		"the same layer below and above what it hides":     {Tar(t, wh(".wh.d"), File("n", "1")), Tar(t, Dir("d"), File("d/v", "1")), Tar(t, wh(".wh.d"), File("n", "1"))},
		"a pipe is hidden and a directory is in its place": {Tar(t, wh(".wh.p"), Dir("p"), File("p/f", "1"))},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := imagetest.Image{Layers: append([][]byte{base}, layers...), Tags: []string{"localhost/odd:1"}}
			file := filepath.Join(shortDir(t), "image.tar")
			if err := os.WriteFile(file, Tar(t, imagetest.DockerLegacy(m, false)...), 0o600); err != nil {
				t.Fatal(err)
			}
			root := unpackedFile(t, file, m.ID())
			work := shortDir(t)
			run(t, work, "skopeo", "copy", "-q", "--dest-decompress", "docker-archive:"+file, "dir:image")
			if name != sameLayer && name != nothing {
				compare(t, "the kernel's overlay", byTheKernel(t, work), withoutRoot(list(t, root, treetest.Options{})))
			}
			compare(t, "umoci", byUmoci(t, work), withoutRoot(list(t, root, treetest.Options{IgnoreDirTimes: true})))
		})
	}
}
