// Package gpu answers one question: which GPUs does this container get, and
// what must its OCI spec then contain? Discovery, choice and the resulting
// edits are data; nothing here starts a process. It knows the OCI spec and
// nothing else of this project.
//
// So far it holds only the shape of the answer; NVIDIA (NVML, CDI) and AMD
// (KFD topology) discovery follow.
package gpu

import (
	"context"
	"errors"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// ErrNoDriver says that GPUs were asked for on a node without a usable driver.
var ErrNoDriver = errors.New("no GPU driver on this node")

// Request is what a container asks for.
type Request struct {
	// Stack is "cuda" or "rocm".
	Stack string
	// Count is the number of devices; 0 means none.
	Count int
}

// Edits changes an OCI spec so that the container sees its devices.
type Edits interface {
	Apply(spec *specs.Spec) error
}

// Allocator chooses devices for one container. The choice is held until
// release is called or the process ends.
type Allocator interface {
	Allocate(ctx context.Context, r Request) (edits Edits, release func() error, err error)
}
