package supervisor

import (
	"context"
	"errors"
	"fmt"
	"time"

	"crunch-oci/supervisor/joblog"
	"crunch-oci/supervisor/stats"
)

// stopStatsTimeout bounds the last report of a reporter: a file system that does
// not answer must not hold up the end of a run.
const stopStatsTimeout = 5 * time.Second

// Meter measures the container and the supervisor.
type Meter interface {
	// Host gives the numbers of the supervisor's own cgroup, and the memory of
	// the processes listed whenever they are asked for.
	Host(processes func() map[string]int) stats.Sources
	// Container gives the numbers of the container's cgroup.
	Container(Process) stats.Sources
	// Usage is what the container used in all, as far as it is known. To be
	// asked before the container is deleted.
	Usage(Process) Usage
}

// reporter writes statistics to a file of the log collection.
type reporter struct {
	*stats.Reporter
	log *joblog.Stream
}

// startReporter starts a reporter that ends when it is stopped, not with ctx.
func (r *run) startReporter(ctx context.Context, file string, c stats.Config) (*reporter, error) {
	log, err := r.Log.Stream(file, joblog.StreamOptions{Stamp: true})
	if err != nil {
		return nil, err
	}
	c.Out, c.Interval = log, r.StatsInterval
	rep := &reporter{stats.Start(context.WithoutCancel(ctx), c), log}
	return rep, nil
}

// stop makes the last report. A second stop does nothing.
func (r *reporter) stop(ctx context.Context) error {
	if r.log == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopStatsTimeout)
	defer cancel()
	err := errors.Join(r.Reporter.Stop(ctx), r.log.Close())
	r.log = nil
	return err
}

func (r *run) startHostStats(ctx context.Context) error {
	rep, err := r.startReporter(ctx, "hoststat.txt", stats.Config{Sources: r.Meter.Host(r.ownProcesses)})
	if err != nil {
		return fmt.Errorf("start host statistics: %w", err)
	}
	r.hostStats = rep
	r.undo.Add("stop host statistics", rep.stop)
	return nil
}

// stopHostStats ends the host statistics and logs the maxima of the processes.
func (r *run) stopHostStats(ctx context.Context) {
	if r.hostStats == nil {
		return
	}
	if err := r.hostStats.stop(ctx); err != nil {
		r.Log.Printf("error in host statistics: %v", err)
	}
	for _, line := range r.hostStats.ProcessMaxima() {
		r.Log.Printf("%s", line)
	}
}

func (r *run) startContainerStats(ctx context.Context) error {
	sources := r.Meter.Container(r.container.process)
	sources.GPUs = r.gpuStats()
	r.watchGPUs()
	rep, err := r.startReporter(ctx, "crunchstat.txt", stats.Config{
		Sources: sources,
		RAM:     r.record.RuntimeConstraints.RAM,
		Printf:  r.Log.Printf,
	})
	if err != nil {
		return fmt.Errorf("start container statistics: %w", err)
	}
	r.container.stats = rep
	r.undo.Add("stop container statistics", rep.stop)
	return nil
}

// stopContainerStats ends the container's statistics and logs the maxima. What
// goes wrong here spoils nothing.
func (r *run) stopContainerStats(ctx context.Context) error {
	if err := r.container.stats.stop(ctx); err != nil {
		r.Log.Printf("error in container statistics: %v", err)
	}
	for _, line := range r.container.stats.Maxima() {
		r.Log.Printf("%s", line)
	}
	return nil
}
