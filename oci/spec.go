package oci

import (
	"fmt"
	"path/filepath"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// Edit changes a specification. Edits compose: what prepares a device or a
// network for a container hands out an Edit, to be applied before WriteBundle.
type Edit func(*specs.Spec) error

// Apply runs the edits in order, up to the first that fails.
func Apply(spec *specs.Spec, edits ...Edit) error {
	for _, edit := range edits {
		if err := edit(spec); err != nil {
			return err
		}
	}
	return nil
}

// NewSpec builds the runtime specification of a container. Nothing is changed
// on the node; of the root directory, /etc/passwd and /etc/group are read.
// Errors that lie in the request or the image are ErrRequest.
func NewSpec(req Request) (*specs.Spec, error) {
	if !filepath.IsAbs(req.RootfsPath) {
		return nil, fmt.Errorf("root directory %q is not an absolute path", req.RootfsPath)
	}
	network := req.Network
	if network == "" {
		network = NetworkNone
	}
	who, err := lookUpUser(req)
	if err != nil {
		return nil, err
	}
	spec := &specs.Spec{
		Version: specs.Version,
		Root:    &specs.Root{Path: filepath.Clean(req.RootfsPath)},
		Process: &specs.Process{},
		Linux:   &specs.Linux{CgroupsPath: req.CgroupsPath, Resources: &specs.LinuxResources{}},
	}
	err = Apply(spec,
		withArgs(req.Image.Entrypoint, req.Image.Cmd, req.Command),
		withUser(who),
		withNamespaces(network, req.Hostname),
		withEnv(req.Image.Env, req.Env, who.home),
		withCwd(req.Image.WorkingDir, req.Cwd),
		withMounts(req.Mounts, req.Limits.Shm),
		withLimits(req.Limits, req.Rlimits),
		withDevices(),
		withHiddenPaths(),
		withCapabilities(),
		withNoNewPrivileges(req.NoNewPrivileges),
		withConfinement(req.Confinement),
		withUserNamespace(req.Confinement.IDs, network),
	)
	if err == nil && !req.NoSeccomp {
		// Last, because the profile depends on the capabilities.
		err = Apply(spec, withSeccomp())
	}
	if err != nil {
		return nil, err
	}
	return spec, nil
}
