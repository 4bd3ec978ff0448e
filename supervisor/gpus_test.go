package supervisor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"crunch-oci/arvados"
	"crunch-oci/gpu"
	"crunch-oci/gpu/device"
)

// fakeGPUs lends two devices to whoever asks.
type fakeGPUs struct {
	w     *world
	err   error // of Allocate
	give  error
	asked []device.Request
	event func(device.Device, device.Event)
}

func (f *fakeGPUs) Allocate(_ context.Context, r device.Request) (GPUGrant, error) {
	f.asked = append(f.asked, r)
	if f.err != nil {
		return nil, f.err
	}
	f.w.note("reserve GPUs")
	return fakeGrant{f}, nil
}

type fakeGrant struct{ *fakeGPUs }

func (g fakeGrant) Describe() []string { return []string{"GPU 3: fake"} }
func (g fakeGrant) Notes() []string    { return []string{"a note about the choice"} }
func (g fakeGrant) Devices() []device.Device {
	return []device.Device{{Index: 3, UUID: "GPU-3"}, {Index: 1, UUID: "MIG-1", Instance: &device.Instance{Index: 2}}}
}

func (g fakeGrant) Give(spec *specs.Spec, root string) ([]string, error) {
	spec.Process.Env = append(spec.Process.Env, "ROOT="+root)
	return []string{"a note about the image"}, g.give
}

func (g fakeGrant) Watch(event func(device.Device, device.Event), note func(string)) {
	g.event = event
	note("a note about errors")
}

func (g fakeGrant) Sample() []device.Sample {
	return []device.Sample{
		{UUID: "GPU-3", Utilisation: 40, Used: 1 << 30, Total: 4 << 30, Milliwatts: 250500},
		{UUID: "MIG-1", Utilisation: -1, Used: 5, Total: -1, Milliwatts: -1},
	}
}

func (g fakeGrant) Release() error { g.w.note("release GPUs"); return nil }

// wantGPUs makes the record ask for two GPUs.
func (w *world) wantGPUs() *fakeGPUs {
	w.api.record["runtime_constraints"].(map[string]any)["gpu"] = map[string]any{
		"stack": "cuda", "device_count": 2, "driver_version": "12.4", "hardware_target": []string{"8.0"}, "vram": 1 << 30,
	}
	f := &fakeGPUs{w: w}
	w.sup.GPUs = f
	return f
}

// A container with GPUs has them from before its image is loaded until nothing
// of it is left; what they do is in its statistics.
func TestContainerWithGPUs(t *testing.T) {
	w := succeeding(t)
	f := w.wantGPUs()
	w.run()
	w.ends(arvados.StateComplete, 0, "")
	want := device.Request{Stack: device.CUDA, Count: 2, DriverVersion: "12.4", Targets: []string{"8.0"}, VRAM: 1 << 30}
	if len(f.asked) != 1 || fmt.Sprint(f.asked[0]) != fmt.Sprint(want) {
		t.Errorf("asked for %+v", f.asked)
	}
	order := []string{"reserve GPUs", "create container", "delete container", "release GPUs"}
	var got []string
	for _, line := range w.trace {
		for _, o := range order {
			if strings.HasPrefix(line, o) {
				got = append(got, o)
			}
		}
	}
	if !slices.Equal(got, order) {
		t.Errorf("order %q in\n%s", got, strings.Join(w.trace, "\n"))
	}
	if spec := w.runtime.made[0].guest.spec; !slices.ContainsFunc(spec.Process.Env, func(kv string) bool { return strings.HasPrefix(kv, "ROOT=/") }) {
		t.Errorf("environment %q", spec.Process.Env)
	}
	stats := w.savedFiles()["crunchstat.txt"]
	for _, line := range []string{" gpu:3 40 util 1073741824 mem 4294967296 total 250.500 watts\n", " gpu:1:2 5 mem\n"} {
		if !strings.Contains(stats, line) {
			t.Errorf("no line %q in crunchstat.txt:\n%s", line, stats)
		}
	}
	for _, line := range []string{"GPU 3: fake", "a note about the choice", "a note about the image", "a note about errors", "Maximum GPU 3 memory usage was 25%, 1073741824/4294967296 bytes"} {
		if !strings.Contains(w.messages(), line+"\n") {
			t.Errorf("no line %q in the log:\n%s", line, w.messages())
		}
	}
}

// Errors of the GPUs reach the log, and the serious ones the record.
func TestGPUErrors(t *testing.T) {
	w := succeeding(t)
	f := w.wantGPUs()
	w.api.record["runtime_status"] = map[string]any{"preemptionNotice": "soon"} // another's, and stays
	reported := make(chan struct{})
	w.api.edit = func(c *call, _ any) {
		if attrs, ok := c.Params["container"].(map[string]any); ok && attrs["runtime_status"] != nil {
			close(reported)
		}
	}
	w.runtime.program = func(*guest) int {
		d := device.Device{Index: 3, UUID: "GPU-3"}
		f.event(d, device.Event{Kind: "corrected memory error", Corrected: true})
		f.event(d, device.Event{Kind: "XID 79", XID: 79})
		<-reported
		for range 2 * maxGPUEvents {
			f.event(d, device.Event{Kind: "corrected memory error", Corrected: true})
		}
		return 0
	}
	w.run()
	w.ends(arvados.StateComplete, 0, "")
	want := map[string]any{"preemptionNotice": "soon", "warning": "GPU error: XID 79", "warningDetail": "GPU 3 (GPU-3): XID 79"}
	if got := w.api.record["runtime_status"]; fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("runtime_status %v", got)
	}
	if n := strings.Count(w.messages(), "error reported by GPU 3 (GPU-3): "); n != maxGPUEvents {
		t.Errorf("%d lines about errors:\n%s", n, w.messages())
	}
}

// The older form of the record means the same.
func TestDeprecatedCUDA(t *testing.T) {
	w := succeeding(t)
	f := w.wantGPUs()
	w.api.record["runtime_constraints"] = map[string]any{"vcpus": 1, "cuda": map[string]any{"device_count": 1, "driver_version": "11.0", "hardware_capability": "9.0"}}
	w.run()
	w.ends(arvados.StateComplete, 0, "")
	want := device.Request{Stack: device.CUDA, Count: 1, DriverVersion: "11.0", Targets: []string{"9.0"}}
	if len(f.asked) != 1 || fmt.Sprint(f.asked[0]) != fmt.Sprint(want) {
		t.Errorf("asked for %+v", f.asked)
	}
}

// Whose fault it is decides on the state, and on whether the node is drained.
func TestGPUsNotGiven(t *testing.T) {
	for name, c := range map[string]struct {
		err, give error
		state     string
		broken    bool
		message   string
	}{
		"no GPU":        {err: device.ErrNone, state: arvados.StateQueued, message: "the container does not get its GPUs: this node has no GPU"},
		"no driver":     {err: fmt.Errorf("%w: x", device.ErrNoDriver), state: arvados.StateQueued, broken: true, message: "the container does not get its GPUs: no usable GPU driver on this node: x"},
		"too small":     {err: device.ErrUnsuitable, state: arvados.StateQueued, message: "this node's GPUs are not what the container needs"},
		"in use":        {err: device.ErrBusy, state: arvados.StateQueued, message: "this node's GPUs are in use"},
		"switched off":  {err: gpu.ErrOff, state: arvados.StateQueued, message: "site setting gpu: off"},
		"bad request":   {err: device.ErrRequest, state: arvados.StateCancelled, message: "cannot be met anywhere"},
		"mount over it": {give: device.ErrRequest, state: arvados.StateCancelled, message: "While creating container"},
		"image too new": {give: device.ErrUnsuitable, state: arvados.StateQueued, message: "While creating container"},
		"disk":          {give: errors.New("no luck"), state: arvados.StateQueued, message: "no luck"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			f := w.wantGPUs()
			f.err, f.give = c.err, c.give
			w.run()
			w.ends(c.state, nil, c.message)
			if (len(w.broken) > 0) != c.broken {
				t.Errorf("node marked as broken: %q", w.broken)
			}
			if c.err == nil && !slices.Contains(w.trace, "release GPUs") {
				t.Error("the GPUs have not been released")
			}
		})
	}
}
