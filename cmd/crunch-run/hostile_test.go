package main_test

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"crunch-oci/arvados"
)

// damage is something that is not the image it should be.
type damage struct {
	name string
	data []byte
	// says is what the error line must tell, "" for anything.
	says string
	// lazy is true if the damage is found only when the layer is unpacked.
	lazy bool
}

// damages are made of a good tarball.
func damages(t testing.TB) []damage {
	t.Helper()
	m := toolsImage(t)
	good := m.dockerSave()
	compressed := gzipped(t, good)
	random := make([]byte, 100_000)
	generator := rand.NewChaCha8([32]byte{1})
	_, _ = generator.Read(random)
	// In the middle of the larger layer; the header of another member is near
	// its own end.
	inLayer := bytes.Index(good, m.layers[1]) + len(m.layers[1])/2
	inHeader := bytes.Index(good, m.layers[0])
	return []damage{
		{name: "empty file", data: nil, says: "empty"},
		{name: "random bytes", data: random},
		{name: "web page", data: []byte("<!DOCTYPE html>\n<html><body>404 Not Found</body></html>\n" + strings.Repeat(" ", 1000))},
		{name: "no image", data: newLayer().file("etc/passwd", "root:x:0:0\n").bytes()},
		{name: "cut in the first header", data: good[:300]},
		{name: "cut after the first header", data: good[:512]},
		{name: "cut in a layer", data: good[:inLayer]},
		{name: "cut at half", data: good[:len(good)/2]},
		{name: "cut before manifest.json", data: good[:bytes.Index(good, []byte("manifest.json"))]},
		{name: "gzip, cut", data: compressed[:len(compressed)*2/3]},
		{name: "gzip, flipped", data: flipped(compressed, len(compressed)/2)},
		{name: "zstd, cut", data: func() []byte { z := zstded(t, good); return z[:len(z)/2] }()},
		{name: "byte flipped in a layer", data: flipped(good, inLayer), lazy: true},
		{name: "byte flipped in a layer's header", data: flipped(good, inHeader+3), lazy: true},
		{name: "byte flipped in manifest.json", data: flipped(good, bytes.Index(good, []byte(`[{"Config"`))+1)},
		{name: "layer missing", data: bytes.ReplaceAll(good, []byte(`/layer.tar"]`), []byte(`/loyer.tar"]`))},
		{name: "layers exchanged", data: exchangedLayers(t), lazy: true},
	}
}

func flipped(data []byte, at int) []byte {
	data = bytes.Clone(data)
	data[at] ^= 0x20
	return data
}

// exchangedLayers has the layers in another order than the configuration says.
func exchangedLayers(t testing.TB) []byte {
	m := toolsImage(t)
	a, b := archiveWriter{newLayer()}, m.configDocument()
	a.file("config.json", string(b)).file("0.tar", string(m.layers[1])).file("1.tar", string(m.layers[0]))
	a.file("manifest.json", `[{"Config":"config.json","RepoTags":["a:b"],"Layers":["0.tar","1.tar"]}]`)
	return a.bytes()
}

// noneComplete fails the test if the store takes an image for complete.
func noneComplete(t testing.TB, n *node) {
	t.Helper()
	if images, _ := os.ReadDir(filepath.Join(n.store(), "images")); len(images) != 0 {
		t.Errorf("a damaged image is in the store: %v", images)
	}
}

// TestDamagedImages gives crunch-run local what is no image: one line says so,
// nothing stays, and the next good image runs.
func TestDamagedImages(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	path := filepath.Join(n.dir, "image.tar")
	for _, d := range damages(t) {
		t.Run(d.name, func(t *testing.T) {
			writeFile(t, path, d.data)
			res := n.run(t, "local", "--image", path, "--", "echo", "never")
			if res.code != 125 || res.stdout != "" {
				t.Errorf("exit code %d, want 125; stdout %q", res.code, res.stdout)
			}
			var said []string
			for line := range strings.Lines(res.stderr) {
				if strings.HasPrefix(line, "crunch-run local: ") {
					said = append(said, line)
				} else if !d.lazy {
					t.Errorf("beside the error, stderr says %q", line)
				}
			}
			if len(said) != 1 || !strings.Contains(said[0], d.says) || strings.Contains(res.stderr, "goroutine") {
				t.Errorf("want one line of error that says %q, got\n%s", d.says, res.stderr)
			}
			n.mustBeClean(t)
			noneComplete(t, n)
		})
	}
	writeFile(t, path, toolsImage(t).dockerSave())
	if res := n.local(t, "--image", path, "--", "echo", "fine"); res.stdout != "fine\n" {
		t.Errorf("after all the damage a good image says %q", res.stdout)
	}
}

// TestDamagedImagesInKeep has the same things in Keep, under the name of a good
// image: the container is Cancelled, because no other node could run it.
func TestDamagedImagesInKeep(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	c := startCluster(t, n)
	m := toolsImage(t)
	wrong := layeredImage(t)
	all := append(damages(t),
		damage{name: "another image", data: wrong.dockerSave(), says: m.id()},
		damage{name: "byte flipped in the configuration", data: flipped(m.dockerSave(), bytes.Index(m.dockerSave(), m.configDocument())+bytes.Index(m.configDocument(), []byte("FROM_IMAGE=yes"))), says: "the configuration"},
	)
	for _, d := range all {
		t.Run(d.name, func(t *testing.T) {
			uuid := c.submit(t, c.storeImage(t, m.id(), d.data), sh("echo never"), nil)
			p := c.supervise(t, n, uuid)
			record := c.finished(t, n, p, uuid, 1, arvados.StateCancelled)
			if record.ExitCode != nil || record.Output != "" {
				t.Errorf("exit code %v, output %q", record.ExitCode, record.Output)
			}
			_, said, found := strings.Cut(c.log(t, record, "crunch-run.txt"), "error in Run: failed to load container image: ")
			said, _, _ = strings.Cut(said, "\n")
			if !found || !strings.Contains(said, d.says) || strings.Contains(p.stderr.String(), "goroutine") {
				t.Errorf("want an error that says %q, got\n%s", d.says, p.stderr.String())
			}
			noneComplete(t, n)
		})
	}
	record := c.runOne(t, n, c.storeImage(t, m.id(), m.dockerSave()), sh("echo fine"), nil)
	if out := stamped(t, c.log(t, record, "stdout.txt")); out != "fine\n" {
		t.Errorf("after all the damage a good image says %q", out)
	}
}
