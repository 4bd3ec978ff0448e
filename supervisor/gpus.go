package supervisor

import (
	"context"
	"errors"
	"fmt"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"crunch-oci/gpu/device"
	"crunch-oci/oci"
	"crunch-oci/supervisor/stats"
)

// GPUs lends the GPUs of this node to containers.
type GPUs interface {
	// Allocate chooses devices and holds them until they are released. Errors
	// are gpu.ErrOff, or those of package device.
	Allocate(ctx context.Context, r device.Request) (GPUGrant, error)
}

// GPUGrant is what a container has been lent.
type GPUGrant interface {
	// Describe says which devices these are, Notes what there is to say about
	// the choice, a line each.
	Describe() []string
	Notes() []string
	Devices() []device.Device
	// Give changes the specification and the root directory so that the
	// container has the devices, and returns lines for the log.
	Give(spec *specs.Spec, root string) (notes []string, err error)
	// Watch reports errors of the devices, from another goroutine.
	Watch(event func(device.Device, device.Event), note func(string))
	Sample() []device.Sample
	Release() error
}

// maxGPUEvents is how many errors of GPUs are logged one by one: a failing
// memory chip may report thousands.
const maxGPUEvents = 100

// reserveGPUs gets the container its GPUs, before an image is loaded for it that
// this node could not run.
func (r *run) reserveGPUs(ctx context.Context) error {
	q := gpuRequest(r)
	if q.Count == 0 {
		return nil
	}
	if !r.Limits.Confinement.IDs.IsZero() {
		// The driver's device nodes and files belong to ids of the host.
		return fmt.Errorf("the container does not get its GPUs: they are %w", oci.ErrUserNamespace)
	}
	grant, err := r.GPUs.Allocate(ctx, q)
	if errors.Is(err, device.ErrRequest) {
		return cancelled(err)
	}
	if err != nil {
		// Another node may do better, or this one later.
		return fmt.Errorf("the container does not get its GPUs: %w", err)
	}
	r.gpus = grant
	r.undo.Add("release GPUs", func(context.Context) error { return grant.Release() })
	for _, line := range append(grant.Describe(), grant.Notes()...) {
		r.Log.Printf("%s", line)
	}
	return nil
}

// gpuRequest reads the record. A server fills the newer form from the older one
// (spec: arvados-api section 10.2); one that does not has meant the older.
func gpuRequest(r *run) device.Request {
	c := r.record.RuntimeConstraints
	if c.GPU.DeviceCount == 0 && c.CUDA != nil && c.CUDA.DeviceCount != 0 {
		q := device.Request{Stack: device.CUDA, Count: c.CUDA.DeviceCount, DriverVersion: c.CUDA.DriverVersion}
		if c.CUDA.HardwareCapability != "" {
			q.Targets = []string{c.CUDA.HardwareCapability}
		}
		return q
	}
	return device.Request{
		Stack: device.Stack(c.GPU.Stack), Count: c.GPU.DeviceCount, DriverVersion: c.GPU.DriverVersion,
		Targets: c.GPU.HardwareTarget, VRAM: c.GPU.VRAM,
	}
}

// giveGPUs makes the GPUs the container's. Root is its root directory.
func (r *run) giveGPUs(spec *specs.Spec) error {
	if r.gpus == nil {
		return nil
	}
	notes, err := r.gpus.Give(spec, r.image.rootfs)
	for _, n := range notes {
		r.Log.Printf("%s", n)
	}
	if errors.Is(err, device.ErrRequest) {
		return cancelled(err)
	}
	return err
}

// watchGPUs logs errors that the container's GPUs report, and publishes the
// serious ones.
func (r *run) watchGPUs() {
	if r.gpus == nil {
		return
	}
	seen := 0
	r.gpus.Watch(func(d device.Device, e device.Event) {
		if seen++; seen > maxGPUEvents {
			return
		}
		text := fmt.Sprintf("GPU %s (%s): %s", d.Label(), d.UUID, e.Kind)
		r.Log.Printf("error reported by %s", text)
		if seen == maxGPUEvents {
			r.Log.Printf("further errors of the GPUs are not logged")
		}
		if e.Serious() {
			r.warnLater(warning{source: text, text: "GPU error: " + e.Kind, detail: text})
		}
	}, func(note string) { r.Log.Printf("%s", note) })
}

// gpuStats is the source of the statistics of GPUs; nil without any.
func (r *run) gpuStats() func() []stats.GPU {
	if r.gpus == nil {
		return nil
	}
	labels := make(map[string]string)
	for _, d := range r.gpus.Devices() {
		labels[d.UUID] = d.Label()
	}
	return func() (all []stats.GPU) {
		for _, s := range r.gpus.Sample() {
			all = append(all, stats.GPU{
				Name: labels[s.UUID], Utilisation: s.Utilisation, Used: s.Used, Total: s.Total, Milliwatts: s.Milliwatts,
			})
		}
		return all
	}
}

// isGPUsFault tells whether this node's GPU driver must be repaired: nobody
// should get this node until then.
func isGPUsFault(err error) bool {
	return errors.Is(err, device.ErrNoDriver)
}
