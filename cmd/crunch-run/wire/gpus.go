package wire

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"crunch-oci/gpu"
	"crunch-oci/gpu/choose"
	"crunch-oci/gpu/device"
	"crunch-oci/gpu/host"
	"crunch-oci/gpu/lease"
	"crunch-oci/supervisor"
	"crunch-oci/supervisor/config"
)

// NVMLRole is the first argument that makes this program the one that has
// NVIDIA's library loaded (package nvidia); then come the root of the driver and
// the path of the library.
const NVMLRole = "gpu-nvml"

// gpuLocks is the directory of GPU locks in that of the run locks.
const gpuLocks = "crunch-run-gpu"

// GPUNode says how GPUs are found and lent on this node.
func GPUNode(site config.Site) gpu.Node {
	h := host.At(site.GPUDriverRoot)
	dirs := []string{"/etc/cdi", "/var/run/cdi"}
	if h.Root != "/" {
		// A driver that is not installed on the node may bring its own.
		dirs = append([]string{filepath.Join(h.Root, "etc/cdi"), filepath.Join(h.Root, "var/run/cdi")}, dirs...)
	}
	return gpu.Node{
		Mode: site.GPU, Host: h, CDIDirs: dirs, Locks: lease.Dir(filepath.Join(site.LockDir, gpuLocks)),
		Helper: []string{"/proc/self/exe", NVMLRole}, HelperEnv: libraryEnv(os.Environ()),
	}
}

// describeGPUs says what a node has, a line for each vendor whose GPUs work.
func describeGPUs(ctx context.Context, node gpu.Node) (lines []string, err error) {
	for _, stack := range []device.Stack{device.CUDA, device.ROCm} {
		inv, helper, _, err2 := node.Inventory(ctx, stack)
		if helper != nil {
			helper.Close()
		}
		if err2 != nil {
			if !errors.Is(err2, device.ErrNone) {
				err = errors.Join(err, fmt.Errorf("%s: %w", stack, err2))
			}
			continue
		}
		line := fmt.Sprintf("%s: %s, driver %s", stack, choose.Summary(inv.Devices), inv.Driver)
		if inv.Version != "" {
			line += " (" + inv.Version + ")"
		}
		lines = append(append(lines, line), inv.Notes...)
	}
	return lines, err
}

// libraryEnv is what the process that has a vendor's library loaded gets of the
// environment: what the dynamic linker and the C library look at, and nothing that
// a dispatcher, an operator or a scheduler has put there.
func libraryEnv(environ []string) (env []string) {
	for _, kv := range environ {
		switch name, _, _ := strings.Cut(kv, "="); name {
		case "PATH", "LD_LIBRARY_PATH", "TMPDIR", "TZ", "LANG", "LC_ALL":
			env = append(env, kv)
		}
	}
	return env
}

// gpus lends GPUs to the job's container.
type gpus struct {
	node   gpu.Node
	env    config.Environment
	uuid   string
	runDir string
}

// Allocate implements supervisor.GPUs.
func (g gpus) Allocate(ctx context.Context, r device.Request) (supervisor.GPUGrant, error) {
	r.Assigned = assigned(g.env, r.Stack)
	// The runtime directory is there until everything of the run is gone.
	owner := lease.Owner{UUID: g.uuid, PID: os.Getpid(), Remains: g.runDir}
	grant, err := g.node.Allocate(ctx, r, owner)
	if err != nil {
		return nil, err // not grant: a nil *Grant is no nil GPUGrant
	}
	return grant, nil
}

// assigned is the choice that a scheduler has made for a stack; nil if none has.
func assigned(env config.Environment, stack device.Stack) *device.Assignment {
	list := []device.Assignment{
		{Variable: "CUDA_VISIBLE_DEVICES", Devices: text(env.CUDADevices)},
		{Variable: "NVIDIA_VISIBLE_DEVICES", Devices: unlessWord(text(env.NVIDIADevices))},
	}
	if stack == device.ROCm {
		list = []device.Assignment{
			{Variable: "AMD_VISIBLE_DEVICES", Devices: unlessWord(text(env.AMDDevices))},
			{Variable: "ROCR_VISIBLE_DEVICES", Devices: text(env.ROCRDevices), Ordinal: true},
		}
	}
	for _, a := range list {
		if a.Devices != "" {
			return &a
		}
	}
	return nil
}

// unlessWord is a variable that the vendors' container tools read too: a
// supervisor that itself runs in a container may find a word there that assigns
// nothing.
func unlessWord(devices string) string {
	if slices.Contains([]string{"all", "none", "void"}, devices) {
		return ""
	}
	return devices
}

func text(s *string) string {
	if s == nil {
		return ""
	}
	return strings.TrimSpace(*s)
}
