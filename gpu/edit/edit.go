// Package edit gives devices and driver files to a container: a list of changes
// to its OCI specification, in the terms of the Container Device Interface
// (github.com/cncf-tags/container-device-interface, SPEC.md), and to its root
// directory before anything runs in it.
//
// There are no hooks among the changes. What vendors' hooks do on the node with
// its privileges and files of the image (CVE-2024-0132, CVE-2025-23266,
// CVE-2025-23359) is done here in two ways only: by mounts, which the runtime
// resolves inside the root, and by links and the loader's cache, made below the
// root while no process of the container exists, every path resolved by
// descriptors that cannot leave the root. Nothing of the image is executed.
package edit

import (
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	cdilib "tags.cncf.io/container-device-interface/pkg/cdi"
	cdispec "tags.cncf.io/container-device-interface/specs-go"

	"crunch-oci/gpu/device"
)

// Edits are the changes for one container. Paths are absolute and clean.
type Edits struct {
	Env []string
	// Nodes are device nodes; the container may use them and no others.
	Nodes  []Node
	Mounts []Mount
	// Groups are numeric groups that may open the nodes.
	Groups []uint32
	// Links are symbolic links to be made in the container.
	Links []Link
	// Libraries are put into the loader's cache; they are among the mounts.
	Libraries []Library
	// Folders are directories with libraries, for an ldconfig that is run in the
	// container later.
	Folders []string
}

// Node is a character device.
type Node struct {
	Path         string // in the container
	Major, Minor int64
	// Mode are the permission bits; UID and GID its owner.
	Mode     uint32
	UID, GID uint32
}

// Mount binds a file or directory of the node, read-only.
type Mount struct {
	Source, Target string
	// Socket says that it is one, or a directory with one: nothing there can be
	// executed, and the container can do without.
	Socket bool
}

// Link is a symbolic link.
type Link struct{ Path, Target string }

// Library is a shared library by the name and the path in the container under
// which its loader finds it.
type Library struct{ Name, Path string }

// Add puts in the edits of another list, without repeating what is there.
func (e *Edits) Add(o Edits) {
	e.Env = union(e.Env, o.Env)
	e.Nodes = union(e.Nodes, o.Nodes)
	e.Mounts = union(e.Mounts, o.Mounts)
	e.Groups = union(e.Groups, o.Groups)
	e.Links = union(e.Links, o.Links)
	e.Libraries = union(e.Libraries, o.Libraries)
	e.Folders = union(e.Folders, o.Folders)
}

func union[T comparable](a, b []T) []T {
	for _, v := range b {
		if !slices.Contains(a, v) {
			a = append(a, v)
		}
	}
	return a
}

// Mount options: what a driver file needs, and what a socket does not.
var (
	fileOptions   = []string{"ro", "nosuid", "nodev", "rbind", "rprivate"}
	socketOptions = []string{"ro", "nosuid", "nodev", "noexec", "rbind", "rprivate"}
)

// Apply changes a specification. The request is at fault (device.ErrRequest) if
// one of its own mounts is where a driver file must be.
func (e *Edits) Apply(spec *specs.Spec) (notes []string, err error) {
	c := cdispec.ContainerEdits{Env: e.Env, AdditionalGIDs: slices.Clone(e.Groups)}
	for _, n := range e.Nodes {
		mode := fileMode(n.Mode)
		// Also for users other than root: the container is not in the node's
		// groups, which have other numbers in the image anyway.
		if owner, others := n.Mode>>6&0o6, n.Mode&0o6; others != owner && !slices.Contains(c.AdditionalGIDs, n.GID) {
			c.AdditionalGIDs = append(c.AdditionalGIDs, n.GID)
		}
		c.DeviceNodes = append(c.DeviceNodes, &cdispec.DeviceNode{
			Path: n.Path, HostPath: n.Path, Type: "c", Major: n.Major, Minor: n.Minor,
			FileMode: &mode, Permissions: "rwm", UID: &n.UID, GID: &n.GID,
		})
	}
	for _, m := range e.Mounts {
		if over := covers(spec, m.Target); over != "" {
			if m.Socket {
				notes = append(notes, fmt.Sprintf("%s is not given to the container: its mount at %s is in the way", m.Target, over))
				continue
			}
			return nil, fmt.Errorf("%w: the container's mount at %s is where the GPU driver's %s must be", device.ErrRequest, over, m.Target)
		}
		options := fileOptions
		if m.Socket {
			options = socketOptions
		}
		c.Mounts = append(c.Mounts, &cdispec.Mount{HostPath: m.Source, ContainerPath: m.Target, Type: "bind", Options: options})
	}
	edits := cdilib.ContainerEdits{ContainerEdits: &c}
	if err := edits.Validate(); err != nil {
		return nil, fmt.Errorf("GPU devices: %w", err)
	}
	if err := edits.Apply(spec); err != nil {
		return nil, fmt.Errorf("GPU devices: %w", err)
	}
	return notes, nil
}

// covers returns the target of a bind mount of the specification that path is
// in; "" if there is none.
func covers(spec *specs.Spec, path string) string {
	for _, m := range spec.Mounts {
		if m.Type == "bind" && (path == m.Destination || strings.HasPrefix(path, m.Destination+"/")) {
			return m.Destination
		}
	}
	return ""
}
