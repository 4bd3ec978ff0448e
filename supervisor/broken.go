package supervisor

import (
	"context"
	"errors"
	"regexp"

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
	if errors.Is(err, unix.ENOSPC) {
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
	case "reserve GPUs", "load container image", "start container", "wait for container":
	default:
		return false
	}
	if !isNodesFault(err) {
		return false
	}
	r.Log.Printf("Error suggests node is unable to run containers: %v", err)
	if r.MarkBroken != nil {
		r.MarkBroken(ctx, err)
	}
	return true
}
