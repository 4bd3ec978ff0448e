package validation

// different are the programs whose outcomes may be another with runc, for a reason
// that explained gives.
var different = []string{"delete", "kill", "killsig", "pidfile"}

// explained says, of every program that is not content with both runtimes, why.
var explained = map[string]string{
	"delete":      "The specification wants `delete` of a created container to fail; runc's kills it. Ours, whose callers always kill first, is refused by the command line made for this suite.",
	"pidfile":     "The program kills `true`, which may have ended by itself before: then `kill` fails, with either runtime.",
	"kill":        trapRace,
	"killsig":     trapRace,
	"hooks_stdin": "The program expects the status `created` in prestart and `running` in poststart hooks; libcontainer runs the first before it is `created`, as the specification has it now, and the second while its state still says so.",

	"delete_resources":               pidsBug,
	"linux_cgroups_pids":             pidsBug,
	"linux_cgroups_relative_pids":    pidsBug,
	"linux_cgroups_devices":          devicesBug,
	"linux_cgroups_relative_devices": devicesBug,
	"linux_cgroups_memory":           kernelMemory,
	"linux_cgroups_relative_memory":  kernelMemory,
	"linux_seccomp":                  "The program forbids `getcwd`, with which libcontainer itself makes sure, under the filter, that the working directory is inside the container (CVE-2024-21626).",
	"misc_props":                     "The program forgets to put its test program into the container.",
	"start":                          "The program creates a container without a process, which both refuse, and does not expect that.",

	"hooks":                     noResult,
	"poststart":                 noResult,
	"poststop":                  noResult,
	"prestart":                  noResult,
	"poststart_fail":            noResult + " The failure of the hook is reported by `create`.",
	"poststop_fail":             noResult + " The failure of the hook is reported by `delete`.",
	"prestart_fail":             noResult + " The failure of the hook is reported by `create`, as it must be.",
	"process_rlimits_fail":      noResult + " The unknown limit is refused, as it must be.",
	"process_capabilities_fail": "The unknown capability is ignored with a warning, as runc has done since 1.0; its specification wants an error.",
	"process_capabilities":      "Asks for all capabilities: needs a machine that has them. This one lacks some.",
	"process_rlimits":           "Limits the address space to 1 GiB, before libseccomp compiles the suite's filter in the container's init, which then has no memory.",
	"mounts":                    "Asks for a bind mount with options of a file system, which libcontainer refuses.",
	"linux_devices":             "Makes a pipe with a device number, which libcontainer refuses because pipes have none.",

	"linux_cgroups_blkio":            noBlkio,
	"linux_cgroups_relative_blkio":   noBlkio,
	"linux_cgroups_hugetlb":          "Needs the hugetlb controller: the machine had none.",
	"linux_cgroups_relative_hugetlb": "Needs the hugetlb controller: the machine had none.",
	"linux_cgroups_network":          "Needs the controllers net_cls and net_prio: the machine had none.",
	"linux_cgroups_relative_network": "Needs the controllers net_cls and net_prio: the machine had none.",
	"linux_mount_label":              "Needs SELinux with a policy: the machine had none.",
	"linux_process_apparmor_profile": "Needs AppArmor: the machine's kernel had none.",
}

const (
	trapRace     = "The program sends the signal as soon as the container is `running`, on a busy machine before its shell has set the trap, with either runtime."
	noResult     = "Says nothing if all is well."
	pidsBug      = "The program compares with the address of the limit, not the limit."
	devicesBug   = "The program expects the rules as listed; the kernel shows the first one, which allows creation of all nodes and which libcontainer adds by itself."
	kernelMemory = "Linux has no limits of kernel memory any more (5.16, and of TCP buffers in cgroup v1 of this kernel); libcontainer ignores them."
	noBlkio      = "Needs `blkio.leaf_weight`, which left the kernel with the CFQ scheduler (Linux 5.0)."
)
