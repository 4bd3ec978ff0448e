package cdi

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"crunch-oci/gpu/device"
	"crunch-oci/gpu/edit"
	"crunch-oci/gpu/gputest"
)

// specification is what nvidia-ctk 1.17 writes, in short.
const specification = `cdiVersion: 0.5.0
kind: nvidia.com/gpu
devices:
  - name: "0"
    containerEdits:
      deviceNodes:
        - path: /dev/nvidia0
          hostPath: ROOT/dev/nvidia0
  - name: "1"
    containerEdits:
      deviceNodes:
        - path: /dev/nvidia1
          hostPath: ROOT/dev/nvidia1
  - name: GPU-00000000-0000-0000-0000-000000000002
    containerEdits:
      deviceNodes:
        - path: /dev/nvidia2
          hostPath: ROOT/dev/nvidia2
          major: 196
          minor: 2
  - name: all
    containerEdits:
      deviceNodes:
        - path: /dev/nvidia0
          hostPath: ROOT/dev/nvidia0
        - path: /dev/nvidia1
          hostPath: ROOT/dev/nvidia1
containerEdits:
  env:
    - NVIDIA_VISIBLE_DEVICES=void
  deviceNodes:
    - path: /dev/nvidiactl
      hostPath: ROOT/dev/nvidiactl
  mounts:
    - hostPath: ROOT/usr/lib/x86_64-linux-gnu/libcuda.so.550.54.15
      containerPath: /usr/lib/x86_64-linux-gnu/libcuda.so.550.54.15
      options: [ro, nosuid, nodev, rbind, rprivate]
    - hostPath: ROOT/usr/bin/nvidia-smi
      containerPath: /usr/bin/nvidia-smi
      options: [ro, nosuid, nodev, rbind, rprivate]
  hooks:
    - hookName: createContainer
      path: /usr/bin/nvidia-ctk
      args: [nvidia-ctk, hook, create-symlinks, --link, "libcuda.so.1::/usr/lib/x86_64-linux-gnu/libcuda.so"]
    - hookName: createContainer
      path: /usr/bin/nvidia-ctk
      args: [nvidia-ctk, hook, enable-cuda-compat, --host-driver-version=550.54.15]
    - hookName: createContainer
      path: /usr/bin/nvidia-ctk
      args: [nvidia-ctk, hook, update-ldcache, --folder, /usr/lib/x86_64-linux-gnu]
    - hookName: createRuntime
      path: /opt/site/hook
      args: [hook, "--as-root"]
`

func specs(t *testing.T, text string) ([]string, *gputest.Tree) {
	t.Helper()
	driver := gputest.New(t, 3)
	driver.File("etc/cdi/nvidia.yaml", strings.ReplaceAll(text, "ROOT", driver.Root))
	return []string{driver.Path("etc/cdi"), driver.Path("var/run/cdi")}, driver
}

func gpu(index int) []device.Device {
	return []device.Device{{Index: index, UUID: "GPU-00000000-0000-0000-0000-00000000000" + string(rune('0'+index))}}
}

func TestEdits(t *testing.T) {
	dirs, driver := specs(t, specification)
	e, notes, err := Edits(dirs, device.CUDA, gpu(1))
	if err != nil {
		t.Fatal(err)
	}
	lib := "/usr/lib/x86_64-linux-gnu/"
	want := edit.Edits{
		Env: []string{"NVIDIA_VISIBLE_DEVICES=void"},
		Nodes: []edit.Node{
			{Path: "/dev/nvidiactl", Major: gputest.Frontend, Minor: 255, Mode: 0o666},
			{Path: "/dev/nvidia1", Major: gputest.Frontend, Minor: 1, Mode: 0o666},
		},
		Mounts: []edit.Mount{
			{Source: driver.Path(lib + "libcuda.so.550.54.15"), Target: lib + "libcuda.so.550.54.15"},
			{Source: driver.Path("usr/bin/nvidia-smi"), Target: "/usr/bin/nvidia-smi"},
		},
		Links:     []edit.Link{{Path: lib + "libcuda.so", Target: "libcuda.so.1"}, {Path: lib + "libcuda.so.1", Target: "libcuda.so.550.54.15"}},
		Libraries: []edit.Library{{Name: "libcuda.so.1", Path: lib + "libcuda.so.1"}, {Name: "libcuda.so", Path: lib + "libcuda.so"}},
		Folders:   []string{strings.TrimSuffix(lib, "/")},
	}
	if !reflect.DeepEqual(e, want) {
		t.Errorf("got  %+v\nwant %+v", e, want)
	}
	if len(notes) != 1 || notes[0] != `CDI: the hook "/opt/site/hook hook --as-root" is not run` {
		t.Errorf("notes %q", notes)
	}
}

func TestTroubles(t *testing.T) {
	dirs, driver := specs(t, specification)
	if _, _, err := Edits(dirs, device.CUDA, gpu(2)); !errors.Is(err, device.ErrNoDriver) || !strings.Contains(err.Error(), "is device 195:2, the specification says 196:2: write it again") {
		t.Errorf("other numbers: %v", err)
	}
	if _, _, err := Edits(dirs, device.CUDA, gpu(7)); !errors.Is(err, device.ErrNoDriver) || !strings.Contains(err.Error(), "describes GPU 7") {
		t.Errorf("a GPU that is not described: %v", err)
	}
	if _, _, err := Edits(dirs, device.ROCm, gpu(0)); !errors.Is(err, device.ErrNoDriver) || !strings.Contains(err.Error(), "amd.com/gpu") {
		t.Errorf("another vendor's: %v", err)
	}
	driver.File("var/run/cdi/broken.yaml", "cdiVersion: nonsense\n")
	_, notes, err := Edits(dirs, device.CUDA, gpu(0))
	if err != nil || len(notes) != 2 || !strings.Contains(notes[0], "broken.yaml") {
		t.Errorf("a broken file beside a good one: %q, %v", notes, err)
	}
	driver.Remove(gputest.LibDir + "/libcuda.so." + gputest.Version)
	if _, _, err := Edits(dirs, device.CUDA, gpu(0)); !errors.Is(err, device.ErrNoDriver) || !strings.Contains(err.Error(), "write it again") {
		t.Errorf("files of an earlier driver: %v", err)
	}
	driver.Remove("dev/nvidiactl")
	if err := os.WriteFile(filepath.Join(driver.Root, "dev/nvidiactl"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Edits(dirs, device.CUDA, gpu(0)); !errors.Is(err, device.ErrNoDriver) || !strings.Contains(err.Error(), "is not a character device") {
		t.Errorf("a file for a node: %v", err)
	}
	if _, _, err := Edits([]string{t.TempDir() + "/missing"}, device.CUDA, gpu(0)); !errors.Is(err, device.ErrNoDriver) {
		t.Errorf("no specifications: %v", err)
	}
}
