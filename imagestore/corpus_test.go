package imagestore

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"crunch-oci/imagestore/internal/imagetest"
	. "crunch-oci/imagestore/internal/tartest"
	"crunch-oci/imagestore/internal/treetest"

	legacy "github.com/google/go-containerregistry/pkg/legacy/tarball"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// TestCorpus unpacks what the programs write with which people make and move
// images, and compares the result entry by entry (type, mode, owner, time,
// extended attributes, content, links) with what umoci and the kernel make of
// the same tarball. Each image is made here and now, from content that is odd
// in every way known, or by changing such content in the program's own way.
func TestCorpus(t *testing.T) {
	plain, odd := newCorpus(t, false), newCorpus(t, true)
	for _, tt := range []struct {
		name  string
		short bool // also without IMAGESTORE_TEST_LONG
		make  func(*testing.T, *corpus, string) sample
	}{
		{"skopeo, docker-archive", true, skopeoTo("docker-archive:%s:" + corpusTag)},
		{"skopeo, oci-archive, gzip", false, skopeoTo("oci-archive:%s:v1")},
		{"skopeo, oci-archive, zstd", true, skopeoTo("oci-archive:%s:v1", "--dest-compress-format", "zstd")},
		{"skopeo, docker-archive, gzip around it", false, wrapped("gzip")},
		{"skopeo, docker-archive, zstd around it", false, wrapped("zstd")},
		{"skopeo, layers of GNU tar --sparse and git archive", true, sparseLayers},
		{"umoci repack, tar of the layout", true, umociRepack},
		{"umoci raw add-layer, tar of the layout", false, umociAddLayer},
		{"podman load, save", true, podman("load -q -i %[1]s", "save -q -o %[2]s "+corpusTag, "docker-archive:%s")},
		{"podman load, save as oci-archive", false, podman("load -q -i %[1]s", "save -q --format oci-archive -o %[2]s "+corpusTag, "oci-archive:%s")},
		{"podman load, save of two images", true, podmanTwo},
		{"podman load, build, save", true, podmanBuild},
		{"buildah commit to docker-archive", true, buildah("docker-archive:%s:" + corpusTag)},
		{"buildah commit to oci-archive", false, buildah("oci-archive:%s:v1")},
		{"buildah commit, squashed", false, buildah("docker-archive:%s:"+corpusTag, "--squash")},
		{"docker load, save", true, docker("", corpusTag)},
		{"docker load, save of two tags", false, docker("tag "+corpusTag+" other/name:v2", corpusTag, "other/name:v2")},
		{"docker create, cp, commit, save", true, docker("commit", "committed:1")},
		{"containerd export, plain layers", false, containerd("")},
		{"containerd export, gzip", true, containerd("gzip")},
		{"containerd export, zstd", false, containerd("zstd")},
		{"kaniko and crane pull", true, goContainerRegistry(writeTarball, tarball.WithCompressionLevel(6))},
		//lint:ignore SA1019 people have such layers, whatever becomes of the option
		{"crane pull, eStargz layers", true, goContainerRegistry(writeTarball, tarball.WithEstargz)},
		{"crane pull --format legacy", true, goContainerRegistry(writeLegacy)},
		{"crane pull --format oci, and rules_oci", false, goContainerRegistry(writeLayout)},
		{"rules_docker, by its description", true, described(imagetest.Bazel)},
		{"docker 1.9, by its description", true, described(imagetest.DockerV1)},
		{"docker 25 with zstd, by its description", false, described(func(m imagetest.Image) []Entry { m.Compress = "zstd"; return imagetest.Docker25(m) })},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if !tt.short && os.Getenv("IMAGESTORE_TEST_LONG") == "" {
				t.Skip("only with IMAGESTORE_TEST_LONG=1 (make soak)")
			}
			t.Parallel()
			c := odd
			for _, storage := range []string{"podman", "buildah", "docker ", "crane pull, eStargz"} {
				if strings.HasPrefix(tt.name, storage) {
					c = plain // they refuse, or cannot keep, a name that comes twice
				}
			}
			s := tt.make(t, c, filepath.Join(shortDir(t), "image.tar"))
			root := unpackedFile(t, s.file, s.wantID)
			work := shortDir(t)
			run(t, work, "skopeo", "copy", "-q", "--dest-decompress", s.transport, "dir:image")
			ours := withoutRoot(list(t, root, treetest.Options{}))
			if len(ours) < s.atLeast {
				t.Errorf("the image has only %d entries: the test shows nothing", len(ours))
			}
			if !s.notKernel {
				compare(t, "the kernel's overlay", byTheKernel(t, work), ours)
			}
			if !s.notUmoci {
				compare(t, "umoci", byUmoci(t, work), withoutRoot(list(t, root, treetest.Options{IgnoreDirTimes: true})))
			}
		})
	}
}

// sample is one image of the corpus.
type sample struct {
	file      string
	wantID    string
	transport string // the file, as skopeo wants it named
	atLeast   int    // entries
	notUmoci  bool   // umoci cannot read it
	notKernel bool   // GNU tar cannot extract it
}

const corpusTag = "localhost/corpus:base"

// corpus is what the images are made from: the same content for all.
type corpus struct {
	m    imagetest.Image
	base string // a tarball as docker 24 writes it
}

// newCorpus makes the content; odd adds what several programs do not take.
func newCorpus(t *testing.T, odd bool) *corpus {
	t.Helper()
	layers, _ := randomLayers(t, 200, 3, false)
	layers = append([][]byte{oddities(t), Tar(t), byGNUtar(t, "posix", false), Tar(t, Dir("dup"), File("dup/f", "x"))}, layers...)
	if odd {
		layers = append(layers, twice(t), byGNUtar(t, "gnu", false))
	}
	layers = append(layers, later(t), layers[3])
	c := &corpus{m: imagetest.Image{Layers: layers, Tags: []string{corpusTag},
		Config: ocispec.ImageConfig{Env: []string{"PATH=/bin"}, Cmd: []string{"/bin/sh"}}}}
	c.base = filepath.Join(shortDir(t), "base.tar")
	c.write(t, c.base, imagetest.DockerLegacy(c.m, false))
	return c
}

func (c *corpus) write(t *testing.T, file string, entries []Entry) {
	t.Helper()
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := Write(f, entries...); err != nil {
		t.Fatal(err)
	}
}

// change is what a build step does to the root directory: it removes, replaces,
// links and adds.
const change = `
	rm -rf zoo/links/b zoo/modes; mkdir zoo/modes; chmod 2750 zoo/modes; echo x >zoo/modes/new
	rm -f 'zoo/sizes/512' zoo/xattrs/user; rm -rf zoo/old; echo file >zoo/old
	ln zoo/xattrs/ping zoo/modes/ping; ln -s ping zoo/modes/link
	chmod 0640 zoo/xattrs/trusted; chown 11:12 zoo/xattrs/ping
	setcap cap_net_bind_service=+p zoo/xattrs/ping; setfattr -n user.new -v 1 zoo/names
	mv zoo/names/-rf zoo/moved; mknod zoo/modes/zero c 1 5; mkfifo zoo/modes/p
	mkdir -p new/deeper; truncate -s 5M new/hole; touch -d @1500000000.5 new/deeper; find new -exec chown -h 99:98 {} +`

func skopeoTo(dest string, args ...string) func(*testing.T, *corpus, string) sample {
	return func(t *testing.T, c *corpus, file string) sample {
		run(t, "/", append(append([]string{"skopeo", "copy", "-q"}, args...), "docker-archive:"+c.base, fmt.Sprintf(dest, file))...)
		transport, _, _ := strings.Cut(dest, ":")
		return sample{file: file, transport: transport + ":" + file, atLeast: 140}
	}
}

func sparseLayers(t *testing.T, c *corpus, file string) sample {
	m := imagetest.Image{Layers: [][]byte{byGNUtar(t, "gnu", true), byGNUtar(t, "posix", true), withGlobalHeader(t), c.m.Layers[0]}, Tags: c.m.Tags}
	c.write(t, file+".in", imagetest.DockerLegacy(m, false))
	run(t, "/", "skopeo", "copy", "-q", "docker-archive:"+file+".in", "docker-archive:"+file+":"+corpusTag)
	return sample{file: file, transport: "docker-archive:" + file, atLeast: 100, notUmoci: true}
}

func wrapped(program string) func(*testing.T, *corpus, string) sample {
	return func(t *testing.T, c *corpus, file string) sample {
		run(t, "/", "skopeo", "copy", "-q", "docker-archive:"+c.base, "docker-archive:"+file+":"+corpusTag)
		run(t, "/", "sh", "-ec", program+` -q -c "$1" >"$1.packed" || `+program+` -c "$1" >"$1.packed"`, "sh", file)
		return sample{file: file + ".packed", wantID: c.m.ID(), transport: "docker-archive:" + file, atLeast: 140}
	}
}

// ociDir makes an OCI layout of the base image beside file.
func ociDir(t *testing.T, c *corpus, file string) string {
	dir := filepath.Join(filepath.Dir(file), "oci")
	run(t, "/", "skopeo", "copy", "-q", "docker-archive:"+c.base, "oci:"+dir+":v1")
	return dir
}

func tarOf(t *testing.T, dir, file string) {
	run(t, dir, "tar", "-cf", file, ".")
}

// umociRepack: umoci lists, as whiteouts, what was in a directory that became a
// file, which GNU tar cannot extract.
func umociRepack(t *testing.T, c *corpus, file string) sample {
	dir := ociDir(t, c, file)
	work := filepath.Dir(file)
	run(t, work, "umoci", "unpack", "--image", "oci:v1", "bundle")
	run(t, filepath.Join(work, "bundle/rootfs"), "sh", "-ec", change)
	run(t, work, "umoci", "repack", "--image", "oci:v2", "bundle")
	run(t, work, "umoci", "rm", "--image", "oci:v1")
	tarOf(t, dir, file)
	return sample{file: file, transport: "oci:" + dir + ":v2", atLeast: 140, notKernel: true}
}

func umociAddLayer(t *testing.T, c *corpus, file string) sample {
	dir := ociDir(t, c, file)
	work := filepath.Dir(file)
	if err := os.WriteFile(filepath.Join(work, "layer.tar"), byGNUtar(t, "gnu", false), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, work, "umoci", "raw", "add-layer", "--image", "oci:v1", "layer.tar")
	tarOf(t, dir, file)
	return sample{file: file, transport: "oci:" + dir + ":v1", atLeast: 160}
}

// podmanHere is podman with a storage of its own, in a mount namespace of its
// own, so that it leaves no mounts.
func podmanHere(t testing.TB, dir string) []string {
	need(t, "podman", "runc")
	return []string{"unshare", "-m", "podman", "--root", dir + "/root", "--runroot", dir + "/run", "--tmpdir", dir + "/tmp",
		"--cgroup-manager", "cgroupfs", "--runtime", "runc", "--events-backend", "none", "--storage-driver", "overlay"}
}

func podman(load, save, transport string) func(*testing.T, *corpus, string) sample {
	return func(t *testing.T, c *corpus, file string) sample {
		p := podmanHere(t, shortDir(t))
		for _, line := range []string{load, save} {
			run(t, "/", append(p, strings.Fields(fmt.Sprintf(line+"%.0[1]s%.0[2]s", c.base, file))...)...)
		}
		s := sample{file: file, transport: fmt.Sprintf(transport, file), atLeast: 140}
		if strings.HasPrefix(transport, "docker") { // the other has a new configuration
			s.wantID = c.m.ID()
		}
		return s
	}
}

// podmanTwo saves two images into one tarball: the id says which.
func podmanTwo(t *testing.T, c *corpus, file string) sample {
	p := podmanHere(t, shortDir(t))
	other := imagetest.Image{Layers: [][]byte{Tar(t, File("other", "x"))}, Tags: []string{"localhost/other:1"}}
	c.write(t, file+".other", imagetest.DockerLegacy(other, false))
	run(t, "/", append(p, "load", "-q", "-i", file+".other")...)
	run(t, "/", append(p, "load", "-q", "-i", c.base)...)
	run(t, "/", append(p, "save", "-q", "--multi-image-archive", "-o", file, "localhost/other:1", corpusTag)...)
	return sample{file: file, wantID: c.m.ID(), transport: "docker-archive:" + file + ":" + corpusTag, atLeast: 140}
}

func podmanBuild(t *testing.T, c *corpus, file string) sample {
	p := podmanHere(t, shortDir(t))
	work := filepath.Dir(file)
	mustMkdir(t, filepath.Join(work, "context"))
	if err := os.WriteFile(filepath.Join(work, "context/added.tar"), byGNUtar(t, "gnu", false), 0o600); err != nil {
		t.Fatal(err)
	}
	text := "FROM " + corpusTag + "\nADD added.tar /zoo/modes\nCOPY --chown=5:6 added.tar /new/place/\nENV A=b\nLABEL x=y\nWORKDIR /made/by/workdir\n"
	if err := os.WriteFile(filepath.Join(work, "context/Containerfile"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, "/", append(p, "load", "-q", "-i", c.base)...)
	run(t, work, append(p, "build", "-q", "--isolation", "chroot", "--layers", "-t", "localhost/built:1", "context")...)
	run(t, "/", append(p, "save", "-q", "-o", file, "localhost/built:1")...)
	return sample{file: file, transport: "docker-archive:" + file, atLeast: 160}
}

func buildah(dest string, args ...string) func(*testing.T, *corpus, string) sample {
	return func(t *testing.T, c *corpus, file string) sample {
		need(t, "buildah")
		work := filepath.Dir(file)
		script := `b="buildah --root $PWD/root --runroot $PWD/run --storage-driver overlay"
			w=$($b from docker-archive:"$1"); m=$($b mount $w); (cd $m; ` + change + `)
			$b umount $w >/dev/null; shift; $b commit -q "$@"`
		transport, _, _ := strings.Cut(dest, ":")
		run(t, work, append(append([]string{"unshare", "-m", "sh", "-ec", script, "sh", c.base}, args...), "corpus-working-container", fmt.Sprintf(dest, file))...)
		return sample{file: file, transport: transport + ":" + file, atLeast: 140}
	}
}

// daemon starts a server in namespaces of its own and waits until it answers.
func daemon(t *testing.T, args []string, answers ...string) {
	t.Helper()
	var said bytes.Buffer
	cmd := exec.Command("unshare", append([]string{"-m", "-n"}, args...)...)
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt)
		select {
		case <-ended:
		case <-time.After(time.Minute):
			_ = cmd.Process.Kill()
			<-ended
		}
	})
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(2 * time.Minute)
	for exec.Command(answers[0], answers[1:]...).Run() != nil {
		select {
		case <-ended:
			t.Fatalf("%s ended: %s", args[0], said.String())
		case <-limit:
			t.Fatalf("%s does not answer", args[0])
		case <-tick.C:
		}
	}
}

// docker loads the base image into a docker of its own and saves it. prepare is
// a command before that; "commit" stands for a container that is changed.
func docker(prepare string, save ...string) func(*testing.T, *corpus, string) sample {
	return func(t *testing.T, c *corpus, file string) sample {
		if _, err := exec.LookPath("dockerd"); err != nil {
			t.Fatal("dockerd is not installed: scripts/deps.sh test installs it")
		}
		d := shortDir(t)
		host := "unix://" + d + "/sock"
		docker := []string{"docker", "-H", host}
		daemon(t, []string{"dockerd", "--data-root", d + "/data", "--exec-root", d + "/exec", "-p", d + "/pid", "-H", host,
			"--iptables=false", "--ip-forward=false", "--ip-masq=false", "--bridge=none"}, "docker", "-H", host, "version")
		run(t, "/", append(docker, "load", "-q", "-i", c.base)...)
		switch {
		case prepare == "commit":
			src := shortDir(t)
			run(t, src, "sh", "-ec", "mkdir -p in/deep; echo x >in/deep/f; ln in/deep/f in/g; ln -s deep/f in/l; chown -R 7:8 in; chmod 4755 in/g")
			id := strings.TrimSpace(run(t, "/", append(docker, "create", "--network", "none", corpusTag, "x")...))
			run(t, src, append(docker, "cp", "-a", "in", id+":/zoo/in")...)
			run(t, src, append(docker, "cp", "in/g", id+":/zoo/sizes/511")...)
			run(t, "/", append(docker, "commit", id, save[0])...)
		case prepare != "":
			run(t, "/", append(docker, strings.Fields(prepare)...)...)
		}
		run(t, "/", append(append(docker, "save", "-o", file), save...)...)
		s := sample{file: file, transport: "docker-archive:" + file, atLeast: 140}
		if prepare == "" {
			s.wantID = c.m.ID()
		}
		if len(save) > 1 {
			s.transport += ":" + save[0]
		}
		return s
	}
}

// containerd imports the base image and exports it, which gives an OCI layout
// with a manifest.json, as docker does with the containerd image store.
func containerd(compress string) func(*testing.T, *corpus, string) sample {
	return func(t *testing.T, c *corpus, file string) sample {
		need(t, "containerd", "ctr")
		d := shortDir(t)
		ctr := []string{"ctr", "--address", d + "/sock"}
		daemon(t, []string{"containerd", "--root", d + "/root", "--state", d + "/state", "--address", d + "/sock", "--log-level", "error"}, append(ctr, "version")...)
		m := c.m
		m.Compress, m.Tags = compress, []string{"example.org/corpus:1"}
		c.write(t, file+".in", imagetest.Docker25(m))
		run(t, "/", append(ctr, "images", "import", "--no-unpack", file+".in")...)
		run(t, "/", append(ctr, "images", "export", file, "example.org/corpus:1")...)
		return sample{file: file, wantID: c.m.ID(), transport: "oci-archive:" + file, atLeast: 140}
	}
}

// goContainerRegistry writes the base image with the library that crane, ko,
// kaniko and the tools of rules_oci are made of.
func goContainerRegistry(write func(*testing.T, string, v1.Image) string, options ...tarball.LayerOption) func(*testing.T, *corpus, string) sample {
	return func(t *testing.T, c *corpus, file string) sample {
		img, err := mutate.ConfigFile(empty.Image, &v1.ConfigFile{OS: "linux", Architecture: "amd64", RootFS: v1.RootFS{Type: "layers"}})
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range c.m.Layers {
			layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(l)), nil }, options...)
			if err == nil {
				img, err = mutate.AppendLayers(img, layer)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		config, err := img.ConfigName()
		if err != nil {
			t.Fatal(err)
		}
		transport := write(t, file, img)
		return sample{file: file, wantID: config.String(), transport: transport, atLeast: 140}
	}
}

func writeTarball(t *testing.T, file string, img v1.Image) string {
	if err := tarball.WriteToFile(file, name.MustParseReference(corpusTag), img); err != nil {
		t.Fatal(err)
	}
	return "docker-archive:" + file
}

func writeLegacy(t *testing.T, file string, img v1.Image) string {
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := legacy.Write(name.MustParseReference(corpusTag), img, f); err != nil {
		t.Fatal(err)
	}
	return "docker-archive:" + file
}

func writeLayout(t *testing.T, file string, img v1.Image) string {
	dir := file + ".layout"
	p, err := layout.Write(dir, empty.Index)
	if err == nil {
		err = p.AppendImage(img)
	}
	if err != nil {
		t.Fatal(err)
	}
	tarOf(t, dir, file)
	return "oci:" + dir
}

// described writes the base image in a layout for which there is no program
// here; skopeo reads it as the docker-archive of the same content.
func described(entries func(imagetest.Image) []Entry) func(*testing.T, *corpus, string) sample {
	return func(t *testing.T, c *corpus, file string) sample {
		c.write(t, file, entries(c.m))
		return sample{file: file, transport: "docker-archive:" + c.base, atLeast: 140}
	}
}

// shortDir is t.TempDir with a name that fits sockets and mount options.
func shortDir(t testing.TB) string {
	t.Helper()
	d, err := os.MkdirTemp("", "corpus")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(d); err != nil {
			t.Error(err)
		}
	})
	return d
}

var needed sync.Map

// need fails the test if a program is missing that scripts/deps.sh installs.
func need(t testing.TB, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, ok := needed.Load(p); ok {
			continue
		}
		if _, err := exec.LookPath(p); err != nil {
			t.Fatalf("%v (run scripts/deps.sh test)", err)
		}
		needed.Store(p, true)
	}
}
