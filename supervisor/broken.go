package supervisor

import (
	"context"
	"errors"
	"io/fs"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"crunch-oci/imagestore"
	"crunch-oci/oci"
)

// brokenPatterns are the texts, in errors of the image load or the container's
// start, that mean that this node cannot run containers (spec: lifecycle
// section 9). Operators and dispatchers have relied on them since Docker.
var brokenPatterns = []*regexp.Regexp{
	regexp.MustCompile(`[Cc]annot connect to the Docker daemon`),
	regexp.MustCompile(`(?s)oci runtime error.*starting container process.*container init.*mounting.*to rootfs.*no such file or directory`),
	regexp.MustCompile(`grpc: the connection is unavailable`),
	regexp.MustCompile(`no space left on device`),
}

// suggestsBrokenNode tells whether an error text means a broken node.
func suggestsBrokenNode(text string) bool {
	for _, p := range brokenPatterns {
		if p.MatchString(text) {
			return true
		}
	}
	return false
}

// userErrors are errors that a container's request or image makes on every node.
var userErrors = []error{
	oci.ErrRequest,
	imagestore.ErrCorrupt, imagestore.ErrNoImage, imagestore.ErrWrongID, imagestore.ErrAmbiguous,
	imagestore.ErrUnsupported, imagestore.ErrMalformed, imagestore.ErrEscape, imagestore.ErrLimit,
}

// hostErrors are what a host says that cannot run containers, whatever the
// container: a full or failing disk, one that has become read-only, a kernel
// without overlay file systems, rights that are missing.
var hostErrors = []error{unix.ENOSPC, unix.EIO, unix.EROFS, unix.ENODEV, unix.EPERM, unix.EACCES}

// HostFault tells whether err, of something that the supervisor does on the host
// before it knows the container, suggests a broken node.
func HostFault(err error) bool {
	return slices.ContainsFunc(hostErrors, func(e error) bool { return errors.Is(err, e) })
}

// creationFault tells whether err, of the container's creation, is about the
// host: control groups that cannot be made, a full scratch disk. What happens
// inside the container's file systems has other paths, or none.
func (r *run) creationFault(err error) bool {
	var at *fs.PathError
	if errors.Is(err, oci.ErrRequest) || !HostFault(err) || !errors.As(err, &at) {
		return false
	}
	if strings.HasPrefix(at.Path, "/sys/fs/cgroup/") {
		return true
	}
	inside, ok := strings.CutPrefix(at.Path, r.Scratch+"/")
	if !ok || strings.HasPrefix(inside, "rootfs/") {
		return false
	}
	// What fails below the FUSE mount is the API's fault, or Keep's.
	plan := r.inputs.plan
	return plan == nil || plan.KeepDir == "" || !strings.HasPrefix(at.Path, plan.KeepDir+"/")
}

// errNoFUSE says that the node cannot have FUSE mounts at all.
var errNoFUSE = errors.New("this node has no /dev/fuse (is the kernel module fuse loaded?)")

// overlayFault tells whether a mount failed because the kernel has, or allows,
// no overlay file systems.
func overlayFault(err error) bool {
	return errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.EROFS) || errors.Is(err, unix.EIO)
}

// isNodesFault tells whether err suggests a broken node. Where our own packages
// say whose fault it is, that counts; a command or file that is called "no space
// left on device" must not drain the cluster node by node.
func isNodesFault(err error) bool {
	var start *oci.StartError
	if errors.As(err, &start) {
		return false
	}
	if isGPUsFault(err) {
		return true
	}
	if errors.Is(err, imagestore.ErrIDMap) || errors.Is(err, unix.ENOSPC) {
		return true // also of a layer that exceeds what is really free
	}
	for _, e := range userErrors {
		if errors.Is(err, e) {
			return false
		}
	}
	return suggestsBrokenNode(err.Error())
}

// markIfBroken reports whether the failure of s marks the node as broken, and
// tells whoever marks it. Only steps that depend on the node are looked at.
func (r *run) markIfBroken(ctx context.Context, s step, err error) bool {
	switch s.name {
	case "reserve GPUs", "start container", "wait for container":
		if !isNodesFault(err) {
			return false
		}
	case "load container image":
		var user bool
		for _, e := range userErrors {
			user = user || errors.Is(err, e)
		}
		if !isNodesFault(err) && (user || !overlayFault(err)) {
			return false
		}
	case "set up mounts":
		if !errors.Is(err, errNoFUSE) {
			return false
		}
	case "create container":
		if !r.creationFault(err) {
			return false
		}
	default:
		return false
	}
	r.Log.Printf("Error suggests node is unable to run containers: %v", err)
	if r.MarkBroken != nil {
		r.MarkBroken(ctx, err)
	}
	return true
}
