// Package device is the plain data the other GPU packages share: what GPUs a
// node has, and what a container asks of them. It reads nothing.
package device

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Stack is the kind of GPU software a container is built for.
type Stack string

// Stacks of container records (arvados-api section 10.2).
const (
	CUDA Stack = "cuda" // NVIDIA
	ROCm Stack = "rocm" // AMD
)

// Errors say whose trouble it is that a container does not get its GPUs.
var (
	// ErrNoDriver: the node has no GPU driver, or one that does not work. No
	// container with GPUs can run there until somebody repairs it.
	ErrNoDriver = errors.New("no usable GPU driver on this node")
	// ErrNone: the node has no GPU at all.
	ErrNone = errors.New("this node has no GPU")
	// ErrUnsuitable: the driver works, but this node's GPUs are not what was
	// asked for: too few, too small, too old. Another node's may be.
	ErrUnsuitable = errors.New("this node's GPUs are not what the container needs")
	// ErrBusy: enough GPUs are there, but other containers have them.
	ErrBusy = errors.New("this node's GPUs are in use")
	// ErrRequest: no node can do what was asked for.
	ErrRequest = errors.New("the GPU request cannot be met anywhere")
)

// Device is one GPU, or one MIG instance of a GPU: what a container is given
// as a whole.
type Device struct {
	Stack Stack `json:"stack"`
	// Index is the driver's number of the GPU: NVML's for NVIDIA, the number of
	// the render node minus 128 for AMD.
	Index int `json:"index"`
	// UUID names the device for ever: "GPU-…", "MIG-…".
	UUID string `json:"uuid"`
	Name string `json:"name"`
	// PCI is the address in the form of sysfs, "0000:3b:00.0"; "" if unknown.
	PCI string `json:"pci,omitempty"`
	// Minor is the minor number of /dev/nvidia<Minor> or /dev/dri/renderD<Minor>.
	Minor int `json:"minor"`
	// NUMA is the memory node the GPU is attached to; -1 if unknown.
	NUMA int `json:"numa"`
	// Memory is its size in bytes; 0 if unknown.
	Memory uint64 `json:"memory"`
	// Target is the CUDA compute capability ("8.0") or the LLVM name of the
	// architecture ("gfx90a"); "" if unknown.
	Target string `json:"target"`
	// MIGMode says that the GPU is split up: only its instances can be used.
	MIGMode bool `json:"mig_mode,omitempty"`
	// Instance is set for a MIG instance; Index and Minor are those of its GPU.
	Instance *Instance `json:"instance,omitempty"`
}

// Instance says which part of a GPU a MIG instance is.
type Instance struct {
	Index   int    `json:"index"`  // within the GPU, as nvidia-smi -L counts
	Parent  string `json:"parent"` // UUID of the GPU
	GPU     int    `json:"gpu_instance"`
	Compute int    `json:"compute_instance"`
}

// Label names the device for people and in statistics: "3", or "3:1" for MIG
// instance 1 of GPU 3.
func (d Device) Label() string {
	if d.Instance != nil {
		return fmt.Sprintf("%d:%d", d.Index, d.Instance.Index)
	}
	return strconv.Itoa(d.Index)
}

// Link says how close two GPUs are: the higher the score, the better.
type Link struct {
	A     string `json:"a"` // UUID
	B     string `json:"b"` // UUID
	Score int    `json:"score"`
}

// Inventory is what a node has of one stack.
type Inventory struct {
	Stack Stack `json:"stack"`
	// Driver is the version of the driver, "550.54.15".
	Driver string `json:"driver"`
	// Version is that of the interface containers are built against: the highest
	// CUDA version the driver supports, or that of ROCm; "" if unknown.
	Version string   `json:"version"`
	Devices []Device `json:"devices"`
	Links   []Link   `json:"links,omitempty"`
	// Notes are what is wrong with the node's GPUs, for the log: one that does
	// not answer is not among the devices.
	Notes []string `json:"notes,omitempty"`
}

// Request is what a container asks for (arvados-api section 10.2).
type Request struct {
	Stack Stack
	// Count is the number of devices, at least 1.
	Count int
	// DriverVersion is the least version of the driver, "12.4": of CUDA or ROCm,
	// or of the driver itself where it can only be that. "" is any.
	DriverVersion string
	// Targets are, for CUDA, the least compute capability, and for ROCm the
	// architectures that will do. Empty is any.
	Targets []string
	// VRAM is the least memory of each device in bytes.
	VRAM int64
	// Assigned lists the devices a scheduler has chosen, as the variable has it;
	// nil or "" if nobody has.
	Assigned *Assignment
}

// Assignment is a scheduler's choice.
type Assignment struct {
	// Variable is where it comes from, for messages.
	Variable string
	Devices  string
	// Ordinal says that numbers count the devices the driver shows, 0 the first,
	// whatever their indices are (ROCR_VISIBLE_DEVICES).
	Ordinal bool
}

// Check refuses what no node can do.
func (r Request) Check() error {
	if r.Count < 1 {
		return fmt.Errorf("%w: %d GPUs", ErrRequest, r.Count)
	}
	if r.Stack != CUDA && r.Stack != ROCm {
		return fmt.Errorf("%w: GPU stack %q is not known, only %q and %q are", ErrRequest, r.Stack, CUDA, ROCm)
	}
	if r.VRAM < 0 {
		return fmt.Errorf("%w: %d bytes of GPU memory", ErrRequest, r.VRAM)
	}
	if r.DriverVersion != "" {
		if _, err := parseVersion(r.DriverVersion); err != nil {
			return fmt.Errorf("%w: driver_version: %w", ErrRequest, err)
		}
	}
	return nil
}

// firstDriverMajor separates versions of CUDA and ROCm, which are below, from
// those of drivers, which are above: NVIDIA's have been since 2014 (340),
// amdgpu's are kernel versions or "6.…" and never asked for.
const firstDriverMajor = 100

// CheckDriver tells why the driver is too old, if it is.
func (r Request) CheckDriver(inv Inventory) error {
	if r.DriverVersion == "" {
		return nil
	}
	want, err := parseVersion(r.DriverVersion)
	if err != nil {
		return fmt.Errorf("%w: driver_version: %w", ErrRequest, err)
	}
	what, have := strings.ToUpper(string(r.Stack)), inv.Version
	if r.Stack == ROCm {
		what = "ROCm"
	}
	if want[0] >= firstDriverMajor {
		what, have = "driver", inv.Driver
	}
	got, err := parseVersion(have)
	if err != nil {
		// Not known is not too old: the dispatcher has chosen this node.
		return nil
	}
	if compare(got, want) < 0 {
		return fmt.Errorf("%w: it asks for %s %s, the driver of this node (%s) has %s", ErrUnsuitable, what, r.DriverVersion, inv.Driver, have)
	}
	return nil
}

// AnyTarget stands for every architecture, where a list must not be empty.
const AnyTarget = "any"

func (r Request) anyTarget() bool {
	return len(r.Targets) == 0 || slices.Contains(r.Targets, AnyTarget)
}

// reserve is the part of a GPU's memory, as one in so many, that ECC and the
// driver may take from its nominal size, which is what people ask for.
const reserve = 10

// CheckDevice tells why a device will not do, if so.
func (r Request) CheckDevice(d Device) error {
	if r.VRAM > 0 && d.Memory > 0 && d.Memory < uint64(r.VRAM-r.VRAM/reserve) {
		return fmt.Errorf("%w: GPU %s (%s) has %d bytes of memory, %d are asked for", ErrUnsuitable, d.Label(), d.Name, d.Memory, r.VRAM)
	}
	if r.anyTarget() || d.Target == "" {
		return nil
	}
	for _, t := range r.Targets {
		if r.Stack == ROCm {
			if baseTarget(t) == baseTarget(d.Target) {
				return nil
			}
			continue
		}
		want, err := parseCapability(t)
		if err != nil {
			// A name of the site's own, for its dispatcher, which has chosen this
			// node by it.
			return nil
		}
		if got, err := parseVersion(d.Target); err != nil || compare(got, want) >= 0 {
			return nil
		}
	}
	kind := "compute capability"
	if r.Stack == ROCm {
		kind = "architecture"
	}
	return fmt.Errorf("%w: GPU %s (%s) has %s %s, %s is asked for", ErrUnsuitable, d.Label(), d.Name, kind, d.Target, strings.Join(r.Targets, " or "))
}

// parseCapability reads a CUDA compute capability, "8.0", also as compilers are
// told it: "sm_80", "compute_90a".
func parseCapability(t string) ([]int, error) {
	digits, ok := strings.CutPrefix(strings.ToLower(t), "sm_")
	if !ok {
		digits, ok = strings.CutPrefix(strings.ToLower(t), "compute_")
	}
	if !ok {
		return parseVersion(t)
	}
	digits = strings.TrimRight(digits, "af") // specific to that architecture, or its family
	if len(digits) < 2 {
		return nil, fmt.Errorf("%q is not a compute capability such as sm_80", t)
	}
	return parseVersion(digits[:len(digits)-1] + "." + digits[len(digits)-1:])
}

// baseTarget is a ROCm target without its features: "gfx90a:sramecc+:xnack-".
func baseTarget(t string) string {
	base, _, _ := strings.Cut(strings.ToLower(t), ":")
	return base
}

// AtLeast tells whether dotted version have is want or newer. Unless both are
// versions it is false.
func AtLeast(have, want string) bool {
	h, err := parseVersion(have)
	w, err2 := parseVersion(want)
	return err == nil && err2 == nil && compare(h, w) >= 0
}

// Compare orders dotted versions; ok is false unless both are versions.
func Compare(a, b string) (order int, ok bool) {
	x, err := parseVersion(a)
	y, err2 := parseVersion(b)
	return compare(x, y), err == nil && err2 == nil
}

func parseVersion(text string) ([]int, error) {
	var v []int
	for part := range strings.SplitSeq(text, ".") {
		n, err := strconv.Atoi(part)
		if err != nil || n < 0 || part[0] == '+' {
			return nil, fmt.Errorf("%q is not a version such as 12.4", text)
		}
		v = append(v, n)
	}
	return v, nil
}

// compare orders versions; missing parts count as 0.
func compare(a, b []int) int {
	for i := range max(len(a), len(b)) {
		var x, y int
		if i < len(a) {
			x = a[i]
		}
		if i < len(b) {
			y = b[i]
		}
		if x != y {
			return x - y
		}
	}
	return 0
}

// Sample is what a device is doing at a moment. What the driver does not tell is
// negative.
type Sample struct {
	UUID string `json:"uuid"`
	// Utilisation is the part of the time since the last sample or so, in
	// percent, in which something ran on the device.
	Utilisation int `json:"utilisation"`
	// Used and Total are its memory in bytes.
	Used  int64 `json:"used"`
	Total int64 `json:"total"`
	// Milliwatts is the power it draws.
	Milliwatts int64 `json:"milliwatts"`
}

// Event is an error that a device has reported.
type Event struct {
	// UUID is that of the GPU, also if an instance of it is concerned.
	UUID string `json:"uuid"`
	// XID is the driver's number of the error; 0 for others.
	XID uint64 `json:"xid,omitempty"`
	// Kind says in words what happened: "XID 79", "uncorrectable memory (ECC) error".
	Kind string `json:"kind"`
	// Corrected says that the hardware has repaired what was wrong.
	Corrected bool `json:"corrected,omitempty"`
	// GPUInstance and ComputeInstance tell which MIG instance is concerned;
	// negative: not one in particular.
	GPUInstance     int `json:"gpu_instance"`
	ComputeInstance int `json:"compute_instance"`
}

// Serious tells whether what runs on the device has suffered: corrected errors do
// it no harm.
func (e Event) Serious() bool { return e.XID != 0 || !e.Corrected }

// Concerns tells whether an event hits a device.
func (e Event) Concerns(d Device) bool {
	if d.Instance == nil {
		return e.UUID == d.UUID
	}
	return e.UUID == d.Instance.Parent &&
		(e.GPUInstance < 0 || e.GPUInstance == d.Instance.GPU) &&
		(e.ComputeInstance < 0 || e.ComputeInstance == d.Instance.Compute)
}
