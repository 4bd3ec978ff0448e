// Package wire connects the packages: small adapters from what one offers to
// what another needs, and the function that puts a supervisor together.
package wire

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"crunch-oci/arvados"
	"crunch-oci/internal/undo"
	"crunch-oci/keep"
	"crunch-oci/supervisor"
	"crunch-oci/supervisor/config"
	"crunch-oci/supervisor/joblog"
	"crunch-oci/supervisor/prices"
	"crunch-oci/supervisor/rundir"
	"crunch-oci/supervisor/unfinished"
)

// Job is one container to be run, and how.
type Job struct {
	UUID    string
	Version string // of this program, "1.0 (go1.26)"
	Site    config.Site
	Flags   config.Flags
	Env     config.Environment
	// Message is what the dispatcher wrote to stdin; nil: nothing was read.
	// ClusterFile is the cluster's configuration file then.
	Message     *config.Message
	ClusterFile config.ClusterFile
	// RunLock is the lock file of a run in the background, nil in the
	// foreground. Helpers that the run could not do without inherit it.
	RunLock *os.File
	Cluster arvados.Config // with the dispatcher's token
	// ContainerAPIHost is the address at which the container finds the API, if it
	// is another than Cluster.Host.
	ContainerAPIHost string
	// KeepRetries is the number of rounds over the Keep services after the
	// first, usually KeepRetries.
	KeepRetries int
	// Stderr gets the supervisor's messages.
	Stderr io.Writer
	// Observer may be nil.
	Observer supervisor.Observer
	// NextSignal returns a channel that is closed at the next stop signal.
	NextSignal func() <-chan struct{}
	// Reprice tells that there may be new prices.
	Reprice <-chan struct{}
	// OnLog, if not nil, gets the log as soon as there is one.
	OnLog func(*joblog.Log)
}

// Run puts a supervisor together, runs the job, and takes everything apart
// again. See supervisor.Supervisor.Run for ctx and stop.
func Run(ctx, stop context.Context, j Job) (err error) {
	var cleanup undo.Stack
	defer func() {
		if undone := cleanup.Run(ctx); undone != nil {
			fmt.Fprintf(j.Stderr, "%s: clean up: %v\n", j.UUID, undone)
		}
	}()
	api, err := arvados.NewClient(paceAPI(j.Cluster))
	if err != nil {
		j.sayNoKeepstore()
		return err
	}
	cleanup.Add("close API connections", func(context.Context) error { api.Close(); return nil })
	local := j.startKeepstore(ctx, stop, api, &cleanup)
	facts, err := learnUnlessStopped(ctx, stop, api, j.Cluster, j.KeepRetries)
	if err != nil {
		return err
	}
	dispatcher, err := facts.newAccount(api, j.Cluster.Token, nil, logCacheSize)
	if err != nil {
		return err
	}
	cleanup.Add("close Keep connections", func(context.Context) error { return dispatcher.close() })
	log, files, err := j.newLog(api, facts, dispatcher, &cleanup)
	if err != nil {
		return err
	}
	for _, line := range j.ClusterFile.Notes {
		log.Printf("%s", line)
	}
	if err := local.report(log); err != nil {
		return err
	}
	door, err := newDoor(log, &cleanup)
	if err != nil {
		return err
	}
	entrance := j.startGateway(ctx, api, facts.tls, log, files, door, &cleanup)
	// From here to the run itself only the host can be at fault.
	preparing := true
	defer func() {
		if preparing && err != nil {
			j.blameHost(ctx, log, err)
		}
	}()
	early, cancel := endedBy(ctx, stop)
	dir, err := rundir.Create(early, j.Site.RuntimeDir, j.UUID, removers)
	cancel()
	if err != nil {
		return err
	}
	cleanup.Add("remove runtime directory", func(context.Context) error { return dir.Remove(removers) })
	door.openConsole(dir.Path(), log, &cleanup)
	lookups, endLookups := context.WithCancel(ctx)
	connect := newConnector(lookups, j, dir)
	cleanup.Add("stop looking for addresses", func(context.Context) error { endLookups(); <-connect.api; return nil })
	others := startSweep(ctx, j.Site.RuntimeDir, removers, log.Stderr(), j.UUID)
	cleanup.Add("clean up after dead supervisors", func(context.Context) error { others.end(ctx); return nil })
	scratch, err := makeScratch(j.UUID, j.Env.TempDir, dir)
	if err == nil {
		err = label(scratch, j.Site.SELinuxMountLabel)
	}
	if err != nil {
		return err
	}
	if d := unfinished.Dir(j.Site.UnfinishedDir); d != "" {
		if err := dir.Own(rundir.Thing{Kind: ownsResult, ID: d.Temporary(j.UUID)}); err != nil {
			return err
		}
		j.settle(ctx, api, d, log.Stderr(), &cleanup)
	}
	cgroup, err := j.placement(log.Printf)
	if err != nil {
		return err
	}
	cleanup.Add("leave the container's place in the cgroup tree", cgroup.close)
	if err := j.makeRoom(cgroup, dir); err != nil {
		return err
	}
	state := filepath.Join(dir.Path(), "oci")
	if err := dir.Own(rundir.Thing{Kind: ownsContainer, ID: filepath.Join(state, j.UUID)}); err != nil {
		return err
	}
	limits, err := j.limits(log.Printf)
	if err != nil {
		return err
	}
	if !limits.Confinement.IDs.IsZero() {
		ids, err := j.lendIDs(limits.Confinement.IDs, dir.Path())
		if err != nil {
			return fmt.Errorf("setting user-namespace: %w", err)
		}
		cleanup.Add("give the user ids back", func(context.Context) error { return ids.Close() })
		limits.Confinement.IDs = ids.Range
	}
	store, err := OpenStore(j.Site, func(text string) { log.Printf("%s", text) })
	if err != nil {
		return err
	}
	cleanup.Add("close image store", func(context.Context) error { closeStore(ctx, store); return nil })
	s := &supervisor.Supervisor{
		UUID: j.UUID, Version: j.Version, Identity: identity(),
		Log:     log,
		Records: api,
		Login: func(token string, classes []string) (supervisor.Account, error) {
			// They hold for the log as well (spec: lifecycle section 1). None of
			// it has been saved before.
			files.SetWriteOptions(keep.WriteOptions{StorageClasses: classes})
			account, err := facts.newAccount(api, token, classes, cacheSize)
			if err != nil {
				return nil, err
			}
			cleanup.Add("close Keep connections", func(context.Context) error { return account.close() })
			return account, nil
		},
		Mounter:       mounter{site: j.Site, cluster: j.Cluster, version: j.Version, runLock: j.RunLock, facts: facts},
		Images:        store,
		Runtime:       newRuntime(state, j.Version, log, door.open),
		Meter:         meter{scratch: scratch, tempDir: j.Env.TempDir},
		GPUs:          gpus{GPUNode(j.Site), j.Env, j.UUID, dir.Path()},
		RunDir:        dir,
		Scratch:       scratch,
		KeepCacheDir:  keepCacheDir(j.Site),
		Limits:        limits,
		Network:       connect.choose,
		Cgroup:        cgroup.place,
		Gateway:       entrance,
		APIEnv:        j.apiEnv(),
		CABundle:      j.caBundle(),
		HourlyPrice:   prices.OfInstanceType(j.Env.InstanceType),
		ReadPrices:    j.readPrices,
		Reprice:       j.Reprice,
		TempDir:       j.Env.TempDir,
		Helpers:       local.processes,
		StatsInterval: j.Flags.CrunchstatInterval,
		MarkBroken:    j.markBroken(log),
		FinalTimeout:  j.Site.FinalTimeout,
		Unfinished:    unfinished.Dir(j.Site.UnfinishedDir),
		APIHost:       j.Cluster.Host,
		NextSignal:    j.NextSignal,
		Observer:      j.Observer,
	}
	pace(s)
	s.NextInterruption = j.interruptions(log)
	if j.Env.InstanceType != "" {
		s.NodeJSON = []byte(j.Env.InstanceType)
	}
	preparing = false
	return s.Run(ctx, stop)
}

// learnUnlessStopped is learn, which may retry for minutes, ended by a stop
// request: nothing is known of the container yet, so nothing is said about it.
func learnUnlessStopped(ctx, stop context.Context, api *arvados.Client, cfg arvados.Config, retries int) (*clusterFacts, error) {
	early, cancel := endedBy(ctx, stop)
	defer cancel()
	return learn(early, api, cfg, retries)
}

// endedBy returns a context that is done when either is, with its cause.
func endedBy(ctx, stop context.Context) (context.Context, context.CancelFunc) {
	both, cancel := context.WithCancelCause(ctx)
	detach := context.AfterFunc(stop, func() { cancel(context.Cause(stop)) })
	return both, func() { detach(); cancel(nil) }
}

// newLog makes the log, and the collection of its files. Its blocks and records belong to the
// dispatcher's token.
func (j Job) newLog(api *arvados.Client, facts *clusterFacts, dispatcher *account, cleanup *undo.Stack) (*joblog.Log, *keep.Collection, error) {
	tree, err := keep.NewCollection("", dispatcher.blocks)
	if err != nil {
		return nil, nil, err
	}
	cleanup.Add("close log collection", func(context.Context) error { return tree.Close() })
	log, err := joblog.New(joblog.Config{
		UUID: j.UUID, Tree: joblog.InCollection(tree), Saver: &saver{api: api, uuid: j.UUID, files: tree, ttl: facts.signatureTTL, signed: time.Now()}, Stderr: j.Stderr,
		Period: facts.logPeriod, Growth: facts.logGrowth,
	})
	if err != nil {
		return nil, nil, err
	}
	log.Hide(j.Cluster.Token)
	if j.OnLog != nil {
		j.OnLog(log)
	}
	return log, tree, nil
}

func (j Job) pidsLimit() int64 {
	if j.Site.PidsLimit == 0 {
		return -1 // the site's word for "no limit"; the runtime's 0 is its default
	}
	return j.Site.PidsLimit
}

// makeScratch makes the run's private directory on the disk for temporary files.
func makeScratch(name, tempDir string, dir *rundir.Dir) (string, error) {
	// The name is chosen first: what is recorded must be known before it exists.
	path := filepath.Join(tempDir, fmt.Sprintf("crunch-run.%s.%d", name, time.Now().UnixNano()))
	if err := dir.Own(rundir.Thing{Kind: ownsDir, ID: path}); err != nil {
		return "", err
	}
	if err := os.Mkdir(path, 0o700); err != nil {
		return "", fmt.Errorf("make scratch directory: %w", err)
	}
	return path, nil
}

// NewScratch makes a scratch directory for a role that is no supervisor. If the
// program is killed the next start on this node removes it.
func NewScratch(ctx context.Context, site config.Site, tempDir string) (path string, remove func() error, err error) {
	name := fmt.Sprintf("local.%d", os.Getpid())
	dir, err := rundir.Create(ctx, site.RuntimeDir, name, removers)
	if err != nil {
		return "", nil, err
	}
	path, err = makeScratch(name, tempDir, dir)
	if err == nil {
		err = label(path, site.SELinuxMountLabel)
	}
	if err != nil {
		return "", nil, errors.Join(err, dir.Remove(removers))
	}
	return path, func() error { return dir.Remove(removers) }, nil
}
