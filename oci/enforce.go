package oci

import (
	"fmt"

	"github.com/opencontainers/runtime-spec/specs-go"

	"crunch-oci/cgroups"
)

// dropUnenforceable removes limits that this node cannot enforce from spec, and
// says so in one line each; likewise if a limit is not the one asked for.
func dropUnenforceable(spec *specs.Spec, f cgroups.Features) []string {
	r := spec.Linux.Resources
	if r == nil {
		return nil
	}
	var said []string
	drop := func(what, why string) { said = append(said, fmt.Sprintf("%s is not enforced: %s", what, why)) }
	if r.Memory != nil && !f.Memory {
		drop("memory limit", "the memory controller is not available on this node")
		r.Memory = nil
	}
	if r.Memory != nil && r.Memory.Swap != nil && !f.Swap {
		drop("swap limit", "this node's kernel does not account swap (boot option swapaccount=1); RAM is limited")
		r.Memory.Swap = nil
	}
	if r.CPU != nil && r.CPU.Quota != nil && !f.CPUQuota {
		drop("CPU quota", "the cpu controller, or its bandwidth control, is not available on this node")
		r.CPU = nil
	}
	if r.Pids != nil && !f.PIDs {
		drop("limit of processes", "the pids controller is not available on this node")
		r.Pids = nil
	}
	if asked, ok := spec.Annotations[askedRAM]; ok && r.Memory != nil {
		said = append(said, fmt.Sprintf("memory limit of %s bytes is raised to %d bytes, with less no container starts", asked, MinRAM))
	}
	return said
}
