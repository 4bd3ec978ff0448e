package supervisor

import (
	"context"
	"regexp"
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

// markIfBroken reports whether the failure of s marks the node as broken, and
// tells whoever marks it. Only steps that depend on the node are looked at.
func (r *run) markIfBroken(ctx context.Context, s step, err error) bool {
	switch s.name {
	case "load container image", "start container", "wait for container":
	default:
		return false
	}
	if !suggestsBrokenNode(err.Error()) {
		return false
	}
	r.Log.Printf("Error suggests node is unable to run containers: %v", err)
	if r.MarkBroken != nil {
		r.MarkBroken(ctx, err)
	}
	return true
}
