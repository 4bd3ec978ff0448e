// Package amd finds AMD GPUs for ROCm in what the kernel says of them: no
// library is needed (Linux, Documentation/ABI/testing/sysfs-class-kfd is not
// written yet; the files are those of drivers/gpu/drm/amd/amdkfd/kfd_topology.c).
package amd

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"crunch-oci/gpu/device"
	"crunch-oci/gpu/edit"
	"crunch-oci/gpu/host"
)

const (
	kfdNode = "/dev/kfd"
	// firstRender is the minor number of the first render node of DRM.
	firstRender = 128
	topology    = "class/kfd/kfd/topology/nodes"
	// linkXGMI is the type of a link that is AMD's own between GPUs.
	linkXGMI = 11
	// heapFrameBuffer are the types of memory banks that are the GPU's own.
	heapPublic, heapPrivate = 1, 2
)

// Discover reads the node's AMD GPUs. The error is device.ErrNoDriver if there is
// no working driver.
func Discover(h host.Host) (device.Inventory, error) {
	inv := device.Inventory{Stack: device.ROCm}
	if _, err := h.Stat(kfdNode); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = errors.New("the AMD kernel module amdgpu is not loaded, or has no /dev/kfd")
		}
		return inv, fmt.Errorf("%w: %w", device.ErrNoDriver, err)
	}
	dirs, err := filepath.Glob(filepath.Join(h.Sys, topology, "*"))
	if err != nil || len(dirs) == 0 {
		return inv, fmt.Errorf("%w: %s is missing", device.ErrNoDriver, filepath.Join(h.Sys, topology))
	}
	inv.Driver, _ = host.ReadText(filepath.Join(h.Sys, "module/amdgpu/version"))
	inv.Version = rocmVersion(h)
	nodes := make(map[string]device.Device) // by number in the topology
	uuids := make(map[string]int)
	for _, dir := range dirs {
		d, ok, err := readNode(h, dir)
		if err != nil {
			inv.Notes = append(inv.Notes, fmt.Sprintf("GPU node %s cannot be used: %v", filepath.Base(dir), err))
		}
		if !ok || err != nil {
			continue
		}
		nodes[filepath.Base(dir)] = d
		uuids[d.UUID]++
	}
	for number, d := range nodes {
		if uuids[d.UUID] > 1 {
			// The partitions of an MI300 (modes DPX to CPX) share the number and the
			// address of the whole, and each is lent by itself.
			d.UUID = fmt.Sprintf("%s-%d", d.UUID, d.Minor)
			nodes[number] = d
		}
		inv.Devices = append(inv.Devices, d)
	}
	slices.SortFunc(inv.Devices, func(a, b device.Device) int { return a.Minor - b.Minor })
	inv.Links = readLinks(h, nodes)
	return inv, nil
}

// rocmVersion is that of the ROCm installed on the node, if any: images bring
// their own, and what counts for them is the kernel module.
func rocmVersion(h host.Host) string {
	for _, name := range []string{"opt/rocm/.info/version", "opt/rocm/.info/version-dev"} {
		if text, err := host.ReadText(filepath.Join(h.Root, name)); err == nil && text != "" {
			version, _, _ := strings.Cut(text, "-")
			return version
		}
	}
	return ""
}

// readNode reads a node of the topology; ok is false for CPUs, and for GPUs that
// another cgroup hides.
func readNode(h host.Host, dir string) (d device.Device, ok bool, err error) {
	text, err := host.ReadText(filepath.Join(dir, "properties"))
	if errors.Is(err, os.ErrPermission) {
		return d, false, nil // the device filter of a scheduler
	}
	if err != nil {
		return d, false, err
	}
	p := properties(text)
	if p["simd_count"] == 0 {
		return d, false, nil
	}
	minor := p["drm_render_minor"]
	if minor < firstRender {
		return d, false, errors.New("it has no render node")
	}
	d = device.Device{
		Stack: device.ROCm, Index: int(minor) - firstRender, Minor: int(minor), NUMA: -1,
		Target: target(p["gfx_target_version"]), UUID: fmt.Sprintf("GPU-%016x", p["unique_id"]),
		// location_id is bus, device and function as PCI packs them.
		PCI: fmt.Sprintf("%04x:%02x:%02x.%x", p["domain"], p["location_id"]>>8&0xff, p["location_id"]>>3&0x1f, p["location_id"]&7),
	}
	if p["unique_id"] == 0 {
		// Older and consumer GPUs have none. The address lasts as long.
		d.UUID = "GPU-" + d.PCI
	}
	d.NUMA = h.NUMA(d.PCI)
	d.Memory = memory(dir)
	d.Name, _ = host.ReadText(filepath.Join(h.Sys, "bus/pci/devices", d.PCI, "product_name"))
	if d.Name == "" {
		d.Name = "AMD " + d.Target
	}
	return d, true, nil
}

// target is the name LLVM gives an architecture: 90010 is version 9.0.10, gfx90a.
func target(version uint64) string {
	if version == 0 {
		return ""
	}
	return fmt.Sprintf("gfx%d%x%x", version/10000, version/100%100, version%100)
}

// properties reads lines of a name and a number.
func properties(text string) map[string]uint64 {
	p := make(map[string]uint64)
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if n, err := strconv.ParseUint(value, 10, 64); err == nil {
			p[name] = n
		}
	}
	return p
}

func memory(dir string) (total uint64) {
	banks, err := filepath.Glob(filepath.Join(dir, "mem_banks/*/properties"))
	if err != nil {
		return 0
	}
	for _, b := range banks {
		text, err := host.ReadText(b)
		if err != nil {
			continue
		}
		if p := properties(text); p["heap_type"] == heapPublic || p["heap_type"] == heapPrivate {
			total += p["size_in_bytes"]
		}
	}
	return total
}

// linkScore of XGMI counts more than any place in memory nodes.
const linkScore = 1000

// readLinks reads which GPUs are connected directly.
func readLinks(h host.Host, nodes map[string]device.Device) (links []device.Link) {
	for number, d := range nodes {
		files, err := filepath.Glob(filepath.Join(h.Sys, topology, number, "io_links/*/properties"))
		if err != nil {
			continue
		}
		for _, f := range files {
			text, err := host.ReadText(f)
			if err != nil {
				continue
			}
			p := properties(text)
			other, ok := nodes[strconv.FormatUint(p["node_to"], 10)]
			// Each link is there from both sides.
			if ok && p["type"] == linkXGMI && d.Minor < other.Minor {
				links = append(links, device.Link{A: d.UUID, B: other.UUID, Score: linkScore})
			}
		}
	}
	slices.SortFunc(links, func(a, b device.Link) int { return strings.Compare(a.A+a.B, b.A+b.B) })
	return links
}

// Edits gives devices to a container: the node that all GPUs share, their own
// ones, and the groups that may open these.
func Edits(h host.Host, devices []device.Device) (edit.Edits, error) {
	var e edit.Edits
	names := []string{kfdNode}
	for _, d := range devices {
		names = append(names, fmt.Sprintf("/dev/dri/renderD%d", d.Minor))
	}
	for _, name := range names {
		d, err := h.Stat(name)
		if err != nil {
			return e, fmt.Errorf("%w: %w", device.ErrNoDriver, err)
		}
		if !d.IsCharacter {
			return e, fmt.Errorf("%w: %s is not a character device", device.ErrNoDriver, h.DevPath(name))
		}
		e.Add(edit.Edits{
			Nodes:  []edit.Node{{Path: name, Major: d.Major, Minor: d.Minor, Mode: d.Mode, UID: d.UID, GID: d.GID}},
			Groups: []uint32{d.GID},
		})
	}
	return e, nil
}

// Sample reads what devices are doing.
func Sample(h host.Host, devices []device.Device) (all []device.Sample) {
	for _, d := range devices {
		dir := filepath.Join(h.Sys, "bus/pci/devices", d.PCI)
		s := device.Sample{
			UUID:        d.UUID,
			Utilisation: int(number(filepath.Join(dir, "gpu_busy_percent"))),
			Used:        number(filepath.Join(dir, "mem_info_vram_used")),
			Total:       number(filepath.Join(dir, "mem_info_vram_total")),
			Milliwatts:  -1,
		}
		// Microwatts, under one of two names (Linux, Documentation/gpu/amdgpu/thermal.rst).
		for _, name := range []string{"power1_average", "power1_input"} {
			files, err := filepath.Glob(filepath.Join(dir, "hwmon/hwmon*", name))
			if err == nil && len(files) > 0 {
				if n := number(files[0]); n >= 0 {
					s.Milliwatts = n / 1000
					break
				}
			}
		}
		all = append(all, s)
	}
	return all
}

// number reads a file with a number; -1 if it cannot be read.
func number(name string) int64 {
	text, err := host.ReadText(name)
	n, err2 := strconv.ParseInt(text, 10, 64)
	if err != nil || err2 != nil {
		return -1
	}
	return n
}
