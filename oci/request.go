package oci

import (
	"errors"
	"fmt"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// ErrRequest marks errors that lie in the request or the image themselves: an
// unknown user, a bad mount target, a working directory that is a file.
// Another node would meet them too, so trying again is of no use.
var ErrRequest = errors.New("the container as requested cannot be run")

// badRequest makes an error that answers errors.Is(err, ErrRequest) and reads
// as the text alone.
func badRequest(format string, args ...any) error {
	return &requestError{fmt.Errorf(format, args...)}
}

type requestError struct{ err error }

func (e *requestError) Error() string        { return e.err.Error() }
func (e *requestError) Unwrap() error        { return e.err }
func (e *requestError) Is(target error) bool { return target == ErrRequest }

// Network is the network a container gets.
type Network string

const (
	// NetworkNone is a network namespace of its own with loopback up.
	NetworkNone Network = "none"
	// NetworkHost is the host's network namespace.
	NetworkHost Network = "host"
	// NetworkPrivate is a network namespace of its own that somebody connects to
	// a network once the container has been created, and before it is started
	// (see SetNames).
	NetworkPrivate Network = "private"
)

// Request is what a container should be: the image's configuration and what
// was asked for on top of it.
type Request struct {
	// Image is the image's configuration. Entrypoint, Env, User and
	// WorkingDir are used; Cmd only if Command is empty.
	Image ocispec.ImageConfig
	// RootfsPath is the absolute path of the root directory, mounted and
	// writable. The image's /etc/passwd and /etc/group are read from it.
	RootfsPath string
	// Command is appended to the image's entrypoint.
	Command []string
	// Env is set on top of the image's environment, and wins.
	Env map[string]string
	// Cwd is the working directory: empty or "." is the image's, a relative
	// path is relative to the image's. It is created if it does not exist.
	Cwd string
	// User overrides the image's USER: "name", "uid", "name:group",
	// "uid:gid". Empty keeps the image's, whose default is root.
	User string
	// Hostname is the container's host name. It is required unless Network
	// is NetworkHost, where empty means the host's.
	Hostname string
	// Mounts are bind mounts beside the standard ones. A mount whose target
	// is one of the standard ones (/dev/shm, /etc/hosts, ...) replaces it.
	Mounts []Mount
	Limits Limits
	// CgroupsPath is where the container's cgroup is made (OCI runtime spec
	// linux.cgroupsPath; see cgroups.Placement).
	CgroupsPath string
	// Network is NetworkNone unless set.
	Network Network
	// Rlimits are the process's resource limits; those not named are
	// inherited from this process. See HostRlimits.
	Rlimits []specs.POSIXRlimit
	// NoNewPrivileges keeps set-user-ID programs from raising privileges,
	// which Docker by default allows them to.
	NoNewPrivileges bool
	// NoSeccomp leaves out Docker's system call filter.
	NoSeccomp bool
	// Confinement is the site's.
	Confinement Confinement
}

// Mount is a bind mount.
type Mount struct {
	// Source is an absolute path on the host, a directory or a file.
	Source string
	// Target is an absolute path in the container. What is missing of it is
	// made; links in it are resolved inside the container's root.
	Target string
	// ReadOnly applies to the file system at Source, not to what is mounted
	// below it.
	ReadOnly bool
}

// Limits bound what a container may use. The zero value is a container without
// limits but Docker's (processes, /dev/shm).
type Limits struct {
	// NanoCPUs is the CPU quota in billionths of a CPU; 0 is none.
	NanoCPUs int64
	// RAM is the memory limit in bytes; 0 is none. Swap is not available on
	// top of it. Less than MinRAM counts as MinRAM.
	RAM int64
	// PIDs is the greatest number of processes and threads; 0 means
	// DefaultPIDs, negative no limit.
	PIDs int64
	// Shm is the size of /dev/shm in bytes; 0 means DefaultShm.
	Shm int64
}

const (
	// MinRAM is the smallest memory limit, in bytes, with which Docker
	// starts containers (lifecycle.md section 12).
	MinRAM = 16 << 20
	// DefaultPIDs stops a fork bomb long before the node is out of PIDs.
	DefaultPIDs = 32768
	// DefaultShm is Docker's size of /dev/shm in bytes.
	DefaultShm = 64 << 20
)
