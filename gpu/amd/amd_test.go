package amd

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"crunch-oci/gpu/device"
	"crunch-oci/gpu/edit"
	"crunch-oci/gpu/host"
)

// tree is the root of a machine.
type tree struct {
	t    *testing.T
	root string
}

func (d tree) file(name, text string) {
	d.t.Helper()
	path := filepath.Join(d.root, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		d.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		d.t.Fatal(err)
	}
}

func (d tree) node(name string, major, minor uint32, mode uint32, gid int) {
	d.t.Helper()
	path := filepath.Join(d.root, "dev", name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		d.t.Fatal(err)
	}
	if err := unix.Mknod(path, unix.S_IFCHR|mode, int(unix.Mkdev(major, minor))); err != nil {
		d.t.Fatal(err)
	}
	if err := errors.Join(os.Chmod(path, os.FileMode(mode)), os.Chown(path, 0, gid)); err != nil {
		d.t.Fatal(err)
	}
}

// gpu adds a GPU to the topology, in the kernel's format (Linux 6.8, MI250X).
func (d tree) gpu(node, render, bus int, target, unique uint64, links string) {
	dir := fmt.Sprintf("sys/class/kfd/kfd/topology/nodes/%d/", node)
	d.file(dir+"properties", fmt.Sprintf(`cpu_cores_count 0
simd_count 440
mem_banks_count 1
max_waves_per_simd 8
gfx_target_version %d
vendor_id 4098
device_id 29704
location_id %d
domain 0
drm_render_minor %d
num_xcc 1
unique_id %d
`, target, bus<<8, render, unique))
	d.file(dir+"mem_banks/0/properties", "heap_type 1\nsize_in_bytes 68702699520\nflags 0\nwidth 4096\nmem_clk_max 1600\n")
	for i, l := range strings.Fields(links) {
		kind, to, _ := strings.Cut(l, ":")
		d.file(fmt.Sprintf("%sio_links/%d/properties", dir, i), fmt.Sprintf("type %s\nnode_from %d\nnode_to %s\nweight 15\n", kind, node, to))
	}
	pci := fmt.Sprintf("sys/bus/pci/devices/0000:%02x:00.0/", bus)
	d.file(pci+"numa_node", fmt.Sprintf("%d\n", node/3))
	d.file(pci+"gpu_busy_percent", fmt.Sprintf("%d\n", node*10))
	d.file(pci+"mem_info_vram_used", "1048576\n")
	d.file(pci+"mem_info_vram_total", "68702699520\n")
	d.file(pci+"hwmon/hwmon3/power1_average", "91000000\n")
	d.node(fmt.Sprintf("dri/renderD%d", render), 226, uint32(render), 0o660, 109)
}

// machine has two CPUs and three GPUs, of which two are linked. A fourth render
// node is that of a display.
func machine(t *testing.T) (tree, host.Host) {
	d := tree{t, t.TempDir()}
	for i := range 2 {
		d.file(fmt.Sprintf("sys/class/kfd/kfd/topology/nodes/%d/properties", i), "cpu_cores_count 64\nsimd_count 0\ndrm_render_minor 0\n")
	}
	d.node("kfd", 238, 0, 0o660, 109)
	d.gpu(2, 129, 0xc1, 90010, 0x1234567890abcdef, "11:4 2:0")
	d.gpu(3, 131, 0xc6, 110001, 0, "2:1")
	d.gpu(4, 130, 0xd1, 90010, 7, "11:2 2:0")
	d.file("sys/module/amdgpu/version", "6.8.5\n")
	d.file("opt/rocm/.info/version", "6.2.0-66\n")
	return d, host.At(d.root)
}

func TestDiscover(t *testing.T) {
	_, h := machine(t)
	inv, err := Discover(h)
	if err != nil {
		t.Fatal(err)
	}
	const memory = 68702699520
	want := device.Inventory{
		Stack: device.ROCm, Driver: "6.8.5", Version: "6.2.0",
		Devices: []device.Device{
			{Stack: device.ROCm, Index: 1, Minor: 129, UUID: "GPU-1234567890abcdef", Name: "AMD gfx90a", PCI: "0000:c1:00.0", NUMA: 0, Memory: memory, Target: "gfx90a"},
			{Stack: device.ROCm, Index: 2, Minor: 130, UUID: "GPU-0000000000000007", Name: "AMD gfx90a", PCI: "0000:d1:00.0", NUMA: 1, Memory: memory, Target: "gfx90a"},
			{Stack: device.ROCm, Index: 3, Minor: 131, UUID: "GPU-0000:c6:00.0", Name: "AMD gfx1101", PCI: "0000:c6:00.0", NUMA: 1, Memory: memory, Target: "gfx1101"},
		},
		Links: []device.Link{{A: "GPU-1234567890abcdef", B: "GPU-0000000000000007", Score: linkScore}},
	}
	if !reflect.DeepEqual(inv, want) {
		t.Errorf("got  %+v\nwant %+v", inv, want)
	}
	for _, c := range []struct {
		targets []string
		n       int
	}{{[]string{"gfx90a"}, 2}, {[]string{"gfx90a:sramecc+:xnack-"}, 2}, {[]string{"gfx1101", "gfx90a"}, 3}, {[]string{"gfx942"}, 0}} {
		n := 0
		for _, d := range inv.Devices {
			if (device.Request{Stack: device.ROCm, Targets: c.targets}).CheckDevice(d) == nil {
				n++
			}
		}
		if n != c.n {
			t.Errorf("%d GPUs are %v", n, c.targets)
		}
	}
}

// Partitions of one GPU are devices that can be told apart.
func TestPartitions(t *testing.T) {
	d, h := machine(t)
	d.gpu(5, 140, 0xe1, 90402, 9, "11:6")
	d.gpu(6, 141, 0xe1, 90402, 9, "11:5")
	inv, err := Discover(h)
	if err != nil || len(inv.Devices) != 5 {
		t.Fatalf("%+v, %v", inv, err)
	}
	if a, b := inv.Devices[3].UUID, inv.Devices[4].UUID; a != "GPU-0000000000000009-140" || b != "GPU-0000000000000009-141" {
		t.Errorf("UUIDs %s and %s", a, b)
	}
	if n := len(inv.Links); n != 2 || inv.Links[0].A == inv.Links[0].B || inv.Links[1].A == inv.Links[1].B {
		t.Errorf("links %+v", inv.Links)
	}
}

func TestEdits(t *testing.T) {
	d, h := machine(t)
	inv, err := Discover(h)
	if err != nil {
		t.Fatal(err)
	}
	e, err := Edits(h, inv.Devices[1:2])
	if err != nil {
		t.Fatal(err)
	}
	want := edit.Edits{
		Nodes: []edit.Node{
			{Path: "/dev/kfd", Major: 238, Mode: 0o660, GID: 109},
			{Path: "/dev/dri/renderD130", Major: 226, Minor: 130, Mode: 0o660, GID: 109},
		},
		Groups: []uint32{109},
	}
	if !reflect.DeepEqual(e, want) {
		t.Errorf("got  %+v\nwant %+v", e, want)
	}
	if err := os.Remove(filepath.Join(d.root, "dev/dri/renderD130")); err != nil {
		t.Fatal(err)
	}
	if _, err := Edits(h, inv.Devices[1:2]); !errors.Is(err, device.ErrNoDriver) {
		t.Errorf("a missing node: %v", err)
	}
	d.file("dev/dri/renderD130", "")
	if _, err := Edits(h, inv.Devices[1:2]); !errors.Is(err, device.ErrNoDriver) || !strings.Contains(err.Error(), "is not a character device") {
		t.Errorf("a file for a node: %v", err)
	}
}

func TestSample(t *testing.T) {
	d, h := machine(t)
	inv, err := Discover(h)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(d.root, "sys/bus/pci/devices/0000:c6:00.0")); err != nil {
		t.Fatal(err)
	}
	want := []device.Sample{
		{UUID: "GPU-1234567890abcdef", Utilisation: 20, Used: 1 << 20, Total: 68702699520, Milliwatts: 91000},
		{UUID: "GPU-0000:c6:00.0", Utilisation: -1, Used: -1, Total: -1, Milliwatts: -1},
	}
	got := Sample(h, []device.Device{inv.Devices[0], inv.Devices[2]})
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestTroubles(t *testing.T) {
	d, h := machine(t)
	d.file("sys/class/kfd/kfd/topology/nodes/5/properties", "simd_count 4\ndrm_render_minor 0\n")
	inv, err := Discover(h)
	if err != nil || len(inv.Devices) != 3 || len(inv.Notes) != 1 || !strings.Contains(inv.Notes[0], "GPU node 5 cannot be used: it has no render node") {
		t.Errorf("%+v, %v", inv, err)
	}
	if err := os.RemoveAll(filepath.Join(d.root, "sys/class/kfd")); err != nil {
		t.Fatal(err)
	}
	if _, err := Discover(h); !errors.Is(err, device.ErrNoDriver) || !strings.Contains(err.Error(), "topology") {
		t.Errorf("without a topology: %v", err)
	}
	if _, err := Discover(host.At(t.TempDir())); !errors.Is(err, device.ErrNoDriver) || !strings.Contains(err.Error(), "amdgpu is not loaded") {
		t.Errorf("without anything: %v", err)
	}
}
