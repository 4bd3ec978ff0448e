package supervisor

import (
	"context"
	"encoding/json"
	"io"
	"os"
	"syscall"
	"time"

	"crunch-oci/arvados"
	"crunch-oci/cgroups"
	"crunch-oci/imagestore"
	"crunch-oci/imagestore/archive"
	"crunch-oci/keep"
	"crunch-oci/oci"
	"crunch-oci/supervisor/joblog"
	"crunch-oci/supervisor/prices"
	"crunch-oci/supervisor/rundir"
	"crunch-oci/supervisor/unfinished"
)

// Supervisor runs one container, once. All fields are required unless they say
// otherwise.
type Supervisor struct {
	UUID string // of the container
	// Version is this program's, "1.0 (go1.26)"; Identity its user and groups,
	// "uid=0(root) gid=0(root) groups=0(root)".
	Version, Identity string

	Log     *joblog.Log
	Records Records
	// Login gives access with the container's own token. New blocks are written
	// with the storage classes; nil means the cluster's default ones.
	Login func(token string, storageClasses []string) (Account, error)

	Mounter Mounter
	Images  Images
	Runtime Runtime
	Meter   Meter
	GPUs    GPUs

	// RunDir is the locked runtime directory, Scratch a private directory on a
	// disk with room; the caller removes both after the run.
	RunDir  *rundir.Dir
	Scratch string
	// KeepCacheDir is where the FUSE servers of the node keep blocks, for
	// containers that ask for a cache on disk; "" means in Scratch.
	KeepCacheDir string

	Limits Limits
	// Network chooses the network for a container with, and one without, access
	// to the API.
	Network func(api bool) (Network, error)
	// Cgroup gives the place of the container's cgroup in the terms of the OCI
	// spec. mountPID is the FUSE server, 0 if there is none: a process that lives
	// longer than the container, for a place that exists only as long as somebody
	// is in it.
	Cgroup func(ctx context.Context, mountPID int) (string, error)
	// Gateway is the door into the container; nil: there is none.
	Gateway Gateway
	// APIEnv is the environment a container with API access gets beside its
	// token; CABundle the certificates bound into it, "" for none.
	APIEnv   map[string]string
	CABundle string
	// HourlyPrice of the instance, for the record's cost, while no other is known.
	HourlyPrice float64
	// ReadPrices reads what the dispatcher has written about prices: at the
	// beginning, and whenever something comes from Reprice. Both may be nil.
	ReadPrices func() ([]prices.Price, error)
	Reprice    <-chan struct{}
	// NextInterruption waits for the cloud's notice that it will take the
	// instance away, one after another. Nil: nobody would say. When its error
	// is not nil there will be no more.
	NextInterruption func(context.Context) (Interruption, error)
	// TempDir is where the node keeps temporary files, for node-info.txt.
	TempDir string
	// NodeJSON is the content of node.json; nil: no such file.
	NodeJSON []byte
	// Helpers lists processes beside the supervisor's own whose memory is
	// reported, by name, as they are now. May be nil.
	Helpers func() map[string]int
	// StatsInterval is the time between two lines of statistics of a kind.
	StatsInterval time.Duration
	// MarkBroken is told once about an error that suggests that this node cannot
	// run containers. May be nil.
	MarkBroken func(ctx context.Context, err error)
	// FinalTimeout is how long the results are held ready for an API that does
	// not answer; 0 means DefaultFinalTimeout.
	FinalTimeout time.Duration
	// Unfinished is where they are kept meanwhile; "" means nowhere. APIHost
	// says whose they are.
	Unfinished unfinished.Dir
	APIHost    string
	// NextSignal returns a channel that is closed at the next stop signal, the
	// first as well as the repeated ones. May be nil.
	NextSignal func() <-chan struct{}
	// Observer may be nil.
	Observer Observer
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// After is the timer that belongs to it; nil means time.After.
	After func(time.Duration) <-chan time.Time
}

// Records is the container's record in the API, with the dispatcher's token.
type Records interface {
	GetContainer(ctx context.Context, uuid string) (arvados.Container, error)
	ContainerAuth(ctx context.Context, uuid string) (arvados.APIClientAuthorization, error)
	UpdateContainer(ctx context.Context, uuid string, attrs map[string]any) error
	ContainerRecordJSON(ctx context.Context, uuid string) (json.RawMessage, error)
}

// Account is what is done with the container's token.
type Account interface {
	SecretMounts(ctx context.Context, uuid string) (map[string]arvados.Mount, error)
	// OpenCollection reads a collection by portable data hash (or UUID).
	OpenCollection(ctx context.Context, id string) (*keep.Collection, error)
	// NewCollection is an empty collection whose blocks go to Keep.
	NewCollection() (*keep.Collection, error)
	// Localizer makes blocks of other clusters local.
	Localizer() keep.Localizer
	// SaveCollection saves a manifest as a trashed collection with a unique name
	// and returns its portable data hash.
	SaveCollection(ctx context.Context, name, manifest string) (pdh string, err error)
}

// Mounter starts the FUSE server.
type Mounter interface {
	Version() string
	// Start returns when the mount named by args is there. The server keeps the
	// inherited files open for as long as it lives.
	Start(ctx context.Context, args []string, token string, stdout, stderr io.Writer, inherit ...*os.File) (Mount, error)
}

// Mount is a running FUSE server.
type Mount interface {
	Exited() <-chan struct{}
	// Err is how the server ended, valid when Exited is closed; nil means with
	// status 0.
	Err() error
	PID() int
	Stop(ctx context.Context) error
}

// Images unpacks images, each only once per node.
type Images interface {
	Unpack(ctx context.Context, key imagestore.Key, open func(context.Context) (*archive.Image, error), progress func(imagestore.Progress)) (*imagestore.Snapshot, error)
}

// Network is what a container can reach.
type Network struct {
	Kind oci.Network
	// Connect is called when the container has been created, with its first
	// process, if Kind is oci.NetworkPrivate.
	Connect func(ctx context.Context, pid int) (Connection, error)
}

// Connection is a container in its network.
type Connection interface {
	// Names are what the container finds in /etc.
	Names() oci.Names
	// Notes are for the log, a line each.
	Notes() []string
	// Close takes the container out of the network.
	Close(ctx context.Context) error
}

// Runtime makes a process from an OCI bundle.
type Runtime interface {
	Version() string
	Create(ctx context.Context, id, bundleDir string, stdio oci.Stdio) (Process, error)
}

// Process is a created container.
type Process interface {
	// Start returns when the user's program has begun. When ctx is done before,
	// the container is killed, and the error is ctx's cause.
	Start(ctx context.Context) error
	Wait(ctx context.Context) (oci.ExitStatus, error)
	Signal(sig syscall.Signal) error
	// Kill ends every process of the container; none is alive when it returns
	// without error.
	Kill(ctx context.Context) error
	Delete(ctx context.Context) error
	PID() int
	Cgroup() *cgroups.Cgroup
	// Warnings says which limits are not enforced, or not those asked for, a line
	// each.
	Warnings() []string
}

// Gateway is a door into the container. It stands open before there is one and
// after it has ended.
type Gateway interface {
	// Address is where the controller finds the door, as it is now.
	Address() string
	// AddressRecorded tells that the record, now in state Running, has addr. From
	// then on the gateway itself keeps it up to date.
	AddressRecorded(addr string)
}

// Limits of a node that hold for every container.
type Limits struct {
	PIDs int64
	// IgnoreRAM runs containers without a memory limit (-enable-memory-limit=false).
	IgnoreRAM bool
	// NoSeccomp runs containers without Docker's system call filter.
	NoSeccomp bool
	// NoNewPrivileges keeps set-user-ID programs from raising privileges.
	NoNewPrivileges bool
	// Shm is the size of /dev/shm in bytes; 0: Docker's.
	Shm int64
	// Confinement is what else the site asks for.
	Confinement oci.Confinement
	// StopGrace is the time between SIGTERM and SIGKILL when a container is
	// stopped; 0: SIGKILL at once.
	StopGrace time.Duration
}

// Interruption is a cloud's notice that it will take the instance away.
type Interruption struct {
	Action string // "terminate", "stop" or "hibernate"
	Time   time.Time
}

// Observer is told how the run goes, for somebody who watches it on a terminal.
// Its methods return quickly.
type Observer interface {
	// Step says which step has begun.
	Step(name string)
	// ImageProgress follows the unpacking of an image that the node lacks.
	ImageProgress(imagestore.Progress)
	// Output gets a copy of what the container writes to the log's stdout or
	// stderr.
	Output(stream string) io.Writer
	// Started says that the user's process has been started.
	Started(at time.Time)
	// Ended gives the container's exit code and what it used.
	Ended(Usage)
}

// Usage is what a container used.
type Usage struct {
	ExitCode   int
	OOMKilled  bool
	PeakMemory int64 // bytes; 0: unknown
	CPU        time.Duration
}

func (s *Supervisor) now() time.Time {
	if s.Now != nil {
		return s.Now()
	}
	return time.Now()
}

func (s *Supervisor) after(d time.Duration) <-chan time.Time {
	if s.After != nil {
		return s.After(d)
	}
	return time.After(d)
}

func (s *Supervisor) enter(step string) {
	if s.Observer != nil {
		s.Observer.Step(step)
	}
}
