// Package local is "crunch-run local": one container on this machine, with
// nothing installed. It plays the parts that surround a supervisor on a cluster:
// the user, who stores an image and inputs and submits a container request; the
// dispatcher, who locks the container and starts a supervisor; and the reader of
// the results. It speaks to the embedded cluster as these would, over HTTPS.
package local

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"crunch-oci/arvados"
	"crunch-oci/cmd/crunch-run/transfer"
	"crunch-oci/gpu/device"
	"crunch-oci/internal/undo"
	"crunch-oci/localcluster"
	"crunch-oci/oci"
	"crunch-oci/supervisor"
)

// Exit statuses of "crunch-run local", by the convention of docker run.
const (
	exitFailure     = 125
	exitInterrupted = 130 // as if Ctrl-C had killed it
	outputPath      = "/out"
	inputPath       = "/in"
	defaultPriority = 500
)

// Env is what the role needs from the program around it.
type Env struct {
	Stdout, Stderr io.Writer
	// StateDir is where results are kept that have no other place.
	StateDir string
	// TempDir is for temporary files without a name.
	TempDir string
	// NewScratch makes a directory that is gone after the run, even if remove is
	// never called because the program was killed.
	NewScratch func() (dir string, remove func() error, err error)
	// Began is when the program was started.
	Began time.Time
	// GPUStack is the kind of GPUs this machine has.
	GPUStack func() string
	// Connect makes an API client and access to Keep with a token.
	Connect func(cluster *localcluster.Cluster, token string) (*transfer.Session, error)
	// HoldBridge makes the bridge and returns this machine's address on it. It is
	// there until release is called.
	HoldBridge func() (host string, release func(context.Context) error, err error)
	// Supervise runs the supervisor for a locked container, as on a cluster.
	Supervise func(ctx, stop context.Context, cluster *localcluster.Cluster, job Job, obs supervisor.Observer, messages io.Writer) error
	// Stop is done at the first Ctrl-C, the context given to Main at the second.
	Stop context.Context
}

// Job is the container that is handed to the supervisor.
type Job struct {
	UUID    string
	Network string // "none", "bridge" or "host"
	// APIHost is the API's address for the container; "" if it is the same as
	// everybody's.
	APIHost string
}

// WantsHelp tells whether all that is asked for is the usage text.
func WantsHelp(args []string) bool {
	_, err := parse(args)
	return errors.Is(err, errHelp)
}

// Main runs the role and returns its exit status.
func Main(ctx context.Context, args []string, env Env) int {
	o, err := parse(args)
	switch {
	case errors.Is(err, errHelp):
		fmt.Fprint(env.Stdout, usage)
		return 0
	case err != nil:
		fmt.Fprintf(env.Stderr, "crunch-run local: %v (try -h)\n", err)
		return exitFailure
	}
	if o.gpus > 0 && o.gpuStack == "" {
		o.gpuStack = env.GPUStack()
	}
	status, err := run(ctx, o, env)
	switch {
	case ctx.Err() != nil:
		fmt.Fprintln(env.Stderr, "crunch-run local: given up")
		return exitInterrupted
	case err == nil:
	case env.Stop.Err() != nil && status == exitFailure:
		fmt.Fprintf(env.Stderr, "crunch-run local: %v\n", context.Cause(env.Stop))
		return exitInterrupted
	default:
		fmt.Fprintf(env.Stderr, "crunch-run local: %v\n", err)
	}
	return status
}

// run does the whole: cluster, image, inputs, request, supervisor, results.
func run(ctx context.Context, o options, env Env) (status int, err error) {
	var cleanup undo.Stack
	defer func() { err = errors.Join(err, cleanup.Run(ctx)) }()
	early, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(env.Stop, func() { cancel(context.Cause(env.Stop)) })()

	for _, dir := range []string{env.StateDir, o.output} {
		if dir == "" {
			continue
		}
		if err := checkWritable(dir); err != nil {
			return exitFailure, fmt.Errorf("results cannot be written: %w", err)
		}
	}
	view := newView(env.Stdout, env.Stderr, o.verbose)
	img, err := transfer.Examine(early, o.image, env.TempDir)
	if err != nil {
		return exitFailure, err
	}
	var alsoListen []string
	if o.api && o.network == networkBridge {
		host, release, err := env.HoldBridge()
		if err != nil {
			return exitFailure, fmt.Errorf("--network bridge: %w", err)
		}
		cleanup.Add("release the bridge", release)
		alsoListen = append(alsoListen, host)
	}
	cluster, dir, err := startCluster(early, o, env, alsoListen, &cleanup)
	if err != nil {
		return exitFailure, err
	}
	room, err := newReserve(dir, img.Size+inputsSize(o.inputs))
	if err != nil {
		return exitFailure, err
	}
	cleanup.Add("release disk space", func(context.Context) error { return room.release() })
	view.onEnd = func() { _ = room.release() } // and again in the end
	user, err := env.Connect(cluster, cluster.UserToken())
	if err != nil {
		return exitFailure, err
	}
	cleanup.Add("close connections", func(context.Context) error { return user.Close() })
	stored, err := storeImage(early, user, img, view)
	if err != nil {
		return exitFailure, fmt.Errorf("store image %s: %w", o.image, err)
	}
	inputs, err := storeInputs(early, user, o.inputs, view)
	if err != nil {
		return exitFailure, err
	}
	request, err := user.API.CreateContainerRequest(early, requestAttrs(o, stored.PortableDataHash, inputs))
	if err != nil {
		return exitFailure, fmt.Errorf("submit container request: %w", err)
	}
	dispatcher, err := env.Connect(cluster, cluster.DispatcherToken())
	if err != nil {
		return exitFailure, err
	}
	cleanup.Add("close connections", func(context.Context) error { return dispatcher.Close() })
	if _, err := dispatcher.API.Lock(early, request.ContainerUUID); err != nil {
		return exitFailure, fmt.Errorf("lock container: %w", err)
	}

	job := Job{UUID: request.ContainerUUID, Network: o.network}
	for _, host := range alsoListen {
		job.APIHost = cluster.HostAt(host)
	}
	runErr := env.Supervise(ctx, env.Stop, cluster, job, view, view.messages())
	view.endProgress()
	if ctx.Err() != nil {
		return exitInterrupted, runErr
	}
	_ = room.release()
	res, err := fetchResults(ctx, user, request, resultDirs(o, env, request.ContainerUUID))
	if res != nil {
		if o.keepCluster {
			res.clusterDir = dir
		}
		res.summarise(view, env.Began)
	}
	if err != nil {
		return exitFailure, errors.Join(runErr, err)
	}
	return exitStatus(res, runErr, env.Stop.Err() != nil), runErr
}

// startCluster starts the embedded cluster in a directory of its own, which goes
// with it unless the user wants to keep it.
func startCluster(ctx context.Context, o options, env Env, alsoListen []string, cleanup *undo.Stack) (*localcluster.Cluster, string, error) {
	dir, remove, err := clusterDir(o, env)
	if err != nil {
		return nil, "", fmt.Errorf("make a directory for the embedded cluster: %w", err)
	}
	cleanup.Add("remove the embedded cluster", func(context.Context) error { return remove() })
	// What is thrown away after the run need not survive a power cut.
	cluster, err := localcluster.Start(context.WithoutCancel(ctx), localcluster.Options{Dir: dir, AlsoListen: alsoListen, NoSync: !o.keepCluster})
	if err != nil {
		return nil, "", fmt.Errorf("start the embedded cluster: %w", err)
	}
	cleanup.Add("stop the embedded cluster", func(context.Context) error { return cluster.Close() })
	return cluster, dir, nil
}

// clusterDir makes the cluster's directory: one that goes with the run, or one
// beside the results.
func clusterDir(o options, env Env) (dir string, remove func() error, err error) {
	if !o.keepCluster {
		return env.NewScratch()
	}
	if err := os.MkdirAll(env.StateDir, 0o700); err != nil {
		return "", nil, err
	}
	dir, err = os.MkdirTemp(env.StateDir, "cluster.")
	return dir, func() error { return nil }, err
}

// requestAttrs is the container request that stands for the command line.
func requestAttrs(o options, imagePDH string, inputs map[string]string) map[string]any {
	mounts := map[string]any{
		outputPath: map[string]any{"kind": "tmp", "capacity": 1 << 40},
	}
	for name, pdh := range inputs {
		mounts[inputPath+"/"+name] = map[string]any{"kind": "collection", "portable_data_hash": pdh}
	}
	constraints := map[string]any{"vcpus": o.vcpus, "ram": o.ram, "API": o.api}
	if o.gpus > 0 {
		// The API wants conditions; these any GPU meets.
		constraints["gpu"] = map[string]any{
			"stack": o.gpuStack, "device_count": o.gpus, "driver_version": "0.0", "hardware_target": []string{device.AnyTarget},
		}
	}
	return map[string]any{
		"name":                "crunch-run local",
		"state":               "Committed",
		"priority":            defaultPriority,
		"container_image":     imagePDH,
		"command":             o.command,
		"cwd":                 o.cwd,
		"environment":         o.env,
		"mounts":              mounts,
		"output_path":         outputPath,
		"runtime_constraints": constraints,
		"container_count_max": 1,
		"use_existing":        false,
	}
}

// dirs are the directories for the output and the log, the wanted one first;
// the others are for when it cannot be written.
type dirs struct{ output, log []string }

func resultDirs(o options, env Env, uuid string) (d dirs) {
	if o.output != "" {
		d.output = append(d.output, o.output)
	}
	for _, base := range []string{filepath.Join(env.StateDir, uuid), filepath.Join(env.TempDir, "crunch-run-results."+uuid)} {
		d.output = append(d.output, filepath.Join(base, "output"))
		d.log = append(d.log, filepath.Join(base, "log"))
	}
	return d
}

func inputsSize(inputs []input) (total int64) {
	for _, in := range inputs {
		total += transfer.TreeSize(in.dir)
	}
	return total
}

// exitStatus maps the end of the run to a status, as docker run does.
func exitStatus(res *results, runErr error, stopped bool) int {
	var start *oci.StartError
	switch {
	case errors.As(runErr, &start):
		return start.ExitCode()
	case res.container.State == arvados.StateComplete && res.container.ExitCode != nil:
		return *res.container.ExitCode
	case runErr == nil && res.container.ExitCode != nil:
		return *res.container.ExitCode // stopped, typically 137
	case stopped:
		return exitInterrupted // before anything was started
	}
	return exitFailure
}
