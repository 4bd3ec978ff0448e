package main_test

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// layeredImage has in it what makes unpacking difficult: whiteouts, opaque
// directories, links, devices, attributes, names, and equal layers.
func layeredImage(t testing.TB) testImage {
	t.Helper()
	p, err := probe()
	if err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("long-name-", 20)
	lower := newLayer().dir("bin").
		add(tar.Header{Name: "bin/probe", Mode: 0o755}, string(p)).
		add(tar.Header{Name: "bin/probe-suid", Mode: 0o4755}, string(p)).
		add(tar.Header{Name: "bin/probe-cap", Mode: 0o755, PAXRecords: xattr("security.capability", fileCapability(capNetRaw))}, string(p)).
		add(tar.Header{Name: "data/", Typeflag: tar.TypeDir, Mode: 0o1777}, "").
		file("data/keep.txt", "kept\n").
		file("data/gone.txt", "must not be seen\n").
		file("data/replaced.txt", "old\n").
		dir("data/opaque").file("data/opaque/old.txt", "must not be seen\n").
		dir("data/opaque/sub").file("data/opaque/sub/x", "must not be seen\n").
		dir("data/whole").file("data/whole/x", "must not be seen\n").
		dir("data/dir-to-file").file("data/dir-to-file/x", "must not be seen\n").
		file("data/file-to-dir", "must not be seen\n").
		file("data/hard1", "linked\n").
		add(tar.Header{Name: "data/hard2", Typeflag: tar.TypeLink, Linkname: "data/hard1"}, "").
		file("data/split1", "linked at first\n").
		add(tar.Header{Name: "data/split2", Typeflag: tar.TypeLink, Linkname: "data/split1"}, "").
		add(tar.Header{Name: "data/link", Typeflag: tar.TypeSymlink, Linkname: "keep.txt"}, "").
		add(tar.Header{Name: "data/dangling", Typeflag: tar.TypeSymlink, Linkname: "/no/such/../file"}, "").
		add(tar.Header{Name: "data/owned", Uid: 1234, Gid: 5678, Mode: 0o2640}, "owned\n").
		add(tar.Header{Name: "data/attributes", PAXRecords: xattr("user.origin", "e2e\x00\xff")}, "").
		add(tar.Header{Name: "data/precise", ModTime: time.Unix(1700000000, 123456789)}, "").
		add(tar.Header{Name: "data/null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3, Mode: 0o666}, "").
		add(tar.Header{Name: "data/fifo", Typeflag: tar.TypeFifo}, "").
		file("data/"+long, "long\n").
		file("data/not\xffutf\xfe8", "bytes\n").
		file("data/ü \n", "odd\n")
	upper := newLayer().
		add(tar.Header{Name: "data/", Typeflag: tar.TypeDir, Mode: 0o1777}, "").
		file("data/.wh.gone.txt", "").
		file("data/.wh.whole", "").
		file("data/replaced.txt", "new\n").
		dir("data/opaque").file("data/opaque/.wh..wh..opq", "").file("data/opaque/new.txt", "new\n").
		file("data/dir-to-file", "file\n").
		dir("data/file-to-dir").file("data/file-to-dir/y", "below\n").
		file("data/split1", "alone\n")
	empty := newLayer().bytes() // as RUN true makes it; Docker has it many times
	return testImage{
		layers: [][]byte{busyboxLayer(t), lower.bytes(), empty, upper.bytes(), empty}, tag: "layered:latest",
		config: map[string]any{
			"Env": []string{"PATH=/bin", "FROM_IMAGE=yes"}, "WorkingDir": "/data",
			"Entrypoint": []string{"/bin/busybox", "env", "FROM_ENTRYPOINT=yes"},
		},
	}
}

func xattr(name, value string) map[string]string {
	return map[string]string{"SCHILY.xattr." + name: value}
}

const capNetRaw = 13 // capability.h

// fileCapability is an attribute that gives a program one effective capability
// (struct vfs_cap_data, revision 2).
func fileCapability(bit int) string {
	var b bytes.Buffer
	_ = binary.Write(&b, binary.LittleEndian, []uint32{0x02000001, 1 << bit, 0, 0, 0})
	return b.String()
}

// inspect is what is run in a container of the image: it prints all there is to
// know about /data, and who the special programs run as.
const inspect = `probe tree /data && probe as 1000 probe-suid self && probe as 1000 probe-cap self && echo $FROM_IMAGE $FROM_ENTRYPOINT`

// goldenInspection is what inspect must print, whoever packed the image.
func goldenInspection(t testing.TB) string {
	t.Helper()
	return readFile(t, "testdata/inspection.txt")
}

// tool runs a program of Debian's.
func tool(t testing.TB, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(name, args...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, out)
	}
}

// TestImagesOfEveryTool runs one image as each of the tools in use packs it. All
// containers must see exactly the same.
func TestImagesOfEveryTool(t *testing.T) {
	t.Parallel()
	m := layeredImage(t)
	dir := t.TempDir()
	saved := filepath.Join(dir, "saved.tar")
	if err := os.WriteFile(saved, m.dockerSave(), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, pack := range map[string]func(t *testing.T, out string){
		"docker save until 24": func(t *testing.T, out string) { writeFile(t, out, m.dockerSave()) },
		"docker save since 25": func(t *testing.T, out string) { writeFile(t, out, m.dockerSave25()) },
		"gzip":                 func(t *testing.T, out string) { writeFile(t, out, gzipped(t, m.dockerSave())) },
		"zstd":                 func(t *testing.T, out string) { writeFile(t, out, zstded(t, m.dockerSave25())) },
		"skopeo docker-archive": func(t *testing.T, out string) {
			tool(t, "skopeo", "--insecure-policy", "copy", "-q", "docker-archive:"+saved, "docker-archive:"+out+":layered:latest")
		},
		"skopeo oci-archive": func(t *testing.T, out string) {
			tool(t, "skopeo", "--insecure-policy", "copy", "-q", "docker-archive:"+saved, "oci-archive:"+out+":latest")
		},
		"podman docker-archive": func(t *testing.T, out string) { podmanSave(t, saved, "docker-archive", out) },
		"podman oci-archive":    func(t *testing.T, out string) { podmanSave(t, saved, "oci-archive", out) },
		"OCI layout in a tar": func(t *testing.T, out string) {
			layout := filepath.Join(t.TempDir(), "layout")
			tool(t, "skopeo", "--insecure-policy", "copy", "-q", "docker-archive:"+saved, "oci:"+layout+":latest")
			tool(t, "tar", "-C", layout, "-cf", out, ".")
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t)
			tarball := filepath.Join(t.TempDir(), "image.tar")
			pack(t, tarball)
			res := n.local(t, "--image", tarball, "--", "sh", "-c", inspect)
			if want := goldenInspection(t); res.stdout != want {
				t.Errorf("the container sees\n%s\nwant\n%s", res.stdout, want)
			}
		})
	}
}

func writeFile(t testing.TB, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
}

func gzipped(t testing.TB, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	mustCompress(t, w, data)
	return b.Bytes()
}

func zstded(t testing.TB, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := zstd.NewWriter(&b, zstd.WithEncoderLevel(zstd.SpeedFastest))
	if err != nil {
		t.Fatal(err)
	}
	mustCompress(t, w, data)
	return b.Bytes()
}

func mustCompress(t testing.TB, w io.WriteCloser, data []byte) {
	t.Helper()
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

// podmanSave loads an image into podman, with a store of its own, and saves it.
func podmanSave(t testing.TB, saved, format, out string) {
	t.Helper()
	podman(t, [][]string{
		{"load", "-q", "-i", saved},
		{"save", "-q", "--format", format, "-o", out, "localhost/layered:latest"},
	})
}

// podman runs podman commands with a store that is removed afterwards.
func podman(t testing.TB, commands [][]string) {
	t.Helper()
	// It takes no directories with long names.
	dir, err := os.MkdirTemp("", "pod")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	for _, c := range commands {
		tool(t, "podman", append([]string{
			"--root", filepath.Join(dir, "root"), "--runroot", filepath.Join(dir, "runroot"), "--tmpdir", filepath.Join(dir, "tmp"),
			"--storage-driver", "vfs", "--events-backend", "none",
		}, c...)...)
	}
}

// TestAgainstUmoci lets umoci unpack an image, change it, and pack the changes
// as a layer, and compares our container with umoci's root file system.
func TestAgainstUmoci(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	dir := t.TempDir()
	saved, layout, bundle := filepath.Join(dir, "saved.tar"), filepath.Join(dir, "layout"), filepath.Join(dir, "bundle")
	writeFile(t, saved, layeredImage(t).dockerSave())
	tool(t, "skopeo", "--insecure-policy", "copy", "-q", "docker-archive:"+saved, "oci:"+layout+":latest")
	tool(t, "umoci", "unpack", "--image", layout+":latest", bundle)
	rootfs := filepath.Join(bundle, "rootfs")
	if got, want := comparable(inspectByHand(t, rootfs)), comparable(treeOf(goldenInspection(t))); got != want {
		t.Errorf("umoci unpacks the image to\n%s\nwant\n%s", got, want)
	}
	tool(t, "sh", "-c", `set -e; cd "$0/data"
		rm keep.txt hard2; rm -r opaque; mkdir opaque; echo reborn > opaque/again.txt
		mv owned moved; chmod 04711 moved; setfattr -n user.later -v yes moved; ln replaced.txt hard3; ln -sfn nowhere link
		mkfifo fifo2; mknod block b 7 77; touch -d 2001-02-03T04:05:06 precise; chown -h 5:6 dangling
		find . -newermt 2024-06-01 -exec touch -h -d 2022-02-02T02:02:02 {} +`, rootfs)
	tool(t, "umoci", "repack", "--image", layout+":latest", bundle)
	tarball := filepath.Join(dir, "image.tar")
	tool(t, "tar", "-C", layout, "-cf", tarball, ".")

	res := n.local(t, "--image", tarball, "--", "probe", "tree", "/data")
	if got, want := comparable(res.stdout), comparable(inspectByHand(t, rootfs)); got != want {
		t.Errorf("the container sees\n%s\numoci sees\n%s", got, want)
	}
}

// inspectByHand looks at a root file system with no more than chroot.
func inspectByHand(t testing.TB, rootfs string) string {
	t.Helper()
	cmd := exec.Command("/bin/probe", "tree", "/data")
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: rootfs}
	cmd.Dir = "/"
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("probe in %s: %v\n%s", rootfs, err, out)
	}
	return string(out)
}

// treeOf leaves the lines about files.
func treeOf(inspection string) string {
	var b strings.Builder
	for line := range strings.Lines(inspection) {
		if strings.HasPrefix(line, `"/data`) {
			b.WriteString(line)
		}
	}
	return b.String()
}

var unlike = regexp.MustCompile(` mtime=\d+(\.\d+)| nlink=\d+`)

// comparable takes out what differs for a reason: layers written by these tools
// keep whole seconds only, and in an overlay a file with a link that an upper
// layer has replaced still counts two links.
func comparable(text string) string {
	return unlike.ReplaceAllStringFunc(text, func(s string) string {
		seconds, _, _ := strings.Cut(s, ".")
		if strings.HasPrefix(s, " nlink") {
			return ""
		}
		return seconds
	})
}

// TestPodmanBuild runs what podman builds from a Containerfile on top of an
// image, and compares with the root file system that podman mounts.
func TestPodmanBuild(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	dir := t.TempDir()
	saved, tarball, expect := filepath.Join(dir, "saved.tar"), filepath.Join(dir, "image.tar"), filepath.Join(dir, "expect")
	writeFile(t, saved, layeredImage(t).dockerSave())
	writeFile(t, filepath.Join(dir, "added.txt"), []byte("added\n"))
	writeFile(t, filepath.Join(dir, "Containerfile"), []byte(`FROM docker-archive:`+saved+`
ENTRYPOINT []
COPY --chown=11:22 added.txt /data/new/dir/added.txt
ENV GREETING="hello there"
RUN ["/bin/busybox", "sh", "-c", "cd /data && rm -r opaque keep.txt && mkdir opaque && echo built > opaque/built.txt && chmod 4755 hard1"]
WORKDIR /data/new
`))
	podman(t, [][]string{
		{"build", "-q", "--isolation", "chroot", "-t", "built", "--layers", "-f", filepath.Join(dir, "Containerfile"), dir},
		{"save", "-q", "-o", tarball, "localhost/built:latest"},
		{"create", "-q", "--name", "expected", "--network", "none", "localhost/built:latest", "true"},
		{"export", "-o", expect, "expected"},
	})
	rootfs := filepath.Join(dir, "rootfs")
	if err := os.Mkdir(rootfs, 0o755); err != nil {
		t.Fatal(err)
	}
	tool(t, "tar", "-C", rootfs, "--xattrs", "--xattrs-include=*", "-xf", expect)
	res := n.local(t, "--image", tarball, "--", "sh", "-c", "probe tree /data; echo $GREETING")
	if got, want := comparable(res.stdout), comparable(inspectByHand(t, rootfs))+"hello there\n"; got != want {
		t.Errorf("the container sees\n%s\npodman has\n%s", got, want)
	}
}
