// Package gpu answers one question: which GPUs does this container get, and what
// must its OCI specification and its root directory then contain? It also says
// what the GPUs are doing. It knows the OCI specification and nothing else of
// this project; its subpackages each know one part:
//
//	device   what a GPU and a request are
//	host     where the driver is on the node
//	nvidia   NVIDIA's GPUs, by NVML in a process of its own, and driver files
//	amd      AMD's GPUs, by the kernel's topology
//	choose   which devices a scheduler means; which of the free ones are near
//	lease    one lock per device, so that containers do not share
//	cdi      CDI specifications that exist on the node
//	edit     changes to the specification and the root directory
//	ldcache  the loader's cache
//	elfso    names and versions of libraries
package gpu

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"crunch-oci/gpu/amd"
	"crunch-oci/gpu/cdi"
	"crunch-oci/gpu/choose"
	"crunch-oci/gpu/device"
	"crunch-oci/gpu/edit"
	"crunch-oci/gpu/host"
	"crunch-oci/gpu/lease"
	"crunch-oci/gpu/nvidia"
)

// Modes of the site setting gpu.
const (
	ModeAuto    = "auto"    // as ModeDevices
	ModeDevices = "devices" // what this package finds out
	ModeCDI     = "cdi"     // the node's CDI specifications
	ModeOff     = "off"     // no GPUs for containers
)

// ErrOff is returned where the site does not give GPUs to containers.
var ErrOff = errors.New("this node gives no GPUs to containers (site setting gpu: off)")

// Node is how GPUs are found and lent on this node.
type Node struct {
	Mode string
	Host host.Host
	// CDIDirs hold CDI specifications, the last with the highest priority.
	CDIDirs []string
	Locks   lease.Dir
	// Helper is a program, with arguments, that calls nvidia.Serve; the driver's
	// root and the path of NVML ("" where the loader finds it) are added to them.
	// HelperEnv is its environment.
	Helper    []string
	HelperEnv []string
}

// Grant is the GPUs that one container has, until it is released.
type Grant struct {
	node    Node
	inv     device.Inventory
	lease   *lease.Lease
	helper  *nvidia.Helper // nil for AMD
	notes   []string
	devices []device.Device
}

// Stack is the kind of GPUs that the node has a driver or devices of; CUDA if it
// has none.
func (n Node) Stack() device.Stack {
	_, noCUDA := n.Host.Stat("/dev/nvidiactl")
	_, noROCm := n.Host.Stat("/dev/kfd")
	if noCUDA != nil && (noROCm == nil || !n.Host.HasGPU(host.VendorNVIDIA) && n.Host.HasGPU(host.VendorAMD)) {
		return device.ROCm
	}
	return device.CUDA
}

// Inventory finds what the node has of a stack, and what there is to say about
// how. The helper, if there is one, is to be closed. The error is
// device.ErrNone if the node has no GPU of the stack, and device.ErrNoDriver if
// the driver does not work.
func (n Node) Inventory(ctx context.Context, stack device.Stack) (device.Inventory, *nvidia.Helper, []string, error) {
	if stack == device.ROCm {
		inv, err := amd.Discover(n.Host)
		return inv, nil, nil, n.explain(stack, err, nil)
	}
	notes := nvidia.Prepare(ctx, n.Host)
	args := append(slices.Clone(n.Helper[1:]), n.Host.Root, nvidia.LibraryPath(n.Host))
	h, inv, err := nvidia.StartHelper(ctx, n.Helper[0], args, n.HelperEnv)
	return inv, h, notes, n.explain(stack, err, notes)
}

// Allocate chooses GPUs for a container and holds them. Errors are those of
// package device, ErrOff, or those of the node's file system.
func (n Node) Allocate(ctx context.Context, r device.Request, owner lease.Owner) (_ *Grant, err error) {
	if err := r.Check(); err != nil {
		return nil, err
	}
	if n.Mode == ModeOff {
		return nil, ErrOff
	}
	g := &Grant{node: n}
	defer func() {
		if err != nil {
			err = errors.Join(err, g.Release())
		}
	}()
	g.inv, g.helper, g.notes, err = n.Inventory(ctx, r.Stack)
	if err != nil {
		return nil, err
	}
	g.notes = append(g.notes, g.inv.Notes...)
	if err := r.CheckDriver(g.inv); err != nil {
		return nil, err
	}
	if r.Assigned != nil && strings.TrimSpace(r.Assigned.Devices) != "" {
		err = g.takeAssigned(ctx, r, owner)
	} else {
		err = g.takeBest(ctx, r, owner)
	}
	if err != nil {
		return nil, err
	}
	if r.Stack == device.CUDA {
		g.notes = append(g.notes, nvidia.PrepareMIG(ctx, n.Host, g.devices)...)
	}
	// Now, rather than when the image has been loaded: what is missing is missing.
	if _, _, err := g.edits(nvidia.Capabilities{Compute: true, Utility: true}); err != nil {
		return nil, err
	}
	return g, nil
}

// explain tells a node whose driver does not work, which somebody must repair,
// from one that has no GPU, which is only the wrong one.
func (n Node) explain(stack device.Stack, err error, tried []string) error {
	vendor, name := host.VendorNVIDIA, "NVIDIA"
	if stack == device.ROCm {
		vendor, name = host.VendorAMD, "AMD"
	}
	switch {
	case !errors.Is(err, device.ErrNoDriver):
		return err
	case !n.Host.HasGPU(vendor):
		return fmt.Errorf("%w of %s", device.ErrNone, name)
	case len(tried) > 0:
		return fmt.Errorf("%w (%s)", err, strings.Join(tried, "; "))
	}
	return err
}

// takeAssigned takes the devices a scheduler has chosen, exactly.
func (g *Grant) takeAssigned(ctx context.Context, r device.Request, owner lease.Owner) error {
	devices, err := choose.Assigned(g.inv, *r.Assigned)
	if err != nil {
		return err
	}
	for _, d := range devices {
		if err := r.CheckDevice(d); err != nil {
			return err
		}
	}
	switch n := len(devices); {
	case n < r.Count:
		return fmt.Errorf("%w: it needs %d GPUs, the scheduler has assigned %d (%s=%s)", device.ErrUnsuitable, r.Count, n, r.Assigned.Variable, r.Assigned.Devices)
	case n > r.Count:
		g.notes = append(g.notes, fmt.Sprintf("the scheduler has assigned %d GPUs (%s=%s), the container asked for %d: it gets all of them", n, r.Assigned.Variable, r.Assigned.Devices, r.Count))
	}
	if g.lease, err = g.node.Locks.Share(ctx, devices, owner); err != nil {
		return err
	}
	for _, d := range devices {
		if holder, shared := g.lease.Shared[d.UUID]; shared {
			g.notes = append(g.notes, fmt.Sprintf("warning: GPU %s, assigned by the scheduler, is also in use by container %s", d.Label(), holder.UUID))
		}
	}
	g.devices = devices
	return nil
}

// takeBest takes those of the free devices that are closest to one another.
func (g *Grant) takeBest(ctx context.Context, r device.Request, owner lease.Owner) error {
	candidates, err := choose.Candidates(g.inv, r)
	if err != nil {
		return err
	}
	g.lease, err = g.node.Locks.Take(ctx, candidates, owner, func(free []device.Device) ([]device.Device, error) {
		if len(free) < r.Count {
			return nil, fmt.Errorf("%w: it needs %d, of %d that would do %d are free (%s)", device.ErrBusy, r.Count, len(candidates), len(free), g.node.Locks.Holders(candidates))
		}
		return choose.Best(g.inv, free, r.Count), nil
	})
	if err != nil {
		return err
	}
	g.devices = g.lease.Devices()
	return nil
}

// edits are the changes for the container's devices.
func (g *Grant) edits(caps nvidia.Capabilities) (e edit.Edits, notes []string, err error) {
	if g.node.Mode == ModeCDI {
		return cdi.Edits(g.node.CDIDirs, g.inv.Stack, g.devices)
	}
	if g.inv.Stack == device.ROCm {
		e, err = amd.Edits(g.node.Host, g.devices)
		return e, nil, err
	}
	e, missing := nvidia.Files(g.node.Host, g.inv.Driver, caps)
	if len(missing) > 0 {
		return e, nil, fmt.Errorf("%w: the NVIDIA driver's version is %s, its files %s are not on this node", device.ErrNoDriver, g.inv.Driver, strings.Join(missing, " and "))
	}
	if e.Nodes, err = nvidia.Nodes(g.node.Host, g.devices); err != nil {
		return e, nil, err
	}
	// Container tools inside the container shall not try the same again.
	e.Env = append(e.Env, "NVIDIA_VISIBLE_DEVICES=void")
	return e, nil, nil
}

// Give makes the devices the container's: it changes the specification, and the
// root directory, in which no process may run yet. The image's variables are
// taken from the specification. What is returned is for the log.
func (g *Grant) Give(spec *specs.Spec, root string) (notes []string, err error) {
	caps := nvidia.Capabilities{Compute: true, Utility: true}
	if g.inv.Stack == device.CUDA {
		var more []string
		caps, more = nvidia.CapabilitiesOf(spec.Process.Env)
		notes = append(notes, more...)
		more, err = nvidia.CheckRequirements(spec.Process.Env, g.inv, g.devices)
		notes = append(notes, more...)
		if err != nil {
			return notes, err
		}
	}
	e, more, err := g.edits(caps)
	notes = append(notes, more...)
	if err != nil {
		return notes, err
	}
	if g.inv.Stack == device.CUDA {
		if note := nvidia.CheckGlibc(root, e.Mounts); note != "" {
			notes = append(notes, note)
		}
		if caps.Compute {
			compat, note := nvidia.Compat(root, g.inv.Driver, g.devices)
			if note != "" {
				notes = append(notes, note)
			}
			// In front: the loader takes the first.
			compat.Add(e)
			e = compat
		}
	}
	more, err = e.Apply(spec)
	notes = append(notes, more...)
	if err != nil {
		return notes, err
	}
	more, err = e.PrepareRoot(root)
	return append(notes, more...), err
}

// Devices are those of the container.
func (g *Grant) Devices() []device.Device { return g.devices }

// Notes are what is to be said about the allocation.
func (g *Grant) Notes() []string { return g.notes }

// Describe says in a line each which devices these are.
func (g *Grant) Describe() (lines []string) {
	for _, d := range g.devices {
		line := fmt.Sprintf("GPU %s: %s, %s, %d MiB, %s, driver %s", d.Label(), d.Name, d.UUID, d.Memory>>20, d.Target, g.inv.Driver)
		if g.inv.Version != "" {
			line += " (" + g.inv.Version + ")"
		}
		lines = append(lines, line)
	}
	return lines
}

// Watch reports errors of the container's devices, from another goroutine, until
// the grant is released.
func (g *Grant) Watch(event func(device.Device, device.Event), note func(string)) {
	if g.helper == nil {
		return
	}
	err := g.helper.Watch(g.devices, func(e device.Event) {
		for _, d := range g.devices {
			if e.Concerns(d) {
				event(d, e)
				return
			}
		}
	}, note)
	if err != nil {
		note(fmt.Sprintf("errors of the GPUs are not reported: %v", err))
	}
}

// Sample tells what the devices are doing; what is not known is left out.
func (g *Grant) Sample() []device.Sample {
	if g.helper != nil {
		return g.helper.Sample()
	}
	return amd.Sample(g.node.Host, g.devices)
}

// Release gives the devices back. A second call does nothing.
func (g *Grant) Release() error {
	if g.helper != nil {
		g.helper.Close()
	}
	if g.lease == nil {
		return nil
	}
	return g.lease.Release()
}
