package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"syscall"
	"time"

	"crunch-oci/arvados"
	"crunch-oci/cmd/crunch-run/wire"
	"crunch-oci/internal/mountns"
	"crunch-oci/supervisor/config"
	"crunch-oci/supervisor/joblog"
)

// runSupervisor is the reference's command line: run one container.
func runSupervisor(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	program := config.Program{Name: args[0], Version: version, Roles: []string{"local", "cluster", "image", "submit", "request", "collection"}, ClusterConfig: os.Getenv("ARVADOS_CONFIG")}
	flags, exit := config.ParseFlags(program, args[1:], stdout, stderr)
	if exit != nil {
		return exit.Code
	}
	switch flags.Mode {
	case config.ModeRun:
	case config.ModeList:
		return fail(stderr, 1, "-list is not available in this version: only foreground runs are")
	case config.ModeKill:
		return fail(stderr, 1, "-kill is not available in this version: only foreground runs are")
	case config.ModeDetach:
		return fail(stderr, 1, "-detach is not available in this version: only foreground runs are")
	}
	if code := prepareProcess(stderr); code != 0 {
		return code
	}
	ctx, stop, release := stopSignals(false)
	defer release()
	if err := supervise(ctx, stop, flags, stdin, stderr); err != nil {
		return fail(stderr, 1, "%s: %v", flags.UUID, err)
	}
	return 0
}

// memoryLimit is a soft limit for the supervisor's memory, in bytes.
const memoryLimit = 512 << 20

// prepareProcess makes this process fit to run containers.
func prepareProcess(stderr io.Writer) int {
	if os.Geteuid() != 0 {
		return fail(stderr, 1, "crunch-run must be run as root: it mounts file systems and makes cgroups and namespaces")
	}
	if err := mountns.Enter(); err != nil {
		return fail(stderr, 1, "%v", err)
	}
	// The heap is a few blocks of 64 MiB at its largest: above this the collector
	// works harder rather than let it grow.
	debug.SetMemoryLimit(memoryLimit)
	// Directories that containers use get exactly the modes they are made with.
	syscall.Umask(0o022)
	return 0
}

func supervise(ctx, stop context.Context, flags config.Flags, stdin io.Reader, stderr io.Writer) error {
	var message *config.Message
	if flags.StdinConfig {
		var err error
		if message, err = readMessage(stop, stdin); err != nil {
			return err
		}
		if err := message.SetEnv(os.Setenv); err != nil {
			return err
		}
	}
	fmt.Fprintf(stderr, "crunch-run %s started\n", programVersion())
	if err := pause(stop, flags.Sleep); err != nil {
		return err
	}
	if flags.CACerts != "" {
		if err := os.Setenv("SSL_CERT_FILE", flags.CACerts); err != nil {
			return err
		}
	}
	job, err := newJob(flags, stderr)
	if err != nil {
		return err
	}
	job.Message = message
	job.OnLog = saveOnSignal(ctx)
	err = wire.Run(ctx, stop, job)
	if flags.MemProfile != "" {
		writeMemProfile(flags.MemProfile, stderr)
	}
	return err
}

// readMessage reads what the dispatcher writes to stdin, unless stop is done
// before it has. The goroutine left reading then ends with the program.
func readMessage(stop context.Context, stdin io.Reader) (*config.Message, error) {
	type result struct {
		message config.Message
		err     error
	}
	done := make(chan result, 1)
	go func() {
		m, err := config.ReadMessage(stdin)
		done <- result{m, err}
	}()
	select {
	case r := <-done:
		return &r.message, r.err
	case <-stop.Done():
		return nil, context.Cause(stop)
	}
}

// newJob collects what is said by flags, environment and site file.
func newJob(flags config.Flags, stderr io.Writer) (wire.Job, error) {
	cluster, warning := arvados.ConfigFromEnv(os.LookupEnv)
	if warning != nil {
		fmt.Fprintln(stderr, warning)
	}
	if cluster.CAFile != "" {
		// The hook and the FUSE server shall believe the same certificates.
		if err := os.Setenv("SSL_CERT_FILE", cluster.CAFile); err != nil {
			return wire.Job{}, err
		}
	}
	site, err := config.Load(config.Sources{Flags: flags.Settings, Lookup: os.LookupEnv, Environ: os.Environ()})
	if err != nil {
		return wire.Job{}, err
	}
	return wire.Job{
		UUID: flags.UUID, Version: programVersion(), Site: site, Flags: flags, KeepRetries: wire.KeepRetries,
		Env: config.TakeEnvironment(), Cluster: cluster, Stderr: stderr,
	}, nil
}

// pause waits for d, or until stop is done, which is then the error.
func pause(stop context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-stop.Done():
		return context.Cause(stop)
	}
}

// saveOnSignal makes SIGUSR1 save the log, until ctx ends.
func saveOnSignal(ctx context.Context) func(*joblog.Log) {
	return func(log *joblog.Log) {
		signals := make(chan os.Signal, 1)
		signal.Notify(signals, syscall.SIGUSR1)
		go func() {
			defer signal.Stop(signals)
			for {
				select {
				case <-signals:
					log.SaveSoon()
				case <-ctx.Done():
					return
				}
			}
		}()
	}
}

// programVersion is the version as the log shows it.
func programVersion() string { return version + " (" + runtime.Version() + ")" }

func writeMemProfile(path string, stderr io.Writer) {
	f, err := os.Create(path)
	if err != nil {
		fmt.Fprintf(stderr, "could not create memory profile: %s\n", err)
		return
	}
	defer f.Close()
	runtime.GC()
	if err := pprof.WriteHeapProfile(f); err != nil {
		fmt.Fprintf(stderr, "could not write memory profile: %s\n", err)
	}
}
