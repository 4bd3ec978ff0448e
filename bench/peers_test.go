package bench

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"crunch-oci/oci"
)

// peerRunc returns runc of our libcontainer's version, built if need be.
func peerRunc(b *testing.B) string {
	b.Helper()
	cmd := exec.Command("../scripts/peer-runc.sh")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		b.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

// runcStarter is "runc run", each time of a new bundle with what crunch-run would
// ask for.
func runcStarter(b *testing.B, runc, rootfs string) *starter {
	b.Helper()
	state, n := b.TempDir(), 0
	return &starter{name: "runc run", prepare: func() (*exec.Cmd, func(string) (stamps, error)) {
		n++
		id := fmt.Sprintf("bench-%d-%d", os.Getpid(), n)
		return exec.Command(runc, "--root", state, "run", "--bundle", runcBundle(b, rootfs, id), id), onStdout
	}}
}

func runcBundle(b *testing.B, rootfs, id string) string {
	b.Helper()
	spec, err := oci.NewSpec(oci.Request{
		Image: ocispec.ImageConfig{}, RootfsPath: rootfs, Command: []string{"/now"}, Cwd: "/", Hostname: "bench",
		CgroupsPath: cgroupBase + "/" + id,
		Limits:      oci.Limits{NanoCPUs: 1e9, RAM: 256 << 20},
	})
	if err != nil {
		b.Fatal(err)
	}
	dir := filepath.Join(b.TempDir(), "bundle")
	if err := oci.WriteBundle(dir, spec); err != nil {
		b.Fatal(err)
	}
	return dir
}

// podmanStarter is "podman run" with a store of its own, in which the image is.
// The limits are those that need no privileges podman may not have.
func podmanStarter(b *testing.B, runc, tarball string) *starter {
	b.Helper()
	dir := b.TempDir()
	podman := func(args ...string) *exec.Cmd {
		return exec.Command("podman", append([]string{"--root", filepath.Join(dir, "root"), "--runroot", filepath.Join(dir, "run"), "--runtime", runc, "--cgroup-manager", "cgroupfs"}, args...)...)
	}
	if out, err := podman("load", "-i", tarball).CombinedOutput(); err != nil {
		b.Fatalf("podman load: %v: %s", err, out)
	}
	b.Cleanup(func() {
		for _, args := range [][]string{{"rm", "--all", "--force"}, {"rmi", "--all", "--force"}} {
			if out, err := podman(args...).CombinedOutput(); err != nil {
				b.Errorf("podman %s: %v: %s", args[0], err, out)
			}
		}
	})
	n := 0
	return &starter{name: "podman run", prepare: func() (*exec.Cmd, func(string) (stamps, error)) {
		n++
		return podman("run", "--network", "none", "--ulimit", "nofile=1024:4096", "--ulimit", "nproc=1000", "--name", "bench-"+strconv.Itoa(n), "bench:latest", "/now"), onStdout
	}}
}
