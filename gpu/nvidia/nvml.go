//go:build !nonvml

package nvidia

import (
	"fmt"
	"strings"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"crunch-oci/gpu/device"
	"crunch-oci/gpu/host"
)

// library is NVML with what it offers beyond its oldest version looked up first:
// a call of a function that the driver's library does not have ends the process.
type library struct {
	nvml.Interface
}

func (l library) has(symbol string) bool { return l.Extensions().LookupSymbol(symbol) == nil }

// readInventory asks NVML, which has been initialised, what the node has.
func (l library) readInventory(h host.Host) (device.Inventory, error) {
	inv := device.Inventory{Stack: device.CUDA}
	var ret nvml.Return
	if inv.Driver, ret = l.SystemGetDriverVersion(); ret != nvml.SUCCESS {
		return inv, l.failure("read the driver's version", ret)
	}
	if l.has("nvmlSystemGetCudaDriverVersion") {
		if v, ret := l.SystemGetCudaDriverVersion(); ret == nvml.SUCCESS {
			inv.Version = fmt.Sprintf("%d.%d", v/1000, v%1000/10)
		}
	}
	n, ret := l.DeviceGetCount()
	if ret != nvml.SUCCESS {
		return inv, l.failure("count the GPUs", ret)
	}
	var handles []nvml.Device
	for i := range n {
		handle, ret := l.DeviceGetHandleByIndex(i)
		if ret != nvml.SUCCESS {
			// The others are fine. A scheduler may have hidden this one (cgroup).
			if ret != nvml.ERROR_NO_PERMISSION {
				inv.Notes = append(inv.Notes, fmt.Sprintf("GPU %d cannot be used: %s", i, l.text(ret)))
			}
			continue
		}
		d, err := l.readDevice(h, i, handle)
		if err != nil {
			inv.Notes = append(inv.Notes, fmt.Sprintf("GPU %d cannot be used: %v", i, err))
			continue
		}
		instances, err := l.readInstances(d, handle)
		if err != nil {
			inv.Notes = append(inv.Notes, fmt.Sprintf("MIG instances of GPU %d cannot be used: %v", i, err))
		}
		handles = append(handles, handle)
		inv.Devices = append(append(inv.Devices, d), instances...)
	}
	inv.Links = l.readLinks(inv, handles)
	return inv, nil
}

func (l library) readDevice(h host.Host, index int, handle nvml.Device) (device.Device, error) {
	d := device.Device{Stack: device.CUDA, Index: index, NUMA: -1}
	var ret nvml.Return
	if d.UUID, ret = handle.GetUUID(); ret != nvml.SUCCESS {
		return d, l.failure("read its UUID", ret)
	}
	if d.Minor, ret = handle.GetMinorNumber(); ret != nvml.SUCCESS {
		return d, l.failure("read its device number", ret)
	}
	d.Name, _ = handle.GetName()
	if m, ret := handle.GetMemoryInfo(); ret == nvml.SUCCESS {
		d.Memory = m.Total
	}
	if major, minor, ret := handle.GetCudaComputeCapability(); ret == nvml.SUCCESS {
		d.Target = fmt.Sprintf("%d.%d", major, minor)
	}
	if p, ret := handle.GetPciInfo(); ret == nvml.SUCCESS {
		d.PCI = busID(p)
		d.NUMA = h.NUMA(d.PCI)
	}
	if l.has("nvmlDeviceGetMigMode") {
		if current, _, ret := handle.GetMigMode(); ret == nvml.SUCCESS {
			d.MIGMode = current == nvml.DEVICE_MIG_ENABLE
		}
	}
	return d, nil
}

// busID is a PCI address as sysfs has it; NVML's has a domain of eight digits.
func busID(p nvml.PciInfo) string {
	return fmt.Sprintf("%04x:%02x:%02x.0", p.Domain, p.Bus, p.Device)
}

func (l library) readInstances(d device.Device, handle nvml.Device) (all []device.Device, err error) {
	if !d.MIGMode {
		return nil, nil
	}
	n, ret := handle.GetMaxMigDeviceCount()
	if ret != nvml.SUCCESS {
		return nil, l.failure("count them", ret)
	}
	for i := range n {
		mig, ret := handle.GetMigDeviceHandleByIndex(i)
		if ret == nvml.ERROR_NOT_FOUND || ret == nvml.ERROR_INVALID_ARGUMENT {
			continue
		}
		if ret != nvml.SUCCESS {
			return all, l.failure(fmt.Sprintf("find instance %d", i), ret)
		}
		m := device.Device{
			Stack: d.Stack, Index: d.Index, Minor: d.Minor, PCI: d.PCI, NUMA: d.NUMA, Target: d.Target, Name: d.Name,
			Instance: &device.Instance{Index: i, Parent: d.UUID},
		}
		if m.UUID, ret = mig.GetUUID(); ret != nvml.SUCCESS {
			return all, l.failure(fmt.Sprintf("read the UUID of instance %d", i), ret)
		}
		if m.Instance.GPU, ret = mig.GetGpuInstanceId(); ret != nvml.SUCCESS {
			return all, l.failure(fmt.Sprintf("read the GPU instance of instance %d", i), ret)
		}
		if m.Instance.Compute, ret = mig.GetComputeInstanceId(); ret != nvml.SUCCESS {
			return all, l.failure(fmt.Sprintf("read the compute instance of instance %d", i), ret)
		}
		if name, ret := mig.GetName(); ret == nvml.SUCCESS {
			m.Name = name
		}
		if memory, ret := mig.GetMemoryInfo(); ret == nvml.SUCCESS {
			m.Memory = memory.Total
		}
		all = append(all, m)
	}
	return all, nil
}

// Scores of links: one of NVLink counts more than any place on the PCI tree.
const (
	nvlinkScore  = 1000
	highestLevel = int(nvml.TOPOLOGY_SYSTEM) // across sockets
)

// readLinks finds out how close the GPUs are to each other. What cannot be found
// out is no link. handles are those of the GPUs in inv, without instances.
func (l library) readLinks(inv device.Inventory, handles []nvml.Device) (links []device.Link) {
	var gpus []device.Device
	for _, d := range inv.Devices {
		if d.Instance == nil {
			gpus = append(gpus, d)
		}
	}
	if len(gpus) < 2 {
		return nil
	}
	direct, switched := l.readNVLinks(gpus, handles)
	for i := range gpus {
		for j := range i {
			score := nvlinkScore * (direct[[2]int{i, j}] + min(switched[i], switched[j]))
			if l.has("nvmlDeviceGetTopologyCommonAncestor") {
				if level, ret := handles[i].GetTopologyCommonAncestor(handles[j]); ret == nvml.SUCCESS {
					score += highestLevel - int(level)
				}
			}
			if score > 0 {
				links = append(links, device.Link{A: gpus[j].UUID, B: gpus[i].UUID, Score: score})
			}
		}
	}
	return links
}

// readNVLinks counts the active links between pairs of GPUs (the higher number
// first), and those of each GPU to switches, which connect it with every GPU
// that has some.
func (l library) readNVLinks(gpus []device.Device, handles []nvml.Device) (direct map[[2]int]int, switched []int) {
	direct, switched = make(map[[2]int]int), make([]int, len(gpus))
	if !l.has("nvmlDeviceGetNvLinkState") {
		return direct, switched
	}
	byPCI := make(map[string]int)
	for i, d := range gpus {
		byPCI[d.PCI] = i
	}
	for i, h := range handles {
		for link := range int(nvml.NVLINK_MAX_LINKS) {
			state, ret := h.GetNvLinkState(link)
			if ret == nvml.ERROR_NOT_SUPPORTED || ret == nvml.ERROR_INVALID_ARGUMENT {
				break // no more links
			}
			if ret != nvml.SUCCESS || state != nvml.FEATURE_ENABLED {
				continue
			}
			remote, ret := h.GetNvLinkRemotePciInfo(link)
			if ret != nvml.SUCCESS {
				continue
			}
			if j, ok := byPCI[busID(remote)]; ok && j < i {
				direct[[2]int{i, j}]++
			} else if !ok {
				switched[i]++
			}
		}
	}
	return direct, switched
}

func (l library) failure(what string, ret nvml.Return) error {
	return fmt.Errorf("%s: %s", what, l.text(ret))
}

// text is what NVML calls an error, with its number if it does not know it.
func (l library) text(ret nvml.Return) string {
	if s := strings.TrimSpace(ret.Error()); s != "" {
		return s
	}
	return fmt.Sprintf("NVML error %d", int(ret))
}

// sample asks what devices are doing.
func (l library) sample(devices []watched) []device.Sample {
	var all []device.Sample
	for _, w := range devices {
		s := device.Sample{UUID: w.device.UUID, Utilisation: -1, Used: -1, Total: -1, Milliwatts: -1}
		if m, ret := w.handle.GetMemoryInfo(); ret == nvml.SUCCESS {
			s.Used, s.Total = int64(m.Used), int64(m.Total)
		}
		// Of MIG instances neither is known.
		if w.device.Instance == nil {
			if u, ret := w.handle.GetUtilizationRates(); ret == nvml.SUCCESS {
				s.Utilisation = int(u.Gpu)
			}
			if p, ret := w.handle.GetPowerUsage(); ret == nvml.SUCCESS {
				s.Milliwatts = int64(p)
			}
		}
		all = append(all, s)
	}
	return all
}

// watched is a device that a container has.
type watched struct {
	device device.Device
	handle nvml.Device // of the instance, if it is one
	gpu    nvml.Device
}

// find opens the devices with these UUIDs.
func (l library) find(inv device.Inventory, uuids []string) (all []watched, err error) {
	for _, uuid := range uuids {
		for _, d := range inv.Devices {
			if d.UUID != uuid {
				continue
			}
			gpu, ret := l.DeviceGetHandleByIndex(d.Index)
			handle := gpu
			if ret == nvml.SUCCESS && d.Instance != nil {
				handle, ret = gpu.GetMigDeviceHandleByIndex(d.Instance.Index)
			}
			if ret != nvml.SUCCESS {
				return nil, l.failure("open GPU "+d.Label(), ret)
			}
			all = append(all, watched{d, handle, gpu})
		}
	}
	return all, nil
}
