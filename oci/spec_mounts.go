package oci

import (
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"crunch-oci/cgroups"
)

// withMounts sets the mounts: first the kernel's file systems as Docker mounts
// them, then binds, parents before what is mounted below them.
func withMounts(mounts []Mount, shmSize int64) Edit {
	return func(spec *specs.Spec) error {
		if shmSize == 0 {
			shmSize = DefaultShm
		}
		binds := etcMounts()
		seen := make(map[string]bool)
		var own []specs.Mount
		for _, m := range mounts {
			b, err := bind(m)
			if err != nil {
				return err
			}
			if seen[b.Destination] {
				return badRequest("two mounts at %s", b.Destination)
			}
			seen[b.Destination] = true
			own = append(own, b)
		}
		covered := func(m specs.Mount) bool {
			return slices.ContainsFunc(own, func(o specs.Mount) bool { return within(m.Destination, o.Destination) })
		}
		binds = append(slices.DeleteFunc(binds, covered), own...)
		slices.SortStableFunc(binds, func(a, b specs.Mount) int { return depth(a.Destination) - depth(b.Destination) })
		spec.Mounts = append(slices.DeleteFunc(kernelMounts(shmSize), covered), binds...)
		return nil
	}
}

// kernelMounts are Docker's, in its order: the file systems that need nothing
// of the host.
func kernelMounts(shmSize int64) []specs.Mount {
	return []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", fmt.Sprintf("size=%d", shmSize)}},
	}
}

// etcMounts bind the files that describe this container, not its image. Their
// sources are relative to the bundle, where WriteBundle writes them.
func etcMounts() []specs.Mount {
	var all []specs.Mount
	for _, f := range etcFiles {
		all = append(all, specs.Mount{Destination: f.target, Type: "bind", Source: f.name, Options: []string{"rbind", "rprivate"}})
	}
	return all
}

func bind(m Mount) (specs.Mount, error) {
	if !filepath.IsAbs(m.Source) {
		return specs.Mount{}, fmt.Errorf("source %q of the mount at %q is not an absolute path", m.Source, m.Target)
	}
	if strings.IndexByte(m.Source+m.Target, 0) >= 0 {
		return specs.Mount{}, badRequest("mount at %q: path contains a NUL byte", m.Target)
	}
	target := path.Clean(m.Target)
	if !path.IsAbs(m.Target) || target == "/" {
		return specs.Mount{}, badRequest("mount target %q is not an absolute path below the root", m.Target)
	}
	// The runtime refuses or hides what is mounted over the kernel's own
	// tables; saying so here names the cause.
	for _, dir := range []string{"/proc", "/sys"} {
		if within(target, dir) {
			return specs.Mount{}, badRequest("mount target %q is in %s, which belongs to the kernel", m.Target, dir)
		}
	}
	options := []string{"rbind", "rprivate"}
	if m.ReadOnly {
		options = append(options, "ro")
	}
	return specs.Mount{Destination: target, Type: "bind", Source: filepath.Clean(m.Source), Options: options}, nil
}

// within tells whether clean path p is dir or below it.
func within(p, dir string) bool {
	return p == dir || strings.HasPrefix(p, dir+"/")
}

func depth(p string) int { return strings.Count(p, "/") }

// pingGroups is the sysctl with the groups that may ping.
const pingGroups = "net.ipv4.ping_group_range"

// withNamespaces gives the container its own process, mount, host name, IPC
// and, unless it uses the host's, network namespaces. A cgroup namespace is
// made on v2 only, as Docker does: on v1 the paths in /proc/self/cgroup would
// no longer fit the mounts that tools look for.
func withNamespaces(network Network, hostname string) Edit {
	return func(spec *specs.Spec) error {
		kinds := []specs.LinuxNamespaceType{specs.PIDNamespace, specs.MountNamespace, specs.IPCNamespace, specs.UTSNamespace}
		if cgroups.Unified() {
			kinds = append(kinds, specs.CgroupNamespace)
		}
		switch network {
		case NetworkNone, NetworkPrivate:
			kinds = append(kinds, specs.NetworkNamespace)
			// Docker's defaults: everybody may ping and listen on low ports
			// of a network that is the container's own.
			spec.Linux.Sysctl = map[string]string{
				"net.ipv4.ip_unprivileged_port_start": "0",
				pingGroups:                            "0 2147483647",
			}
			if hostname == "" {
				return fmt.Errorf("a host name is required for a container with its own network")
			}
		case NetworkHost:
		default:
			return badRequest("network %q is not known: use %q, %q or %q", network, NetworkNone, NetworkPrivate, NetworkHost)
		}
		if err := checkHostname(hostname); err != nil {
			return err
		}
		spec.Hostname = hostname
		for _, k := range kinds {
			spec.Linux.Namespaces = append(spec.Linux.Namespaces, specs.LinuxNamespace{Type: k})
		}
		return nil
	}
}

// checkHostname refuses what sethostname(2) would, and what would break
// /etc/hosts.
func checkHostname(name string) error {
	const longest = 64 // __NEW_UTS_LEN
	if len(name) > longest {
		return badRequest("host name %q is longer than %d bytes", name, longest)
	}
	for _, c := range name {
		if c <= ' ' || c > '~' || c == '#' {
			return badRequest("host name %q contains %q", name, c)
		}
	}
	return nil
}
