package main_test

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// imageTime is the modification time of what the images hold.
var imageTime = time.Date(2024, 2, 29, 12, 30, 15, 0, time.UTC)

// layer is a layer of an image in the making: a tar stream.
type layer struct {
	buf bytes.Buffer
	w   *tar.Writer
}

func newLayer() *layer {
	l := new(layer)
	l.w = tar.NewWriter(&l.buf)
	return l
}

// add adds an entry; fields of h that are left out get useful values.
func (l *layer) add(h tar.Header, body string) *layer {
	if h.Typeflag == 0 {
		h.Typeflag = tar.TypeReg
	}
	if h.Mode == 0 {
		h.Mode = map[byte]int64{tar.TypeDir: 0o755, tar.TypeSymlink: 0o777}[h.Typeflag]
		if h.Mode == 0 {
			h.Mode = 0o644
		}
	}
	if h.ModTime.IsZero() {
		h.ModTime = imageTime
	}
	h.Size = int64(len(body))
	h.Format = tar.FormatPAX
	if err := l.w.WriteHeader(&h); err != nil {
		panic(err)
	}
	if _, err := io.WriteString(l.w, body); err != nil {
		panic(err)
	}
	return l
}

func (l *layer) file(name, body string) *layer { return l.add(tar.Header{Name: name}, body) }
func (l *layer) dir(name string) *layer {
	return l.add(tar.Header{Name: name + "/", Typeflag: tar.TypeDir}, "")
}

func (l *layer) bytes() []byte {
	if err := l.w.Close(); err != nil {
		panic(err)
	}
	return l.buf.Bytes()
}

// testImage is an image before it is packed.
type testImage struct {
	layers [][]byte
	config map[string]any // Env, Entrypoint, ...
	tag    string         // name:tag
}

func digestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

// configDocument is the image's configuration, as Docker writes it.
func (m testImage) configDocument() []byte {
	var diffIDs []string
	var history []any
	for i, l := range m.layers {
		diffIDs = append(diffIDs, "sha256:"+digestOf(l))
		history = append(history, map[string]any{
			"created": "2026-11-23T13:47:42.039033204Z", "created_by": fmt.Sprintf("/bin/sh -c #(nop) COPY file:%d in / ", i),
		})
	}
	history = append(history, map[string]any{"created": "2026-11-23T13:47:44.501041708Z", "created_by": "/bin/sh -c #(nop)  ENV", "empty_layer": true})
	config := map[string]any{
		"Hostname": "", "User": "", "AttachStdin": false, "Tty": false, "Env": []string{"PATH=/usr/local/bin:/usr/bin:/bin"},
		"Cmd": []string{"/bin/sh"}, "Volumes": nil, "WorkingDir": "", "Entrypoint": nil, "OnBuild": nil, "Labels": nil,
	}
	for k, v := range m.config {
		config[k] = v
	}
	return mustJSON(map[string]any{
		"architecture": "amd64", "os": "linux", "docker_version": "20.10.24+dfsg1", "created": "2026-11-23T13:47:49.54631188Z",
		"container": digestOf([]byte("container")), "container_config": map[string]any{"Hostname": "4974bfdb9f63", "Cmd": []string{"/bin/sh", "-c", "#(nop) "}},
		"config": config, "history": history, "rootfs": map[string]any{"type": "layers", "diff_ids": diffIDs},
	})
}

// id is the image's id, "sha256:...".
func (m testImage) id() string { return "sha256:" + digestOf(m.configDocument()) }

// archiveWriter writes the tarball around an image.
type archiveWriter struct{ *layer }

func (a archiveWriter) blob(b []byte) string {
	name := "blobs/sha256/" + digestOf(b)
	a.file(name, string(b))
	return name
}

// dockerSave packs the image as "docker save" of Docker 1.10 to 24 does: for
// each layer a directory with VERSION, json and layer.tar, which is a link where
// an earlier layer is the same; all in the order of their names; at the end
// manifest.json and repositories, with no time.
func (m testImage) dockerSave() []byte {
	a := archiveWriter{newLayer()}
	epoch := time.Unix(0, 0)
	config := digestOf(m.configDocument()) + ".json"
	members := map[string]func(){config: func() { a.file(config, string(m.configDocument())) }}
	seen := make(map[string]string)
	var paths []string
	parent := ""
	for i, l := range m.layers {
		diffID := digestOf(l)
		id := digestOf([]byte(parent + diffID))
		v1 := map[string]any{"id": id, "created": "1970-01-01T00:00:00Z", "os": "linux", "container_config": map[string]any{"Env": nil}}
		if parent != "" {
			v1["parent"] = parent
		}
		if i == len(m.layers)-1 {
			v1["config"] = m.config
		}
		same := seen[diffID]
		members[id] = func() {
			a.dir(id).file(id+"/VERSION", "1.0").file(id+"/json", string(mustJSON(v1)))
			if same != "" {
				a.add(tar.Header{Name: id + "/layer.tar", Typeflag: tar.TypeSymlink, Linkname: "../" + same + "/layer.tar"}, "")
				return
			}
			a.file(id+"/layer.tar", string(l))
		}
		if same == "" {
			seen[diffID] = id
		}
		paths = append(paths, id+"/layer.tar")
		parent = id
	}
	for _, name := range slices.Sorted(maps.Keys(members)) {
		members[name]()
	}
	a.add(tar.Header{Name: "manifest.json", ModTime: epoch}, string(mustJSON([]any{map[string]any{"Config": config, "RepoTags": []string{m.tag}, "Layers": paths}}))+"\n")
	name, tag, _ := strings.Cut(m.tag, ":")
	a.add(tar.Header{Name: "repositories", ModTime: epoch}, string(mustJSON(map[string]any{name: map[string]string{tag: parent}}))+"\n")
	return a.bytes()
}

// dockerSave25 packs the image as Docker 25 and later do: an OCI image layout,
// and a manifest.json whose paths lead into it.
func (m testImage) dockerSave25() []byte {
	a := archiveWriter{newLayer()}
	a.dir("blobs").dir("blobs/sha256")
	document := m.configDocument()
	config := a.blob(document)
	var paths []string
	var descriptors []any
	sources := make(map[string]any)
	for _, l := range m.layers {
		paths = append(paths, a.blob(l))
		d := map[string]any{"mediaType": "application/vnd.oci.image.layer.v1.tar", "size": len(l), "digest": "sha256:" + digestOf(l)}
		descriptors = append(descriptors, d)
		sources["sha256:"+digestOf(l)] = d
	}
	manifest := mustJSON(map[string]any{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
		"config": map[string]any{"mediaType": "application/vnd.oci.image.config.v1+json", "digest": m.id(), "size": len(document)},
		"layers": descriptors,
	})
	a.blob(manifest)
	name, tag, _ := strings.Cut(m.tag, ":")
	a.file("index.json", string(mustJSON(map[string]any{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
		"manifests": []any{map[string]any{
			"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": "sha256:" + digestOf(manifest), "size": len(manifest),
			"annotations": map[string]string{"io.containerd.image.name": "docker.io/library/" + m.tag, "org.opencontainers.image.ref.name": tag},
		}},
	})))
	a.file("manifest.json", string(mustJSON([]any{map[string]any{"Config": config, "RepoTags": []string{m.tag}, "Layers": paths, "LayerSources": sources}})))
	a.file("oci-layout", `{"imageLayoutVersion": "1.0.0"}`)
	a.file("repositories", string(mustJSON(map[string]any{name: map[string]string{tag: digestOf(m.layers[len(m.layers)-1])}})))
	return a.bytes()
}

// busyboxLayer is the layer of the image that the repository's script makes.
func busyboxLayer(t testing.TB) []byte {
	t.Helper()
	f, err := os.Open(busyboxImage(t))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r := tar.NewReader(f)
	for {
		h, err := r.Next()
		if err != nil {
			t.Fatalf("busybox image has no layer: %v", err)
		}
		if strings.HasSuffix(h.Name, "/layer.tar") {
			data, err := io.ReadAll(r)
			if err != nil {
				t.Fatal(err)
			}
			return data
		}
	}
}

var tools struct {
	once  sync.Once
	image testImage
}

// toolsImage is a small image with a shell and the probe.
func toolsImage(t testing.TB) testImage {
	t.Helper()
	tools.once.Do(func() {
		p, err := probe()
		if err != nil {
			t.Fatal(err)
		}
		extra := newLayer().add(tar.Header{Name: "bin/probe", Mode: 0o755}, string(p))
		tools.image = testImage{
			layers: [][]byte{busyboxLayer(t), extra.bytes()}, tag: "tools:latest",
			config: map[string]any{"Env": []string{"PATH=/bin", "FROM_IMAGE=yes"}},
		}
	})
	if tools.image.layers == nil {
		t.Fatal("the image could not be made, see another test")
	}
	return tools.image
}

// storeTools stores the small image in the cluster.
func (c *cluster) storeTools(t testing.TB) (pdh string) {
	t.Helper()
	m := toolsImage(t)
	return c.storeImage(t, m.id(), m.dockerSave())
}

// sh is a command line that runs a script.
func sh(script string) []string { return []string{"sh", "-c", script} }
