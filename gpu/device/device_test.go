package device

import (
	"errors"
	"testing"
)

func TestRequestCheck(t *testing.T) {
	for _, c := range []struct {
		r  Request
		ok bool
	}{
		{Request{Stack: CUDA, Count: 1}, true},
		{Request{Stack: ROCm, Count: 1, DriverVersion: "6.3", Targets: []string{"gfx90a"}}, true},
		{Request{Stack: CUDA, Count: 1, DriverVersion: "12.4", Targets: []string{"8.0", "9.0"}, VRAM: 1}, true},
		{Request{Stack: CUDA, Count: 1, Targets: []string{AnyTarget}}, true},
		{Request{Stack: "", Count: 1}, false},
		{Request{Stack: "opencl", Count: 1}, false},
		{Request{Stack: CUDA, Count: -1}, false},
		{Request{Stack: CUDA, Count: 1, VRAM: -1}, false},
		{Request{Stack: CUDA, Count: 1, DriverVersion: "new"}, false},
		{Request{Stack: CUDA, Count: 1, DriverVersion: "12."}, false},
		{Request{Stack: CUDA, Count: 1, Targets: []string{"sm_80"}}, true},
	} {
		if err := c.r.Check(); (err == nil) != c.ok || err != nil && !errors.Is(err, ErrRequest) {
			t.Errorf("%+v: %v", c.r, err)
		}
	}
}

func TestCheckDriver(t *testing.T) {
	cuda := Inventory{Stack: CUDA, Driver: "535.183.01", Version: "12.2"}
	rocm := Inventory{Stack: ROCm, Driver: "6.8.5", Version: "6.2.0"}
	for _, c := range []struct {
		want string
		inv  Inventory
		ok   bool
	}{
		{"", cuda, true},
		{"0.0", cuda, true},
		{"11.8", cuda, true},
		{"12.2", cuda, true},
		{"12.10", cuda, false},
		{"13", cuda, false},
		{"525.60.13", cuda, true}, // can only be the driver's own
		{"550.54", cuda, false},
		{"6.2", rocm, true},
		{"6.3", rocm, false},
		{"6.3", Inventory{Stack: ROCm, Driver: "6.8.5"}, true}, // not known
	} {
		err := Request{Stack: c.inv.Stack, DriverVersion: c.want}.CheckDriver(c.inv)
		if (err == nil) != c.ok || err != nil && !errors.Is(err, ErrUnsuitable) {
			t.Errorf("%s on %+v: %v", c.want, c.inv, err)
		}
	}
}

func TestCheckDeviceTarget(t *testing.T) {
	a100 := Device{Stack: CUDA, Target: "8.0", Memory: 40 << 30}
	for _, c := range []struct {
		targets []string
		ok      bool
	}{
		{[]string{"8.0"}, true},
		{[]string{"7.5"}, true},
		{[]string{"8.6"}, false},
		{[]string{"9.0", "8.0"}, true},
		{[]string{"sm_80"}, true},
		{[]string{"SM_75"}, true},
		{[]string{"sm_90a"}, false},
		{[]string{"compute_100f"}, false},
		{[]string{"compute_80"}, true},
		{[]string{"sm_"}, true},
		{[]string{"ampere"}, true}, // says nothing to us
		{nil, true},
	} {
		err := Request{Stack: CUDA, Count: 1, Targets: c.targets}.CheckDevice(a100)
		if (err == nil) != c.ok || err != nil && !errors.Is(err, ErrUnsuitable) {
			t.Errorf("%v: %v", c.targets, err)
		}
	}
}

func TestEventConcerns(t *testing.T) {
	whole := Device{UUID: "GPU-1"}
	part := Device{UUID: "MIG-1", Instance: &Instance{Parent: "GPU-1", GPU: 2, Compute: 0}}
	for _, c := range []struct {
		e           Event
		whole, part bool
	}{
		{Event{UUID: "GPU-1", GPUInstance: -1, ComputeInstance: -1}, true, true},
		{Event{UUID: "GPU-1", GPUInstance: 2, ComputeInstance: -1}, true, true},
		{Event{UUID: "GPU-1", GPUInstance: 3, ComputeInstance: -1}, true, false},
		{Event{UUID: "GPU-1", GPUInstance: 2, ComputeInstance: 1}, true, false},
		{Event{UUID: "GPU-2", GPUInstance: -1, ComputeInstance: -1}, false, false},
	} {
		if c.e.Concerns(whole) != c.whole || c.e.Concerns(part) != c.part {
			t.Errorf("%+v: %v, %v", c.e, c.e.Concerns(whole), c.e.Concerns(part))
		}
	}
}
