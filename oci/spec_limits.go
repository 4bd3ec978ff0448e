package oci

import (
	"fmt"
	"strconv"
	"syscall"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// cpuPeriod is Docker's CFS period in microseconds; the quota counts in it.
const cpuPeriod = 100_000

// askedRAM is the annotation with the memory limit asked for, in bytes, of a
// container that gets more; see Container.Warnings.
const askedRAM = "crunch-oci.ram-asked"

// withLimits sets what the cgroup and the process may use.
func withLimits(l Limits, rlimits []specs.POSIXRlimit) Edit {
	return func(spec *specs.Spec) error {
		if l.NanoCPUs < 0 || l.RAM < 0 || l.Shm < 0 {
			return fmt.Errorf("negative limit: %+v", l)
		}
		r := spec.Linux.Resources
		if l.RAM > 0 {
			ram := max(l.RAM, MinRAM)
			// Memory and swap together: the same value leaves no swap.
			swap := ram
			if ram != l.RAM {
				if spec.Annotations == nil {
					spec.Annotations = make(map[string]string)
				}
				spec.Annotations[askedRAM] = strconv.FormatInt(l.RAM, 10)
			}
			r.Memory = &specs.LinuxMemory{Limit: &ram, Swap: &swap}
		}
		if l.NanoCPUs > 0 {
			// The kernel's smallest quota is a millisecond.
			quota := max(l.NanoCPUs/(1e9/cpuPeriod), 1000)
			period := uint64(cpuPeriod)
			r.CPU = &specs.LinuxCPU{Quota: &quota, Period: &period}
		}
		pids := l.PIDs
		if pids == 0 {
			pids = DefaultPIDs
		}
		if pids > 0 {
			r.Pids = &specs.LinuxPids{Limit: &pids}
		}
		spec.Process.Rlimits = rlimits
		// Whatever protects this process from the OOM killer, or exposes it,
		// is not the container's.
		score := 0
		spec.Process.OOMScoreAdj = &score
		return nil
	}
}

// HostRlimits returns Docker's usual resource limits as far as this node
// allows them: 1048576 open files, and as many processes as the limit of this
// process; the cgroup bounds these. A supervisor started from a login session
// or a batch system has lower soft limits, which are not meant for containers.
func HostRlimits() ([]specs.POSIXRlimit, error) {
	var all []specs.POSIXRlimit
	for _, l := range []struct {
		kind     string
		resource int
		most     uint64
	}{
		{"RLIMIT_NOFILE", syscall.RLIMIT_NOFILE, 1 << 20},
		{"RLIMIT_NPROC", unix.RLIMIT_NPROC, unix.RLIM_INFINITY},
	} {
		var r unix.Rlimit
		if err := unix.Getrlimit(l.resource, &r); err != nil {
			return nil, fmt.Errorf("getrlimit %s: %w", l.kind, err)
		}
		n := min(l.most, r.Max)
		all = append(all, specs.POSIXRlimit{Type: l.kind, Soft: n, Hard: n})
	}
	return all, nil
}
