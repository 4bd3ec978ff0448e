package main

import (
	"context"
	"errors"
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
	"crunch-oci/supervisor/dispatch"
	"crunch-oci/supervisor/joblog"
)

// runSupervisor is the reference's command line: run one container, here or in
// the background, list or signal those in the background.
func runSupervisor(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	program := config.Program{Name: args[0], Version: version, Roles: []string{"local", "cluster", "image", "submit", "request", "collection", "shell", "connect-ssh", "unfinished", "gpus", "check"}, ClusterConfig: os.Getenv("ARVADOS_CONFIG")}
	flags, exit := config.ParseFlags(program, args[1:], stdout, stderr)
	if exit != nil {
		return exit.Code
	}
	if flags.Mode == config.ModeList {
		return list(flags, stdin, stdout, stderr)
	}
	if !dispatch.ValidUUID(flags.UUID) { // it becomes part of paths
		return fail(stderr, 1, "%q is not the UUID of a container (xxxxx-dz642-xxxxxxxxxxxxxxx)", flags.UUID)
	}
	switch flags.Mode {
	case config.ModeKill:
		return kill(flags, stderr)
	case config.ModeDetach:
		return detach(flags, stdin, stdout, stderr)
	}
	var inherited *dispatch.Inherited
	if flags.NoDetach {
		var err error
		if inherited, err = dispatch.Inherit(flags.UUID); err != nil {
			return fail(stderr, 1, "%s: %v", flags.UUID, err)
		}
	}
	s := supervision{flags: flags, inherited: inherited, stdin: stdin, stderr: inherited.Messages(stderr)}
	return s.run()
}

// supervision is one run of a container by this process.
type supervision struct {
	flags     config.Flags
	inherited *dispatch.Inherited // nil: in the foreground
	stdin     io.Reader
	stderr    io.Writer
}

func (s supervision) run() int {
	if code := prepareProcess(s.stderr); code != 0 {
		return code
	}
	if err := s.inherited.KeepPrivate(); err != nil {
		return fail(s.stderr, 1, "%v", err)
	}
	ctx, stop, next, release := watchSignals(false)
	defer release()
	job, err := s.configure(stop)
	if err != nil {
		return fail(s.stderr, 1, "%v", err)
	}
	s.inherited.Accept()
	begun, watchLog := false, saveOnSignal(ctx)
	job.OnLog = func(log *joblog.Log) { begun = true; watchLog(log) }
	job.NextSignal, job.Reprice = next, events(ctx, syscall.SIGUSR2)
	fmt.Fprintf(s.stderr, "crunch-run %s started\n", programVersion())
	if err := pause(stop, s.flags.Sleep); err != nil {
		return fail(s.stderr, 1, "%s: %v", s.flags.UUID, err)
	}
	err = wire.Run(ctx, stop, job)
	if s.flags.MemProfile != "" && begun {
		writeMemProfile(s.flags.MemProfile, s.stderr)
	}
	if errors.Is(err, wire.ErrCgroupParent) {
		return fail(s.stderr, 1, "%v", err)
	}
	if err != nil {
		return fail(s.stderr, 1, "%s: %v", s.flags.UUID, err)
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
	// A dispatcher may send them at any moment, also between one execution and
	// the next: what is ignored stays ignored there, a handler does not.
	signal.Ignore(syscall.SIGUSR1, syscall.SIGUSR2)
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

// configure collects what is said by stdin or the cluster configuration file,
// flags, environment and site file.
func (s supervision) configure(stop context.Context) (wire.Job, error) {
	job := wire.Job{
		UUID: s.flags.UUID, Version: programVersion(), Flags: s.flags, KeepRetries: wire.KeepRetries, Stderr: s.stderr,
	}
	if s.inherited != nil {
		job.RunLock = s.inherited.Lock
	}
	if s.flags.StdinConfig {
		message, err := readMessage(stop, s.stdin)
		if err != nil {
			return wire.Job{}, err
		}
		if err := message.SetEnv(os.Setenv); err != nil {
			return wire.Job{}, err
		}
		job.Message = message
	} else {
		job.ClusterFile = config.LoadClusterFile(s.flags.ClusterConfig)
		for _, line := range job.ClusterFile.Notes {
			fmt.Fprintln(s.stderr, line)
		}
	}
	if s.flags.CACerts != "" {
		// Before anything speaks TLS.
		if err := os.Setenv("SSL_CERT_FILE", s.flags.CACerts); err != nil {
			return wire.Job{}, err
		}
	}
	var warning error
	if job.Cluster, warning = arvados.ConfigFromEnv(os.LookupEnv); warning != nil {
		fmt.Fprintln(s.stderr, warning)
	}
	if job.Cluster.CAFile != "" {
		// The hook and the FUSE server shall believe the same certificates.
		if err := os.Setenv("SSL_CERT_FILE", job.Cluster.CAFile); err != nil {
			return wire.Job{}, err
		}
	}
	var err error
	job.Site, err = loadSite(s.flags)
	job.Env = config.TakeEnvironment()
	return job, err
}

func loadSite(flags config.Flags) (config.Site, error) {
	return config.Load(config.Sources{Flags: flags.Settings, Lookup: os.LookupEnv, Environ: os.Environ()})
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

// events tells of a signal, until ctx ends. Several in short succession are one.
func events(ctx context.Context, sig os.Signal) <-chan struct{} {
	signals, told := make(chan os.Signal, 1), make(chan struct{})
	signal.Notify(signals, sig)
	go func() {
		defer signal.Stop(signals)
		for {
			select {
			case <-signals:
			case <-ctx.Done():
				return
			}
			select {
			case told <- struct{}{}:
			case <-ctx.Done():
				return
			}
		}
	}()
	return told
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
