package oci

import (
	"fmt"

	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// capabilities is Docker's default set (docs.docker.com/engine/security,
// "Linux kernel capabilities").
var capabilities = []string{
	"CAP_AUDIT_WRITE",
	"CAP_CHOWN",
	"CAP_DAC_OVERRIDE",
	"CAP_FOWNER",
	"CAP_FSETID",
	"CAP_KILL",
	"CAP_MKNOD",
	"CAP_NET_BIND_SERVICE",
	"CAP_NET_RAW",
	"CAP_SETFCAP",
	"CAP_SETGID",
	"CAP_SETPCAP",
	"CAP_SETUID",
	"CAP_SYS_CHROOT",
}

// withCapabilities sets Docker's default capabilities. Users other than root
// have none but may gain these through set-user-ID programs, as execve(2) does
// it. The inheritable set stays empty (CVE-2022-24769).
func withCapabilities() Edit {
	return func(spec *specs.Spec) error {
		c := &specs.LinuxCapabilities{Bounding: capabilities}
		if spec.Process.User.UID == 0 {
			c.Effective, c.Permitted = capabilities, capabilities
		}
		spec.Process.Capabilities = c
		return nil
	}
}

// withSeccomp sets Docker's system call filter for the capabilities in spec.
// The runtime adds that calls newer than the profile fail with ENOSYS, not
// EPERM, so that the C library falls back to older ones.
func withSeccomp() Edit {
	return func(spec *specs.Spec) error {
		profile, err := seccomp.GetDefaultProfile(spec)
		if err != nil {
			return fmt.Errorf("seccomp profile: %w", err)
		}
		spec.Linux.Seccomp = profile
		return nil
	}
}

// withHiddenPaths hides, or protects from writing, what the kernel shows in
// /proc and /sys about the whole node (Docker's defaults).
func withHiddenPaths() Edit {
	return func(spec *specs.Spec) error {
		spec.Linux.MaskedPaths = []string{
			"/proc/acpi",
			"/proc/asound",
			"/proc/interrupts",
			"/proc/kcore",
			"/proc/keys",
			"/proc/latency_stats",
			"/proc/sched_debug",
			"/proc/scsi",
			"/proc/timer_list",
			"/proc/timer_stats",
			"/sys/devices/virtual/powercap",
			"/sys/firmware",
		}
		spec.Linux.ReadonlyPaths = []string{
			"/proc/bus",
			"/proc/dynamic_debug", // Docker leaves it to AppArmor
			"/proc/fs",
			"/proc/irq",
			"/proc/sys",
			"/proc/sysrq-trigger",
		}
		return nil
	}
}

// withDevices denies all devices but those every container has: the runtime
// adds rules and nodes for /dev/null, zero, full, random, urandom, tty and the
// pseudo terminals by itself.
func withDevices() Edit {
	return func(spec *specs.Spec) error {
		spec.Linux.Resources.Devices = []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}
		return nil
	}
}
