package oci

import (
	"errors"
	"fmt"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"

	"crunch-oci/internal/idmap"
)

// ErrUserNamespace is returned for a container that cannot be in a user
// namespace, as the site wants it.
var ErrUserNamespace = errors.New("not possible in a user namespace (setting user-namespace)")

// withUserNamespace puts the container into a user namespace: its ids, 0 included,
// are unprivileged ones of the host, and its capabilities are good for what is its
// own only. The other namespaces are made by, and belong to, this one.
func withUserNamespace(ids idmap.Range, network Network) Edit {
	return func(spec *specs.Spec) error {
		if ids.IsZero() {
			return nil
		}
		if network == NetworkHost {
			// sysfs belongs to the network namespace's owner, and low ports to the host.
			return fmt.Errorf("the host's network is %w", ErrUserNamespace)
		}
		user := spec.Process.User
		for _, id := range slices.Concat([]uint32{user.UID, user.GID}, user.AdditionalGids) {
			if _, ok := ids.Host(id); !ok {
				return badRequest("user %d:%d with groups %v: id %d is not among the %d that this node gives to a container", user.UID, user.GID, user.AdditionalGids, id, ids.Count)
			}
		}
		spec.Linux.Namespaces = append(spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
		mapping := []specs.LinuxIDMapping{{ContainerID: 0, HostID: ids.First, Size: ids.Count}}
		spec.Linux.UIDMappings, spec.Linux.GIDMappings = mapping, mapping
		if _, ok := spec.Linux.Sysctl[pingGroups]; ok {
			spec.Linux.Sysctl[pingGroups] = fmt.Sprintf("0 %d", ids.Count-1)
		}
		return nil
	}
}

// idsOf returns the ids of a specification's user namespace.
func idsOf(spec *specs.Spec) idmap.Range {
	if spec.Linux == nil || len(spec.Linux.UIDMappings) == 0 {
		return idmap.Range{}
	}
	m := spec.Linux.UIDMappings[0]
	return idmap.Range{First: m.HostID, Count: m.Size}
}
