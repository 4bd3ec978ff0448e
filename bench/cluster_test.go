package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"crunch-oci/arvados"
	"crunch-oci/cmd/crunch-run/wire"
	"crunch-oci/keep"
	"crunch-oci/localcluster"
)

const tags = "seccomp,netgo,osusergo"

// cgroupBase is where all containers of the benchmarks live, below this
// process's own groups.
const cgroupBase = "crunch-run-bench"

// buildDir is for the program under test.
var buildDir string

func TestMain(m *testing.M) {
	var err error
	if buildDir, err = os.MkdirTemp("", "crunch-run-bench"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	status := m.Run()
	_ = os.RemoveAll(buildDir)
	removeCgroups()
	os.Exit(status)
}

// removeCgroups removes the base groups, which the peer runtime does not.
func removeCgroups() {
	for _, pattern := range []string{"/sys/fs/cgroup/*/", "/sys/fs/cgroup/*/*/*/"} {
		dirs, _ := filepath.Glob(pattern + cgroupBase)
		for _, d := range dirs {
			_ = os.Remove(d)
		}
	}
}

// buildOnce builds the program under test.
var buildOnce = sync.OnceValues(func() (string, error) {
	path := filepath.Join(buildDir, "crunch-run")
	out, err := exec.Command("go", "build", "-trimpath", "-tags", tags, "-ldflags=-s -w", "-o", path, "../cmd/crunch-run").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build: %w: %s", err, out)
	}
	return path, nil
})

// site is a cluster with one image, and a node of its own: nothing is shared
// with other runs on the machine.
type site struct {
	program string
	env     []string
	cluster *localcluster.Cluster
	user    *arvados.Client
	blocks  keep.BlockStore
	boss    *arvados.Client // the dispatcher
	image   string          // portable data hash
	tarball string          // of the image
}

// newSite starts a cluster and stores the image made of rootfs.
func newSite(b *testing.B, rootfs string) *site {
	b.Helper()
	program, err := buildOnce()
	if err != nil {
		b.Fatal(err)
	}
	ctx := context.Background()
	dir := b.TempDir()
	s := &site{program: program}
	s.cluster, err = localcluster.Start(ctx, localcluster.Options{Dir: filepath.Join(dir, "cluster"), NoSync: true})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = s.cluster.Close() })
	s.user, s.blocks = s.connect(b, s.cluster.UserToken())
	s.boss, _ = s.connect(b, s.cluster.DispatcherToken())
	for _, d := range []string{"store", "run", "lock", "tmp"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			b.Fatal(err)
		}
	}
	s.env = append(os.Environ(),
		"ARVADOS_API_HOST="+s.cluster.Host(), "ARVADOS_API_TOKEN="+s.cluster.DispatcherToken(), "SSL_CERT_FILE="+s.cluster.CAFile(),
		"CRUNCH_RUN_STORE_DIR="+dir+"/store", "CRUNCH_RUN_RUNTIME_DIR="+dir+"/run", "CRUNCH_RUN_LOCK_DIR="+dir+"/lock", "CRUNCH_RUN_KEEP_CACHE_DIR="+dir+"/keepcache",
		"CRUNCH_RUN_CGROUP_BASE="+cgroupBase, "TMPDIR="+dir+"/tmp")
	s.image = s.storeImage(b, rootfs)
	return s
}

func (s *site) connect(b *testing.B, token string) (*arvados.Client, keep.BlockStore) {
	b.Helper()
	api, blocks, closer, err := wire.Connect(context.Background(), arvados.Config{Host: s.cluster.Host(), Token: token, CAFile: s.cluster.CAFile()}, wire.KeepRetries)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = closer() })
	return api, blocks
}

// storeImage stores rootfs as an image, and returns its portable data hash.
func (s *site) storeImage(b *testing.B, rootfs string) string {
	b.Helper()
	tarball := filepath.Join(b.TempDir(), "image.tar")
	if out, err := exec.Command("../scripts/make-image.sh", rootfs, tarball, "bench:latest").CombinedOutput(); err != nil {
		b.Fatalf("%v: %s", err, out)
	}
	s.tarball = tarball
	data, err := os.ReadFile(tarball)
	if err != nil {
		b.Fatal(err)
	}
	out, err := exec.Command("tar", "-xOf", tarball, "manifest.json").Output()
	if err != nil {
		b.Fatal(err)
	}
	var manifest []struct{ Config string }
	if err := json.Unmarshal(out, &manifest); err != nil {
		b.Fatal(err)
	}
	return s.store(b, map[string][]byte{"sha256:" + strings.TrimSuffix(manifest[0].Config, ".json") + ".tar": data})
}

// store saves a collection and returns its portable data hash.
func (s *site) store(b *testing.B, files map[string][]byte) string {
	b.Helper()
	ctx := context.Background()
	c, err := keep.NewCollection("", s.blocks)
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	for name, data := range files {
		f, err := c.Create(name)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := f.Write(data); err != nil {
			b.Fatal(err)
		}
		_ = f.Close()
	}
	manifest, err := c.MarshalManifest(ctx)
	if err != nil {
		b.Fatal(err)
	}
	saved, err := s.user.CreateCollection(ctx, map[string]any{"name": "bench", "manifest_text": manifest}, true, "uuid", "portable_data_hash")
	if err != nil {
		b.Fatal(err)
	}
	return saved.PortableDataHash
}

// submit makes a container from the site's image and locks it.
func (s *site) submit(b *testing.B, command []string, mounts map[string]any) (uuid string) {
	b.Helper()
	return s.submitImage(b, s.image, command, mounts)
}

// submitImage makes a container from an image and locks it.
func (s *site) submitImage(b *testing.B, image string, command []string, mounts map[string]any) (uuid string) {
	b.Helper()
	ctx := context.Background()
	all := map[string]any{"/out": map[string]any{"kind": "tmp", "capacity": 1 << 30}}
	for k, v := range mounts {
		all[k] = v
	}
	request, err := s.user.CreateContainerRequest(ctx, map[string]any{
		"name": "bench", "state": "Committed", "priority": 1, "use_existing": false, "container_count_max": 1,
		"container_image": image, "command": command, "cwd": "/", "output_path": "/out", "mounts": all,
		"runtime_constraints": map[string]any{"vcpus": 1, "ram": 256 << 20},
	})
	if err != nil {
		b.Fatal(err)
	}
	if _, err := s.boss.Lock(ctx, request.ContainerUUID); err != nil {
		b.Fatal(err)
	}
	return request.ContainerUUID
}

// crunchRun is the command that runs a container.
func (s *site) crunchRun(uuid string) *exec.Cmd {
	cmd := exec.Command(s.program, uuid)
	cmd.Env = s.env
	return cmd
}

// logFile reads a file of a finished container's log.
func (s *site) logFile(b *testing.B, uuid, name string) string {
	b.Helper()
	ctx := context.Background()
	record, err := s.boss.GetContainer(ctx, uuid)
	if err != nil {
		b.Fatal(err)
	}
	if record.State != arvados.StateComplete {
		b.Fatalf("container ended %s", record.State)
	}
	log, err := s.boss.GetCollection(ctx, record.Log, "manifest_text")
	if err != nil {
		b.Fatal(err)
	}
	_, blocks := s.connect(b, s.cluster.DispatcherToken())
	c, err := keep.NewCollection(log.ManifestText, blocks)
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	f, err := c.Open(name)
	if err != nil {
		b.Fatal(err)
	}
	text := make([]byte, f.Size())
	if _, err := f.ReadAt(text, 0); err != nil {
		b.Fatal(err)
	}
	return string(text)
}
