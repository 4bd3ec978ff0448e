package config

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"runtime"
	"strings"
	"time"
)

// Mode is what a command line asks for.
type Mode int

// The modes of the reference's command line (spec: cli-and-dispatch section 1).
const (
	ModeRun    Mode = iota // run one container in the foreground
	ModeDetach             // start one in the background
	ModeKill               // signal one that was started so
	ModeList               // list them
)

// Program is what the command line needs to know about the program itself.
type Program struct {
	// Name is argv[0] as given.
	Name string
	// Version is shown by -version.
	Version string
	// Roles are the sub-commands to name in the help text.
	Roles []string
	// ClusterConfig is the default of -config: $ARVADOS_CONFIG as it was when
	// the process started; "" means /etc/arvados/config.yml.
	ClusterConfig string
}

// Flags is a parsed command line. Obsolete flags are accepted and not kept.
type Flags struct {
	Mode Mode
	// UUID is the container's, as given: 27 bytes in ModeRun, not checked
	// otherwise and in content. It is "" in ModeList.
	UUID string
	// Args are all arguments, without a leading -no-detach: what a detached
	// child is started with.
	Args []string
	// NoDetach says that there was a leading -no-detach: this may be such a child.
	NoDetach bool

	BrokenNodeHook        string
	CACerts               string
	CgroupParentSubsystem string
	ClusterConfig         string
	// EnableNetworking "always" gives every container a network, not only those
	// with API access; no other value has a meaning.
	EnableNetworking   string
	NetworkMode        string
	CrunchstatInterval time.Duration
	EnableMemoryLimit  bool
	// KillSignal is the signal number in ModeKill.
	KillSignal  int
	MemProfile  string
	Sleep       time.Duration
	StdinConfig bool
	StdinPrices bool
	// RuntimeEngine is accepted whatever it is: dispatchers that know nothing
	// of this program name another engine.
	RuntimeEngine string

	// Settings are the site settings given as flags, for Sources.Flags.
	Settings map[string]string
}

// Exit ends the process after its messages have been written.
type Exit struct{ Code int }

// ParseFlags parses a command line, args being what follows the program's name.
// When there is nothing more to do, because of an error, -help or -version, it
// has written what there is to say and returns the exit status; otherwise the
// Exit is nil. Messages and statuses are those of the reference (spec:
// cli-and-dispatch section 1.2).
func ParseFlags(p Program, args []string, stdout, stderr io.Writer) (Flags, *Exit) {
	f := Flags{Args: args, Settings: map[string]string{}}
	if len(args) > 0 && args[0] == "-no-detach" {
		f.NoDetach = true
		args = args[1:]
		f.Args = args
	}
	var detach, list, version bool
	set := f.flagSet(p, &detach, &list, &version)
	switch err := set.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprintf(stderr, "Usage: %s [options] container-uuid\n", p.Name)
		set.SetOutput(stderr)
		set.PrintDefaults()
		if len(p.Roles) > 0 {
			fmt.Fprintf(stderr, "\nOther uses, each with its own -h: %s\n", strings.Join(p.Roles, ", "))
		}
		return f, &Exit{0}
	case err != nil:
		fmt.Fprintf(stderr, "error parsing command line arguments: %s (try -help)\n", err)
		return f, &Exit{2}
	}
	if version {
		fmt.Fprintf(stdout, "%s %s (%s)\n", p.Name, p.Version, runtime.Version())
		return f, &Exit{0}
	}
	if !list && set.NArg() != 1 {
		fmt.Fprintln(stderr, "missing required argument: container-uuid (try -help)")
		return f, &Exit{2}
	}
	switch {
	case detach && !f.NoDetach:
		f.Mode = ModeDetach
	case f.KillSignal >= 0:
		f.Mode = ModeKill
	case list:
		f.Mode = ModeList
		return f, nil
	}
	f.UUID = set.Arg(0)
	if f.Mode == ModeRun && len(f.UUID) != 27 {
		fmt.Fprintf(stderr, "usage: %s [options] UUID\n", p.Name)
		return f, &Exit{1}
	}
	return f, nil
}

// flagSet declares the reference's flags (spec: cli-and-dispatch section 1.1)
// and the site settings.
func (f *Flags) flagSet(p Program, detach, list, version *bool) *flag.FlagSet {
	clusterConfig := p.ClusterConfig
	if clusterConfig == "" {
		clusterConfig = DefaultClusterFile
	}
	set := flag.NewFlagSet(p.Name, flag.ContinueOnError)
	set.SetOutput(io.Discard) // ParseFlags writes the messages
	set.Usage = func() {}

	set.StringVar(&f.BrokenNodeHook, "broken-node-hook", "", "`program` to run, instead of marking the node as broken, when it cannot run containers")
	set.StringVar(&f.CACerts, "ca-certs", "", "`file` with the certificates of the authorities to trust (sets SSL_CERT_FILE)")
	set.StringVar(&f.CgroupParentSubsystem, "cgroup-parent-subsystem", "", "use the supervisor's own cgroup in this cgroup v1 `controller` (any word with v2) as parent of the container's")
	set.StringVar(&f.ClusterConfig, "config", clusterConfig, "cluster configuration `file`, used if -stdin-config is not given")
	set.StringVar(&f.EnableNetworking, "container-enable-networking", "default", "\"always\": give every container a network; anything else: only those with API access")
	set.StringVar(&f.NetworkMode, "container-network-mode", "default", "network of containers that get one: default (what the site says), bridge, host or none")
	set.DurationVar(&f.CrunchstatInterval, "crunchstat-interval", 10*time.Second, "sampling period of the statistics")
	set.BoolVar(detach, "detach", false, "start the container in the background and return at once")
	set.BoolVar(&f.EnableMemoryLimit, "enable-memory-limit", true, "limit the container's memory to what it asked for")
	set.IntVar(&f.KillSignal, "kill", -1, "send this `signal` (a number) to the supervisor of a container started with -detach")
	set.BoolVar(list, "list", false, "list the containers started with -detach that still run")
	set.StringVar(&f.MemProfile, "memprofile", "", "write a heap profile to this `file` after the run")
	set.StringVar(&f.RuntimeEngine, "runtime-engine", "docker", "accepted for compatibility; every `engine` means this program's own")
	set.DurationVar(&f.Sleep, "sleep", 0, "wait before doing anything (for tests)")
	set.BoolVar(&f.StdinConfig, "stdin-config", false, "read environment and cluster configuration from stdin, as JSON")
	set.BoolVar(&f.StdinPrices, "stdin-prices", false, "with -list: read the instance's prices from stdin, as JSON")
	set.BoolVar(version, "version", false, "print the version and exit")

	const obsolete = "obsolete, ignored"
	set.String("cgroup-parent", "docker", obsolete)
	set.String("cgroup-root", "/sys/fs/cgroup", obsolete)
	set.Duration("check-containerd", 0, obsolete)

	set.Var(&settingFlag{name: siteFileFlag, def: DefaultSiteFile, into: f.Settings}, siteFileFlag, "site configuration `file`")
	for _, d := range settings {
		set.Var(&settingFlag{name: d.name, def: d.def, parse: d.parse, into: f.Settings}, d.name, d.usage)
	}
	return set
}

// settingFlag is a site setting as a flag: checked when parsed, kept as text.
type settingFlag struct {
	name, def string
	parse     func(*Site, string) error
	into      map[string]string
}

// String is the default value in the help text.
func (s *settingFlag) String() string { return s.def }

// Set implements flag.Value.
func (s *settingFlag) Set(text string) error {
	if s.parse != nil {
		if err := s.parse(&Site{}, text); err != nil {
			return err
		}
	}
	s.into[s.name] = text
	return nil
}
