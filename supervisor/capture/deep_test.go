package capture

import (
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"crunch-oci/arvados"
)

// A program that nests directories deeper than any name can be long gets its
// output, and soon: each level costs what the others do.
func TestDeepOutput(t *testing.T) {
	dir := t.TempDir()
	deepen(t, dir, 2500)
	got := capture(t, Config{
		Mounts:     map[string]arvados.Mount{"/out": {Kind: "tmp"}},
		OutputPath: "/out", HostDir: dir,
	})
	if got.err != nil {
		t.Fatal(got.err)
	}
	if n := strings.Count(got.manifest, "\n"); n != 2500 {
		t.Errorf("%d directories with files, want 2500", n)
	}
}

// deepen nests n directories below dir, with a file in each.
func deepen(t testing.TB, dir string, n int) {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	for range n {
		if err := unix.Mkdirat(fd, "dir", 0o755); err != nil {
			t.Fatal(err)
		}
		next, err := unix.Openat(fd, "dir", unix.O_DIRECTORY, 0)
		unix.Close(fd)
		if err != nil {
			t.Fatal(err)
		}
		fd = next
		f, err := unix.Openat(fd, "f", unix.O_CREAT|unix.O_WRONLY, 0o644)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := unix.Write(f, []byte("x")); err != nil {
			t.Fatal(err)
		}
		unix.Close(f)
	}
	unix.Close(fd)
}
