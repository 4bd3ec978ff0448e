package nvidia

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"

	"crunch-oci/gpu/device"
	"crunch-oci/gpu/edit"
	"crunch-oci/gpu/host"
)

// Device numbers that are fixed by the driver.
const (
	controlMinor  = 255 // /dev/nvidiactl
	uvmMinor      = 0
	uvmToolsMinor = 1
)

// Names of the drivers in /proc/devices; the first of these was called
// differently before R460.
var (
	frontendNames = []string{"nvidia", "nvidia-frontend"}
	uvmNames      = []string{"nvidia-uvm"}
	capNames      = []string{"nvidia-caps"}
)

// owner is who may use device nodes that do not exist yet on the node, by the
// driver's parameters (its README, "How and when are the NVIDIA device files
// created?").
type owner struct {
	mode     uint32
	uid, gid uint32
	// unwanted says that nobody but the operator makes nodes.
	unwanted bool
}

func readOwner(h host.Host) owner {
	o := owner{mode: 0o666}
	text, err := host.ReadText(filepath.Join(h.Proc, "driver/nvidia/params"))
	if err != nil {
		return o
	}
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(line, ":")
		n, err := strconv.ParseUint(strings.TrimSpace(value), 10, 32)
		if err != nil {
			continue
		}
		switch key {
		case "DeviceFileUID":
			o.uid = uint32(n)
		case "DeviceFileGID":
			o.gid = uint32(n)
		case "DeviceFileMode":
			o.mode = uint32(n) & 0o777
		case "ModifyDeviceFiles":
			o.unwanted = n == 0
		}
	}
	return o
}

// node is a device node for the container: as it is on the node, or, if it is
// not there, with the number the driver gives it.
func node(h host.Host, o owner, name string, major, minor int64) (edit.Node, error) {
	n := edit.Node{Path: name, Major: major, Minor: minor, Mode: o.mode, UID: o.uid, GID: o.gid}
	d, err := h.Stat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return n, nil
	case err != nil:
		return n, err
	case !d.IsCharacter:
		return n, fmt.Errorf("%w: %s is not a character device", device.ErrNoDriver, h.DevPath(name))
	case d.Major != major || d.Minor != minor:
		// A node left by an earlier boot, whose major number now is another
		// driver's, must not get into a container.
		return n, fmt.Errorf("%w: %s is device %d:%d, the driver's is %d:%d: remove it", device.ErrNoDriver, h.DevPath(name), d.Major, d.Minor, major, minor)
	}
	n.Mode, n.UID, n.GID = d.Mode, d.UID, d.GID
	return n, nil
}

// Nodes are the device nodes of the devices, and those that control them.
func Nodes(h host.Host, devices []device.Device) ([]edit.Node, error) {
	frontend, err := mustMajor(h, frontendNames, "the NVIDIA kernel module is not loaded")
	if err != nil {
		return nil, err
	}
	uvm, err := mustMajor(h, uvmNames, "the NVIDIA kernel module nvidia-uvm, without which CUDA does not work, is not loaded")
	if err != nil {
		return nil, err
	}
	o := readOwner(h)
	var all []edit.Node
	add := func(name string, major int64, minor int) error {
		n, err := node(h, o, name, major, int64(minor))
		for _, have := range all {
			if have.Path == n.Path {
				return err
			}
		}
		all = append(all, n)
		return err
	}
	errs := []error{
		add("/dev/nvidiactl", frontend, controlMinor),
		add("/dev/nvidia-uvm", uvm, uvmMinor),
		add("/dev/nvidia-uvm-tools", uvm, uvmToolsMinor),
	}
	for _, d := range devices {
		errs = append(errs, add(fmt.Sprintf("/dev/nvidia%d", d.Minor), frontend, d.Minor))
		if d.Instance == nil {
			continue
		}
		caps, err := mustMajor(h, capNames, "the NVIDIA kernel module has no MIG capability devices")
		if err != nil {
			return nil, err
		}
		for _, file := range capabilityFiles(d) {
			minor, mode, err := readCapability(filepath.Join(h.Proc, file))
			if err != nil {
				return nil, fmt.Errorf("%w: MIG instance %s: %w", device.ErrNoDriver, d.Label(), err)
			}
			n, err := node(h, owner{mode: mode}, fmt.Sprintf("/dev/nvidia-caps/nvidia-cap%d", minor), caps, int64(minor))
			errs = append(errs, err)
			all = append(all, n)
		}
	}
	return all, errors.Join(errs...)
}

func mustMajor(h host.Host, names []string, otherwise string) (int64, error) {
	major, ok, err := h.Major(names...)
	if err != nil {
		return 0, fmt.Errorf("%w: %w", device.ErrNoDriver, err)
	}
	if !ok {
		return 0, fmt.Errorf("%w: %s", device.ErrNoDriver, otherwise)
	}
	return major, nil
}

// capabilityFiles describe, below /proc, the devices that open a MIG instance:
// that of its GPU instance and that of its compute instance. Both are needed
// (NVIDIA's MIG user guide, "Device nodes and capabilities").
func capabilityFiles(d device.Device) []string {
	gi := fmt.Sprintf("driver/nvidia/capabilities/gpu%d/mig/gi%d", d.Minor, d.Instance.GPU)
	return []string{gi + "/access", fmt.Sprintf("%s/ci%d/access", gi, d.Instance.Compute)}
}

// readCapability reads the number and mode of a capability's device.
func readCapability(name string) (minor int, mode uint32, err error) {
	text, err := host.ReadText(name)
	if err != nil {
		return 0, 0, err
	}
	minor, mode = -1, 0o444
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(line, ":")
		n, err := strconv.Atoi(strings.TrimSpace(value))
		if err != nil || n < 0 {
			continue
		}
		switch key {
		case "DeviceFileMinor":
			minor = n
		case "DeviceFileMode":
			mode = uint32(n) & 0o777
		}
	}
	if minor < 0 {
		return 0, 0, fmt.Errorf("%s does not name a device", name)
	}
	return minor, mode, nil
}
